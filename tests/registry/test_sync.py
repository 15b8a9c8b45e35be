"""From a project to a lock to a store: the whole loop, on real folders, for two people who share a remote."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from conceptry.digests import Digest
from conceptry.errors import (
    ConflictError,
    IdentityChangedError,
    IncompatibleError,
    IntegrityError,
    InvalidLockError,
    LockStaleError,
    NotFoundError,
    RemoteError,
)
from conceptry.names import ConceptName, parse_version
from conceptry.registry import Registry
from conceptry.registry.directory import DirectoryRemote
from conceptry.registry.inspection import explain_why, list_tree
from conceptry.registry.reports import audit, find_outdated
from conceptry.registry.roots import list_roots
from conceptry.registry.syncing import Synced
from conceptry.registry.workspace import Workspace
from tests.cli.packages import write_package
from tests.registry.folders import files_below, temporaries_below
from tests.registry.projects import Studio, make_studio, make_workspace, write_project

IMP = ConceptName("me", "imp")
SD1 = 'base = "sd1"'


@pytest.fixture
def studio(tmp_path: Path) -> Studio:
    """Give a remote with an imp that requires a hat, and an older imp that does not."""
    made = make_studio(tmp_path)
    made.publish("me/hat", "1.0.0")
    made.publish("me/imp", "1.0.0")
    made.publish("me/imp", "1.1.0", requires=["me/hat@^1"])
    return made


@pytest.fixture
def workspace(studio: Studio, tmp_path: Path) -> Workspace:
    """Give the project of somebody else."""
    return make_workspace(
        tmp_path / "project", tmp_path / "store", write_project(studio.uri, '"me/imp" = "^1"', about=SD1)
    )


def contents(root: Path) -> dict[str, bytes]:
    """Returns what a store holds that counts: blobs, manifests and references."""
    kept = ("blobs/", "manifests/", "refs/")
    return {name: (root / name).read_bytes() for name in files_below(root) if name.startswith(kept)}


def rewrite(workspace: Workspace, old: str, new: str) -> None:
    path = workspace.folder / "concepts.toml"
    path.write_text(path.read_text().replace(old, new))


def test_deleted_store_is_restored_byte_for_byte(workspace: Workspace, tmp_path: Path) -> None:
    workspace.lock()
    synced = workspace.sync(workspace.check())
    assert [str(one) for one in synced.installed] == ["me/hat@1.0.0", "me/imp@1.1.0"]
    before = contents(tmp_path / "store")
    shutil.rmtree(tmp_path / "store")
    fresh = Workspace(Registry(tmp_path / "store"), workspace.folder)
    fresh.sync(fresh.check())
    assert contents(tmp_path / "store") == before
    assert temporaries_below(tmp_path / "store") == []
    assert fresh.registry.get("me/imp").manifest.version == parse_version("1.1.0")


def test_synced_project_needs_no_remote_any_more(workspace: Workspace, tmp_path: Path) -> None:
    workspace.lock()
    workspace.sync(workspace.check())
    shutil.rmtree(tmp_path / "remote")
    assert workspace.count_in_order() == 2
    assert workspace.sync(workspace.check()) == Synced(concepts=2)


def test_lock_has_equal_bytes_on_two_machines(workspace: Workspace, studio: Studio, tmp_path: Path) -> None:
    other = make_workspace(
        tmp_path / "other", tmp_path / "other-store", write_project(studio.uri, '"me/imp" = "^1"', about=SD1)
    )
    workspace.lock()
    other.lock()
    assert other.lock_path.read_bytes() == workspace.lock_path.read_bytes()
    workspace.sync(workspace.check())
    assert not workspace.lock().changed


def test_each_missing_blob_is_asked_for_once_and_known_ones_never(
    workspace: Workspace, studio: Studio, monkeypatch: pytest.MonkeyPatch
) -> None:
    studio.publish("me/twin", "1.0.0", file=b"the same bytes in two concepts")
    studio.publish("me/twin-too", "1.0.0", file=b"the same bytes in two concepts")
    rewrite(workspace, "[remotes]", '"me/twin" = "*"\n"me/twin-too" = "*"\n[remotes]')
    workspace.lock()
    asked: list[str] = []
    get, get_manifest = DirectoryRemote.get, DirectoryRemote.get_manifest

    def count_get(self: DirectoryRemote, version, file, **more):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN003, ANN202
        asked.append(str(file.sha256))
        return get(self, version, file, **more)

    def count_manifest(self: DirectoryRemote, version):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
        asked.append(str(version.reference))
        return get_manifest(self, version)

    monkeypatch.setattr(DirectoryRemote, "get", count_get)
    monkeypatch.setattr(DirectoryRemote, "get_manifest", count_manifest)
    workspace.sync(workspace.check())
    assert len(asked) == 3
    assert len(set(asked)) == 3
    asked.clear()
    workspace.lock_path.touch()
    workspace.sync(workspace.check())
    assert asked == []


def test_locked_version_stays_until_it_is_upgraded(workspace: Workspace, studio: Studio) -> None:
    workspace.lock()
    studio.publish("me/imp", "1.2.0")
    studio.publish("me/hat", "1.5.0")
    assert workspace.lock().moves == ()
    assert [str(row.newest) for row in find_outdated(workspace)] == ["1.5.0", "1.2.0"]
    assert workspace.check().find(IMP) is not None
    moves = workspace.lock(upgraded=[ConceptName("me", "hat")]).moves
    assert [(str(move.name), move.before, move.after) for move in moves] == [("me/hat", "1.0.0", "1.5.0")]
    moves = workspace.lock(upgrade=True).moves
    assert [(str(move.name), move.after) for move in moves] == [("me/hat", None), ("me/imp", "1.2.0")]


def test_version_that_was_only_measured_anew_is_said_to_be_so(workspace: Workspace, studio: Studio) -> None:
    rewrite(workspace, '"me/imp" = "^1"', '"me/hat" = "^1"')
    workspace.lock()
    studio.publish("me/hat", "1.0.1", file=b"weights of me/hat 1.0.0" * 20)
    assert [(str(row.compatible), row.only_metrics) for row in find_outdated(workspace)] == [("1.0.1", True)]


def test_yanked_version_is_skipped_but_stays_where_it_is_locked(
    workspace: Workspace, studio: Studio, tmp_path: Path
) -> None:
    workspace.lock()
    DirectoryRemote.open(studio.uri).yank(IMP, parse_version("1.1.0"), "wrong pictures")
    assert workspace.lock().moves == ()
    found = {(row.reference, row.fault) for row in audit(workspace, ask_remotes=True).findings}
    assert ("me/imp@1.1.0", "yanked") in found
    assert ("me/imp@1.1.0", "license_missing") in found
    assert ("me/imp@1.1.0", "rights_unknown") in found
    other = make_workspace(tmp_path / "n", tmp_path / "s", write_project(studio.uri, '"me/imp" = "^1"'))
    locked = other.lock().lock.find(IMP)
    assert locked is not None
    assert str(locked.version) == "1.0.0"


def test_licences_that_cannot_hold_at_once_are_found(workspace: Workspace, studio: Studio) -> None:
    for name, license in (
        ("a", "CC-BY-SA-4.0"),
        ("b", "CC-BY-NC-4.0"),
        ("c", "CC-BY-ND-4.0"),
        ("d", "Whatever-1"),
    ):
        studio.publish(f"me/{name}", "1.0.0", license={"spdx": license})
    rewrite(workspace, '"me/imp" = "^1"', "".join(f'"me/{name}" = "*"\n' for name in "abcd"))
    workspace.lock()
    faults = {(row.reference, row.fault) for row in audit(workspace, ask_remotes=False).findings}
    assert {("me/a@1.0.0", "license_conflict"), ("me/c@1.0.0", "license_conflict")} <= faults
    assert ("me/d@1.0.0", "license_unknown") in faults
    assert ("me/b@1.0.0", "license_conflict") not in faults


def test_tree_and_why_tell_who_needs_what(workspace: Workspace) -> None:
    lock = workspace.lock().lock
    project = workspace.read_project()
    assert [(row.depth, str(row.name), row.asked) for row in list_tree(lock, project)] == [
        (0, "me/imp", "^1"),
        (1, "me/hat", "^1"),
    ]
    assert explain_why(lock, project, ConceptName("me", "hat")) == (
        ("concepts.toml requires me/imp ^1", "me/imp 1.1.0 requires me/hat ^1"),
    )


def test_words_that_collide_are_renamed_in_the_lock(studio: Studio, tmp_path: Path) -> None:
    token = {"placeholder": "<x>", "vectors": 1}
    method = {"kind": "embedding", "components": ["text_encoder"]}
    for name in ("one", "two"):
        data = f"rows of {name}".encode()
        file = {"path": "lora.safetensors", "size": len(data), "sha256": str(Digest.of_bytes(data))}
        base = {"family": "sd1", "architecture": "stable-diffusion-v1", "prediction_type": "epsilon"}
        part = {"kind": "embedding", "method": method, "files": [file]}
        studio.publish(
            f"me/{name}",
            "1.0.0",
            tokens=[token],
            builds=[{"id": "e", "base": base, "parts": [part]}],
            push=False,
            file=data,
        )
    lines = '"me/one" = "*"', '"me/two" = "*"'
    project = make_workspace(tmp_path / "p", tmp_path / "studio-store", write_project(studio.uri, *lines))
    tokens = [dict(one.tokens) for one in project.lock().lock.concepts]
    assert tokens == [{"<x>": "<x>"}, {"<x>": "<x-2>"}]


# --- what goes wrong -----------------------------------------------------------------------------------------------


def test_changed_requirement_makes_the_lock_stale(workspace: Workspace) -> None:
    workspace.lock()
    rewrite(workspace, '"^1"', '"^1.0"')
    workspace.check()
    rewrite(workspace, '"^1.0"', '"=1.0.0"')
    with pytest.raises(LockStaleError) as caught:
        workspace.check()
    assert str(caught.value) == "concepts.lock is stale: me/imp =1.0.0 is required, 1.1.0 is locked"
    assert (caught.value.exit_code, caught.value.hint) == (7, "concepts lock")


def test_project_without_a_lock_says_so(workspace: Workspace) -> None:
    with pytest.raises(LockStaleError, match=re.escape("has no concepts.lock beside it")):
        workspace.check()


def test_edited_lock_is_refused_and_written_anew_with_a_warning(workspace: Workspace) -> None:
    workspace.lock()
    good = workspace.lock_path.read_bytes()
    workspace.lock_path.write_bytes(good.replace(b"1.1.0", b"1.0.0"))
    with pytest.raises(InvalidLockError):
        workspace.check()
    change = workspace.lock()
    assert change.warnings[0] == "concepts.lock was edited after it was written; it is written anew"
    assert [(str(one.name), str(one.version)) for one in workspace.check().concepts] == [("me/imp", "1.0.0")]
    workspace.lock_path.write_bytes(b"<<<<<<<\n" + good)
    workspace.lock()
    assert workspace.lock_path.read_bytes() == good


def test_failed_add_leaves_both_files_as_they_were(workspace: Workspace) -> None:
    from conceptry.registry.project import ProjectRequirement

    workspace.lock()
    before = contents_of(workspace.folder)
    with pytest.raises(NotFoundError, match=re.escape("concepts.toml needs me/nobody, which studio has not")):
        workspace.add(ProjectRequirement(name=ConceptName("me", "nobody")))
    assert contents_of(workspace.folder) == before


def contents_of(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in files_below(folder)}


def test_base_without_a_build_is_refused_in_words(workspace: Workspace) -> None:
    rewrite(workspace, SD1, 'base = "sdxl"')
    with pytest.raises(
        IncompatibleError, match=re.escape("1.1.0 has no build for sdxl, only for sd1")
    ) as caught:
        workspace.lock()
    assert caught.value.exit_code == 6
    assert not workspace.lock_path.exists()


def test_remote_that_changed_a_locked_version_is_refused(
    workspace: Workspace, studio: Studio, tmp_path: Path
) -> None:
    workspace.lock()
    shutil.rmtree(tmp_path / "remote")
    shutil.rmtree(tmp_path / "made")
    other = make_studio(tmp_path / "evil")
    evil = Studio(other.root, other.registry, studio.uri)
    evil.publish("me/imp", "1.1.0", file=b"something else")
    with pytest.raises(IdentityChangedError, match=r"me/imp@1\.1\.0 on studio is sha256:"):
        Workspace(Registry(tmp_path / "third"), workspace.folder).sync(workspace.check())
    with pytest.raises(IdentityChangedError) as caught:
        workspace.lock(upgrade=True)
    assert caught.value.exit_code == 9


def test_damaged_blob_on_the_remote_is_named_and_nothing_of_it_is_listed(
    workspace: Workspace, tmp_path: Path
) -> None:
    lock = workspace.lock().lock
    locked = lock.find(IMP)
    assert locked is not None
    blob = tmp_path / "remote" / "blobs" / "sha256" / locked.files[0].sha256.hex
    blob.chmod(0o644)
    blob.write_bytes(b"x" * locked.files[0].size_bytes)
    with pytest.raises(IntegrityError, match=re.escape("me/imp@1.1.0: the file 'lora.safetensors'")):
        workspace.sync(lock)
    assert [str(row.reference) for row in workspace.registry.list()] == []


def test_other_contents_in_the_store_are_a_conflict(workspace: Workspace, tmp_path: Path) -> None:
    lock = workspace.lock().lock
    Studio(tmp_path / "x", workspace.registry, "").publish("me/imp", "1.1.0", push=False, file=b"mine")
    with pytest.raises(ConflictError):
        workspace.sync(lock)


def test_remote_that_is_away_fails_only_when_something_is_missing(
    workspace: Workspace, tmp_path: Path
) -> None:
    lock = workspace.lock().lock
    (tmp_path / "remote").rename(tmp_path / "away")
    with pytest.raises((RemoteError, IntegrityError, NotFoundError)):
        workspace.sync(lock)
    (tmp_path / "away").rename(tmp_path / "remote")
    workspace.sync(lock)
    (tmp_path / "remote").rename(tmp_path / "away")
    workspace.sync(lock)


def test_what_only_one_machine_has_is_said_when_locking_and_when_syncing(
    studio: Studio, tmp_path: Path
) -> None:
    studio.publish("me/own", "1.0.0", push=False)
    text = write_project(studio.uri, '"me/own" = "*"')
    mine = make_workspace(tmp_path / "p", tmp_path / "studio-store", text)
    change = mine.lock()
    assert "me/own@1.0.0 lies in the store of this machine only" in change.warnings[0]
    mine.sync(mine.check())
    with pytest.raises(NotFoundError, match="locked from the store of another machine"):
        Workspace(Registry(tmp_path / "elsewhere"), mine.folder).sync(change.lock)


# --- what is kept --------------------------------------------------------------------------------------------------


def test_every_lock_ever_synced_keeps_what_it_names(workspace: Workspace, studio: Studio) -> None:
    first = workspace.lock().lock
    workspace.sync(first)
    studio.publish("me/imp", "1.2.0")
    second = workspace.lock(upgrade=True).lock
    workspace.sync(second)
    (root,) = list_roots(workspace.registry.store.layout)
    assert root.path == str(workspace.lock_path)
    named = {one.manifest for lock in (first, second) for one in lock.concepts}
    assert named <= root.digests


def test_quick_way_notices_each_change(workspace: Workspace, tmp_path: Path) -> None:
    lock = workspace.lock().lock
    assert workspace.count_in_order() is None
    workspace.sync(lock)
    assert workspace.count_in_order() == 2
    rewrite(workspace, '"^1"', '"^1.1"')
    assert workspace.count_in_order() is None
    workspace.sync(workspace.lock().lock)
    assert workspace.count_in_order() == 2
    blob = tmp_path / "store" / "blobs" / "sha256" / lock.concepts[0].files[0].sha256.hex
    data = blob.read_bytes()
    blob.chmod(0o644)
    blob.write_bytes(b"x" * len(data))
    assert workspace.count_in_order() is None
    workspace.sync(workspace.check())
    assert blob.read_bytes() == data
    workspace.registry.remove("me/hat@1.0.0")
    assert workspace.count_in_order() is None
    workspace.sync(workspace.check())
    assert workspace.count_in_order() == 2


# --- files that nobody published -----------------------------------------------------------------------------------


def test_file_beside_the_project_is_locked_by_its_digest_and_restored(tmp_path: Path) -> None:
    source = write_package(tmp_path / "made") / "lora.safetensors"
    text = (
        '[project]\nbase = "sd1"\n[concepts]\n'
        '"me/hat" = { path = "files/hat.safetensors", placeholder = "<hat>", license = "CC0-1.0" }\n'
    )
    project = make_workspace(tmp_path / "p", tmp_path / "store", text)
    (project.folder / "files").mkdir()
    path = project.folder / "files" / "hat.safetensors"
    shutil.copy(source, path)
    locked = project.lock().lock.concepts[0]
    assert locked.source is not None
    assert locked.source.sha256 == Digest.of_bytes(source.read_bytes())
    project.sync(project.check())
    manifest = project.registry.manifest("me/hat")
    assert manifest.extensions["conceptry.foreign"] == {
        "unpublished": True,
        "sha256": str(locked.source.sha256),
    }
    before = contents(tmp_path / "store")
    fresh = Workspace(Registry(tmp_path / "second"), project.folder)
    fresh.sync(fresh.check())
    assert contents(tmp_path / "second") == before
    path.write_bytes(path.read_bytes()[:-4] + bytes(4))
    with pytest.raises(LockStaleError, match=re.escape("the file 'files/hat.safetensors' of me/hat changed")):
        project.check()


def test_air_is_a_record_and_is_never_fetched(tmp_path: Path) -> None:
    from conceptry.errors import UsageError

    text = '[concepts]\n"me/hat" = { air = "urn:air:sd1:lora:civitai:12345@67890" }\n'
    with pytest.raises(UsageError, match="names a file and not where it lies") as caught:
        make_workspace(tmp_path / "p", tmp_path / "store", text).lock()
    assert caught.value.where == 'concepts."me/hat"'
