"""Files of others on the Hub and on the web: imported, required by a project, locked, and brought back."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from conceptry.digests import Digest
from conceptry.registry import Registry
from conceptry.registry.packing import pack_project, unpack_project
from conceptry.registry.workspace import Workspace
from tests.cli.packages import write_package
from tests.registry.test_whole_loop import Person
from tests.simulators.http_server import FaultServer
from tests.simulators.hub.repositories import Entry
from tests.simulators.hub.use import use_hub

NAME = "lora.safetensors"
SAID = ("--name", "me/found", "--placeholder", "<found>", "--license", "CC0-1.0", "--base", "sd1")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Give an adapter that somebody else made, in a folder of its own."""
    made = write_package(tmp_path / "made") / NAME
    (tmp_path / "theirs").mkdir()
    return made.rename(tmp_path / "theirs" / NAME)


@pytest.fixture(params=["hf", "url"])
def source(
    request: pytest.FixtureRequest, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[str]:
    """Give where the file lies, as a person writes it."""
    monkeypatch.delenv("HF_HUB_OFFLINE")
    data = file.read_bytes()
    digest = Digest.of_bytes(data)
    if request.param == "url":
        with FaultServer(file.parent) as server:
            yield f"{server.uri}/{NAME}#{str(digest).replace(':', '=')}"
        return
    with use_hub(tmp_path / "hub", monkeypatch) as hub:
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
        hub.redirect_to_cdn = False  # client 1.33 takes another port of this machine for the Hub itself
        theirs = hub.repositories.create("bob/loras")
        hub.repositories.path(digest.hex).write_bytes(data)
        hub.repositories.commit(theirs, "files", {NAME: Entry(digest.hex, len(data), lfs=True)}, ())
        yield f"hf://bob/loras@main/{NAME}"


@pytest.fixture
def person(tmp_path: Path) -> Person:
    """Give somebody with a store and a project."""
    return Person(tmp_path / "home", tmp_path / "project")


def test_file_is_imported_as_if_it_lay_here(source: str, file: Path, person: Person, tmp_path: Path) -> None:
    imported = person.run("import", source, *SAID, "--yes")
    other = Person(tmp_path / "other", tmp_path)
    assert other.run("import", str(file), *SAID, "--yes")["digest"] == imported["digest"]


def test_required_file_is_locked_by_its_digest_and_restored(
    source: str, file: Path, person: Person, tmp_path: Path
) -> None:
    person.run("add", source, *SAID)
    other = Person(tmp_path / "other-home", tmp_path / "other")
    other.run("add", source, *SAID)
    locks = [(one.project / "concepts.lock").read_bytes() for one in (person, other)]
    assert locks[0] == locks[1]
    assert f'"{Digest.of_bytes(file.read_bytes())}"' in locks[0].decode()
    person.run("sync", "--frozen")
    before = person.contents()
    shutil.rmtree(person.home)
    person.run("sync", "--frozen")
    assert person.contents() == before


def test_changed_file_is_refused(source: str, file: Path, person: Person, tmp_path: Path) -> None:
    if source.startswith("hf://"):
        pytest.skip("the Hub names files by their digest: tests/registry/test_hub.py")
    person.run("add", source, *SAID)
    file.write_bytes(file.read_bytes()[:-1] + b"X")
    assert "has digest" in person.run("sync", "--frozen", code=4)["error"]
    assert (
        "has digest"
        in Person(tmp_path / "other", tmp_path / "b").run("import", source, *SAID, "--yes", code=4)["error"]
    )


def test_network_that_is_forbidden_is_not_asked(source: str, person: Person) -> None:
    assert "forbid" in person.run("import", source, *SAID, "--yes", "--offline", code=5)["error"]


def test_bundle_brings_the_file_where_its_source_is_out_of_reach(
    source: str, person: Person, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    person.run("add", source, *SAID)
    pack_project(Workspace(Registry(person.home), person.project), tmp_path / "b.tar")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    shutil.rmtree(tmp_path / "cache", ignore_errors=True)
    island = Registry(tmp_path / "island")
    (tmp_path / "restored").mkdir()
    _, synced = unpack_project(island, tmp_path / "b.tar", tmp_path / "restored")
    assert [str(one.concept) for one in synced.installed] == ["me/found"]
    assert island.verify() == ()
