"""The commands that faults strike: what each finds, what it does, and what is there once it has succeeded."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from conceptry.digests import Digest
from conceptry.names import Reference, RemoteName, parse_tag
from conceptry.registry import Registry
from conceptry.registry.file_reading import names_in, read_small_file
from conceptry.registry.files import write_file
from conceptry.registry.index import rebuild_index
from conceptry.registry.listing import Filter
from conceptry.registry.operations import current_operations
from conceptry.registry.paths import Layout
from conceptry.registry.refs import read_version
from conceptry.registry.rows import ListedVersion
from conceptry.registry.workspace import Workspace
from conceptry.written_files import FileStamp
from tests.registry.folders import make_manifest
from tests.registry.projects import write_project

OLD: Final = "me/imp@1.0.0"
NEW: Final = "me/imp@2.0.0"
HAT: Final = "me/hat@1.0.0"
TAG: Final = "me/imp:stable"
SAMPLE_BYTES: Final = 16 << 10  # 32 sectors of a disk: a write of it can be torn
STORES: Final = ("home", "second", "studio")
"""The folders that a command may change: the store here, that of somebody else, and the remote between them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """A command, on folders below one that is its own."""

    name: str
    prepare: Callable[[Path], object]
    run: Callable[[Path], object]
    store: str
    """Which of ``STORES`` it changes."""

    adds: tuple[str, ...] = ()
    """What is there once it has succeeded: versions, and tags as ``namespace/name:tag``."""

    cleans_by: frozenset[str] = frozenset({"unlink"})
    """By which operations it removes its private files: where one of these fails, they are gone with the next gc."""

    removes: tuple[str, ...] = ()
    """What may be gone from the moment it begins, and is gone once it has succeeded."""


def write_text(path: Path, data: bytes, *, age_seconds: float = 0.0) -> None:
    """Put a file there through the operations in use, as old as wanted where they are the system's."""
    operations = current_operations()
    for folder in reversed(path.parents):
        try:
            operations.status(folder)
        except OSError:
            operations.make_folder(folder, 0o755)
    descriptor = operations.create(path)
    operations.write(descriptor, data)
    operations.close(descriptor)
    if age_seconds and path.exists():
        then = time.time() - age_seconds
        os.utime(path, (then, then))


def write_concept(folder: Path, reference: str) -> Path:
    """Return a folder that can be published as a version with bytes of its own."""
    name, _, version = reference.partition("@")
    file = (reference.encode() * SAMPLE_BYTES)[:SAMPLE_BYTES]
    requires = {"requires": ["me/hat@^1"]} if version == "2.0.0" else {}
    place = locate_concept(folder, reference)
    write_text(place / "concept.json", make_manifest(name, version, file=file, **requires).to_bytes())
    write_text(place / "lora.safetensors", file)
    return place


def locate_concept(folder: Path, reference: str) -> Path:
    """Return where ``write_concept`` puts a version."""
    return folder / "made" / reference.replace("/", "-").replace("@", "-")


def locate_studio(folder: Path) -> str:
    """Return the address of the remote."""
    return (folder / "studio").as_uri()


def prepare_home(folder: Path) -> None:
    """A store that has the old version and the hat; the new version lies beside it."""
    registry = Registry(folder / "home")
    for reference in (HAT, OLD):
        registry.publish(write_concept(folder, reference))
    write_concept(folder, NEW)


def prepare_new(folder: Path) -> None:
    """A store that has all three."""
    prepare_home(folder)
    Registry(folder / "home").publish(locate_new(folder))


def prepare_nothing(folder: Path) -> None:
    """No store yet."""
    write_concept(folder, NEW)


def locate_new(folder: Path) -> Path:
    """Return where the new version can be published from."""
    return folder / "made" / "me-imp-2.0.0"


def prepare_remote(folder: Path) -> None:
    """A remote that has the old version and the hat, and whose address is known to another store."""
    prepare_new(folder)
    registry = Registry(folder / "home")
    for reference in (HAT, OLD, NEW):
        registry.push(reference, locate_studio(folder))
    second = Registry(folder / "second")
    second.add_remote(RemoteName("studio"), locate_studio(folder))
    second.pull(f"studio::{OLD}")


def prepare_old_remote(folder: Path) -> None:
    """A remote that has the old version only."""
    prepare_new(folder)
    Registry(folder / "home").push(OLD, locate_studio(folder))


def prepare_project(folder: Path) -> None:
    """A project that is locked, and not synced yet."""
    prepare_remote(folder)
    text = write_project(locate_studio(folder), '"me/imp" = "^2"', about='base = "sd1"')
    write_text(folder / "project" / "concepts.toml", text.encode())
    find_project(folder).lock()


def find_project(folder: Path) -> Workspace:
    """Return the project."""
    return Workspace(Registry(folder / "second"), folder / "project")


def prepare_unlocked(folder: Path) -> None:
    """A project that is not locked yet."""
    prepare_remote(folder)
    text = write_project(locate_studio(folder), '"me/imp" = "^2"', about='base = "sd1"')
    write_text(folder / "project" / "concepts.toml", text.encode())


def prepare_tagged(folder: Path) -> None:
    """A store whose tag stands on the old version."""
    prepare_new(folder)
    Registry(folder / "home").tag(OLD, parse_tag("stable"))


