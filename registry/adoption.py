"""Adopting a folder: what each model in it is, by its header and the notes beside it; nothing is copied or changed.

A file whose size, inode and times are as they were is not opened again. A file that is gone stays known as missing,
and is found again where it was moved to.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from conceptry.errors import NotFoundError
from conceptry.names import parse_namespace
from conceptry.registry.adopted_files import AdoptedFile, Collection, read_collection, write_collection
from conceptry.registry.adoption_answers import Answers, add_doubts, read_answers
from conceptry.registry.adoption_looking import iter_models, look_at_model
from conceptry.registry.adoption_moves import follow_moves, give_names
from conceptry.registry.events import Meter, OnEvent, ignore_event
from conceptry.registry.file_reading import is_folder
from conceptry.registry.places import CollectionLayout
from conceptry.registry.store import Store

DEFAULT_NAMESPACE: Final = "adopted"


@dataclass(frozen=True, slots=True, kw_only=True)
class Adoption:
    """What adopting a folder found; files in order of path."""

    collection: Collection
    added: int
    changed: int
    moved: int
    skipped: tuple[tuple[str, str], ...]
    """What has no place in a collection (links, names that are no text), and why."""

    answers: Path
    new_doubts: int

    @property
    def failed(self) -> tuple[AdoptedFile, ...]:
        """The files that are no sound models."""
        return tuple(file for file in self.collection.files if file.state == "unreadable")


def adopt_collection(
    store: Store,
    folder: Path,
    *,
    namespace: str = DEFAULT_NAMESPACE,
    on_event: OnEvent = ignore_event,
) -> Adoption:
    """Returns what a folder holds, which the store knows from now on; its files stay where they are.

    Raises:
        NotFoundError: if there is no such folder.
        UsageError: if its ``adopt.toml`` is malformed.
        StoreError: if the store or ``adopt.toml`` cannot be written.
    """
    place = CollectionLayout(folder.expanduser().absolute())
    if not is_folder(place.root):
        raise NotFoundError(f"no folder {str(folder)!r}", hint="name the folder that holds the models")
    known = read_collection(store.layout, place.root)
    collection = known or Collection(folder=place.root, namespace=parse_namespace(namespace))
    answers = read_answers(place)
    skipped: list[tuple[str, str]] = []
    found = list(iter_models(place, "", skipped))
    old = {file.path: file for file in collection.files}
    meter = Meter("check", sum(one.status.st_size for one in found), on_event)
    looked = [look_at_model(place, one, old.get(one.path), meter) for one in found]
    files, moved = follow_moves(looked, old)
    named = give_names(store.layout, collection, files)
    answered = [replace(file, answers=answers.find(file)) for file in named]
    result = Collection(folder=place.root, namespace=collection.namespace, files=tuple(answered))
    new_doubts, result = _settle_doubts(place, answers, result)
    write_collection(store, result)
    return Adoption(
        collection=result,
        added=sum(file.path not in old for file in looked) - moved,
        changed=sum(file.path in old and file.stamp != old[file.path].stamp for file in looked),
        moved=moved,
        skipped=tuple(skipped),
        answers=place.answers,
        new_doubts=new_doubts,
    )


def _settle_doubts(
    place: CollectionLayout, answers: Answers, collection: Collection
) -> tuple[int, Collection]:
    present = [file for file in collection.files if file.state not in ("missing", "unreadable", "recognised")]
    count = add_doubts(place, answers, present)
    if not count:
        return 0, collection
    written = read_answers(place)
    files = tuple(replace(file, answers=written.find(file)) for file in collection.files)
    return count, replace(collection, files=files)
