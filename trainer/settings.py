"""The numbers of a training run, and where their defaults come from: ``presets.toml``, by method and family."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from importlib.resources import files
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, JsonValue, ValidationError

from conceptry.bases import FamilyId
from conceptry.errors import UsageError, suggest_nearest

Rate = Annotated[float, Field(gt=0, le=10, allow_inf_nan=False)]
Positive = Annotated[int, Field(ge=1, le=1_000_000)]
Share = Annotated[float, Field(ge=0, le=1)]
Rank = Annotated[int, Field(ge=1, le=1024)]
Alpha = Annotated[float, Field(gt=0, allow_inf_nan=False)]
BasePrecision = Literal["full", "int8", "nf4"]
Start = Literal["superclass", "random"]
CompileMode = bool | Literal["cuda_graphs"]


def _split_words(value: Any) -> Any:
    """``--set targets=attention,feed_forward`` says the same as a list."""
    return value.replace(",", " ").split() if isinstance(value, str) else value


class Later:
    """Marks a setting that came after recipes had digests: at its default it is not part of them."""


class GateSettings(BaseModel):
    """Bias (beta) and temperature (tau) of a gate."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    bias: Annotated[float, Field(allow_inf_nan=False)]
    temperature: Annotated[float, Field(gt=0, allow_inf_nan=False)]


class EarlyStop(BaseModel):
    """When the loss on a fixed batch counts as flat (DVAR, arXiv 2302.04841; its values for textual inversion)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    window_steps: Positive = 310
    ratio: Annotated[float, Field(gt=0, le=1)] = 0.15
    samples: Annotated[int, Field(ge=1, le=256)] = 4


class Settings(BaseModel):
    """All numbers of one run; each method reads the ones that it needs.

    ``learning_rates`` has one entry for each group of parameters that the method trains (``embedding``, ``value``,
    ``lora``, ``text_encoder``, ``weights``).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    steps: Positive
    batch_size: Positive
    accumulation_steps: Positive = 1
    learning_rates: dict[str, Rate]
    warmup_steps: Annotated[int, Field(ge=0)] = 0
    schedule: Literal["constant", "cosine"] = "constant"
    weight_decay: Share = 0.0
    optimizer: Literal["adamw", "adafactor", "prodigy", "adamw_8bit"] = "adamw"
    clip_norm: Annotated[float, Field(gt=0)] | None = None
    min_snr_gamma: Annotated[float, Field(gt=0)] | None = None
    ema_decay: Share = 0.0
    """Decay of the running mean of the parameters that is saved; 0 saves the last ones."""

    keep: Literal["best", "last"] = "best"
    """Whether the values with the lowest loss on held-out noise are stored, or the last ones."""

    evaluate_every_steps: Positive = 50
    early_stop: EarlyStop | None = None
    """Ends the run when the loss on a fixed batch is flat; None always makes all steps."""

    gradient_checkpointing: bool = False
    """Computes activations twice instead of keeping them: less memory, a third more time, the same numbers."""

    base_precision: Annotated[BasePrecision, Later()] = "full"
    """What the denoiser's frozen weights are kept in while a run trains; the base comes back bit for bit."""

    offload_base: Annotated[bool, Later()] = False
    """Keeps them in the host's memory, from where each comes to the device for the moment of its use: slower."""

    compile: Annotated[CompileMode, Later()] = False
    """Compiles the denoiser's blocks: minutes at first, then faster steps; the last digits of the result differ."""

    checkpoint_every_steps: Positive = 100
    resolution_pixels: Positive | None = None
    """Side of the square that pictures are cropped to; None takes the base's own."""

    buckets: Annotated[int, Field(ge=1, le=3)] = 1
    """How many shapes of that area pictures may have; 1 crops all to squares."""

    flip: bool = False
    """Trains on mirrored pictures too; off, since faces and letters have a left and a right."""

    crops: Annotated[int, Field(ge=1, le=16)] = 1
    """How many crops of each picture are trained on: the middle, and others of 80 to 100 % of its edge."""

    vectors: Annotated[int, Field(ge=1, le=64)] = 1
    start: Annotated[Start, Later()] = "superclass"
    """Where textual inversion and XTI begin: at the mean of the superclass's rows, or at random ones."""

    algorithm: Literal["lora", "dora", "lidb"] = "lora"
    rank: Rank = 8
    alpha: Alpha | None = None
    """None means alpha = rank, an effective scale of 1."""

    rank_pattern: dict[str, Rank] = {}
    alpha_pattern: dict[str, Alpha] = {}
    """Of the layers that a pattern or a group of ``targets.toml`` names; the first that fits counts."""

    targets: Annotated[tuple[str, ...], BeforeValidator(_split_words)] = ()
    """What to train: patterns (fnmatch) of module paths (lora) or tensor names (dreambooth), or groups of layers."""

    train_text_encoder: bool = False
    words_until: Share = 1.0
    weights_from: Share = 0.0
    """Of methods that learn words and weights: the share of the steps after which the words stay as they are, and the
    share before which no weight moves."""

    frozen_outputs: Positive = 100
    frozen_inputs: Positive = 50
    """Columns of the frozen orthonormal factors of LiDB: a and b of its paper."""

    train_gate: GateSettings = GateSettings(bias=0.75, temperature=0.1)
    gate: GateSettings = GateSettings(bias=0.70, temperature=0.15)
    key_lock: Annotated[Literal["local", "global"], Later()] = "local"
    """Whether keys are locked to the superclass at the word alone, or in use those of the whole prompt."""

    prior: Literal["prediction", "pictures", "none"] = "none"
    prior_weight: Annotated[float, Field(ge=0)] = 1.0
    prior_pictures: Positive = 100

    def to_recipe(self) -> dict[str, Any]:
        """Returns what a recipe's digest is made of: a setting that came later is left out at its default."""
        later = {
            name
            for name, field in type(self).model_fields.items()
            if any(isinstance(mark, Later) for mark in field.metadata)
            and getattr(self, name) == field.default
        }
        return self.model_dump(mode="json", exclude=later)


