"""What a part of a build holds, one model for each kind: the union that a manifest is discriminated by."""

from __future__ import annotations

from typing import Annotated, Final, Literal

from pydantic import Field, model_validator

from conceptry.fields import DigestText, Model, NameText, Number, Positive, ShortText, VersionText
from conceptry.kinds import ActivationId, AlgorithmId, ScaleRule

MAX_RANKS: Final = 1024
MAX_BASE_FILES: Final = 64
MAX_MEMBERS: Final = 64


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


Error = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class Packing(Model):
    """How a component's file of byte planes becomes values again: of which base, to what, and how exactly."""

    component: ShortText
    base_files: Annotated[tuple[DigestText, ...], Field(min_length=1, max_length=MAX_BASE_FILES)]
    """The base's own weights of this component, in the order of their names."""

    base_tensors: DigestText
    """The tensors of the base that are needed, in the precision of the values."""

    tensors: DigestText
    """What comes out: ``tensor_sha256`` of the plain file that holds the same values."""

    lossless: bool = True
    relative_error: Error = 0.0
    """Root mean square of what rounding changed, by that of the difference to the base."""

    greatest_error: Error = 0.0
    """The greatest change of any value."""

    @model_validator(mode="after")
    def _agree(self) -> Packing:
        if self.lossless and (self.relative_error or self.greatest_error):
            raise ValueError("what is lossless has no error")
        return self


class FullMethod(Model):
    """New values of the tensors that differ from the base, one file a component."""

    kind: Literal["full"] = "full"
    components: tuple[ShortText, ...]
    changed_tensors: Positive
    total_tensors: Positive
    packing: Annotated[tuple[Packing, ...], Field(min_length=1)] | None = None
    """One for each component whose file holds byte planes; None where all files hold the values themselves."""

    @model_validator(mode="after")
    def _name_components(self) -> FullMethod:
        packed = [one.component for one in self.packing or ()]
        if len(set(packed)) != len(packed) or not set(packed) <= set(self.components):
            raise ValueError(
                f"packing names {', '.join(packed)}, the components are {', '.join(self.components)}"
            )
        return self

    def find_packing(self, component: str) -> Packing | None:
        """Returns how the file of ``component`` is packed; None where it is plain."""
        return next((one for one in self.packing or () if one.component == component), None)


Share = Annotated[float, Field(gt=0, le=64, allow_inf_nan=False)]


class HypernetworkMethod(Model):
    """Small networks h before keys and values, k = W_K (x + s h_k(x)): one pair for each width of what is read."""

    kind: Literal["hypernetwork"] = "hypernetwork"
    cross_attention: tuple[Positive, ...] = ()
    """Widths of text encodings whose keys and values have a network."""

    self_attention: tuple[Positive, ...] = ()
    """Widths of the denoiser's own states whose keys and values have one."""

    structure: Annotated[tuple[Share, ...], Field(min_length=2, max_length=64)]
    """How wide the input and each layer's output are, as shares of the input's width."""

    activation: ActivationId = "linear"
    activate_output: bool = True
    """The last layer has the activation, too."""

    layer_norm: bool = False

    @model_validator(mode="after")
    def _stand_somewhere(self) -> HypernetworkMethod:
        widths = (*self.cross_attention, *self.self_attention)
        if not widths or len(set(widths)) != len(widths):
            raise ValueError(f"widths {list(widths)} are not one or more different ones")
        if (self.structure[0], self.structure[-1]) != (1, 1):
            raise ValueError(f"the structure {list(self.structure)} does not begin and end with 1")
        return self


class NamedMember(Model):
    """One concept of a composition: its exact version."""

    concept: NameText
    version: VersionText
    digest: DigestText

    @property
    def label(self) -> str:
        """``namespace/name@version``."""
        return f"{self.concept}@{self.version}"


class CompositionMethod(Model):
    """Other concepts by their digests; how they are used stands in the build's file, ``composition.toml``."""

    kind: Literal["composition"] = "composition"
    members: Annotated[tuple[NamedMember, ...], Field(min_length=1, max_length=MAX_MEMBERS)]

    @model_validator(mode="after")
    def _name_each_once(self) -> CompositionMethod:
        names = [member.concept for member in self.members]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise ValueError(f"the composition names {twice} twice")
        return self


Method = Annotated[
    EmbeddingMethod | RankOneMethod | LoraMethod | FullMethod | HypernetworkMethod | CompositionMethod,
    Field(discriminator="kind"),
]
