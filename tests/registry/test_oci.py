"""Concepts in a registry of containers: Debian's docker-registry, the oras client beside ours, and hostile ones."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from conceptry.digests import Digest
from conceptry.errors import ConflictError, NotFoundError, RemoteError, UsageError
from conceptry.names import ConceptName, Reference, RemoteName, Tag, parse_version
from conceptry.registry import Registry
from conceptry.registry.blobs import ignore_bytes
from conceptry.registry.oci import OciRemote
from conceptry.registry.oci_client import OciClient, find_login, is_same_site
from conceptry.registry.oci_layout import OciAddress, name_version, read_document, read_version_tag
from conceptry.registry.remotes import open_remote
from tests.registry.folders import CONTENTS, files_below, make_manifest, write_folder
from tests.simulators.http_faults import FAULTS
from tests.simulators.http_server import FaultServer
from tests.simulators.registries import PASSWORD, USER, run_registry

IMP = ConceptName("me", "imp")
STUDIO = RemoteName("studio")
BLOB = Digest.of_bytes(CONTENTS)


@pytest.fixture(autouse=True)
def _network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / ".docker"))
    monkeypatch.setenv("HOME", str(tmp_path))


@pytest.fixture
def host(tmp_path: Path) -> Iterator[str]:
    """Give a running registry."""
    with run_registry(tmp_path / "registry") as running:
        yield running


@pytest.fixture
def pushed(registry: Registry, imp: Path, host: str) -> Registry:
    """Give a registry whose concept lies in the registry of containers."""
    registry.add_remote(STUDIO, f"oci+http://{host}/lab")
    registry.publish(imp)
    registry.push("me/imp", STUDIO)
    return registry


@pytest.fixture
def second(tmp_path: Path, pushed: Registry) -> Registry:
    """Give an empty registry that knows the same remote."""
    other = Registry(tmp_path / "second")
    other.add_remote(STUDIO, pushed.remotes()[STUDIO])
    return other


def test_what_was_pushed_is_found_and_pulled_elsewhere(pushed: Registry, second: Registry) -> None:
    remote = second.open_remote(STUDIO)
    assert [found.name for found in remote.search("imp")] == [IMP]
    pulled = second.pull("studio::me/imp")
    assert (pulled.created, pulled.digest) == (True, pushed.resolve("me/imp").digest)
    assert second.get("me/imp").blobs[BLOB].read_bytes() == CONTENTS


def test_push_pull_push_changes_nothing(pushed: Registry, second: Registry, tmp_path: Path) -> None:
    second.pull("studio::me/imp")
    before = files_below(tmp_path / "registry")
    for registry in (pushed, second):
        repeated = registry.push("me/imp", STUDIO)
        assert (repeated.created, repeated.sent_bytes) == (False, 0)
    assert files_below(tmp_path / "registry") == before


def test_registrys_own_manifest_is_the_same_wherever_it_is_pushed_from(
    pushed: Registry, tmp_path: Path
) -> None:
    with run_registry(tmp_path / "elsewhere") as host:
        other = Registry(tmp_path / "other")
        other.publish(write_folder(tmp_path / "copy"))
        other.push("me/imp", f"oci+http://{host}/else/where")
        there = open_remote(f"oci+http://{host}/else/where", {}).resolve(Reference.parse("me/imp"))
    here = pushed.open_remote(STUDIO).resolve(Reference.parse("me/imp"))
    assert here.commit == there.commit
    assert here.commit is not None


def test_version_with_build_metadata_and_tags_come_back(
    registry: Registry, host: str, tmp_path: Path
) -> None:
    uri = f"oci+http://{host}"
    registry.publish(write_folder(tmp_path / "imp2", version="1.0.0-rc.1+Build.5"))
    registry.tag("me/imp@1.0.0-rc.1+Build.5", Tag("beta"))
    registry.push("me/imp:beta", uri)
    remote = open_remote(uri, {})
    assert [str(entry.version) for entry in remote.list_versions(IMP)] == ["1.0.0-rc.1+Build.5"]
    assert str(remote.resolve(Reference.parse("me/imp:beta")).reference) == "me/imp@1.0.0-rc.1+Build.5"
    with pytest.raises(NotFoundError, match="has no tag") as caught:
        remote.resolve(Reference.parse("me/imp:betta"))
    assert caught.value.hint == "did you mean 'beta'?"


def test_tag_that_somebody_moved_meanwhile_is_a_conflict(pushed: Registry, tmp_path: Path) -> None:
    remote = pushed.open_remote(STUDIO)
    pushed.publish(write_folder(tmp_path / "imp2", version="1.1.0"))
    pushed.push("me/imp@1.1.0", STUDIO)
    first, next_one = (pushed.resolve(f"me/imp@{number}") for number in ("1.0.0", "1.1.0"))
    remote.move_tag(IMP, Tag("stable"), first, expected=None)
    with pytest.raises(ConflictError, match="was moved by somebody else"):
        remote.move_tag(IMP, Tag("stable"), next_one, expected=None)
    seen = remote.read_tag(IMP, Tag("stable"))
    assert remote.move_tag(IMP, Tag("stable"), next_one, expected=seen).version == parse_version("1.1.0")


def test_equal_files_of_two_concepts_are_sent_once(registry: Registry, host: str, tmp_path: Path) -> None:
    remote = open_remote(f"oci+http://{host}/lab", {})
    (file,) = make_manifest().iter_files()
    (tmp_path / "blob").write_bytes(CONTENTS)
    registry.publish(write_folder(tmp_path / "a", "me/a"))
    registry.publish(write_folder(tmp_path / "b", "me/b"))
    counts: list[int] = []
    for name in ("me/a", "me/b"):
        remote.put(registry.resolve(name), file, tmp_path / "blob", on_bytes=counts.append)
        assert remote.has(registry.resolve(name), file)
    assert len(list((tmp_path / "registry").rglob(f"blobs/sha256/*/{BLOB.hex}/data"))) == 1
    assert len(list((tmp_path / "registry").rglob("_uploads/*"))) == 0


def test_standard_client_reads_what_was_pushed(pushed: Registry, host: str, tmp_path: Path) -> None:
    oras = pytest.importorskip("oras.client", reason="oras is not installed: make install")
    client = oras.OrasClient(hostname=host, insecure=True, tls_verify=False)
    (path,) = client.pull(target=f"{host}/lab/me/imp:1.0.0", outdir=str(tmp_path / "out"))
    assert Path(path).name == "lora.safetensors"
    assert Path(path).read_bytes() == CONTENTS


def test_login_comes_from_dockers_configuration_and_reaches_its_host_only(
    registry: Registry, imp: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("oras", reason="oras is not installed: make install")
    registry.publish(imp)
    with run_registry(tmp_path / "closed", login=True) as host:
        uri = f"oci+http://{host}/lab"
        with pytest.raises(RemoteError, match="asks who you are") as caught:
            registry.push("me/imp", uri)
        assert caught.value.exit_code == 5
        login = base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
        (tmp_path / ".docker").mkdir()
        config = {"auths": {host: {"auth": login}, "127.0.0.1:1": {"auth": "eDp5"}}}
        (tmp_path / ".docker" / "config.json").write_text(json.dumps(config))
        assert registry.push("me/imp", uri).created
        assert find_login("127.0.0.1:2") is None


def test_login_from_the_environment_is_for_the_host_it_names(
    registry: Registry, imp: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("oras", reason="oras is not installed: make install")
    registry.publish(imp)
    with run_registry(tmp_path / "closed", login=True) as host:
        monkeypatch.setenv("CONCEPTRY_OCI_USERNAME", USER)
        monkeypatch.setenv("CONCEPTRY_OCI_PASSWORD", PASSWORD)
        monkeypatch.setenv("CONCEPTRY_OCI_HOST", "127.0.0.1:1")
        with pytest.raises(RemoteError, match="asks who you are"):
            registry.push("me/imp", f"oci+http://{host}/lab")
        monkeypatch.setenv("CONCEPTRY_OCI_HOST", host)
        assert registry.push("me/imp", f"oci+http://{host}/lab").created
        pulled = Registry(tmp_path / "second")
        pulled.add_remote(STUDIO, f"oci+http://{host}/lab")
        assert pulled.pull("studio::me/imp").created


@pytest.mark.parametrize(
    ("realm", "origin", "same"),
    [
        ("https://auth.docker.io/token", "https://registry-1.docker.io", True),
        ("https://ghcr.io/token", "https://ghcr.io", True),
        ("https://evil.example.org/token", "https://ghcr.io", False),
        ("http://ghcr.io/token", "https://ghcr.io", False),
        ("https://evil.co.uk/token", "https://registry.co.uk", False),
        ("https://auth.lab.co.uk/token", "https://registry.lab.co.uk", True),
        ("http://127.0.0.2/token", "http://127.0.0.1:5000", False),
        ("file:///etc/passwd", "https://ghcr.io", False),
    ],
)
def test_login_goes_to_its_own_site_only(realm: str, origin: str, same: bool) -> None:
    assert is_same_site(realm, origin) is same


@pytest.mark.parametrize("data", [b"", b"[]", b"{}", b'{"config": {"mediaType": "x"}}', b"[" * 5000, b"\xff"])
def test_something_else_under_a_tag_is_told(data: bytes) -> None:
    with pytest.raises(RemoteError, match="holds no concept"):
        read_document(data, "oci://x/me/imp:1.0.0")


def test_registry_that_answers_with_pages_or_not_at_all_is_told(tmp_path: Path) -> None:
    (page,) = [fault for fault in FAULTS if fault.name == "web page"]
    folder = tmp_path / "site" / "v2" / "me" / "imp" / "tags"
    folder.mkdir(parents=True)
    (folder / "list?n=1000").write_bytes(b"{}")
    with FaultServer(tmp_path / "site") as server:
        server.set_fault(page, "n=1000", cut=0)
        address = OciAddress.parse(server.uri.replace("http", "oci+http"))
        with pytest.raises(RemoteError, match="no list") as caught:
            OciRemote(address, OciClient(address.origin)).resolve(Reference.parse("me/imp"))
    assert (caught.value.exit_code, caught.value.hint is not None) == (5, True)


def test_file_that_changed_on_its_way_is_not_kept(pushed: Registry, host: str, tmp_path: Path) -> None:
    (file,) = make_manifest().iter_files()
    (tmp_path / "blob").write_bytes(CONTENTS + b"more")
    remote = open_remote(f"oci+http://{host}/other", {})
    with pytest.raises(Exception, match="does not have digest") as caught:
        remote.put(pushed.resolve("me/imp"), file, tmp_path / "blob", on_bytes=ignore_bytes)
    assert getattr(caught.value, "exit_code", None) == 4
    assert not remote.has(pushed.resolve("me/imp"), file)


@pytest.mark.parametrize(
    "uri", ["oci://", "oci://host/UPPER", "oci://me:pw@host/x", "oci://host/a//b", "oci://host/x?y=1"]
)
def test_address_that_is_none_is_refused(uri: str) -> None:
    with pytest.raises(UsageError) as caught:
        open_remote(uri, {})
    assert "pw" not in str(caught.value)


@pytest.mark.parametrize("text", ["1.0.0", "1.0.0-rc.1", "1.0.0+a.b", "1.0.0-x+y"])
def test_version_and_its_tag_are_one_to_one(text: str) -> None:
    assert read_version_tag(name_version(parse_version(text))) == parse_version(text)
