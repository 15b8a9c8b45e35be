"""A training job: as it was written, and as it is carried out. Command line, TOML and Python give the same one."""

from __future__ import annotations

import json
import shlex
import tomllib
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError

from conceptry.bases import FamilyId
from conceptry.digests import Digest, canonical_json
from conceptry.errors import UsageError, suggest_nearest
from conceptry.manifest import NameText, PlaceholderText, ShortText, Text, VersionText
from conceptry.names import ConceptName, parse_version
from conceptry.trainer.methods import TRAINERS, TrainerRow, find_trainer
from conceptry.trainer.prompts import Subject
from conceptry.trainer.settings import Settings, resolve_settings

MAX_SEED: Final = 2**53
MAX_FURTHER: Final = 15
_PATHS: Final = ("images", "captions")


class FurtherSubject(BaseModel):
    """Something else that the same run learns: its pictures and its words."""

    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True)

    images: Path
    placeholder: PlaceholderText
    superclass: ShortText


class TrainJob(BaseModel):
    """What somebody asks for. ``settings`` overrides single numbers of the method's preset (``{"rank": 16}``)."""

    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True)

    method: str
    images: Path
    name: NameText
    placeholder: PlaceholderText
    superclass: ShortText
    version: VersionText = parse_version("0.1.0")
    base: ShortText = "toybox"
    subject: Subject = "object"
    seed: Annotated[int, Field(ge=0, le=MAX_SEED)] = 0
    steps: Annotated[int, Field(ge=1, le=1_000_000)] | None = None
    settings: dict[str, JsonValue] = Field(default_factory=dict)
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    captions: Path | None = None
    """Lines to compute the base's covariance from (perfusion); None takes the list that is shipped."""

    title: Text = ""
    description: Text = ""
    license: ShortText | None = None
    also: Annotated[tuple[FurtherSubject, ...], Field(max_length=MAX_FURTHER)] = ()
    """What is learned beside the job's own subject, into the same package."""

    @property
    def subjects(self) -> tuple[FurtherSubject, ...]:
        """All that is learned, the job's own subject first."""
        own = FurtherSubject(images=self.images, placeholder=self.placeholder, superclass=self.superclass)
        return (own, *self.also)

    def to_command(self) -> str:
        """Returns the ``concepts train`` line that asks for this job."""
        words = ["concepts", "train", self.method]
        defaults = TrainJob.model_construct(images=Path(), name=ConceptName("local", "x")).__dict__
        for key, value in self.model_dump(mode="json").items():
            if (
                key in {"method", "settings", "also"}
                or value is None
                or getattr(self, key) == defaults.get(key)
            ):
                continue
            words += [f"--{key}", str(value)]
        for key, value in self.settings.items():
            rows = value.items() if isinstance(value, dict) else [(None, value)]
            for inner, one in rows:
                name = key if inner is None else f"{key}.{inner}"
                words += ["--set", f"{name}={one if isinstance(one, str) else json.dumps(one)}"]
        for one in self.also:
            words += ["--also", one.placeholder, one.superclass, str(one.images)]
        return shlex.join(words)


@dataclass(frozen=True, slots=True, kw_only=True)
class ResolvedJob:
    """A job with every default filled in, for a base that has been found."""

    job: TrainJob
    row: TrainerRow
    settings: Settings
    family: FamilyId

    @property
    def word(self) -> str:
        """How the job's own subject is written in prompts."""
        return self.words[0]

    @property
    def words(self) -> tuple[str, ...]:
        """How each subject is written in prompts: the placeholder, or placeholder and superclass."""
        if self.row.names_superclass:
            return tuple(f"{one.placeholder} {one.superclass}" for one in self.job.subjects)
        return tuple(one.placeholder for one in self.job.subjects)

    @property
    def recipe(self) -> Digest:
        """The digest of all that decides the result beside the pictures, the base and the machine."""
        job = self.job
        facts: dict[str, Any] = {
            "method": job.method,
            "family": self.family,
            "placeholder": job.placeholder,
            "superclass": job.superclass,
            "subject": job.subject,
            "settings": self.settings.to_recipe(),
        }
        if job.also:
            facts["also"] = [[one.placeholder, one.superclass] for one in job.also]
        return Digest.of_bytes(canonical_json(facts))


