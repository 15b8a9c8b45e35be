"""A project into a bundle, and out of it: what ``concepts bundle`` and ``concepts sync --from`` do."""

from __future__ import annotations

import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from conceptry.base_locations import MODEL_INDEX
from conceptry.errors import ConflictError, IntegrityError, NotFoundError, UsageError
from conceptry.manifest import check_member_path
from conceptry.registry.bundle_reading import Bundle, BundledFile, open_bundle
from conceptry.registry.bundles import BaseFile, Bundled, begins_as_bundle, write_bundle
from conceptry.registry.events import OnEvent, ignore_event
from conceptry.registry.file_reading import digest_file, is_folder, look_at, names_in, read_small_file
from conceptry.registry.files import STATE_MODE, write_new_file
from conceptry.registry.lockfile import MAX_LOCK_BYTES, LockedBase, read_lock_bytes, write_lock
from conceptry.registry.locking import locate_base
from conceptry.registry.os_errors import explain_os_errors
from conceptry.registry.places import draw_name_beside, locate_base_file, locate_project
from conceptry.registry.project_edits import write_project
from conceptry.registry.registry import Registry
from conceptry.registry.syncing import Synced
from conceptry.registry.workspace import Workspace, find_folder

BASE_SUFFIXES: Final = (".json", ".safetensors", ".txt", ".model", ".md")


def pack_project(
    workspace: Workspace,
    target: Path,
    *,
    with_base: bool = False,
    force: bool = False,
    on_event: OnEvent = ignore_event,
) -> Bundled:
    """Returns the bundle at ``target`` with the project, its lock, what is locked, and its base if that is asked for.

    What the store lacks is synced first. A bundle that is there is replaced, and any other file with ``force`` alone.

    Raises:
        ConflictError: if ``target`` is a file of something else, or a folder.
        LockStaleError, InvalidLockError: if the lock does not answer the project.
        NotFoundError: if there is no folder for ``target``.
        NotFoundError, UsageError: if the base is to go in and does not lie here as a folder.
        IntegrityError, RemoteError, StoreError: if something cannot be read or written.
    """
    _refuse_overwriting(target, force=force)
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
        ConflictError: if another project is there, or ``base_out`` has other files or links in the way.
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


def _refuse_overwriting(target: Path, *, force: bool) -> None:
    if not is_folder(target.absolute().parent):
        raise NotFoundError(
            f"there is no folder {str(target.parent)!r}", hint="make it, or name a file in another one"
        )
    if is_folder(target):
        raise ConflictError(f"{str(target)!r} is a folder", hint="name a file in it")
    if not force and look_at(target) is not None and not begins_as_bundle(target):
        raise ConflictError(
            f"{str(target)!r} is there and no bundle of a project",
            hint="name another file, or add --force to replace it",
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
    targets = {file.path: _locate_base_target(folder, file) for file in bundle.base}
    for file in bundle.base:
        target = targets[file.path]
        if look_at(target) is not None:
            continue
        with write_new_file(draw_name_beside(target)) as new:
            for chunk in bundle.open_base(file):
                new.write(chunk)
            new.commit(target, mode=STATE_MODE, replace=True)


def _locate_base_target(folder: Path, file: BundledFile) -> Path:
    """Returns where a file of the base goes, which is free or has its bytes, and lies behind no link."""
    try:
        target = locate_base_file(folder, check_member_path(file.path))
    except ValueError as error:
        raise IntegrityError(
            f"the bundle's base has a file {file.path[:80]!r}, which is no safe name"
        ) from error
    between = target.parents[: file.path.count("/")]
    for place in (*reversed(between), target):
        status = look_at(place)
        if status is not None and stat.S_ISLNK(status.st_mode):
            raise ConflictError(f"{str(place)!r} is a link", hint="name another folder for the base")
    if look_at(target) is None:
        return target
    with explain_os_errors("read", target):
        if digest_file(target) != (file.digest, file.size_bytes):
            raise ConflictError(
                f"{str(target)!r} is there with other contents", hint="name another folder for the base"
            )
    return target
