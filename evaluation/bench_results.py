"""Results of the benchmark as files: one closed schema, so that what two laboratories measured goes into one table."""

from __future__ import annotations

import json
import math
import os
import platform
import subprocess
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from conceptry import __version__
from conceptry.errors import ConflictError, InvalidFileError, NotFoundError
from conceptry.evaluation.scores import IdentityScore, Measure, PromptScore
from conceptry.evaluation.toybench import unify_digest

SCHEMA_VERSION: Final = 1
GROUPS_NAME: Final = "multi"
MAX_FILE_BYTES: Final = 64 << 20
Row = Mapping[str, Any]
Share = Annotated[float, Field(allow_inf_nan=False)]


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ScoreModel(_Model):
    """A measure as it is kept; ``normalised`` is absent where it means nothing."""

    score: Share
    floor: Share
    ceiling: Share
    interval: tuple[Share, Share]
    normalised: Share | None = None
    ceiling_raw: Share | None = None

    @classmethod
    def of(cls, measure: Measure | PromptScore) -> ScoreModel:
        """Returns a measure in the form that is kept, rounded to six digits."""
        best = measure.base if isinstance(measure, PromptScore) else measure.ceiling
        raw = measure.ceiling_raw if isinstance(measure, IdentityScore) else None
        low, high = measure.interval
        return cls(
            score=round(measure.score, 6),
            floor=round(measure.floor, 6),
            ceiling=round(best, 6),
            interval=(round(low, 6), round(high, 6)),
            normalised=round(measure.normalised, 6) if math.isfinite(measure.normalised) else None,
            ceiling_raw=None if raw is None else round(raw, 6),
        )


class CategoryModel(_Model):
    """Agreement with the prompts of one category, and the base's own."""

    score: Share
    base: Share


class ResultRow(_Model):
    """What one method did with one subject."""

    method: str
    title: str
    settings: str
    """Digest of the method's settings."""

    subject: str
    kind: Literal["instance", "style"]
    superclass: str
    seed: int
    sample_passes: int
    size_bytes: int
    training_seconds: Share
    training_processor_seconds: Share | None = None
    drawing_seconds: Share
    identity: ScoreModel
    prompt: ScoreModel
    preservation: ScoreModel | None = None
    diversity: ScoreModel | None = None
    leakage: ScoreModel | None = None
    others: dict[str, ScoreModel] = {}
    categories: dict[str, CategoryModel] = {}
    pictures: str | None = None
    """A file beside the results, with pictures of this row."""

    # What follows came later: a row without it counts as what it is, measured in full and with what was known then.
    recipe: str | None = None
    """Digest of all the method's numbers, defaults included."""

    prompts: int | None = None
    """How many were asked; fewer than usual is a sample."""

    more_pictures: int | None = None
    """How many pictures of the plain prompt and of the superclass."""

    drawing_steps: int | None = None
    scorer: str | None = None
    """Digest of what scores: its weights, and prompts that stand in no suite."""

    score_version: int | None = None
    commit: str | None = None
    machine: dict[str, str | int | None] | None = None

    @property
    def key(self) -> tuple[str, str, str, int]:
        """What makes two rows the same measurement."""
        return (self.method, self.settings, self.subject, self.seed)

    def at(self, commit: str, machine: dict[str, str | int | None]) -> ResultRow:
        """Returns the row with where it was measured; what it says of that itself stays."""
        stated = {"commit": self.commit or commit, "machine": self.machine or machine}
        return self.model_copy(update=stated)


class BaseModelId(_Model):
    """Which base drew: its family, and a digest of its fingerprints."""

    family: str
    digest: str


class ResultFile(_Model):
    """What one run measured."""

    schema_version: Literal[1] = Field(default=1, alias="schema")
    suite: str
    suite_digest: str
    protocol: str
    base: BaseModelId
    sample_passes: int
    commit: str
    machine: dict[str, str | int | None]
    rows: tuple[ResultRow, ...] = ()

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)

    @property
    def setting(self) -> tuple[str, str, str, str, int]:
        """What results must have in common to stand in one table."""
        return (
            self.suite,
            unify_digest(self.suite_digest),
            self.protocol,
            self.base.digest,
            self.sample_passes,
        )