def make_job(values: Mapping[str, Any]) -> TrainJob:
    """Returns the job that ``values`` describe, from flags or TOML.

    Raises:
        UsageError: for an unknown key, with the nearest known one, or a value that is missing or out of range.
    """
    for key in values:
        _check_key(key, TrainJob, where=key)
    try:
        job = TrainJob.model_validate(dict(values))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(place) for place in first["loc"])
        if first["type"] == "extra_forbidden":
            _check_key(str(first["loc"][-1]), FurtherSubject, where=where)
        if first["type"] == "missing":
            hint = f"give --{where}" if len(first["loc"]) == 1 else "--also '<dog>' dog pictures/dog"
            raise UsageError(f"a training job needs {where!r}", where=where, hint=hint) from error
        reason = first["msg"].removeprefix("Value error, ")
        raise UsageError(f"{reason} (got {str(first.get('input'))[:60]!r})", where=where) from error
    check_subjects(job)
    return job


def _check_key(key: str, model: type[BaseModel], *, where: str) -> None:
    if key not in model.model_fields:
        hint = suggest_nearest(key, model.model_fields) or f"known keys: {', '.join(model.model_fields)}"
        raise UsageError(f"a training job has no key {key!r}", where=where, hint=hint)


def check_subjects(job: TrainJob) -> None:
    """Raises UsageError if two subjects of a job share a placeholder or their pictures, or its method takes one."""
    if not job.also:
        return
    row = find_trainer(job.method)
    if not row.takes_several:
        able = [other.id for other in TRAINERS if other.takes_several]
        raise UsageError(
            f"{row.title} learns one subject in a run, this job has {len(job.subjects)}",
            where="also",
            hint=f"train each by itself and use them together, or take {', '.join(able)}",
        )
    seen: dict[str, str] = {}
    for number, one in enumerate(job.subjects):
        # Under one spelling neither a vocabulary nor a reader of captions can tell two of them apart.
        for key in (one.placeholder.casefold(), str(one.images.absolute())):
            if key in seen:
                shared = "the placeholder" if key == one.placeholder.casefold() else "the pictures"
                raise UsageError(
                    f"{one.placeholder!r} has {shared} of {seen[key]!r}",
                    where=f"also.{number - 1}",
                    hint="each subject takes a word and a folder of its own",
                )
            seen[key] = one.placeholder


def find_repeated(jobs: Sequence[TrainJob]) -> dict[int, UsageError]:
    """Returns what is wrong with those of ``jobs``, by place, that make a name and version of one before them."""
    seen: set[str] = set()
    found = {}
    for place, job in enumerate(jobs):
        made = f"{job.name}@{job.version}"
        if made in seen:
            found[place] = UsageError(
                f"two jobs make {made}", where="name", hint="give one another name or version"
            )
        seen.add(made)
    return found


def group_by_base(jobs: Sequence[TrainJob], left_out: Container[int] = ()) -> list[list[int]]:
    """Returns the places of jobs that can use one open base: those of one base on one device, in their order."""
    groups: dict[tuple[str, str], list[int]] = {}
    for place, job in enumerate(jobs):
        if place not in left_out:
            groups.setdefault((job.base, job.device), []).append(place)
    return list(groups.values())


def read_job(path: Path) -> TrainJob:
    """Returns the job in a TOML file, whose relative paths are read from the file's folder. Raises UsageError."""
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UsageError(f"cannot read {str(path)!r}: {error}", hint="a job is a TOML table") from error
    return make_job(resolve_paths(values, path.parent))


def resolve_paths(values: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Returns the keys of a job with relative paths read from ``folder``; what is no text stays for others to judge."""
    found: dict[str, Any] = {
        key: folder / value if key in _PATHS and isinstance(value, str) else value
        for key, value in values.items()
    }
    further = values.get("also")
    if isinstance(further, list):
        found["also"] = [resolve_paths(one, folder) if isinstance(one, dict) else one for one in further]
    return found


def resolve(job: TrainJob, family: FamilyId) -> ResolvedJob:
    """Returns ``job`` with the defaults of its method for a base of ``family``.

    Raises:
        UsageError: for a method or a setting that is not known, a value out of range, or subjects that cannot be told
            apart.
    """
    row = find_trainer(job.method)
    check_subjects(job)
    overrides = dict(job.settings)
    if job.steps is not None:
        overrides["steps"] = job.steps
    return ResolvedJob(
        job=job, row=row, settings=resolve_settings(job.method, family, overrides), family=family
    )
