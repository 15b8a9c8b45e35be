"""Two commands where locks exclude nobody: of each pair, the second runs as a whole at every moment of the first."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from conceptry.errors import ConceptryError
from conceptry.registry import Filter, Registry
from conceptry.registry.file_reading import names_in
from conceptry.registry.index import is_index_equal, rebuild_index
from conceptry.registry.operations import use_operations
from conceptry.registry.refs import list_names, list_versions
from conceptry.registry.verify import verify_store
from tests.faults.children import copy_fresh
from tests.faults.meanwhile import at_number
from tests.faults.points import Counts
from tests.registry.folders import temporaries_below, write_folder

EVERYTHING: Final = Filter(all_versions=True)
Command = Callable[[Registry, Path], object]


def _publish(registry: Registry, folder: Path) -> None:
    registry.publish(write_folder(folder / "made", "me/imp", "2.0.0", file=b"second"))


def publish_another(registry: Registry, folder: Path) -> None:
    """Publishes what no other command here touches."""
    registry.publish(write_folder(folder / "other", "carol/cup", "1.0.0", file=b"third"))


def _remove(registry: Registry, folder: Path) -> None:
    registry.remove("me/imp@1.0.0")


def _yank(registry: Registry, folder: Path) -> None:
    registry.yank("me/imp@1.1.0", "worse")


def _rebuild(registry: Registry, folder: Path) -> None:
    rebuild_index(registry.store)


def look(registry: Registry, folder: Path) -> None:
    """Uses a version, and lists all."""
    registry.get("me/imp@1.1.0")
    registry.list(EVERYTHING)


def collect(registry: Registry, folder: Path) -> None:
    """Collects whatever nothing needs."""
    registry.collect_garbage(grace_seconds=0)


FIRST: Final[dict[str, Command]] = {
    "publish": _publish,
    "remove": _remove,
    "yank": _yank,
    "index rebuild": _rebuild,
    "get and list": look,
    "gc": collect,
}
SECOND: Final[dict[str, Command]] = {
    "publish another": publish_another,
    "remove": _remove,
    "index rebuild": _rebuild,
    "gc": collect,
}
# What the first one removed the second one does not find.
PARTS: Final = tuple(f"{one}, {two}" for one in FIRST for two in SECOND if (one, two) != ("remove", "remove"))


def prepare(folder: Path) -> Registry:
    """Return a registry with two versions and an index of them."""
    registry = Registry(folder / "filled")
    for version in ("1.0.0", "1.1.0"):
        registry.publish(write_folder(folder / version, version=version, file=version.encode()))
    registry.list()
    return registry


def sweep_pair(part: str, folder: Path, *, step: int = 1) -> Counts:
    """Return how both ended, the second at every STEP-th moment of the first."""
    first, second = part.split(", ")
    filled, counts, number, is_further = prepare(folder), Counts(), 1, True
    while is_further:
        copy_fresh(filled.root, folder / "home")
        registry = Registry(folder / "home")
        operations = at_number(number, lambda registry=registry: SECOND[second](registry, folder))  # type: ignore[misc]
        try:
            with use_operations(operations):
                FIRST[first](registry, folder)
            wrong = list(iter_wrong(registry))
        except ConceptryError as error:
            wrong = [f"{type(error).__name__}: {error}"]
        is_further = operations.is_done
        if is_further:
            counts.points["wrong" if wrong else "both ok"] += 1
            counts.violations += [f"{part}, at operation {number}: {one}" for one in wrong]
        number += step
    return counts


def iter_wrong(registry: Registry) -> Iterator[str]:
    """Yield where the listing says something else than the files, what is not whole, and what was left behind."""
    layout = registry.store.layout
    there = {f"{name}@{version}" for name in list_names(layout) for version in list_versions(layout, name)}
    listed = {row.text for row in registry.list(EVERYTHING)}
    if listed != there:
        yield f"listed {sorted(listed)}, there {sorted(there)}"
    if not is_index_equal(registry.store):
        yield "the index is not what the files say"
    yield from (finding.message for finding in verify_store(registry.store, repair_index=False))
    yield from (f"left behind: {name}" for name in temporaries_below(registry.root))
    yield from (f"left behind: {name}" for name in names_in(layout.leases))
    yield from (f"put aside as damaged: {name}" for name in names_in(layout.damaged))
