"""Push and pull: complete or not at all, and never twice."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from conceptry.digests import Digest, canonical_json
from conceptry.errors import ConflictError, IntegrityError, InvalidManifestError, StoreError, UsageError
from conceptry.manifest import File
from conceptry.names import RemoteName, Tag
from conceptry.registry import Registry
from conceptry.registry.directory import DirectoryRemote
from conceptry.registry.events import Progress
from conceptry.registry.operations import FileOperations, use_operations
from conceptry.registry.protocol import RemoteVersion
from tests.registry.folders import CONTENTS, files_below, make_document, temporaries_below, write_folder

BLOB = Digest.of_bytes(CONTENTS)
STUDIO = RemoteName("studio")


@pytest.fixture
def studio(tmp_path: Path) -> Path:
    """Give the folder of a remote that does not exist yet."""
    return tmp_path / "studio"


@pytest.fixture
def pushed(registry: Registry, imp: Path, studio: Path) -> Registry:
    """Give a registry whose concept lies on the remote."""
    registry.add_remote(STUDIO, studio.as_uri())
    registry.publish(imp)
    registry.push("me/imp", STUDIO)
    return registry


@pytest.fixture
def second(tmp_path: Path, pushed: Registry) -> Registry:
    """Give an empty registry that knows the same remote."""
    other = Registry(tmp_path / "second")
    other.add_remote(STUDIO, pushed.remotes()[STUDIO])
    return other


def overwrite(path: Path, data: bytes) -> None:
    path.chmod(0o644)
    path.write_bytes(data)


def test_pulled_version_has_the_same_identity_and_bytes(pushed: Registry, second: Registry) -> None:
    pulled = second.pull("studio::me/imp")
    assert pulled.created
    assert pulled.digest == pushed.resolve("me/imp").digest
    assert pulled.received_bytes == len(CONTENTS)
    assert second.get("me/imp").blobs[BLOB].read_bytes() == CONTENTS
    assert second.list()[0].origin == "pulled"


def test_push_pull_push_sends_nothing_more(pushed: Registry, second: Registry, studio: Path) -> None:
    before = files_below(studio)
    assert second.pull("studio::me/imp").created
    again = second.pull("studio::me/imp")
    assert (again.created, again.received_bytes) == (False, 0)
    for registry in (pushed, second):
        repeated = registry.push("me/imp", STUDIO)
        assert (repeated.created, repeated.sent_bytes) == (False, 0)
    assert files_below(studio) == before


def test_version_is_pulled_by_number_by_tag_and_by_digest(pushed: Registry, second: Registry) -> None:
    pushed.tag("me/imp", Tag("stable"))
    pushed.push("me/imp:stable", STUDIO)
    digest = pushed.resolve("me/imp").digest
    for selector in ("", "@1.0.0", ":latest", f"@{digest}", ":stable"):
        assert second.pull(f"studio::me/imp{selector}").digest == digest
    assert second.resolve("me/imp:stable").digest == digest


def test_pull_without_a_remote_says_how(second: Registry) -> None:
    with pytest.raises(UsageError, match="names no remote") as caught:
        second.pull("me/imp")
    assert caught.value.exit_code == 2


def test_blob_that_a_collection_takes_while_it_is_sent_is_brought_back_and_sent(
    registry: Registry, imp: Path, studio: Path
) -> None:
    registry.publish(imp)
    layout = registry.store.layout
    blob, trashed = layout.blob(BLOB), layout.trashed_item("blob", BLOB)
    trashed.parent.mkdir(parents=True)

    class Collecting(FileOperations):
        opened = 0

        def open(self, path: Path | str) -> int:
            if Path(path) == blob:
                self.opened += 1
                if self.opened == 2:  # the first time it is checked
                    blob.replace(trashed)
            return super().open(path)

    operations = Collecting()
    with use_operations(operations):
        assert registry.push("me/imp", studio.as_uri()).created
    assert operations.opened == 3
    assert (studio / blob.relative_to(registry.root)).read_bytes() == CONTENTS
    assert blob.read_bytes() == CONTENTS


def test_blob_that_is_gone_for_good_is_said_to_be_missing(
    registry: Registry, imp: Path, studio: Path
) -> None:
    registry.publish(imp)
    layout = registry.store.layout

    class Losing(FileOperations):
        opened = 0

        def open(self, path: Path | str) -> int:
            if Path(path) == layout.blob(BLOB):
                self.opened += 1
                if self.opened == 2:
                    layout.blob(BLOB).unlink()
            return super().open(path)

    with use_operations(Losing()), pytest.raises(StoreError, match="cannot read"):
        registry.push("me/imp", studio.as_uri())
    assert not list(studio.glob("refs/**/*.*.*"))


def test_version_with_other_contents_is_not_pushed_over(
    pushed: Registry, tmp_path: Path, studio: Path
) -> None:
    other = Registry(tmp_path / "other")
    other.publish(write_folder(tmp_path / "mine", file=b"mine"))
    with pytest.raises(ConflictError) as caught:
        other.push("me/imp", pushed.remotes()[STUDIO])
    assert caught.value.exit_code == 8
    assert not (studio / "blobs" / "sha256" / Digest.of_bytes(b"mine").hex).exists()


def test_version_with_other_contents_is_not_pulled_over(second: Registry, tmp_path: Path) -> None:
    mine = second.publish(write_folder(tmp_path / "mine", file=b"mine"))
    with pytest.raises(ConflictError):
        second.pull("studio::me/imp")
    assert second.resolve("me/imp").digest == mine.digest


DAMAGES: dict[str, Callable[[Path], object]] = {
    "changed": lambda path: overwrite(path, b"X" + CONTENTS[1:]),
    "truncated": lambda path: overwrite(path, CONTENTS[:-1]),
    "longer": lambda path: overwrite(path, CONTENTS + b"X"),
    "emptied": lambda path: overwrite(path, b""),
    "missing": lambda path: path.unlink(),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_remote_is_named_and_nothing_is_listed(second: Registry, studio: Path, damage: str) -> None:
    DAMAGES[damage](studio / "blobs" / "sha256" / BLOB.hex)
    with pytest.raises(IntegrityError, match=r"'lora\.safetensors'.*file:///") as caught:
        second.pull("studio::me/imp")
    assert caught.value.exit_code == 4
    assert caught.value.where == "builds[0].parts[0].files[0].sha256"
    assert second.list() == ()
    assert temporaries_below(second.root) == []
    assert not (second.root / "blobs").exists()


@pytest.mark.parametrize("damage", DAMAGES)
def test_pushing_again_puts_a_damaged_remote_right(
    pushed: Registry, second: Registry, studio: Path, damage: str
) -> None:
    DAMAGES[damage](studio / "blobs" / "sha256" / BLOB.hex)
    assert pushed.push("me/imp", STUDIO).sent_bytes == len(CONTENTS)
    second.pull("studio::me/imp")
    assert second.verify() == ()


def test_damaged_manifest_on_the_remote_is_not_believed(second: Registry, studio: Path) -> None:
    (path,) = (studio / "manifests" / "sha256").iterdir()
    overwrite(path, path.read_bytes().replace(b"lora", b"LORA"))
    with pytest.raises(IntegrityError, match=r"me/imp@1\.0\.0"):
        second.pull("studio::me/imp")
    assert second.list() == ()


def test_huge_manifest_on_the_remote_is_not_read(second: Registry, studio: Path) -> None:
    (path,) = (studio / "manifests" / "sha256").iterdir()
    path.chmod(0o644)
    with path.open("r+b") as file:
        file.truncate(1 << 40)
    with pytest.raises(IntegrityError):
        second.pull("studio::me/imp")


def plant(studio: Path, data: bytes, name: str = "me/imp", version: str = "1.0.0") -> None:
    """Put a manifest on a remote as only somebody with bad intentions would."""
    digest = Digest.of_bytes(data)
    overwrite_new(studio / "manifests" / "sha256" / digest.hex, data)
    overwrite_new(studio / "refs" / name / "versions" / version, f"{digest} published\n".encode())


def overwrite_new(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    path.write_bytes(data)


def test_manifest_of_another_concept_is_refused(second: Registry, studio: Path) -> None:
    plant(studio, canonical_json(make_document("eve/imp")))
    with pytest.raises(InvalidManifestError, match=r"is of eve/imp@1\.0\.0, not of me/imp@1\.0\.0"):
        second.pull("studio::me/imp")
    assert second.list() == ()


def test_manifest_of_another_version_is_refused(second: Registry, studio: Path) -> None:
    plant(studio, canonical_json(make_document(version="9.0.0")))
    with pytest.raises(InvalidManifestError):
        second.pull("studio::me/imp")


@pytest.mark.parametrize("field", ["../../x", "sha256:../x", "sha256:" + "A" * 64, "", "sha256:" + "0" * 63])
def test_hostile_digest_on_a_remote_touches_no_file(
    second: Registry, studio: Path, tmp_path: Path, field: str
) -> None:
    document = make_document()
    document["builds"][0]["parts"][0]["files"][0]["sha256"] = field
    plant(studio, canonical_json(document))
    before = files_below(tmp_path)
    with pytest.raises(InvalidManifestError, match="not a SHA-256 digest"):
        second.pull("studio::me/imp")
    assert files_below(tmp_path) == before


@pytest.mark.parametrize("line", ["", "sha256:../../x published\n", "x" * 5000, "sha256:" + "0" * 64])
def test_hostile_reference_on_a_remote_is_damaged(second: Registry, studio: Path, line: str) -> None:
    overwrite_new(studio / "refs" / "me" / "imp" / "versions" / "1.0.0", line.encode())
    with pytest.raises(IntegrityError, match="damaged"):
        second.pull("studio::me/imp")


def test_interrupted_pull_goes_on_where_it_ended(second: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    partial = second.root / "partial" / BLOB.hex
    partial.parent.mkdir(parents=True)
    partial.write_bytes(CONTENTS[:500])
    offsets: list[int] = []
    real = DirectoryRemote.get

    def watch(self: DirectoryRemote, version: RemoteVersion, file: File, *, offset_bytes: int = 0):  # type: ignore[no-untyped-def] # noqa: ANN202
        offsets.append(offset_bytes)
        return real(self, version, file, offset_bytes=offset_bytes)

    monkeypatch.setattr(DirectoryRemote, "get", watch)
    second.pull("studio::me/imp")
    assert offsets == [500]
    assert second.verify() == ()
    assert temporaries_below(second.root) == []


@pytest.mark.parametrize("beginning", [b"X" * 500, CONTENTS + b"X", b"X" * len(CONTENTS), CONTENTS, b""])
def test_partial_with_wrong_bytes_is_fetched_anew(second: Registry, beginning: bytes) -> None:
    partial = second.root / "partial" / BLOB.hex
    partial.parent.mkdir(parents=True)
    partial.write_bytes(beginning)
    second.pull("studio::me/imp")
    assert second.verify() == ()
    assert second.get("me/imp").blobs[BLOB].read_bytes() == CONTENTS


def test_link_in_the_place_of_a_partial_is_not_followed(second: Registry, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("mine", encoding="utf-8")
    partial = second.root / "partial" / BLOB.hex
    partial.parent.mkdir(parents=True)
    partial.symlink_to(victim)
    second.pull("studio::me/imp")
    assert second.verify() == ()
    assert victim.read_text(encoding="utf-8") == "mine"


def test_progress_of_a_pull_ends_at_all_its_bytes(second: Registry) -> None:
    events: list[Progress] = []
    second.pull("studio::me/imp", on_event=events.append)
    assert (events[-1].done_bytes, events[-1].total_bytes) == (len(CONTENTS), len(CONTENTS))


def test_push_into_a_folder_that_is_somebodys_store_is_listed_there(pushed: Registry, tmp_path: Path) -> None:
    other = Registry(tmp_path / "other")
    other.publish(write_folder(tmp_path / "ukiyo", name="bob/ukiyo"))
    pushed.push("me/imp", other.root.as_uri())
    assert [str(row.reference) for row in other.list()] == ["bob/ukiyo@1.0.0", "me/imp@1.0.0"]
