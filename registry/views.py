"""Concepts in the folders that other programs read: converted, or as they are stored; made again, only ours changes.

What a view wrote stands in ``.conceptry-view.json`` in its folder. A file that is not in there, or was changed since,
belongs to somebody else and is never replaced or removed.
"""

from __future__ import annotations

import json
import stat
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from conceptry.concepts import Concept
from conceptry.digests import Digest
from conceptry.errors import ConceptryError, ConflictError, NotFoundError
from conceptry.registry.file_reading import digest_file, is_file, look_at, read_small_file
from conceptry.registry.files import remove_empty_folder, remove_file, write_file
from conceptry.registry.os_errors import explain_os_errors
from conceptry.registry.placements import (
    LINKS,
    Made,
    Placement,
    Program,
    ViewSettings,
    find_program,
    place_concept,
)
from conceptry.registry.places import ViewLayout

__all__ = ["LINKS", "View", "ViewSettings", "make_view"]

_LIMIT_BYTES: Final = 64 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """What a view changed in its folder; names as seen from there."""

    written: tuple[str, ...]
    unchanged: tuple[str, ...]
    removed: tuple[str, ...]
    kept: tuple[str, ...]
    """Files that a view made once and somebody changed since."""

    warnings: tuple[str, ...]


def make_view(concepts: Iterable[Concept], settings: ViewSettings) -> View:
    """Returns what changed in a folder that has exactly these concepts of ours now.

    Raises:
        UsageError: for an unknown program.
        IncompatibleError: if the program cannot read a concept; nothing was changed then.
        ConflictError: if a file of somebody else has the name of one of ours, two of ours would have the same, or a
            link lies in the way; nothing was changed then.
        StoreError: if the folder cannot be written.
    """
    program = find_program(settings.program)
    layout = ViewLayout(settings.folder.absolute())
    known = _read_state(layout)
    now: dict[str, Made] = {}
    warnings: dict[str, None] = {}
    once = {concept.digest: concept for concept in concepts}
    jobs = [job for concept in once.values() for job in place_concept(concept, program, settings, layout)]
    _refuse_equal_names(jobs)
    for job in jobs:
        _refuse_links(layout, job.names)
        _refuse_strangers(layout, job.names, known)
    written: list[str] = []
    unchanged: list[str] = []
    for job in jobs:
        made = {name: known[name] for name in job.names if _is_made(layout, name, known, job)}
        if len(made) == len(job.names):
            unchanged += job.names
        else:
            made = job.write(layout)
            written += made
            _write_state(layout, {**known, **now, **made})
        now |= made
        warnings |= dict.fromkeys(job.warnings)
    warnings |= dict.fromkeys(_warn_of_equal_stems(jobs, program))
    removed, kept = _remove_others(layout, known, now)
    _write_state(layout, now)
    return View(
        written=tuple(written),
        unchanged=tuple(unchanged),
        removed=tuple(removed),
        kept=tuple(kept),
        warnings=tuple(warnings),
    )


# --- what may not be written ---------------------------------------------------------------------------------------


def _refuse_equal_names(placements: Iterable[Placement]) -> None:
    # Two file systems of three do not tell capital letters from small ones.
    taken: dict[str, Placement] = {}
    for one in placements:
        for name in one.names:
            other = taken.setdefault(name.casefold(), one)
            if other is not one:
                raise ConflictError(
                    f"{other.concept.label} and {one.concept.label} would both be {name!r}",
                    hint="leave one of them out, or give it a view in another folder",
                )


def _warn_of_equal_stems(placements: Iterable[Placement], program: Program) -> list[str]:
    """Returns which weights the program takes for one another, as it knows a file by its name without the folder."""
    stems: dict[tuple[str, str], Placement] = {}
    found = []
    for one in placements if program.by_stem else ():
        for name in (name for name in one.names if name.endswith(".safetensors")):
            key = (name.partition("/")[0], name.rpartition("/")[2].casefold())
            other = stems.setdefault(key, one)
            if other is not one:
                found.append(
                    f"{program.id} takes {other.concept.label} and {one.concept.label} for one: it knows both as "
                    f"{key[1].removesuffix('.safetensors')!r}"
                )
    return found


