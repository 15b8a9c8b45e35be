"""What a remote may answer at the edges of the protocols: found missing by mutants (docs/mutants.md)."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest

from conceptry.digests import Digest
from conceptry.errors import (
    ConflictError,
    IdentityChangedError,
    IntegrityError,
    NotFoundError,
    RemoteError,
    UsageError,
)
from conceptry.manifest import parse_manifest
from conceptry.names import ConceptName, Reference, RemoteName, Tag, parse_version
from conceptry.registry import Registry
from conceptry.registry.answers import RETRIED, find_origin
from conceptry.registry.attempts import Patience, Retry
from conceptry.registry.blobs import ignore_bytes
from conceptry.registry.catalogs import MAX_LIST_BYTES
from conceptry.registry.foreign import fetch_source
from conceptry.registry.http import Limits, Transport
from conceptry.registry.oci import OciRemote
from conceptry.registry.oci_client import OciClient, is_same_site
from conceptry.registry.protocol import Capabilities
from conceptry.registry.remotes import open_remote
from conceptry.registry.static_http import StaticRemote
from conceptry.registry.wire import Watch
from conceptry.sources import parse_source
from tests.registry.folders import write_folder
from tests.simulators.hub.server import Hub

IMP = ConceptName("me", "imp")
HUB = RemoteName("hub")
REPOSITORY = "alice/me.imp"
ONCE = Limits(attempts=1)
Answer = Callable[[str, str], bytes]
"""What a server says, of the first line and the headers of what it was asked."""


@pytest.fixture(autouse=True)
def _network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE")


@contextmanager
def serve(answer: Answer) -> Iterator[tuple[str, list[str]]]:
    """Give the address of a server that answers so, and the first lines of what it was asked."""
    asked: list[str] = []

    def run(listening: socket.socket) -> None:
        while True:
            try:
                connection, _ = listening.accept()
            except OSError:
                return
            with connection:
                received = b""
                while b"\r\n\r\n" not in received and (piece := connection.recv(65536)):
                    received += piece
                line, _, headers = received.decode("latin-1").partition("\r\n")
                asked.append(line)
                connection.sendall(answer(line, headers.lower()))

    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=run, args=(listening,))
        thread.start()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}", asked
        listening.shutdown(socket.SHUT_RDWR)
    thread.join()


def say(status: int, *lines: str, body: bytes = b"", length: int | None = None) -> bytes:
    """Return an answer after which the connection is closed."""
    size = f"Content-Length: {len(body) if length is None else length}"
    head = "\r\n".join([f"HTTP/1.1 {status} Whatever", "Connection: close", size, *lines])
    return f"{head}\r\n\r\n".encode() + body


# --- the web -------------------------------------------------------------------------------------------------------


def test_upload_is_never_sent_on_to_where_a_remote_redirects_it() -> None:
    with serve(lambda line, _: say(307, "Location: /other") if "/other" not in line else say(200)) as (
        uri,
        asked,
    ):
        with pytest.raises(RemoteError, match="sends uploads somewhere else"):
            Transport(uri, limits=ONCE).send("POST", f"{uri}/x", body=b"secret")
        assert asked == ["POST /x HTTP/1.1"]


def test_remote_that_redirects_in_a_circle_is_left_after_so_many_times() -> None:
    with serve(lambda line, _: say(302, "Location: /x")) as (uri, asked):
        with pytest.raises(RemoteError, match="redirects more than 2 times"):
            Transport(uri, limits=Limits(attempts=1, max_redirects=2)).read(f"{uri}/x", limit_bytes=10)
        assert len(asked) == 3


def test_document_that_is_shorter_than_its_length_is_not_taken_for_whole() -> None:
    def answer(line: str, headers: str) -> bytes:
        return say(200, "Transfer-Encoding: chunked", length=10) + b"5\r\nhello\r\n0\r\n\r\n"

    with serve(answer) as (uri, _), pytest.raises(RemoteError, match="ended after 5 of 10 bytes"):
        Transport(uri, limits=ONCE).read(f"{uri}/x", limit_bytes=100)


def test_body_may_take_longer_than_the_answer_may_take_to_begin() -> None:
    limits = Limits(attempts=1, answer_seconds=1.0, pace_seconds=60.0)
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def drip() -> None:
            connection, _ = listening.accept()
            with connection:
                connection.recv(65536)
                connection.sendall(say(200, length=2) + b"a")
                time.sleep(1.1)
                connection.sendall(b"b")

        thread = threading.Thread(target=drip)
        thread.start()
        uri = f"http://127.0.0.1:{listening.getsockname()[1]}"
        assert Transport(uri, limits=limits).read(f"{uri}/x", limit_bytes=10).body == b"ab"
        thread.join()


def test_pace_is_judged_after_a_while_and_not_from_the_first_byte(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    watch = Watch(Limits(pace_seconds=10.0, min_bytes_per_second=100), body_bytes=10_000, hosts=frozenset())
    watch.begin_body()
    now[0] = 9.0
    watch.count(1)
    now[0] = 11.0
    with pytest.raises(TimeoutError, match="only 2 bytes came in 11 seconds"):
        watch.count(1)


def test_what_a_server_sends_again_from_the_beginning_is_passed_over() -> None:
    data = bytes(range(256)) * 3000
    with serve(lambda line, _: say(200, body=data)) as (uri, asked):
        transport = Transport(uri, limits=Limits(attempts=2, backoff_seconds=0.0))
        with transport.stream(f"{uri}/x", size_bytes=len(data), offset_bytes=600_000) as pieces:
            assert b"".join(pieces) == data[600_000:]
        assert len(asked) == 1


def test_server_that_sends_another_part_is_asked_for_the_whole() -> None:
    data = b"0123456789"

    def answer(line: str, headers: str) -> bytes:
        if "range:" in headers:
            return say(206, "Content-Range: bytes 0-4/10", body=data[:5])
        return say(200, body=data)

    with serve(answer) as (uri, asked):
        transport = Transport(uri, limits=Limits(attempts=3, backoff_seconds=0.0))
        with transport.stream(f"{uri}/x", size_bytes=10, offset_bytes=5) as pieces:
            assert b"".join(pieces) == data[5:]
        assert len(asked) == 2


def test_progress_makes_earlier_failures_count_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    patience = Patience(Limits(attempts=3, backoff_seconds=0.0), deadline_seconds=60)
    for _ in range(3):
        patience.wait(Retry(RemoteError("busy")))
        patience.wait(Retry(RemoteError("busy")))
        patience.begin_anew()


def test_statuses_that_may_pass_are_those_of_the_standard() -> None:
    assert {408, 425, 429, 500, 502, 503, 504} == RETRIED
    assert find_origin("http://host/x") == "http://host:80"
    assert find_origin("https://host/x") == "https://host:443"


def test_lists_and_files_that_are_too_large_are_refused_before_they_come(tmp_path: Path) -> None:
    with serve(lambda line, _: say(200, length=MAX_LIST_BYTES + 1)) as (uri, asked):
        with pytest.raises(IntegrityError, match="more than the 8388608 bytes"):
            list(open_remote(uri, {}).search("imp"))
        assert len(asked) == 1
    with serve(lambda line, _: say(200, length=(64 << 30) + 1)) as (uri, asked):
        source = parse_source(f"{uri}/imp.safetensors#sha256={'0' * 64}")
        assert source is not None
        with pytest.raises(RemoteError, match="does not say how many bytes it has"):
            fetch_source(source, tmp_path, tmp_path)
        assert [line.split(" ")[0] for line in asked] == ["HEAD"]


# --- registries of containers --------------------------------------------------------------------------------------


def test_list_that_goes_on_at_another_address_is_refused() -> None:
    link = 'Link: <http://127.0.0.1:1/v2/_catalog?last=a>; rel="next"'
    with serve(
        lambda line, _: say(200, link, "Content-Type: application/json", body=b'{"tags": ["1.0.0"]}')
    ) as (
        uri,
        asked,
    ):
        with pytest.raises(RemoteError, match="continues its list at another address"):
            OciClient(uri).list_tags("me/imp")
        assert len(asked) == 1


def test_registry_is_told_from_where_it_may_take_the_bytes(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"bytes")
    digest = Digest.of_bytes(b"bytes")

    def answer(line: str, headers: str) -> bytes:
        return say(404) if line.startswith("HEAD") else say(201)

    with serve(answer) as (uri, asked):
        client = OciClient(uri)
        client.put_file("me/a", digest, 5, tmp_path / "file", known_in="me/b", on_bytes=ignore_bytes)
        client.put_file("me/a", digest, 5, tmp_path / "file", known_in=None, on_bytes=ignore_bytes)
        posts = [parse_qs(urlsplit(line.split(" ")[1]).query) for line in asked if line.startswith("POST")]
    assert posts == [{"mount": [str(digest)], "from": ["me/b"]}, {"mount": [str(digest)]}]


def test_owners_below_the_domain_of_a_country_are_not_taken_for_one() -> None:
    assert not is_same_site("https://evil.com.au/token", "https://registry.com.au")
    assert is_same_site("https://auth.lab.com.au/token", "https://registry.lab.com.au")


@pytest.mark.parametrize(
    ("uri", "kind", "capabilities"),
    [
        ("https://example.org/concepts", StaticRemote, Capabilities(writable=False, compare_and_swap=False)),
        ("oci://example.org/lab", OciRemote, Capabilities(writable=True, compare_and_swap=False)),
    ],
)
def test_what_a_remote_cannot_do_is_known_before_it_is_asked(
    uri: str, kind: type[object], capabilities: Capabilities
) -> None:
    remote = open_remote(uri, {})
    assert (type(remote), remote.capabilities) == (kind, capabilities)


# --- the Hub -------------------------------------------------------------------------------------------------------


def test_tag_on_the_hub_that_somebody_moved_meanwhile_is_a_conflict(pushed: Registry, tmp_path: Path) -> None:
    remote, version = pushed.open_remote(HUB), pushed.resolve("me/imp")
    remote.move_tag(IMP, Tag("stable"), version, expected=None)
    pushed.publish(write_folder(tmp_path / "next", version="1.1.0", file=b"more"))
    pushed.push("me/imp@1.1.0", HUB)
    with pytest.raises(ConflictError, match=r"me/imp:stable was moved by somebody else to 1\.0\.0"):
        remote.move_tag(IMP, Tag("stable"), pushed.resolve("me/imp@1.1.0"), expected=None)
    assert remote.resolve(Reference.parse("me/imp:stable")).resolved == version


def test_version_on_the_hub_is_yanked_and_taken_back_once(pushed: Registry) -> None:
    remote, version = pushed.open_remote(HUB), parse_version("1.0.0")
    remote.yank(IMP, version, "the wrong pictures")
    assert [entry.yanked for entry in remote.list_versions(IMP)] == ["the wrong pictures"]
    with pytest.raises(UsageError, match="needs a reason"):
        remote.yank(IMP, version, "  ")
    remote.yank(IMP, version, None)
    assert [entry.yanked for entry in remote.list_versions(IMP)] == [None]
    with pytest.raises(NotFoundError, match="is not yanked"):
        remote.yank(IMP, version, None)


def test_commit_that_is_gone_from_the_same_repository_is_told_from_another_repository(
    pushed: Registry, hub: Hub
) -> None:
    remote = pushed.open_remote(HUB)
    version = remote.resolve(Reference.parse("me/imp@1.0.0"))
    (file,) = parse_manifest(remote.get_manifest(version)).iter_files()
    assert version.commit is not None
    repository = hub.repositories.get(REPOSITORY)
    assert repository is not None
    kept = repository.commits.pop(version.commit)
    repository.commits["f" * 40] = kept
    repository.branches["main"] = "f" * 40
    repository.tags["v1.0.0"] = "f" * 40
    with pytest.raises(IdentityChangedError, match="is gone from") as caught, remote.get(version, file):
        pytest.fail("that commit is gone")
    assert "history was rewritten" in (caught.value.hint or "")
