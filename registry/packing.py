"""A project into a bundle, and out of it: what ``concepts bundle`` and ``concepts sync --from`` do."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Final

from conceptry.base_locations import MODEL_INDEX
from conceptry.errors import ConflictError, IntegrityError, NotFoundError, UsageError
from conceptry.manifest import check_member_path
from conceptry.registry.bundle_reading import Bundle, open_bundle
from conceptry.registry.bundles import BaseFile, Bundled, write_bundle
from conceptry.registry.events import OnEvent, ignore_event
from conceptry.registry.files import (
    STATE_MODE,
    digest_file,
    explain_os_errors,
    is_folder,
    names_in,
    read_small_file,
    write_new_file,
)
from conceptry.registry.lockfile import MAX_LOCK_BYTES, LockedBase, read_lock_bytes, write_lock
from conceptry.registry.locking import locate_base
from conceptry.registry.places import draw_name_beside, locate_base_file, locate_project
from conceptry.registry.project_edits import write_project
from conceptry.registry.registry import Registry
from conceptry.registry.syncing import Synced
from conceptry.registry.workspace import Workspace, find_folder

BASE_SUFFIXES: Final = (".json", ".safetensors", ".txt", ".model", ".md")


def pack_project(
    workspace: Workspace, target: Path, *, with_base: bool = False, on_event: OnEvent = ignore_event
) -> Bundled:
    """Returns the bundle at ``target`` with the project, its lock, what is locked, and its base if that is asked for.

    What the store lacks is synced first.

    Raises:
        LockStaleError, InvalidLockError: if the lock does not answer the project.
        NotFoundError, UsageError: if the base is to go in and does not lie here as a folder.
        IntegrityError, RemoteError, StoreError: if something cannot be read or written.
    """
    lock = workspace.check()
    base = tuple(_list_base(workspace, lock.base)) if with_base else ()
    if workspace.count_in_order() is None:
        workspace.sync(lock, on_event=on_event)
    return write_bundle(
        target,
        workspace.registry.store.layout,
        lock,
        project=workspace.load_text().encode("utf-8"),
        lock_data=read_lock_bytes(workspace.lock_path) or b"",
        base=base,
    )


def unpack_project(
    registry: Registry,
    path: Path,
    folder: Path,
    *,
    base_out: Path | None = None,
    on_event: OnEvent = ignore_event,
) -> tuple[Workspace, Synced]:
    """Returns the project around ``folder``, and what was done until the store had all that the bundle's lock says.

    Where no project is found upward, ``folder`` becomes the bundle's. Nothing is written before every bit was checked.

    Raises:
        ConflictError: if another project is there.
        IntegrityError: if the bundle is damaged.
    """
    bundle = open_bundle(path, on_event=on_event)
    workspace = Workspace(registry, find_folder(folder) or folder.absolute())
    known = (
        read_small_file(locate_project(workspace.folder), MAX_LOCK_BYTES),
        read_lock_bytes(workspace.lock_path),
    )
    if known not in ((None, None), (bundle.project, None), (bundle.project, bundle.lock)):
        raise ConflictError(
            f"{str(workspace.folder)!r} has another project than the bundle",
            hint="take it in in an empty folder",
        )
    if base_out is not None:
        _write_base(bundle, base_out)
    write_project(workspace.folder, bundle.project.decode("utf-8"))
    write_lock(workspace.lock_path, bundle.lock)
    lock = workspace.read_lock()
    return workspace, workspace.sync(
        lock, open_source=lambda name: bundle, has_foreign=True, on_event=on_event
    )


def _list_base(workspace: Workspace, base: LockedBase | None) -> Iterator[BaseFile]:
    """Yields the files of the base's folder that hold weights and settings; nothing that could run."""
    if base is None:
        raise UsageError(
            "the project names no base", hint="write base = under [project], or leave out --base"
        )
    location = locate_base(workspace.read_project(), workspace.registry.bases())
    if location.path is None or location.kind == "file":
        raise NotFoundError(
            f"the base {base.reference!r} does not lie here as a folder",
            hint="name a diffusers folder as the base",
        )
    for name in _iter_names(location.path, ""):
        place = locate_base_file(location.path, name).resolve()  # the Hub's cache has links in its folders
        with explain_os_errors("read", place):
            digest, size_bytes = digest_file(place)
        yield BaseFile(name, place, digest, size_bytes)


def _iter_names(root: Path, below: str) -> Iterator[str]:
    for entry in names_in(locate_base_file(root, below) if below else root):
        try:
            name = check_member_path(f"{below}{entry}")
        except ValueError:
            continue
        if is_folder(locate_base_file(root, name)):
            yield from _iter_names(root, f"{name}/")
        elif name.endswith(BASE_SUFFIXES):
            yield name


def _write_base(bundle: Bundle, folder: Path) -> None:
    if MODEL_INDEX not in {file.path for file in bundle.base}:
        raise UsageError("the bundle has no base in it", hint="who made it can add --base to concepts bundle")
    for file in bundle.base:
        try:
            target = locate_base_file(folder, check_member_path(file.path))
        except ValueError as error:
            raise IntegrityError(
                f"the bundle's base has a file {file.path[:80]!r}, which is no safe name"
            ) from error
        with write_new_file(draw_name_beside(target)) as new:
            for chunk in bundle.open_base(file):
                new.write(chunk)
            new.commit(target, mode=STATE_MODE, replace=True)
