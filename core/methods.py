"""What a part of a build holds, one model for each kind: the union that a manifest is discriminated by."""

from __future__ import annotations

from typing import Annotated, Final, Literal

from pydantic import Field, model_validator

from conceptry.fields import DigestText, Model, Number, Positive, ShortText
from conceptry.kinds import AlgorithmId, ScaleRule

MAX_RANKS: Final = 1024


class EmbeddingMethod(Model):
    """Rows of the token embedding; ``layers`` names the cross-attention layers of the per-layer variant."""

    kind: Literal["embedding"] = "embedding"
    components: tuple[ShortText, ...]
    layers: tuple[ShortText, ...] | None = None


class Gate(Model):
    """Bias (beta) and temperature (tau) of the sigmoid gate of Perfusion."""

    bias: Number
    temperature: Annotated[float, Field(gt=0, allow_inf_nan=False)]


class RankOneMethod(Model):
    """Perfusion: value targets per layer, keys locked to the superclass; packages compose if covariances are equal."""

    kind: Literal["rank_one"] = "rank_one"
    layers: tuple[ShortText, ...]
    superclass: ShortText
    key_lock: Literal["local", "global"] = "local"
    train_gate: Gate
    gate: Gate
    covariance: DigestText


RankText = Annotated[str, Field(pattern="^[1-9][0-9]{0,5}$")]


class LoraMethod(Model):
    """Tensors beside layers, of one algorithm or several; the file holds the scale of each module.

    ``variant`` is the algorithm of all modules, or ``mixed``; then ``algorithms`` counts them. What is None is the same
    for all modules, or is not known.
    """

    kind: Literal["lora"] = "lora"
    variant: AlgorithmId | Literal["mixed"] = "lora"
    algorithms: dict[AlgorithmId, Positive] | None = None
    """How many modules have each algorithm, where there are several."""

    rank: Positive | None = None
    """The greatest; None where the algorithm has none."""

    ranks: Annotated[dict[RankText, Positive], Field(max_length=MAX_RANKS)] | None = None
    """How many modules have each rank, where they differ."""

    modules: Positive
    scale: Number | None = None
    """Effective scale where all modules share it; None where it differs, then the file says."""

    scale_rule: ScaleRule | Literal["mixed"] = "alpha/rank"
    scale_rules: dict[ScaleRule, Positive] | None = None
    """How many modules have a scale from each rule, where there are several."""

    @model_validator(mode="after")
    def _add_up(self) -> LoraMethod:
        for name, counts in (("algorithms", self.algorithms), ("scale_rules", self.scale_rules)):
            if counts is not None and sum(counts.values()) != self.modules:
                raise ValueError(f"{name} count {sum(counts.values())} modules, there are {self.modules}")
        if (self.variant == "mixed") != (self.algorithms is not None):
            raise ValueError("algorithms are counted where they are mixed, and only there")
        if (self.scale_rule == "mixed") != (self.scale_rules is not None):
            raise ValueError("scale rules are counted where they are mixed, and only there")
        if self.ranks is not None and (self.rank is None or max(map(int, self.ranks)) != self.rank):
            raise ValueError(f"the greatest of ranks is not rank, {self.rank}")
        return self


class FullMethod(Model):
    """New values of the tensors that differ from the base, one file a component."""

    kind: Literal["full"] = "full"
    components: tuple[ShortText, ...]
    changed_tensors: Positive
    total_tensors: Positive


Method = Annotated[EmbeddingMethod | RankOneMethod | LoraMethod | FullMethod, Field(discriminator="kind")]