def read_results(path: Path) -> ResultFile:
    """Returns a file of results.

    Raises:
        NotFoundError: if it is not there.
        InvalidFileError: if it is no such file.
    """
    if not path.is_file():
        raise NotFoundError(f"no results at {str(path)!r}", hint="concepts benchmark-methods makes them")
    if path.stat().st_size > MAX_FILE_BYTES:
        raise InvalidFileError(f"{str(path)!r} has more than {MAX_FILE_BYTES} bytes")
    try:
        return ResultFile.model_validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(place) for place in first["loc"]) or None
        raise InvalidFileError(f"{str(path)!r} is no file of results: {first['msg']}", where=where) from error


def write_results(path: Path, results: ResultFile) -> None:
    """Writes results beside their name and renames them, so that a stopped run leaves whole files only."""
    write_json(path, results.model_dump(mode="json", by_alias=True, exclude_none=True))


def write_json(path: Path, document: Mapping[str, Any]) -> None:
    """Writes a document beside its name and renames it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(json.dumps(document, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    os.replace(partial, path)


def merge_results(files: Iterable[tuple[Path, ResultFile]]) -> tuple[ResultFile, tuple[str, ...]]:
    """Returns the rows of all files in one, and what was measured twice with another outcome (the first is kept).

    Raises:
        NotFoundError: if there is no file.
        ConflictError: if two files were not measured alike: another suite, protocol, base or budget.
    """
    first: ResultFile | None = None
    named = Path()
    rows: dict[tuple[str, str, str, int], ResultRow] = {}
    remarks: list[str] = []
    for path, one in files:
        if first is None:
            first, named = one, path
        elif one.setting != first.setting:
            raise ConflictError(
                f"{path.name} and {named.name} were not measured alike: {_name_difference(first, one)}",
                hint="keep them in folders of their own",
            )
        for found in one.rows:
            row = found.at(one.commit, one.machine)
            known = rows.setdefault(row.key, row)
            if known.identity.score != row.identity.score or known.prompt.score != row.prompt.score:
                remarks.append(
                    f"{row.method} on {row.subject} differs between files; {path.name} is left out"
                )
    if first is None:
        raise NotFoundError("there are no results yet", hint="concepts benchmark-methods measures them")
    ordered = tuple(sorted(rows.values(), key=lambda row: row.key))
    return first.model_copy(update={"rows": ordered}), tuple(remarks)


def _name_difference(one: ResultFile, other: ResultFile) -> str:
    names = ("suite", "digest of the suite", "protocol", "base", "sample passes")
    pairs = zip(names, one.setting, other.setting, strict=True)
    return "; ".join(f"{name} {a!s:.24} and {b!s:.24}" for name, a, b in pairs if a != b)


def locate_groups(folder: Path) -> Path:
    """Returns where a folder of results keeps what was measured of several concepts in one picture."""
    return folder / GROUPS_NAME / f"{GROUPS_NAME}.json"


def read_groups(path: Path) -> tuple[list[Row], Mapping[str, Any]]:
    """Returns the rows of several concepts in one picture, and their document; none where there is none.

    Raises:
        InvalidFileError: if the file is none of ours.
    """
    if not path.is_file():
        return [], {}
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        rows: list[Row] = [dict(row) for row in document["rows"]]
        for row in rows:
            if "impossible" not in row:
                _ = [row[name] for name in ("joint", "recall", "swaps", "leaks", "region")]
            _ = (str(row["method"]), str(row["way"]), [str(one) for one in row["members"]])
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise InvalidFileError(f"{str(path)!r} is no file of results", hint="move it away") from error
    return rows, document


def describe_machine(device: str, threads: int) -> dict[str, str | int | None]:
    """Returns what a time depends on."""
    return {
        "platform": platform.platform(),
        "processor": platform.machine(),
        "cores": os.cpu_count(),
        "threads": threads,
        "device": device,
        "python": platform.python_version(),
    }


def find_commit() -> str:
    """Returns the commit of the source tree that runs, else the version."""
    try:
        done = subprocess.run(
            ["git", "rev-parse", "--short=12", "HEAD"],  # noqa: S607  # whichever git the machine has
            cwd=Path(__file__).resolve().parent,
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return f"conceptry {__version__}"
    return done.stdout.strip()
