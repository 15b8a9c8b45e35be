"""A directory remote's folder behind a web server: everything can be pulled, nothing can be pushed."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from conceptry.digests import Digest
from conceptry.errors import ConceptryError, IntegrityError, NotFoundError, RemoteError, UsageError
from conceptry.names import ConceptName, Reference, RemoteName, Tag, parse_version
from conceptry.registry import Registry
from conceptry.registry.catalogs import derive_version_list, parse_catalog, parse_version_list
from conceptry.registry.paths import Layout
from conceptry.registry.remotes import open_remote
from tests.registry.folders import CONTENTS, files_below, write_folder
from tests.simulators.http_server import FaultServer

IMP = ConceptName("me", "imp")
BLOB = Digest.of_bytes(CONTENTS)
WRITERS = 8


@pytest.fixture(autouse=True)
def _network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE")


@pytest.fixture
def studio(tmp_path: Path, registry: Registry) -> Path:
    """Give a folder that two versions were pushed to, one with a tag."""
    studio = tmp_path / "studio"
    for version in ("1.0.0", "1.1.0"):
        registry.publish(write_folder(tmp_path / version, version=version, title="a blue creature"))
        registry.push(f"me/imp@{version}", studio.as_uri())
    registry.tag("me/imp@1.0.0", Tag("stable"))
    registry.push("me/imp:stable", studio.as_uri())
    return studio


@pytest.fixture
def server(studio: Path) -> Iterator[FaultServer]:
    """Give a web server for the folder."""
    with FaultServer(studio) as running:
        yield running


@pytest.fixture
def second(tmp_path: Path, server: FaultServer) -> Registry:
    """Give an empty registry that knows the site."""
    other = Registry(tmp_path / "second")
    other.add_remote(RemoteName("site"), server.uri)
    return other


def test_pulled_version_has_the_same_identity_and_bytes(second: Registry, registry: Registry) -> None:
    pulled = second.pull("site::me/imp")
    assert (pulled.created, pulled.received_bytes) == (True, len(CONTENTS))
    assert pulled.digest == registry.resolve("me/imp@1.1.0").digest
    assert second.get("me/imp").blobs[BLOB].read_bytes() == CONTENTS


def test_pulling_again_asks_for_no_blob(second: Registry, server: FaultServer) -> None:
    second.pull("site::me/imp")
    again = second.pull("site::me/imp")
    assert (again.created, again.received_bytes) == (False, 0)
    assert len([seen for seen in server.seen if "/blobs/" in seen.path]) == 1


def test_version_is_pulled_by_number_by_tag_and_by_digest(second: Registry, registry: Registry) -> None:
    digest = registry.resolve("me/imp@1.0.0").digest
    for selector in ("@1.0.0", ":stable", f"@{digest}"):
        assert second.pull(f"site::me/imp{selector}").digest == digest
    assert second.pull("site::me/imp:latest").digest == registry.resolve("me/imp@1.1.0").digest


def test_concepts_are_found_and_listed(server: FaultServer) -> None:
    remote = open_remote(server.uri, {})
    (found,) = remote.search("BLUE lora")
    assert (found.name, found.title, found.families) == (IMP, "a blue creature", ("sd1",))
    assert list(remote.search("green")) == []
    assert [str(entry.version) for entry in remote.list_versions(IMP)] == ["1.0.0", "1.1.0"]
    assert remote.list_versions(ConceptName("me", "nobody")) == ()


def test_yanked_version_is_passed_over(second: Registry, server: FaultServer, studio: Path) -> None:
    open_remote(studio.as_uri(), {}).yank(IMP, parse_version("1.1.0"), "went wrong")
    remote = open_remote(server.uri, {})
    assert str(remote.resolve(Reference.parse("me/imp")).reference) == "me/imp@1.0.0"
    assert remote.resolve(Reference.parse("me/imp@1.1.0")).yanked == "went wrong"


def test_version_that_its_list_does_not_have_yet_is_found_by_its_file(
    server: FaultServer, studio: Path
) -> None:
    (studio / "refs" / "me" / "imp" / "versions.json").unlink()
    remote = open_remote(server.uri, {})
    assert str(remote.resolve(Reference.parse("me/imp@1.0.0")).reference) == "me/imp@1.0.0"
    with pytest.raises(NotFoundError, match="no concept is called"):
        remote.resolve(Reference.parse("me/imp"))


@pytest.mark.parametrize(
    ("name", "sentence"), [("me/imp@9.0.0", "has no version"), ("me/imp:beta", "has no tag")]
)
def test_what_is_not_there_is_told_with_what_is(server: FaultServer, name: str, sentence: str) -> None:
    with pytest.raises(NotFoundError, match=sentence) as caught:
        open_remote(server.uri, {}).resolve(Reference.parse(name))
    assert caught.value.hint is not None


def test_push_is_refused_with_the_way_that_works(
    registry: Registry, server: FaultServer, studio: Path
) -> None:
    before = files_below(studio)
    with pytest.raises(UsageError, match="can only be read") as caught:
        registry.push("me/imp", server.uri)
    assert "file:///" in (caught.value.hint or "")
    assert files_below(studio) == before


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"format": 2}', '{"format":1,"name":"me/imp"}', "\x00", "[" * 5000]
)
def test_damaged_lists_are_told_in_words(second: Registry, studio: Path, text: str) -> None:
    (studio / "refs" / "me" / "imp" / "versions.json").write_text(text)
    (studio / "catalog.json").write_text(text)
    with pytest.raises(IntegrityError, match="damaged"):
        second.pull("site::me/imp@1.0.0")
    with pytest.raises(IntegrityError, match="damaged"):
        second.open_remote(RemoteName("site")).search("imp")


def test_list_that_names_other_bytes_pulls_nothing(second: Registry, studio: Path) -> None:
    path = studio / "refs" / "me" / "imp" / "versions.json"
    digest = parse_version_list(path.read_bytes(), IMP).digests[parse_version("1.0.0")]
    path.write_bytes(path.read_bytes().replace(str(digest).encode(), f"sha256:{'0' * 64}".encode()))
    with pytest.raises(ConceptryError) as caught:
        second.pull("site::me/imp@1.0.0")
    assert caught.value.exit_code in (3, 4)
    assert second.list() == ()


def test_site_that_answers_everything_with_a_page_is_told(
    second: Registry, studio: Path, server: FaultServer
) -> None:
    from tests.simulators.http_faults import FAULTS

    (fault,) = [fault for fault in FAULTS if fault.name == "web page"]
    server.set_fault(fault, "versions.json", cut=0)
    with pytest.raises(RemoteError, match="answers with a web page") as caught:
        second.pull("site::me/imp")
    assert caught.value.exit_code == 5


def test_lists_are_what_the_folder_says_however_many_push_at_once(tmp_path: Path) -> None:
    studio = tmp_path / "studio"
    barrier = threading.Barrier(WRITERS)

    def push(number: int) -> None:
        registry = Registry(tmp_path / f"home{number}")
        name = "me/imp" if number % 2 else f"me/imp{number}"
        registry.publish(write_folder(tmp_path / f"imp{number}", name, f"1.{number}.0"))
        barrier.wait()
        registry.push(name, studio.as_uri())

    with ThreadPoolExecutor(WRITERS) as pool:
        list(pool.map(push, range(WRITERS)))
    layout = Layout(studio)
    assert layout.version_list(IMP).read_bytes() == derive_version_list(layout, IMP).to_bytes()
    names = [str(row.name) for row in parse_catalog(layout.catalog.read_bytes())]
    assert names == sorted(["me/imp", *(f"me/imp{number}" for number in range(0, WRITERS, 2))])
