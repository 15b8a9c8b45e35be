"""What a use of concepts came to, as a value and as a file: a table, remarks, and pictures beside it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from conceptry.errors import InvalidFileError, NotFoundError, StoreError
from conceptry.evaluation.bench_results import describe_machine, find_commit, write_json
from conceptry.evaluation.pages import Figure

MAX_FILE_BYTES: Final = 1 << 20
MAX_FILES: Final = 100
PICTURES_NAME: Final = "pictures"
Interval = tuple[float, float]
Cell = str | int | float | Interval | None
OnStep = Callable[[str], object]


@dataclass(frozen=True, slots=True, kw_only=True)
class UseResult:
    """A table of what was measured, with what must be known to read it."""

    use: str
    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    facts: Mapping[str, str | int | float | None]
    """The settings: the same ones give the same table."""

    remarks: tuple[str, ...] = ()
    strips: tuple[Figure, ...] = ()
    """Pictures that the table was measured on, side by side."""

    def list_documents(self) -> list[dict[str, Cell]]:
        """Returns the rows as ``--json`` prints them: ``balanced_accuracy``, ``interval``, ``gain_interval``."""
        keys = [name_key(column) for column in self.columns]
        return [dict(zip(keys, row, strict=True)) for row in self.rows]


def name_key(label: str) -> str:
    """Returns the key of a column or fact in JSON documents: ``gain 95 %`` is ``gain_interval``."""
    return label.replace("95 %", "interval").replace(" ", "_")


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)


class PictureModel(_Model):
    """A picture file beside the results."""

    file: str
    caption: str


class UseFile(_Model):
    """A result as it is kept."""

    schema_version: Literal[1] = Field(default=1, alias="schema")
    use: str = Field(pattern=r"^[a-z][a-z-]{0,40}$")
    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str | int | float | Interval | None, ...], ...]
    facts: dict[str, str | int | float | None] = {}
    remarks: tuple[str, ...] = ()
    pictures: tuple[PictureModel, ...] = ()
    commit: str
    machine: dict[str, str | int | None]


def write_use(folder: Path, result: UseResult, *, device: str, threads: int) -> Path:
    """Returns the file ``<use>.json`` that was written into ``folder``, its pictures beside it. Raises StoreError."""
    path = folder / f"{result.use}.json"
    pictures = []
    try:
        for number, strip in enumerate(result.strips):
            name = f"{PICTURES_NAME}/{result.use}-{number}.webp"
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            strip.picture.save(folder / name, format="WEBP", quality=80)
            pictures.append(PictureModel(file=name, caption=strip.caption))
        kept = UseFile(
            use=result.use,
            title=result.title,
            columns=result.columns,
            rows=result.rows,
            facts=dict(result.facts),
            remarks=result.remarks,
            pictures=tuple(pictures),
            commit=find_commit(),
            machine=describe_machine(device, threads),
        )
        write_json(path, kept.model_dump(mode="json", by_alias=True))
    except OSError as error:
        raise StoreError(
            f"the results cannot be written to {str(folder)!r}: {error}",
            hint="name another folder with --out",
        ) from error
    return path


def read_uses(folder: Path) -> tuple[UseFile, ...]:
    """Returns the results of a folder in order of name.

    Raises:
        NotFoundError: if there is none.
        InvalidFileError: if a file there is no result.
    """
    paths = sorted(path for path in folder.glob("*.json") if path.name[0] != ".")[:MAX_FILES]
    if not paths:
        raise NotFoundError(
            f"no results at {str(folder)!r}",
            hint="concepts augment --out DIR, or concepts uses NAME --out DIR",
        )
    return tuple(_read(path) for path in paths)


def _read(path: Path) -> UseFile:
    if path.stat().st_size > MAX_FILE_BYTES:
        raise InvalidFileError(f"{str(path)!r} has more than {MAX_FILE_BYTES} bytes")
    try:
        found = UseFile.model_validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(place) for place in first["loc"]) or None
        raise InvalidFileError(
            f"{str(path)!r} is no result of concepts augment or concepts uses: {first['msg']}", where=where
        ) from error
    for number, row in enumerate(found.rows):
        if len(row) != len(found.columns):
            raise InvalidFileError(
                f"{str(path)!r} has {len(row)} values for {len(found.columns)} columns",
                where=f"rows.{number}",
            )
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Strip:
    """Pictures on their way to one figure."""

    caption: str
    pictures: Sequence[Image.Image]
    most: int = field(default=10)


def make_figures(strips: Sequence[Strip]) -> tuple[Figure, ...]:
    """Returns each strip as one picture of at most ``most`` side by side; a strip without pictures is left out."""
    from conceptry.evaluation.bench_strips import make_strip

    return tuple(
        Figure(picture=make_strip(one.pictures[: one.most]), caption=one.caption)
        for one in strips
        if one.pictures
    )


def as_rows(rows: Sequence[Sequence[Any]]) -> tuple[tuple[Cell, ...], ...]:
    """Returns rows with their numbers rounded to four digits, as they are kept and shown."""
    return tuple(tuple(_round(value) for value in row) for row in rows)


def _round(value: Any) -> Cell:
    if isinstance(value, float):
        return round(value, 4)
    if isinstance(value, tuple):
        low, high = value
        return round(float(low), 4), round(float(high), 4)
    kept: Cell = value
    return kept
