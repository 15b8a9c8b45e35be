"""What must be true after any fault: what is listed is whole, nothing is lost, and the command can be run again."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from conceptry.registry import Registry
from conceptry.registry.file_reading import is_folder
from conceptry.registry.index import is_index_equal
from conceptry.registry.paths import Layout
from conceptry.registry.refs import list_names, list_versions, read_version
from conceptry.registry.tags import list_tags, read_tag
from conceptry.registry.verify import verify_store
from tests.faults.commands import STORES, Command, list_all
from tests.registry.folders import temporaries_below

Kept = dict[str, str]
"""What a folder has: each version and tag of each store, with the digest that it means."""


def list_kept(folder: Path) -> Kept:
    """Return every version and tag in every store below ``folder``, read from the files."""
    return {key: value for store in STORES for key, value in _iter_kept(store, Layout(folder / store))}


def _iter_kept(store: str, layout: Layout) -> Iterator[tuple[str, str]]:
    for name in list_names(layout):
        for version in list_versions(layout, name):
            ref = read_version(layout, name, version)
            if ref is not None:
                yield f"{store} {name}@{version}", str(ref.digest)
        for tag in list_tags(layout, name):
            move = read_tag(layout, name, tag)
            if move is not None:
                yield f"{store} {name}:{tag}", str(move.digest)


def find_losses(command: Command, before: Kept, after: Kept, *, succeeded: bool) -> list[str]:
    """Return what is gone or changed that may not be, or missing although the command has succeeded."""
    may_go = {f"{command.store} {one}" for one in command.removes}
    added = {f"{command.store} {one}" for one in command.adds}
    lost = [
        f"lost: {key}"
        for key, value in before.items()
        if key not in may_go | added and after.get(key) != value
    ]
    if succeeded:
        lost += [f"missing after success: {key}" for key in added if key not in after]
        lost += [f"still there after success: {key}" for key in may_go if key in after]
    strangers = set(after) - set(before) - added
    return [*lost, *(f"not asked for: {key}" for key in sorted(strangers))]


def find_damage(root: Path) -> list[str]:
    """Return what ``concepts verify`` finds wrong in a store or remote, and where its listing says something else."""
    if not is_folder(root):
        return []
    registry = Registry(root)
    wrong = [finding.message for finding in verify_store(registry.store, repair_index=False)]
    if root.name != "studio":  # a remote has no listing
        listed = {str(row.reference) for row in list_all(registry)}
        there = {key.split(" ")[1] for key, _ in _iter_kept("", registry.store.layout) if "@" in key}
        wrong += [f"listed {sorted(listed)}, there {sorted(there)}"] if listed != there else []
    return wrong


def look_after(folder: Path, command: Command, before: Kept, *, succeeded: bool) -> str | None:
    """Return what is wrong right after the fault, None if nothing is."""
    wrong = [
        *find_losses(command, before, list_kept(folder), succeeded=succeeded),
        *find_damage(folder / command.store),
    ]
    return "; ".join(wrong) or None


def repeat(folder: Path, command: Command, before: Kept, expected: Kept) -> str | None:
    """Return what is wrong after the same command ran once more, and a collection after it; None if nothing is."""
    command.run(folder)
    after = list_kept(folder)
    wrong = [] if after == expected else [f"not as after an undisturbed run: {after}, not {expected}"]
    registry = Registry(folder / command.store)
    registry.collect_garbage(grace_seconds=0)
    wrong += [f"outlived gc: {name}" for name in temporaries_below(registry.root)]
    wrong += find_losses(command, before, list_kept(folder), succeeded=True)
    wrong += find_damage(registry.root)
    if command.store != "studio" and registry.store.exists and not is_index_equal(registry.store):
        wrong += ["the index is not what the files say"]
    return "; ".join(wrong) or None
