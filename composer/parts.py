"""The files of a planned concept as patches: one row for each kind says how."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Final, Literal, TypeVar

import torch
from torch import Tensor, nn

from conceptry.bases import ComponentName
from conceptry.composer.deltas import DeltaPatch, is_factored, load_factors, require_place
from conceptry.composer.full import FullPatch, WeightPatch, require_tensor
from conceptry.composer.hooks import Patch
from conceptry.composer.hypernetworks import HypernetworkPatch, Pair, find_attention, load_pairs
from conceptry.composer.layered import LayeredPatch
from conceptry.composer.lora import LoraFactors, LoraPatch, require_layer, to_contributions
from conceptry.composer.mapped import MappedFile
from conceptry.composer.packs import Pack, cut_factors, load_pack
from conceptry.composer.pipelines import (
    UNET,
    Pipeline,
    TextEncoder,
    find_module,
    find_tensor,
    list_components,
    list_text_encoders,
    split_word,
    unwrap_layer,
)
from conceptry.composer.plan import PlannedMember
from conceptry.composer.rank_one import RankOneEdit, RankOnePatch
from conceptry.composer.report import Applied
from conceptry.composer.standins import read_original
from conceptry.composer.tensors import to_torch
from conceptry.composer.tokens import TokenPatch, TokenRows, check_width
from conceptry.composer.unpacking import iter_bases
from conceptry.concepts import Concept
from conceptry.errors import ConceptryError, IncompatibleError
from conceptry.formats.checks import Rows
from conceptry.formats.embedding import read_embedding
from conceptry.formats.full_files import read_values
from conceptry.formats.hypernetwork import read_hypernetwork
from conceptry.formats.lora import LoraModule, read_lora
from conceptry.formats.original_names import is_original, spell_as_diffusers
from conceptry.formats.rank_one import read_rank_one
from conceptry.manifest import Part, RankOneMethod
from conceptry.names import Placeholder

V = TypeVar("V")


@dataclass(slots=True)
class Gathered:
    """What one concept puts into a pipeline, read and checked, not yet in effect."""

    member: PlannedMember
    tokens: list[TokenRows] = field(default_factory=list)
    full: dict[ComponentName, dict[str, Tensor]] = field(default_factory=dict)
    lora: dict[ComponentName, dict[str, LoraFactors]] = field(default_factory=dict)
    deltas: dict[ComponentName, dict[str, LoraModule]] = field(default_factory=dict)
    edits: list[RankOneEdit] = field(default_factory=list)
    files: list[MappedFile] = field(default_factory=list)
    """What factors are read from while they are used."""

    networks: dict[str, Pair] = field(default_factory=dict)
    """By path of the attention in the UNet."""

    applied: int = 0
    unmatched: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def describe(self, member: PlannedMember) -> Applied:
        """Returns the concept's line of the report, at the strength of ``member``."""
        return Applied(
            label=member.concept.label,
            digest=member.concept.digest,
            strength=member.strength,
            build=member.build.id,
            kinds=member.build.kinds,
            fit=member.verdict.fit.word,
            words=member.words,
            tensors=self.applied,
            unmatched=tuple(self.unmatched),
        )

    def build(
        self, pipeline: Pipeline, *, fused: bool = False, compiled: frozenset[ComponentName] = frozenset()
    ) -> tuple[Patch, ...]:
        """Returns the patches in the order of use: words, weights, deltas, edits with keys of the merged weights.

        Args:
            pipeline: the one that the concept was gathered for.
            fused: puts low-rank deltas into the weights instead of beside the layers.
            compiled: components where they go into the weights in any case.

        Raises:
            IncompatibleError: if the concept is to be fused and has what no weight can hold.
        """
        if fused and self.edits:
            raise _refuse_fusing(self.member, "its gates open anew for each token (arXiv 2305.01644)")
        if fused and any(token.layers is not None for token in self.tokens):
            raise _refuse_fusing(self.member, "each layer reads its words in another way (arXiv 2303.09522)")
        if fused and self.networks:
            raise _refuse_fusing(self.member, "a hypernetwork has activations between its layers")
        parts, strength = list_components(pipeline), self.member.strength
        tokens = TokenPatch(pipeline, self.tokens, strength=strength)
        patches: list[Patch] = [tokens] if self.tokens else []
        for name, values in self.full.items():
            patches += self._share(name, values, partial(FullPatch, parts[name]))
        for name, factors in self.lora.items():
            make = partial(_fuse_factors if fused or name in compiled else LoraPatch, parts[name])
            patches += self._share(name, factors, make)
        for name, modules in self.deltas.items():
            patches += self._share(name, modules, partial(DeltaPatch, parts[name]))
        if self.networks:
            patches += self._share(UNET, self.networks, partial(HypernetworkPatch, parts[UNET]))
        layers = [layer for token in self.tokens for layer in token.layers or ()]
        if layers:
            patches.append(LayeredPatch(pipeline, tokens, layers))
        if self.edits:
            make_edit = partial(RankOnePatch, pipeline, self.edits, presence=tokens.log)
            patches.append(_mark(make_edit(), UNET, self.member.use.find_share(UNET)))
            patches[-1].strength = strength * patches[-1].share
        return tuple(patches)

    def _share(
        self, component: ComponentName, values: Mapping[str, V], make: Callable[..., Patch]
    ) -> Iterator[Patch]:
        """Returns a patch for all values whose layers have the same share of the concept's strength."""
        groups: dict[float, dict[str, V]] = {}
        for path, value in values.items():
            groups.setdefault(self.member.use.find_share(f"{component}.{path}"), {})[path] = value
        for share, group in groups.items():
            yield _mark(make(group, strength=self.member.strength * share), component, share)