def _refuse_links(layout: ViewLayout, names: Iterable[str]) -> None:
    for folder in dict.fromkeys(folder for name in names for folder in _folders_of(layout, name)):
        status = look_at(folder)
        if status is not None and not stat.S_ISDIR(status.st_mode):
            raise ConflictError(
                f"{str(folder)!r} is {_name_form(status.st_mode)}, which a view does not follow",
                hint="move it away; the folder of a whole kind, as loras, may be a link",
            )


def _name_form(mode: int) -> str:
    return "a link" if stat.S_ISLNK(mode) else "no folder"


def _folders_of(layout: ViewLayout, name: str) -> list[Path]:
    """Returns the folders that a file of a view lies in, without that of its kind, which people link to other disks."""
    parts = name.split("/")
    return [layout.file("/".join(parts[:count])) for count in range(2, len(parts))]


def _leads_elsewhere(layout: ViewLayout, name: str) -> bool:
    found = (look_at(folder) for folder in _folders_of(layout, name))
    return any(status is not None and not stat.S_ISDIR(status.st_mode) for status in found)


# --- what is there -------------------------------------------------------------------------------------------------


def _refuse_strangers(layout: ViewLayout, names: Iterable[str], known: Mapping[str, Made]) -> None:
    for name in names:
        path = layout.file(name)
        if look_at(path) is None:
            continue
        if name not in known or _was_changed(layout, name, known[name]):
            whose = "was changed since" if name in known else "was not made by concepts view"
            raise ConflictError(
                f"{str(path)!r} exists and {whose}", hint="move it away, then run the same command again"
            )


def _is_made(layout: ViewLayout, name: str, known: Mapping[str, Made], job: Placement) -> bool:
    made = known.get(name)
    same = made is not None and (made.digest, made.how) == (job.concept.digest, job.how)
    return same and look_at(layout.file(name)) is not None


def _was_changed(layout: ViewLayout, name: str, made: Made) -> bool:
    path = layout.file(name)
    if not is_file(path):  # a symbolic link of ours leads to a blob that verify reads
        return made.how != "stored symbolic"
    with explain_os_errors("read", path):
        return digest_file(path) != (made.sha256, made.size_bytes)


def _remove_others(
    layout: ViewLayout, known: Mapping[str, Made], now: Mapping[str, Made]
) -> tuple[list[str], list[str]]:
    removed: list[str] = []
    kept: list[str] = []
    for name in sorted(known.keys() - now.keys()):
        path = layout.file(name)
        if look_at(path) is None:
            continue
        if _leads_elsewhere(layout, name) or _was_changed(layout, name, known[name]):
            kept.append(name)
        elif remove_file(path):
            removed.append(name)
            remove_empty_folder(path.parent)
    return removed, kept


def _read_state(layout: ViewLayout) -> dict[str, Made]:
    data = read_small_file(layout.state, _LIMIT_BYTES)
    if data is None:
        return {}
    try:
        rows = json.loads(data)["files"]
        found = {
            name: Made(
                Digest.parse(row["concept"]),
                str(row["how"]),
                Digest.parse(row["sha256"]),
                int(row["size_bytes"]),
            )
            for name, row in rows.items()
        }
        for name in found:
            layout.file(name)
    except (ValueError, KeyError, TypeError, AttributeError, ConceptryError) as error:
        raise NotFoundError(
            f"{str(layout.state)!r} does not say what a view made here",
            hint="remove that file; what it named stays and must be removed by hand",
        ) from error
    return found


def _write_state(layout: ViewLayout, made: Mapping[str, Made]) -> None:
    rows = {
        name: {
            "concept": str(row.digest),
            "how": row.how,
            "sha256": str(row.sha256),
            "size_bytes": row.size_bytes,
        }
        for name, row in sorted(made.items())
    }
    data = (json.dumps({"schema": 1, "files": rows}, indent=1) + "\n").encode("ascii")
    if read_small_file(layout.state, _LIMIT_BYTES) != data:
        write_file(layout.state, data, temporary=layout.temporary(), replace=True)
