"""Concepts in a bucket: a real S3 client against moto's S3 on a free port."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from conceptry.digests import Digest
from conceptry.errors import IntegrityError, RemoteError, UsageError
from conceptry.names import ConceptName, RemoteName
from conceptry.registry import Registry
from conceptry.registry.blobs import ignore_bytes
from conceptry.registry.objects import check_bucket
from conceptry.registry.remotes import open_remote
from tests.registry.folders import CONTENTS, make_manifest, write_folder
from tests.simulators.registries import find_free_port, run_s3

STUDIO = RemoteName("studio")
BLOB = Digest.of_bytes(CONTENTS)


@pytest.fixture(autouse=True)
def _network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE")


@pytest.fixture
def uri(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Give the address of an empty bucket."""
    with run_s3(monkeypatch) as bucket:
        yield f"s3://{bucket}/lab"


def test_the_whole_loop_and_nothing_twice(registry: Registry, imp: Path, uri: str, tmp_path: Path) -> None:
    registry.publish(imp)
    assert registry.push("me/imp", uri).created
    second = Registry(tmp_path / "second")
    second.add_remote(STUDIO, uri)
    assert [found.name for found in second.open_remote(STUDIO).search("imp")] == [ConceptName("me", "imp")]
    pulled = second.pull("studio::me/imp")
    assert (pulled.created, pulled.digest) == (True, registry.resolve("me/imp").digest)
    assert second.get("me/imp").blobs[BLOB].read_bytes() == CONTENTS
    for other in (registry, second):
        repeated = other.push("me/imp", uri)
        assert (repeated.created, repeated.sent_bytes) == (False, 0)


def test_file_that_changed_on_its_way_is_not_kept(
    registry: Registry, imp: Path, uri: str, tmp_path: Path
) -> None:
    registry.publish(imp)
    (file,) = make_manifest().iter_files()
    (tmp_path / "blob").write_bytes(b"X" * len(CONTENTS))
    remote = open_remote(uri, {})
    with pytest.raises(IntegrityError, match="does not have digest"):
        remote.put(registry.resolve("me/imp"), file, tmp_path / "blob", on_bytes=ignore_bytes)
    assert not remote.has(registry.resolve("me/imp"), file)


def test_forbidden_network_is_not_used(
    registry: Registry, imp: Path, uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry.publish(imp)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(RemoteError, match="the network is forbidden"):
        registry.push("me/imp", uri)


@pytest.mark.slow
def test_bucket_that_does_not_answer_is_told_without_its_keys(
    registry: Registry, imp: Path, uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry.publish(imp)
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{find_free_port()}")
    with pytest.raises(RemoteError, match="cannot be used") as caught:
        registry.push("me/imp", uri)
    assert caught.value.exit_code == 5
    assert os.environ["AWS_SECRET_ACCESS_KEY"] not in f"{caught.value} {caught.value.hint}"


@pytest.mark.parametrize(
    "address",
    [
        "s3://",
        "s3://UPPER/x",
        "s3://key:canary@bucket/x",
        "s3://bucket/x?endpoint=http://evil",
        "s3://b/../x/..",
    ],
)
def test_address_that_is_none_is_refused_without_its_secret(address: str) -> None:
    with pytest.raises(UsageError) as caught:
        check_bucket(address)
    assert "canary" not in str(caught.value)


def test_several_versions_share_equal_bytes(registry: Registry, uri: str, tmp_path: Path) -> None:
    for version in ("1.0.0", "1.1.0"):
        registry.publish(write_folder(tmp_path / version, version=version))
    assert registry.push("me/imp@1.0.0", uri).sent_bytes == len(CONTENTS)
    assert registry.push("me/imp@1.1.0", uri).sent_bytes == 0


@pytest.fixture
def page(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Give the address of a bucket where a web page answers everything, as a proxy that asks for a login does."""
    pytest.importorskip("s3fs", reason="s3fs is not installed: make install")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "testing")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "canary-91c4")

    class Page(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = b"<!DOCTYPE html><html><body>Please log in</body></html>"
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        do_HEAD = do_PUT = do_POST = do_GET  # noqa: N815 - the names that the server calls

        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Page) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_port}")
        yield "s3://studio/lab"
        server.shutdown()


def test_a_web_page_in_the_place_of_a_bucket_is_called_one(
    registry: Registry, imp: Path, page: str, tmp_path: Path
) -> None:
    registry.publish(imp)
    second = Registry(tmp_path / "second")
    second.add_remote(STUDIO, page)
    for ask in (lambda: registry.push("me/imp", page), lambda: second.pull("studio::me/imp@1.0.0")):
        with pytest.raises(RemoteError, match="answers with a web page") as caught:
            ask()
        assert caught.value.exit_code == 5
