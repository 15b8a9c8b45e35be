"""The numbers of a training run, and where their defaults come from: ``presets.toml``, by method and family."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError

from conceptry.bases import FamilyId
from conceptry.errors import UsageError, suggest_nearest

Rate = Annotated[float, Field(gt=0, le=10, allow_inf_nan=False)]
Positive = Annotated[int, Field(ge=1, le=1_000_000)]
Share = Annotated[float, Field(ge=0, le=1)]


class GateSettings(BaseModel):
    """Bias (beta) and temperature (tau) of a gate."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    bias: Annotated[float, Field(allow_inf_nan=False)]
    temperature: Annotated[float, Field(gt=0, allow_inf_nan=False)]


class Settings(BaseModel):
    """All numbers of one run; each method reads the ones that it needs.

    ``learning_rates`` has one entry for each group of parameters that the method trains (``embedding``, ``value``,
    ``lora``, ``weights``).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    steps: Positive
    batch_size: Positive
    accumulation_steps: Positive = 1
    learning_rates: dict[str, Rate]
    warmup_steps: Annotated[int, Field(ge=0)] = 0
    schedule: Literal["constant", "cosine"] = "constant"
    weight_decay: Share = 0.0
    optimizer: Literal["adamw", "adafactor"] = "adamw"
    clip_norm: Annotated[float, Field(gt=0)] | None = None
    min_snr_gamma: Annotated[float, Field(gt=0)] | None = None
    ema_decay: Share = 0.0
    """Decay of the running mean of the parameters that is saved; 0 saves the last ones."""

    checkpoint_every_steps: Positive = 100
    resolution_pixels: Positive | None = None
    """Side of the square that pictures are cropped to; None takes the base's own."""

    vectors: Annotated[int, Field(ge=1, le=64)] = 1
    rank: Annotated[int, Field(ge=1, le=1024)] = 8
    alpha: Annotated[float, Field(gt=0)] | None = None
    """None means alpha = rank, an effective scale of 1."""

    targets: tuple[str, ...] = ()
    """Patterns (fnmatch) of module paths (lora) or tensor names (dreambooth) to train."""

    train_gate: GateSettings = GateSettings(bias=0.75, temperature=0.1)
    gate: GateSettings = GateSettings(bias=0.70, temperature=0.15)
    prior: Literal["prediction", "pictures", "none"] = "none"
    prior_weight: Annotated[float, Field(ge=0)] = 1.0
    prior_pictures: Positive = 100


def resolve_settings(method: str, family: FamilyId, overrides: Mapping[str, JsonValue]) -> Settings:
    """Returns the method's defaults for ``family`` with ``overrides`` on top.

    Raises:
        UsageError: for an unknown setting, with the nearest known name, or a value out of range.
    """
    rows = load_presets()[method]
    merged: dict[str, Any] = {key: value for key, value in rows.items() if key != "families"}
    for layer in (rows.get("families", {}).get(family, {}), overrides):
        for key, value in layer.items():
            if key == "learning_rates" and isinstance(value, Mapping):
                merged[key] = {**merged.get(key, {}), **value}
            else:
                merged[key] = value
    return _validate(method, merged, known_rates=rows["learning_rates"])


def _validate(method: str, merged: Mapping[str, Any], *, known_rates: Mapping[str, float]) -> Settings:
    for key in merged:
        if key not in Settings.model_fields:
            hint = suggest_nearest(key, Settings.model_fields) or f"known: {', '.join(Settings.model_fields)}"
            raise UsageError(f"{method} has no setting {key!r}", where=f"settings.{key}", hint=hint)
    try:
        settings = Settings.model_validate(merged)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(["settings", *(str(place) for place in first["loc"])])
        raise UsageError(f"{first['msg']} (got {str(first.get('input'))[:60]!r})", where=where) from error
    for group in settings.learning_rates:
        if group not in known_rates:
            raise UsageError(
                f"{method} trains no group {group!r}",
                where="settings.learning_rates",
                hint=f"its groups: {', '.join(known_rates)}",
            )
    return settings


@cache
def load_presets() -> Mapping[str, Any]:
    """Returns ``presets.toml``: for each method its defaults, and under ``families`` what differs for a family."""
    return tomllib.loads(files(__package__).joinpath("presets.toml").read_text(encoding="utf-8"))
