"""What is said, refused and kept when projects are locked and compositions sent: found missing by mutants."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from safetensors.numpy import save_file

from conceptry.digests import Digest
from conceptry.errors import (
    ConceptryError,
    IdentityChangedError,
    IncompatibleError,
    InvalidProjectError,
    NotFoundError,
    RemoteError,
)
from conceptry.manifest import Manifest
from conceptry.names import ConceptName, Reference, RemoteName, Version, parse_version
from conceptry.registry import Registry
from conceptry.registry.foreign import FOREIGN_EXTENSION, fetch_source, is_unpublished, read_foreign
from conceptry.registry.locking import LockRequest, pin_base
from conceptry.registry.members import find_remote_members, list_members_to_send, refuse_other_members
from conceptry.registry.paths import Layout
from conceptry.registry.project import parse_project
from conceptry.registry.project_edits import drop_remote
from conceptry.registry.projects import count_in_order
from conceptry.registry.protocol import Remote, RemoteVersion
from conceptry.registry.refs import Resolved
from conceptry.registry.remotes import open_remote
from conceptry.registry.reports import find_outdated
from conceptry.registry.universe import Package
from conceptry.sources import parse_source
from tests.registry.folders import make_manifest, write_folder
from tests.registry.projects import make_studio, make_workspace, write_project

IMP, HAT, BOTH = ConceptName("me", "imp"), ConceptName("me", "hat"), ConceptName("me", "both")
VERSION = parse_version("1.0.0")
SD1 = 'base = "sd1"'


# --- members of compositions ---------------------------------------------------------------------------------------


class Place:
    """A remote that has some versions, or fails."""

    def __init__(self, uri: str, found: dict[ConceptName, Digest] | None = None) -> None:
        self.uri, self.found, self.asked = uri, found, 0

    def read_version(self, name: ConceptName, version: Version) -> Digest | None:
        """Returns the digest of a version. Raises RemoteError where it is away."""
        self.asked += 1
        if self.found is None:
            raise RemoteError("away")
        return self.found.get(name)


def compose(*members: tuple[ConceptName, Digest]) -> Manifest:
    """Return a composition that names those."""
    rows = [{"concept": str(name), "version": "1.0.0", "digest": str(digest)} for name, digest in members]
    plain = make_manifest("me/both")
    (build,) = plain.model_dump(mode="json", by_alias=True, exclude_none=True)["builds"]
    (part,) = build["parts"]
    part = {**part, "kind": "composition", "method": {"kind": "composition", "members": rows}}
    document = plain.model_dump(mode="json", by_alias=True, exclude_none=True)
    document |= {
        "builds": [{**build, "parts": [part]}],
        "requires": [f"{name}@1.0.0" for name, _ in members],
    }
    return Manifest.model_validate(document)


def find(registry: Registry, manifest: Manifest, first: Place, others: Iterable[Place]) -> list[Any]:
    """Return where the members are."""
    return find_remote_members(
        registry.store, [(manifest, cast("Remote", first))], lambda: cast("Iterable[Remote]", others)
    )


def test_members_are_looked_for_on_each_other_remote_once(registry: Registry) -> None:
    digest = make_manifest().to_bytes()
    wanted = Digest.of_bytes(digest)
    first, again, away, last = (
        Place("a:", {}),
        Place("a:", {IMP: wanted}),
        Place("b:"),
        Place("c:", {IMP: wanted}),
    )
    found = find(registry, compose((IMP, wanted)), first, [again, away, last])
    assert found == [(Reference(IMP, VERSION), last)]
    assert [place.asked for place in (first, again, away, last)] == [1, 0, 1, 1]


def test_member_that_nobody_has_is_named_with_all_who_were_asked(registry: Registry) -> None:
    wanted = Digest.of_bytes(b"member")
    with pytest.raises(NotFoundError, match="which is not on a:, b:"):
        find(registry, compose((IMP, wanted)), Place("a:", {}), [Place("b:", {IMP: Digest.of_bytes(b"x")})])


def package(manifest: Manifest) -> Package:
    """Return a manifest as a package of this machine."""
    data = manifest.to_bytes()
    version = RemoteVersion(reference=Reference(manifest.name, VERSION), digest=Digest.of_bytes(data))
    return Package(remote=None, version=version, manifest=manifest, data=data, choice=cast("Any", None))


def test_concepts_locked_beside_a_composition_are_those_that_it_names() -> None:
    imp = package(make_manifest())
    right = package(compose((IMP, imp.version.digest)))
    refuse_other_members({IMP: imp, BOTH: right})
    wrong = package(compose((IMP, Digest.of_bytes(b"another"))))
    with pytest.raises(IdentityChangedError, match=r"me/both@1\.0\.0 names me/imp"):
        refuse_other_members({IMP: imp, BOTH: wrong})


@pytest.mark.parametrize("redistribution", ["no", "yes"])
def test_member_goes_along_unless_its_licence_lets_nobody_pass_it_on(
    registry: Registry, tmp_path: Path, redistribution: str
) -> None:
    own = {"name": "Ours", "url": "https://example.org", "permissions": {"redistribution": redistribution}}
    registry.publish(write_folder(tmp_path / "imp", license=own))
    manifest = compose((IMP, registry.resolve("me/imp").digest))
    data = manifest.to_bytes()
    layout = Layout(registry.root)
    layout.manifest(Digest.of_bytes(data)).write_bytes(data)
    version = Resolved(Reference(BOTH, VERSION), Digest.of_bytes(data))
    remote = cast("Remote", Place("a:", {}))
    if redistribution == "yes":
        assert list_members_to_send(registry.store, version, remote) == [Reference(IMP, VERSION)]
        return
    with pytest.raises(IncompatibleError, match="its licence lets nobody pass it on"):
        list_members_to_send(registry.store, version, remote)


# --- locking -------------------------------------------------------------------------------------------------------


def test_only_what_no_remote_has_is_said_to_lie_here_alone(tmp_path: Path) -> None:
    studio = make_studio(tmp_path)
    studio.publish("me/imp", "1.0.0")
    project = make_workspace(
        tmp_path / "project", tmp_path / "store", write_project(studio.uri, '"me/imp" = "^1"', about=SD1)
    )
    assert project.lock().warnings == ("me/imp@1.0.0 has no licence",)


def test_base_that_this_machine_lacks_stays_as_it_was_locked(tmp_path: Path) -> None:
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "model_index.json").write_text(
        '{"_class_name": "StableDiffusionPipeline"}', encoding="utf-8"
    )
    text = '[project]\nbase = "sd1"\n'
    project = parse_project(text.encode(), tmp_path)
    request = LockRequest(project=project, previous=None, remotes={}, bases={}, trusted=True)
    locked = pin_base(request)
    assert locked is not None
    gone = parse_project(b'[project]\nbase = "./gone"\n', tmp_path)
    before = dataclasses.replace(locked, reference="./gone")
    lock: Any = dataclasses.make_dataclass("Held", ["base"])(before)
    assert pin_base(dataclasses.replace(request, project=gone, previous=lock)) == before
    lock.base = dataclasses.replace(locked, reference="./other")
    for previous in (lock, None):
        with pytest.raises(NotFoundError) as caught:
            pin_base(dataclasses.replace(request, project=gone, previous=previous))
        assert caught.value.where == "project.base"


def test_version_that_the_project_does_not_allow_is_told_apart(tmp_path: Path) -> None:
    studio = make_studio(tmp_path)
    studio.publish("me/imp", "1.0.0")
    project = make_workspace(
        tmp_path / "project", tmp_path / "store", write_project(studio.uri, '"me/imp" = "^1"', about=SD1)
    )
    project.lock()
    studio.publish("me/imp", "2.0.0")
    (row,) = find_outdated(project)
    assert (row.compatible, str(row.newest), row.only_metrics) == (None, "2.0.0", False)


# --- files of others -----------------------------------------------------------------------------------------------


def test_only_a_manifest_that_was_made_of_somebodys_file_is_unpublished() -> None:
    assert is_unpublished(make_manifest(extensions={FOREIGN_EXTENSION: {}})) is True
    assert is_unpublished(make_manifest()) is False


def test_file_that_a_project_names_and_nobody_has_is_not_found(tmp_path: Path) -> None:
    source = parse_source("./gone.safetensors")
    assert source is not None
    with pytest.raises(NotFoundError, match="no file") as caught:
        fetch_source(source, tmp_path, tmp_path)
    assert "concepts.toml" in (caught.value.hint or "")


@pytest.mark.parametrize("superclass", ["creature", None])
def test_file_of_others_is_imported_as_the_project_says(tmp_path: Path, superclass: str | None) -> None:
    save_file({"emb_params": np.ones((2, 768), np.float32)}, tmp_path / "easy.safetensors")
    said = f', superclass = "{superclass}"' if superclass else ""
    row = f'"me/easy" = {{ path = "easy.safetensors", placeholder = "<easy>", base = "sd1"{said} }}'
    project = parse_project(f"[concepts]\n{row}\n".encode(), tmp_path)
    (tmp_path / "empty").mkdir()
    (requirement,) = project.requirements
    (token,) = read_foreign(project, requirement, tmp_path / "empty").manifest.tokens
    assert (token.placeholder, token.superclass) == ("<easy>", superclass)


# --- project files -------------------------------------------------------------------------------------------------


def test_remote_that_a_project_does_not_have_cannot_be_dropped() -> None:
    text = '[remotes]\nstudio = "file:///x"\n'
    with pytest.raises(NotFoundError) as caught:
        drop_remote(text, RemoteName("studoi"))
    assert caught.value.hint == "did you mean 'studio'?"
    assert "studio" not in drop_remote(text, RemoteName("studio"))


@pytest.mark.parametrize("uri", ["oci://", "s3://", "https://host/x?y=1", "hf://a/b/c/d"])
def test_address_that_its_kind_of_remote_refuses_is_refused_where_it_is_written(
    uri: str, tmp_path: Path
) -> None:
    with pytest.raises(InvalidProjectError) as caught:
        parse_project(f'[remotes]\nstudio = "{uri}"\n'.encode(), tmp_path)
    assert caught.value.where == "remotes.studio"
    with pytest.raises(ConceptryError):
        open_remote(uri, {})


def test_project_of_four_mebibytes_is_read_and_a_byte_more_is_not(tmp_path: Path) -> None:
    text = b"#" * (4 << 20)
    assert parse_project(text, tmp_path).requirements == ()
    with pytest.raises(InvalidProjectError, match="more than 4194304 bytes"):
        parse_project(text + b"#", tmp_path)


def test_lock_is_in_order_while_nothing_changed_and_what_changed_is_looked_up(tmp_path: Path) -> None:
    studio = make_studio(tmp_path)
    studio.publish("me/imp", "1.0.0")
    project = make_workspace(
        tmp_path / "project", tmp_path / "store", write_project(studio.uri, '"me/imp" = "^1"', about=SD1)
    )
    project.lock()
    project.sync(project.check())
    layout = Layout(tmp_path / "store")
    place = project.folder / "concepts.lock"
    words = (layout, place, place.read_bytes(), (project.folder / "concepts.toml").read_bytes())
    assert count_in_order(*words) == 1
    other = Registry(tmp_path / "store")
    other.publish(write_folder(tmp_path / "more", "me/more"))
    assert count_in_order(*words) == 1
    other.remove("me/imp@1.0.0")
    assert count_in_order(*words) is None
