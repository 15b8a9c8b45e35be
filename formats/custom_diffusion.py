"""Custom Diffusion (arXiv 2212.04488): new cross-attention weights, stored as kind ``full``, and words beside them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from conceptry.bases import ComponentName
from conceptry.errors import InvalidFileError
from conceptry.formats.companions import find_companions
from conceptry.formats.contract import Detection, Format, Reading, ReadRequest, share_of
from conceptry.formats.families import Seen, judge_family
from conceptry.formats.full import FullContents, check_full
from conceptry.formats.header import Header
from conceptry.formats.module_names import translate_ldm
from conceptry.formats.tensors import read_tensors
from conceptry.formats.triggers import find_triggers

_UNET: Final = ComponentName("unet")
_PROCESSOR: Final = re.compile(
    r"(?:unet\.)?(.+\.attn[12])\.processor\.to_(q|k|v|out)_custom_diffusion(?:\.0)?\.(weight|bias)", re.ASCII
)
_DELTA: Final = re.compile(
    r"unet\.((?:down_blocks|mid_block|up_blocks)\..+\.attn2)\.to_(q|k|v|out)(?:\.0)?\.(weight|bias)", re.ASCII
)
# The form for the original U-Net, of SD1 and SD2 alone; its words have no names.
_ORIGINAL: Final = re.compile(r"state_dict\.model\.diffusion_model\.(.+\.attn2\.to_[kv])\.weight", re.ASCII)
_BLOCKS: Final = "sd"
_WORDS: Final = ("modifier_token.", "state_dict.embed")


@dataclass(frozen=True, slots=True)
class _Weight:
    name: str
    empty: bool


def list_custom_diffusion_formats() -> tuple[Format, ...]:
    """Returns the row for weights with and without words beside them."""
    row = Format(
        id="full_custom_diffusion",
        kind="full",
        title="Custom Diffusion, new weights of cross-attention",
        detect=detect_custom_diffusion,
        read=read_custom_diffusion,
        stored_kind="full",
    )
    return (row,)


def detect_custom_diffusion(header: Header) -> Detection | None:
    """Returns what a file with the names of Custom Diffusion is, or None where it has none."""
    weights = dict(_find_weights(header))
    if not weights:
        return None
    seen = [
        Seen(f"unet.{weight.name.removesuffix('.weight')}", header.tensors[tensor].shape[-1])
        for tensor, weight in weights.items()
        if not weight.empty
    ]
    verdict = judge_family(seen, header.metadata)
    companions = find_companions(header, weights.keys())
    roles = {
        tensor: "left empty: this layer is as in the base" if weight.empty else f"new value of {weight.name}"
        for tensor, weight in weights.items()
    } | dict(companions.describe(header))
    return Detection(
        roles=roles,
        confidence=share_of(roles, len(header.tensors)) * (verdict.confidence or 0.5),
        family=verdict.family,
        family_is_certain=verdict.certain,
        reasons=(f"{len(weights)} names are of Custom Diffusion", *verdict.reasons),
        triggers=tuple(dict.fromkeys((*companions.words, *find_triggers(header.metadata)))),
    )


def read_custom_diffusion(request: ReadRequest) -> Reading:
    """Returns the new weights under their names in the UNet, and the rows of the words that lie beside them.

    Raises:
        InvalidFileError: if a tensor would be lost or a value is not finite.
        UsageError: if a word is no placeholder.
    """
    header = request.header
    weights = dict(_find_weights(header))
    companions = find_companions(header, weights.keys())
    lost = sorted(header.tensors.keys() - weights.keys() - companions.tensors)
    if lost:
        raise InvalidFileError(
            f"{len(lost)} of {len(header.tensors)} tensors of {request.name!r} would be lost: {lost[0]!r}",
            hint=f"concepts identify {request.name} lists them",
        )
    tensors = read_tensors(request.path, weights)
    changed = {weight.name: tensors[tensor] for tensor, weight in weights.items() if not weight.empty}
    contents = FullContents(component=_UNET, tensors=changed)
    check_full(contents)
    note = f"{len(changed)} weights of cross-attention replace those of the base"
    return Reading(contents=(contents, *companions.read(request)), notes=(note,), total_tensors=len(changed))


def _find_weights(header: Header) -> Iterator[tuple[str, _Weight]]:
    with_words = any(name.startswith(_WORDS) for name in header.tensors)
    for tensor, info in header.tensors.items():
        name = _name_weight(tensor, with_words)
        if name is not None:
            yield tensor, _Weight(name, 0 in info.shape)


def _name_weight(tensor: str, with_words: bool) -> str | None:
    """Returns which weight of the UNet a tensor is, or None where its name does not say so."""
    match = _PROCESSOR.fullmatch(tensor) or (_DELTA.fullmatch(tensor) if with_words else None)
    if match:
        layer = f"to_{match.group(2)}" + (".0" if match.group(2) == "out" else "")
        return f"{match.group(1)}.{layer}.{match.group(3)}"
    original = _ORIGINAL.fullmatch(tensor) if with_words else None
    path = translate_ldm(original.group(1), _BLOCKS) if original else None
    return f"{path}.weight" if path else None
