"""Files of many jobs: ``[defaults]`` and a ``[[jobs]]`` table for each concept; and a share of them for one machine."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

from conceptry.errors import ConceptryError, UsageError, suggest_nearest
from conceptry.trainer.jobs import TrainJob, find_repeated, make_job, resolve_paths
from conceptry.trainer.methods import find_trainer

_TABLES: Final = ("defaults", "jobs")
_SHARD: Final = re.compile(r"([0-9]{1,6})/([0-9]{1,6})", re.ASCII)
ItemT = TypeVar("ItemT")


@dataclass(frozen=True, slots=True, kw_only=True)
class JobEntry:
    """One ``[[jobs]]`` table: a job, or the reason why it is none. ``label`` is its name, or its place in the file."""

    label: str
    job: TrainJob | None = None
    error: ConceptryError | None = None


def read_jobs(path: Path) -> list[JobEntry]:
    """Returns the jobs of a TOML file in their order; relative paths are read from the file's folder.

    A table that describes no job becomes an entry with its error, so that the others can be carried out.

    Raises:
        UsageError: if the file cannot be read, has another table, or holds no job.
    """
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UsageError(
            f"cannot read {str(path)!r}: {error}", hint="write [defaults] and [[jobs]]"
        ) from error
    for key in values:
        if key not in _TABLES:
            hint = suggest_nearest(key, _TABLES) or "a file of jobs has [defaults] and [[jobs]]"
            raise UsageError(f"a file of jobs has no table {key!r}", where=str(path), hint=hint)
    tables, defaults = values.get("jobs", []), values.get("defaults", {})
    if not isinstance(defaults, dict) or not isinstance(tables, list) or not tables:
        message = f"{str(path)!r} holds no [[jobs]] table"
        raise UsageError(message, hint="write [[jobs]] with name and images for each concept")
    entries = [_read_entry(defaults, table, place, path.parent) for place, table in enumerate(tables)]
    return list(_refuse_repeated(entries))


def _refuse_repeated(entries: Sequence[JobEntry]) -> Iterator[JobEntry]:
    """Here and not where they are trained: the shards of a file do not know of each other."""
    good = [place for place, entry in enumerate(entries) if entry.job is not None]
    repeated = find_repeated([entry.job for entry in entries if entry.job is not None])
    errors = {good[number]: error for number, error in repeated.items()}
    for place, entry in enumerate(entries):
        error = errors.get(place)
        yield entry if error is None else JobEntry(label=entry.label, error=error.inside(f"jobs[{place}]"))


def _read_entry(defaults: Mapping[str, Any], table: Any, place: int, folder: Path) -> JobEntry:
    label = f"jobs[{place}]"
    if not isinstance(table, dict):
        return JobEntry(label=label, error=UsageError(f"{table!r} is no table", where=label))
    name = table.get("name", defaults.get("name"))
    try:
        job = make_job(resolve_paths({**defaults, **table, **_merge_settings(defaults, table)}, folder))
        find_trainer(job.method)
    except ConceptryError as error:
        return JobEntry(label=name if isinstance(name, str) else label, error=error.inside(label))
    return JobEntry(label=str(job.name), job=job)


def _merge_settings(defaults: Mapping[str, Any], table: Mapping[str, Any]) -> dict[str, Any]:
    both = [values.get("settings", {}) for values in (defaults, table)]
    if not all(isinstance(one, dict) for one in both) or not any(both):
        return {}
    return {"settings": {**both[0], **both[1]}}


def take_shard(items: Sequence[ItemT], shard: str) -> list[ItemT]:
    """Returns the part ``i/n`` of ``items``, i from 1 to n: every n-th, so that parts are of like length.

    Raises:
        UsageError: for text that is no such part.
    """
    match = _SHARD.fullmatch(shard)
    number, count = (int(part) for part in match.groups()) if match else (0, 0)
    if not 1 <= number <= count:
        raise UsageError(
            f"{shard!r} is no share of the jobs",
            where="shard",
            hint="the second of four machines takes --shard 2/4",
        )
    return list(items[number - 1 :: count])