def _mark(patch: Patch, component: ComponentName, share: float) -> Patch:
    patch.component, patch.share = component, share
    return patch


def _fuse_factors(root: nn.Module, factors: Mapping[str, LoraFactors], *, strength: float) -> WeightPatch:
    return WeightPatch(root, to_contributions(factors), strength=strength)


def _refuse_fusing(member: PlannedMember, why: str) -> IncompatibleError:
    return IncompatibleError(
        f"{member.concept.label} cannot be put into weights: {why}",
        hint="attach it, and fuse the other concepts: fuse(Composition(...), pipeline), then attach(...)",
    )


def gather_member(member: PlannedMember, pipeline: Pipeline) -> Gathered:
    """Returns what a planned concept puts into the pipeline.

    Raises:
        IncompatibleError: if a shape is not the base's, or nothing of the concept has a place in the pipeline.
        InvalidFileError: if a file is malformed.
        NotFoundError: if a file is not on this machine.
    """
    found = Gathered(member)
    for index, part in enumerate(member.build.parts):
        try:
            _GATHER[part.kind](found, part, pipeline)
        except ConceptryError as error:
            error.inside(f"{member.concept.label} parts[{index}]")
            raise
    if not found.applied:
        raise IncompatibleError(
            f"no tensor of {member.concept.label} has a place in this pipeline"
            + (f"; it has {found.unmatched[0]!r}" if found.unmatched else ""),
            hint=f"it was made for {member.build.base.repo or member.build.base.family}: use that base",
        )
    return found


def _iter_files(found: Gathered, part: Part) -> Iterator[Path]:
    for file in part.files:
        if file.role == "weights":
            yield found.member.concept.locate(file)


# --- words: embedding, rank_one ------------------------------------------------------------------------------------


def _gather_embedding(found: Gathered, part: Part, pipeline: Pipeline) -> None:
    for path in _iter_files(found, part):
        contents = read_embedding(path)
        _add_rows(found, contents.rows, pipeline, anchored=True, layers=contents.layers)


def _add_rows(
    found: Gathered, rows: Rows, pipeline: Pipeline, *, anchored: bool, layers: tuple[str, ...] | None = None
) -> None:
    encoders = {encoder.component: encoder for encoder in list_text_encoders(pipeline)}
    by_word: dict[Placeholder, dict[ComponentName, Tensor]] = {}
    anchors: dict[Placeholder, dict[ComponentName, Tensor | None]] = {}
    for (component, placeholder), raw in rows.items():
        encoder = encoders.get(ComponentName(component))
        if encoder is None:
            found.unmatched.append(f"{component}/{placeholder}")
            continue
        word = found.member.words.get(Placeholder(placeholder), Placeholder(placeholder))
        values = to_torch(raw, dtype=torch.float32, device=encoder.table.weight.device)
        by_word.setdefault(word, {})[encoder.component] = values
        anchor = find_anchor(found.member.concept, placeholder, encoder, pipeline)
        anchors.setdefault(word, {})[encoder.component] = anchor
        found.applied += 1
    for word, values_by_encoder in by_word.items():
        anchor_by_encoder = anchors[word] if anchored else None
        token = TokenRows(word, values_by_encoder, anchor_by_encoder, layers)
        for component in values_by_encoder:
            check_width(encoders[component], token)
        found.tokens.append(token)
        for component in encoders.keys() - values_by_encoder.keys():
            found.warnings.append(f"{found.member.concept.label}: {word} has no row for {component}")


def find_anchor(
    concept: Concept, placeholder: str, encoder: TextEncoder, pipeline: Pipeline
) -> Tensor | None:
    """Returns the base's row of the superclass's last token, in fp32; None where no superclass is known."""
    tokens = concept.manifest.tokens
    superclass = next((token.superclass for token in tokens if token.placeholder == placeholder), None)
    ids = split_word(pipeline, superclass, encoder.tokenizer_name) if superclass else []
    # Not what a text encoder that is attached shows in its place: concepts mean the same in any order.
    return read_original(encoder.table.weight)[ids[-1]].float() if ids else None