def prepare_garbage(folder: Path) -> None:
    """A store with blobs that nothing needs, and with what killed commands left."""
    prepare_new(folder)
    layout, host = Layout(folder / "home"), "00000000"
    for number in range(3):
        data = f"nobody needs this: {number}".encode() * 60
        write_text(layout.blob(Digest.of_bytes(data)), data, age_seconds=9e6)
        write_text(layout.temporaries / f"{host}-{number}-left", data, age_seconds=9e6)
        write_text(layout.partial(Digest.of_bytes(data)), data[:100], age_seconds=9e6)


def prepare_removed(folder: Path) -> None:
    """A store from which the new version was removed."""
    prepare_new(folder)
    Registry(folder / "home").remove(NEW)


def prepare_collected(folder: Path) -> None:
    """A store whose garbage was collected."""
    prepare_garbage(folder)
    Registry(folder / "home").collect_garbage(grace_seconds=0)


def prepare_damaged_index(folder: Path) -> None:
    """A store whose index is behind: a change of references began and never ended."""
    prepare_new(folder)
    operations, path = current_operations(), Layout(folder / "home").generation
    operations.unlink(path)
    write_text(path, b"0" * 32)


def rebuild(folder: Path) -> None:
    """Makes the index anew."""
    rebuild_index(Registry(folder / "home").store)


def sync(folder: Path) -> None:
    """Brings the project's concepts into the store."""
    project = find_project(folder)
    project.sync(project.check())


def remove(folder: Path) -> None:
    """Takes the new version away, if it is there."""
    registry = Registry(folder / "home")
    if has_new(registry):
        registry.remove(NEW)


def restore(folder: Path) -> None:
    """Brings the new version back, unless it is back."""
    registry = Registry(folder / "home")
    if not has_new(registry):
        registry.restore(NEW)


def has_new(registry: Registry) -> bool:
    """Return whether the new version is there. Raises StoreError where a listing would pass over it."""
    wanted = Reference.parse(NEW)
    version = wanted.version
    return version is not None and read_version(registry.store.layout, wanted.concept, version) is not None


def publish_moved(folder: Path) -> None:
    """Publishes the new version as an import does: from files that this process wrote in the store's own folder."""
    registry, made = Registry(folder / "home"), locate_new(folder)
    with registry.stage() as staged:
        written: dict[FileStamp, Digest] = {}
        for name in ("concept.json", "lora.safetensors"):
            data = read_small_file(made / name, 1 << 20) or b""
            write_file(staged / name, data, temporary=staged / f"{name}.partial")
            written[FileStamp.of(current_operations().status(staged / name))] = Digest.of_bytes(data)
        registry.publish(staged, written=written)


def undo(folder: Path) -> None:
    """Brings back what was collected, unless that was done."""
    registry = Registry(folder / "home")
    layout = registry.store.layout
    if names_in(layout.collections):
        registry.undo_collection()


def list_all(registry: Registry) -> list[ListedVersion]:
    """Return each version in the listing."""
    return list(registry.list(Filter(all_versions=True)))


COMMANDS: Final[dict[str, Command]] = {
    row.name: row
    for row in (
        Command(
            name="publish",
            prepare=prepare_home,
            run=lambda folder: void(Registry(folder / "home").publish(locate_new(folder))),
            store="home",
            adds=(NEW,),
        ),
        Command(
            name="publish (first)",
            prepare=prepare_nothing,
            run=lambda folder: void(Registry(folder / "home").publish(locate_new(folder))),
            store="home",
            adds=(NEW,),
        ),
        Command(
            name="publish (moved)",
            prepare=prepare_home,
            run=publish_moved,
            store="home",
            adds=(NEW,),
            cleans_by=frozenset({"unlink", "names", "remove_folder"}),
        ),
        Command(
            name="pull",
            prepare=prepare_remote,
            run=lambda folder: void(Registry(folder / "second").pull(f"studio::{NEW}")),
            store="second",
            adds=(NEW,),
        ),
        Command(
            name="push",
            prepare=prepare_old_remote,
            run=lambda folder: void(Registry(folder / "home").push(NEW, locate_studio(folder))),
            store="studio",
            adds=(NEW,),
        ),
        Command(
            name="push (first)",
            prepare=prepare_new,
            run=lambda folder: void(Registry(folder / "home").push(NEW, locate_studio(folder))),
            store="studio",
            adds=(NEW,),
        ),
        Command(
            name="tag",
            prepare=prepare_tagged,
            run=lambda folder: void(Registry(folder / "home").tag(NEW, parse_tag("stable"))),
            store="home",
            adds=(TAG,),
        ),
        Command(
            name="gc",
            prepare=prepare_garbage,
            run=lambda folder: void(Registry(folder / "home").collect_garbage(grace_seconds=0)),
            store="home",
        ),
        Command(name="gc (undo)", prepare=prepare_collected, run=undo, store="home"),
        Command(name="index rebuild", prepare=prepare_damaged_index, run=rebuild, store="home"),
        Command(
            name="lock", prepare=prepare_unlocked, run=lambda f: void(find_project(f).lock()), store="second"
        ),
        Command(name="sync", prepare=prepare_project, run=sync, store="second", adds=(HAT, NEW)),
        Command(name="remove", prepare=prepare_new, run=remove, store="home", removes=(NEW,)),
        Command(name="restore", prepare=prepare_removed, run=restore, store="home", adds=(NEW,)),
    )
}


def void(value: object) -> None:
    """Drop a value."""
