"""A training job: as it was written, and as it is carried out. Command line, TOML and Python give the same one."""

from __future__ import annotations

import json
import shlex
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError

from conceptry.bases import FamilyId
from conceptry.digests import Digest, canonical_json
from conceptry.errors import UsageError, suggest_nearest
from conceptry.manifest import NameText, PlaceholderText, ShortText, Text, VersionText
from conceptry.names import ConceptName, parse_version
from conceptry.trainer.methods import TrainerRow, find_trainer
from conceptry.trainer.prompts import Subject
from conceptry.trainer.settings import Settings, resolve_settings

MAX_SEED: Final = 2**53


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

    def to_command(self) -> str:
        """Returns the ``concepts train`` line that asks for this job."""
        words = ["concepts", "train", self.method]
        defaults = TrainJob.model_construct(images=Path(), name=ConceptName("local", "x")).__dict__
        for key, value in self.model_dump(mode="json").items():
            if key in {"method", "settings"} or value is None or getattr(self, key) == defaults.get(key):
                continue
            words += [f"--{key}", str(value)]
        for key, value in self.settings.items():
            rows = value.items() if isinstance(value, dict) else [(None, value)]
            for inner, one in rows:
                name = key if inner is None else f"{key}.{inner}"
                words += ["--set", f"{name}={one if isinstance(one, str) else json.dumps(one)}"]
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
        """How the concept is written in prompts: the placeholder, or placeholder and superclass."""
        if self.row.names_superclass:
            return f"{self.job.placeholder} {self.job.superclass}"
        return self.job.placeholder

    @property
    def recipe(self) -> Digest:
        """The digest of all that decides the result beside the pictures, the base and the machine."""
        job = self.job
        return Digest.of_bytes(
            canonical_json(
                {
                    "method": job.method,
                    "family": self.family,
                    "placeholder": job.placeholder,
                    "superclass": job.superclass,
                    "subject": job.subject,
                    "settings": self.settings.model_dump(mode="json"),
                }
            )
        )


def make_job(values: Mapping[str, Any]) -> TrainJob:
    """Returns the job that ``values`` describe, from flags or TOML.

    Raises:
        UsageError: for an unknown key, with the nearest known one, or a value that is missing or out of range.
    """
    for key in values:
        if key not in TrainJob.model_fields:
            hint = (
                suggest_nearest(key, TrainJob.model_fields)
                or f"known keys: {', '.join(TrainJob.model_fields)}"
            )
            raise UsageError(f"a training job has no key {key!r}", where=key, hint=hint)
    try:
        return TrainJob.model_validate(dict(values))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(place) for place in first["loc"])
        if first["type"] == "missing":
            raise UsageError(
                f"a training job needs {where!r}", where=where, hint=f"give --{where}"
            ) from error
        reason = first["msg"].removeprefix("Value error, ")
        raise UsageError(f"{reason} (got {str(first.get('input'))[:60]!r})", where=where) from error


def read_job(path: Path) -> TrainJob:
    """Returns the job in a TOML file, whose relative paths are read from the file's folder. Raises UsageError."""
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UsageError(f"cannot read {str(path)!r}: {error}", hint="a job is a TOML table") from error
    for key in ("images", "captions"):
        if isinstance(values.get(key), str):
            values[key] = path.parent / values[key]
    return make_job(values)


def resolve(job: TrainJob, family: FamilyId) -> ResolvedJob:
    """Returns ``job`` with the defaults of its method for a base of ``family``.

    Raises:
        UsageError: for a method or a setting that is not known, or a value out of range.
    """
    row = find_trainer(job.method)
    overrides = dict(job.settings)
    if job.steps is not None:
        overrides["steps"] = job.steps
    return ResolvedJob(
        job=job, row=row, settings=resolve_settings(job.method, family, overrides), family=family
    )