def _gather_rank_one(found: Gathered, part: Part, pipeline: Pipeline) -> None:
    method = part.method
    if not isinstance(method, RankOneMethod):
        raise IncompatibleError(f"the method of kind {part.kind!r} is {method.kind!r}")
    for path in _iter_files(found, part):
        contents = read_rank_one(path)
        first = len(found.tokens)
        _add_rows(found, contents.rows, pipeline, anchored=False)
        words = [token.placeholder for token in found.tokens[first:]]
        edit = RankOneEdit(
            i_star=to_torch(contents.i_star, dtype=torch.float32),
            c_inv_i_star=to_torch(contents.c_inv_i_star, dtype=torch.float32),
            o_v={layer: to_torch(raw, dtype=torch.float32) for layer, raw in contents.o_v.items()},
            bias=method.gate.bias,
            temperature=method.gate.temperature,
            placeholder=words[0] if words else None,
            superclass=method.superclass,
            key_lock=_choose_lock(found, method, words, pipeline),
            strength=found.member.strength,
        )
        found.edits.append(edit)
        found.applied += 2 + len(edit.o_v)


def _choose_lock(
    found: Gathered, method: RankOneMethod, words: Sequence[Placeholder], pipeline: Pipeline
) -> Literal["local", "global"]:
    """Returns how keys are locked; for a whole prompt only where the superclass can take the word's place in it."""
    if method.key_lock == "local":
        return "local"
    for encoder in list_text_encoders(pipeline):
        length = len(split_word(pipeline, method.superclass, encoder.tokenizer_name))
        own = [
            token.count(encoder.component) for token in found.tokens[-1:] if encoder.component in token.rows
        ]
        if not words or own != [length]:
            found.warnings.append(
                f"{found.member.concept.label}: its keys are locked locally, since {method.superclass!r} and its word "
                "are not of one length here"
            )
            return "local"
    return "global"


# --- weights: lora, full -------------------------------------------------------------------------------------------


def _gather_lora(found: Gathered, part: Part, pipeline: Pipeline) -> None:
    parts = list_components(pipeline)
    for path in _iter_files(found, part):
        pack = load_pack(path)
        if pack is not None and _gather_pack(found, pack, parts):
            found.files += [pack.file] if pack.file is not None else []
            continue
        family = found.member.build.base.family
        for name, module in spell_as_diffusers(read_lora(path).modules, family).items():
            component, _, place = name.partition(".")
            root = parts.get(ComponentName(component))
            layer = find_module(root, place) if root is not None else None
            if root is None or layer is None:
                found.unmatched.append(name)
                continue
            require_place(root, place, module)
            if is_factored(module, layer):
                factors = load_factors(module, layer)
                require_layer(root, place, factors)
                found.lora.setdefault(ComponentName(component), {})[place] = factors
            else:
                found.deltas.setdefault(ComponentName(component), {})[place] = module
            found.applied += len(module.parts)


def _gather_pack(found: Gathered, pack: Pack, parts: Mapping[ComponentName, nn.Module]) -> bool:
    """Returns whether every factor of a pack has a layer to stand beside, or none at all; they are gathered then."""
    gathered: dict[ComponentName, dict[str, LoraFactors]] = {}
    unmatched = []
    for module in pack.modules:
        component, _, place = module.name.partition(".")
        root = parts.get(ComponentName(component))
        outer = find_module(root, place) if root is not None else None
        if outer is None:
            if is_original(module.name, found.member.build.base.family):
                return False
            unmatched.append(module.name)
            continue
        layer = unwrap_layer(outer)
        if not isinstance(layer, nn.Linear | nn.Conv2d) or not layer.weight.is_floating_point():
            return False
        factors = cut_factors(pack, module, layer)
        if factors is None:
            return False
        gathered.setdefault(ComponentName(component), {})[place] = factors
    for name, factors_by_place in gathered.items():
        found.lora.setdefault(name, {}).update(factors_by_place)
        found.applied += 2 * len(factors_by_place)
    found.unmatched += unmatched
    return True


def _gather_full(found: Gathered, part: Part, pipeline: Pipeline) -> None:
    parts = list_components(pipeline)
    for path in _iter_files(found, part):
        contents = read_values(path, part.method, partial(iter_bases, pipeline))
        root = parts.get(contents.component)
        for name, raw in contents.tensors.items():
            target = find_tensor(root, name) if root is not None else None
            if root is None or target is None:
                found.unmatched.append(f"{contents.component}.{name}")
                continue
            value = to_torch(raw, device=target.device, dtype=target.dtype)
            require_tensor(root, name, value)
            found.full.setdefault(contents.component, {})[name] = value
            found.applied += 1


# --- what attention reads: hypernetwork ----------------------------------------------------------------------------


def _gather_hypernetwork(found: Gathered, part: Part, pipeline: Pipeline) -> None:
    root = list_components(pipeline).get(UNET)
    places = find_attention(root) if root is not None else {}
    for path in _iter_files(found, part):
        contents = read_hypernetwork(path)
        for width, pair in load_pairs(contents).items():
            paths = [place for place, reads in places.items() if reads == width]
            if not paths:
                found.unmatched.append(f"{width}")
                continue
            found.networks |= dict.fromkeys(paths, pair)
            found.applied += pair.tensors


_GATHER: Final[Mapping[str, Callable[[Gathered, Part, Pipeline], None]]] = {
    "embedding": _gather_embedding,
    "rank_one": _gather_rank_one,
    "lora": _gather_lora,
    "full": _gather_full,
    "hypernetwork": _gather_hypernetwork,
}