def resolve_settings(method: str, family: FamilyId, overrides: Mapping[str, JsonValue]) -> Settings:
    """Returns the method's defaults for ``family`` with ``overrides`` on top.

    Raises:
        UsageError: for an unknown setting, with the nearest known name, or a value out of range.
    """
    merged: dict[str, Any] = {}
    for layer in _iter_layers(method, family):
        _merge(merged, layer)
    known_rates = tuple(merged["learning_rates"])
    for name, values in load_presets()[method].get("choices", {}).items():
        _merge(merged, values.get(str(overrides.get(name)), {}))
    _merge(merged, overrides)
    return _validate(method, merged, known_rates=known_rates)


def _iter_layers(method: str, family: FamilyId) -> Iterator[Mapping[str, Any]]:
    """Returns what counts, the weakest first: of the method that this one is ``like``, then its own."""
    rows = load_presets()[method]
    if "like" in rows:
        yield from _iter_layers(rows["like"], family)
    yield {key: value for key, value in rows.items() if key not in _STRUCTURE}
    yield rows.get("families", {}).get(family, {})


_STRUCTURE: Final = frozenset({"families", "like", "choices"})


def _merge(merged: dict[str, Any], layer: Mapping[str, Any]) -> None:
    for key, value in layer.items():
        if key == "learning_rates" and isinstance(value, Mapping):
            merged[key] = {**merged.get(key, {}), **value}
        else:
            merged[key] = value


def _validate(method: str, merged: Mapping[str, Any], *, known_rates: Sequence[str]) -> Settings:
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
    """Returns ``presets.toml``: for each method its defaults, and under ``families`` what differs for a family.

    Under ``choices`` stands what else is the default where a setting is given a certain value.
    """
    return tomllib.loads(files(__package__).joinpath("presets.toml").read_text(encoding="utf-8"))
