"""The whole loop over every kind of remote, as two people type it: each kind keeps the same promises."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import pytest
from click.testing import CliRunner

from conceptry.cli.main import concepts
from tests.registry.folders import files_below, temporaries_below, write_folder
from tests.simulators.http_server import FaultServer
from tests.simulators.hub.use import ADDRESS, use_hub
from tests.simulators.registries import find_free_port, run_registry, run_s3

ONLINE: Final[dict[str, str | None]] = {"HF_HUB_OFFLINE": None, "TRANSFORMERS_OFFLINE": None}
HAT, IMP = b"weights of a hat" * 300, b"weights of an imp" * 300


@dataclass(slots=True)
class Place:
    """A remote of one kind: where it is pushed to and pulled from, and how it goes away."""

    push_uri: str
    pull_uri: str
    closing: ExitStack = field(default_factory=ExitStack)

    def disappear(self) -> None:
        """Ends what answers."""
        self.closing.close()


@dataclass(frozen=True, slots=True)
class Person:
    """Somebody with a store and a project of their own, who types commands."""

    home: Path
    project: Path

    def run(self, *words: str, code: int = 0) -> dict[str, Any]:
        """Returns what ``concepts WORDS --json`` printed."""
        self.project.mkdir(parents=True, exist_ok=True)
        with pytest.MonkeyPatch.context() as monkeypatch:
            monkeypatch.chdir(self.project)
            environment = {**ONLINE, "CONCEPTRY_HOME": str(self.home)}
            result = CliRunner().invoke(concepts, [*words, "--json"], prog_name="concepts", env=environment)
        assert result.exit_code == code, f"{result.stderr}\n{result.stdout}"
        return dict(json.loads(result.stdout)) if code == 0 else {"error": result.stderr}

    def contents(self) -> dict[str, bytes]:
        """Returns what the store holds that counts: blobs, manifests and references."""
        kept = ("blobs/", "manifests/", "refs/")
        names = [name for name in files_below(self.home) if name.startswith(kept)]
        return {name: (self.home / name).read_bytes() for name in names}


# --- the kinds of remotes ------------------------------------------------------------------------------------------


@contextmanager
def use_directory(root: Path, _: pytest.MonkeyPatch) -> Iterator[Place]:
    place = Place((root / "shared").as_uri(), (root / "shared").as_uri())
    place.closing.callback(shutil.rmtree, root / "shared")
    yield place


@contextmanager
def use_site(root: Path, _: pytest.MonkeyPatch) -> Iterator[Place]:
    (root / "shared").mkdir()
    place = Place((root / "shared").as_uri(), "")
    place.pull_uri = place.closing.enter_context(FaultServer(root / "shared")).uri
    with place.closing:
        yield place


@contextmanager
def use_hub_double(root: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    place = Place(ADDRESS, ADDRESS)
    place.closing.enter_context(use_hub(root / "hub", monkeypatch))
    with place.closing:
        yield place


@contextmanager
def use_containers(root: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    monkeypatch.setenv("DOCKER_CONFIG", str(root / ".docker"))
    place = Place("", "")
    host = place.closing.enter_context(run_registry(root / "containers"))
    place.push_uri = place.pull_uri = f"oci+http://{host}/lab"
    with place.closing:
        yield place


@contextmanager
def use_bucket(_: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    with run_s3(monkeypatch) as bucket:
        place = Place(f"s3://{bucket}/lab", f"s3://{bucket}/lab")
        nobody = f"http://127.0.0.1:{find_free_port()}"
        place.closing.callback(monkeypatch.setenv, "AWS_ENDPOINT_URL", nobody)
        yield place


Use = Callable[[Path, pytest.MonkeyPatch], Any]
KINDS: Final[dict[str, Use]] = {
    "directory": use_directory,
    "static site": use_site,
    "hub": use_hub_double,
    "oci": use_containers,
    "s3": use_bucket,
}


@pytest.fixture(params=KINDS)
def place(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    """Give an empty remote of each kind."""
    monkeypatch.delenv("HF_HUB_OFFLINE")
    with KINDS[request.param](tmp_path, monkeypatch) as made:
        yield made


@pytest.fixture
def maker(place: Place, tmp_path: Path) -> Person:
    """Give somebody who published an imp and the hat that it requires, and pushed both."""
    person = Person(tmp_path / "maker", tmp_path / "maker-project")
    person.run("publish", str(write_folder(tmp_path / "hat", "me/hat", file=HAT, title="A red hat")))
    imp = write_folder(tmp_path / "imp", "me/imp", file=IMP, requires=["me/hat@^1"], title="A blue imp")
    person.run("publish", str(imp))
    for name in ("me/hat", "me/imp"):
        assert person.run("push", name, place.push_uri)["created"]
    return person


@pytest.fixture
def user(place: Place, maker: Person, tmp_path: Path) -> Person:
    """Give somebody else, who knows the remote as ``studio``."""
    person = Person(tmp_path / "user", tmp_path / "project")
    person.run("remote", "add", "studio", place.pull_uri)
    return person


# --- what each keeps -----------------------------------------------------------------------------------------------


def test_lock_restores_a_deleted_store_byte_for_byte_and_then_needs_nobody(
    user: Person, place: Place
) -> None:
    found = user.run("search", "imp", "--remote", "studio")["concepts"]
    assert [(row["namespace"], row["name"]) for row in found] == [("me", "imp")]
    user.run("add", "studio::me/imp")
    user.run("lock", "--check")
    assert user.run("sync")["installed"] == ["me/hat@1.0.0", "me/imp@1.0.0"]
    lock, before = (user.project / "concepts.lock").read_bytes(), user.contents()
    shutil.rmtree(user.home)
    synced = user.run("sync", "--frozen")
    assert (synced["concepts"], synced["received_bytes"]) == (2, len(HAT) + len(IMP))
    assert user.contents() == before
    assert (user.project / "concepts.lock").read_bytes() == lock
    assert temporaries_below(user.home) == []
    place.disappear()
    for words in (("sync", "--frozen", "--offline"), ("sync", "--offline"), ("sync",), ("lock",)):
        user.run(*words)
    assert user.run("verify")["findings"] == []
    shutil.rmtree(user.home)
    user.run("sync", "--frozen", "--offline", code=3 if place.pull_uri.startswith("file:") else 5)


def test_push_pull_push_sends_and_changes_nothing_more(user: Person, maker: Person, place: Place) -> None:
    pulled = user.run("pull", "studio::me/imp", "studio::me/hat", "studio::me/imp")["concepts"]
    published = {row["reference"]: row["digest"] for row in maker.run("list")["concepts"]}
    assert {row["reference"]: row["digest"] for row in pulled} == published
    for person in (maker, user, maker):
        for name in ("me/imp", "me/hat"):
            pushed = person.run("push", name, place.push_uri)
            assert (pushed["created"], pushed["sent_bytes"]) == (False, 0)
    again = user.run("pull", "studio::me/imp")
    assert (again["created"], again["received_bytes"]) == (False, 0)
    blobs = {name: data for name, data in maker.contents().items() if not name.startswith("refs/")}
    assert {name: data for name, data in user.contents().items() if not name.startswith("refs/")} == blobs
