"""Which of an adopted folder's files moved since it was last looked at, and what each file is called."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Final

from conceptry.errors import InvalidNameError
from conceptry.names import ConceptName
from conceptry.registry.adopted_files import AdoptedFile, Collection, read_collections
from conceptry.registry.file_reading import is_folder
from conceptry.registry.paths import Layout

_MAX_NAME_CHARS: Final = 56
_SLUG: Final = re.compile(r"[^a-z0-9]+")


def follow_moves(looked: list[AdoptedFile], old: Mapping[str, AdoptedFile]) -> tuple[list[AdoptedFile], int]:
    """Returns the files with what was known of those that moved, the missing ones among them, and how many moved."""
    present = {file.path for file in looked}
    gone = [file for path, file in old.items() if path not in present]
    new = [file for file in looked if file.path not in old]
    moved: dict[str, AdoptedFile] = {}
    for key in (_key_by_inode, _key_by_header):
        left = [file for file in new if file.path not in {one.path for one in moved.values()}]
        sources = _unique(key, [file for file in gone if file.path not in moved])
        for mark, target in _unique(key, left).items():
            source = sources.get(mark)
            # Bytes that were hashed are the same where the file itself moved; elsewhere they are hashed again.
            if source is not None and (key is _key_by_inode or source.sha256 is None):
                moved[source.path] = replace(
                    target,
                    name=source.name,
                    known_as=source.known_as or source.path,
                    sha256=source.sha256,
                    data_sha256=source.data_sha256,
                    made=source.made,
                )
    by_path = {file.path: file for file in moved.values()}
    missing = [replace(file, missing=True) for file in gone if file.path not in moved]
    return [*(by_path.get(file.path, file) for file in looked), *missing], len(moved)


def _unique(
    key: Callable[[AdoptedFile], tuple[object, ...]], files: list[AdoptedFile]
) -> dict[tuple[object, ...], AdoptedFile]:
    """Returns the files by their keys, without those that share one."""
    found: dict[tuple[object, ...], list[AdoptedFile]] = {}
    for file in files:
        found.setdefault(key(file), []).append(file)
    return {mark: same[0] for mark, same in found.items() if len(same) == 1}


def _key_by_inode(file: AdoptedFile) -> tuple[object, ...]:
    return file.stamp[:3]


def _key_by_header(file: AdoptedFile) -> tuple[object, ...]:
    return file.size_bytes, file.header or file.path


def give_names(layout: Layout, collection: Collection, files: list[AdoptedFile]) -> list[AdoptedFile]:
    """Returns the files, each with the name it had, else one made of its file's name that nothing has."""
    others = [one for one in read_collections(layout) if one.folder != collection.folder]
    taken = {file.name for one in others if one.namespace == collection.namespace for file in one.files}
    taken |= {file.name for file in files}
    named = []
    for file in sorted(files, key=lambda file: file.path):
        name = file.name or _draw_name(layout, collection.namespace, file, taken)
        taken.add(name)
        named.append(replace(file, name=name))
    return named


def _draw_name(layout: Layout, namespace: str, file: AdoptedFile, taken: set[str]) -> str:
    stem = file.path.rpartition("/")[2].rpartition(".")[0]
    slug = _SLUG.sub("-", stem.lower())[:_MAX_NAME_CHARS].strip("-") or "file"
    number = 1
    while True:
        text = slug if number == 1 else f"{slug}-{number}"
        number += 1
        try:
            name = ConceptName(namespace, text)
        except InvalidNameError:  # a device name on Windows
            slug = f"file-{slug}"
            continue
        if text not in taken and not is_folder(layout.versions(name)):
            return text
