"""Perfusion (arXiv 2305.01644) as its two public programs save it, read into kind ``rank_one``.

ChenDarYen: target_input [d], C_inv [d, d], embedding rows, and for each layer a target_output [positions, out].
lucidrains: C_inv, embed_params [1, d], and key_value_params, a pair (encoding [1, d], target [1, out]) for each layer's
keys and values, by the order of the program's modules. The gate and the superclass are in neither file.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from conceptry.bases import ComponentName
from conceptry.errors import IncompatibleError, InvalidFileError, MissingAnswerError
from conceptry.formats.contract import Detection, Format, Reading, ReadRequest, share_of
from conceptry.formats.embedding_rows import count_rows, list_layers, list_widths
from conceptry.formats.families import CLAIM_CONFIDENCE
from conceptry.formats.header import Header
from conceptry.formats.module_names import find_layout, translate_ldm
from conceptry.formats.rank_one import RankOneContents, check_rank_one
from conceptry.formats.tensors import RawTensor, digest_tensors, read_tensors
from conceptry.formats.triggers import find_triggers

if TYPE_CHECKING:
    import numpy as np

_TEXT: Final = ComponentName("text_encoder")
_C_INV: Final = "C_inv"
_NUMBER_OF_WORD: Final = "embedding.string_to_token."
_POSITIONED: Final = re.compile(r"^target_output\.(.+)\.to_([kv])(?:\.target_output)?$", re.ASCII)
_NUMBERED: Final = re.compile(r"^key_value_params\.(\d{1,3})\.([01])$", re.ASCII)
_LDM_ROOT: Final = "model.diffusion_model."
_FAMILIES: Final = ("sd1", "sd2")
_KEY, _VALUE = "k", "v"
# What single precision makes of one and the same value on two ways.
_SAME: Final = 1e-5


@dataclass(frozen=True, slots=True)
class _Target:
    """A tensor of targets: the layer it is for (None where that is not known), and whether of its keys or values."""

    tensor: str
    layer: str | None
    side: str


@dataclass(frozen=True, slots=True, kw_only=True)
class _Layout:
    """How one program names what a rank-one edit consists of."""

    title: str
    rows: re.Pattern[str]
    input: re.Pattern[str]
    """Names of i*, of which all hold the same."""

    list_targets: Callable[[Header], tuple[_Target, ...]]


def _list_positioned(header: Header) -> tuple[_Target, ...]:
    matches = ((name, _POSITIONED.match(name)) for name in header.tensors)
    return tuple(
        _Target(name, _spell_layer(match.group(1)), match.group(2)) for name, match in matches if match
    )


def _spell_layer(path: str) -> str | None:
    path = path.removeprefix(_LDM_ROOT)
    layout = find_layout(f"{path}.to_k")
    if layout is None or layout.names != "ldm":
        return path if layout else None
    translated = translate_ldm(f"{path}.to_k", "sd")
    return translated.removesuffix(".to_k") if translated else None


def _list_numbered(header: Header) -> tuple[_Target, ...]:
    """Of each two numbers the first is a layer's keys: both programs that it is used with declare ``to_k`` first."""
    found = sorted(
        int(match.group(1))
        for name in header.tensors
        if (match := _NUMBERED.match(name)) and match.group(2) == "1"
    )
    layers = _order_layers(header, found)
    return tuple(
        _Target(f"key_value_params.{number}.1", layers.get(number // 2), (_KEY, _VALUE)[number % 2])
        for number in found
    )


def _order_layers(header: Header, numbers: list[int]) -> Mapping[int, str]:
    """Returns position -> layer by the one order in which all widths fit: that of a picture, or that of declaration.

    diffusers declares the middle block after the others.
    """
    passed = list_layers()
    if numbers != list(range(2 * len(passed))):
        return {}
    middle = [layer for layer in passed if layer.startswith("mid_block")]
    declared = (*(layer for layer in passed if layer not in middle), *middle)
    widths = [header.tensors[f"key_value_params.{number}.1"].shape[-1:] for number in numbers]
    for order in (passed, declared):
        expected = [(_width_of(layer),) for layer in order for _ in (_KEY, _VALUE)]
        if widths == expected:
            return dict(enumerate(order))
    return {}


def _width_of(layer: str) -> int:
    block = re.match(r"(down|up)_blocks\.(\d)", layer)
    if block is None:
        return 1280
    number = int(block.group(2))
    return (320, 640, 1280)[number if block.group(1) == "down" else 3 - number]


_LAYOUTS: Final[Mapping[str, _Layout]] = {
    "chendaryen": _Layout(
        title="Perfusion (ChenDarYen), targets for each token position",
        rows=re.compile(r"^embedding\.string_to_param\.", re.ASCII),
        input=re.compile(r"^target_input$", re.ASCII),
        list_targets=_list_positioned,
    ),
    "lucidrains": _Layout(
        title="Perfusion (lucidrains), layers by position",
        rows=re.compile(r"^embed_params$", re.ASCII),
        input=re.compile(r"^key_value_params\.\d{1,3}\.0$", re.ASCII),
        list_targets=_list_numbered,
    ),
}


def list_perfusion_formats() -> tuple[Format, ...]:
    """Returns one row for each of the two programs."""
    return tuple(
        Format(
            id=f"rank_one_{id}",
            kind="rank_one",
            title=layout.title,
            detect=partial(detect_perfusion, layout=layout),
            read=partial(read_perfusion, layout=layout),
            stored_kind="rank_one",
        )
        for id, layout in _LAYOUTS.items()
    )


# --- what is it? ---------------------------------------------------------------------------------------------------


def detect_perfusion(header: Header, *, layout: _Layout) -> Detection | None:
    """Returns what a file of targets is, or None where it has none; whether it can be kept, its values decide."""
    targets = layout.list_targets(header)
    if not targets:
        return None
    roles = dict(_iter_roles(header, layout, targets))
    width = next((header.tensors[name].shape[-1] for name in roles if name == _C_INV), 0)
    known = list_widths().get(width)
    family = known.family if known and known.family in _FAMILIES else None
    lost = sum(target.layer is None for target in targets)
    doubts = (f"{lost} of {len(targets)} targets are of no layer that is known",) if lost else ()
    return Detection(
        roles=roles,
        confidence=share_of(roles, len(header.tensors)) * (0.9 if family and not lost else CLAIM_CONFIDENCE),
        family=family,
        reasons=(
            f"{len(targets)} names are of {layout.title}",
            *((f"encodings are {width} wide, so {family}",) if family else ()),
            *doubts,
        ),
        triggers=find_triggers(header.metadata),
    )


def _iter_roles(header: Header, layout: _Layout, targets: tuple[_Target, ...]) -> Iterator[tuple[str, str]]:
    sides = {_KEY: "keys", _VALUE: "values"}
    for target in targets:
        yield target.tensor, f"target of the {sides[target.side]} of {target.layer or 'an unknown layer'}"
    for name in header.tensors:
        if layout.input.match(name):
            yield name, "the encoding that the edit answers (i*)"
        elif layout.rows.match(name):
            yield name, "rows of the placeholder"
        elif name.startswith(_NUMBER_OF_WORD):
            yield name, "number of the placeholder in its tokenizer"
        elif name == _C_INV:
            yield name, "inverse of the covariance of encodings"


# --- what does it hold? --------------------------------------------------------------------------------------------


def read_perfusion(request: ReadRequest, *, layout: _Layout) -> Reading:
    """Returns the edit with one target for each layer's values; keys are locked to the superclass and left out.

    Raises:
        IncompatibleError: if it is more than one edit: targets or inputs that differ by token position or by layer.
        InvalidFileError: if a part is missing, a layer is not known, or a value is not finite.
        MissingAnswerError: if no placeholder is given; neither program stores one.
    """
    header = request.header
    targets = layout.list_targets(header)
    roles = dict(_iter_roles(header, layout, targets))
    lost = sorted(header.tensors.keys() - roles.keys()) or [
        one.tensor for one in targets if one.layer is None
    ]
    if lost:
        raise InvalidFileError(
            f"{len(lost)} of {len(header.tensors)} tensors of {request.name!r} would be lost: {lost[0]!r}",
            hint=f"concepts identify {request.name} lists them",
        )
    if request.placeholder is None:
        raise MissingAnswerError(
            f"{request.name!r} does not say which word calls the concept",
            option="placeholder",
            hint="add --placeholder '<word>'",
        )
    tensors = read_tensors(request.path)
    rows = [tensors[name] for name in tensors if layout.rows.match(name)]
    inputs = {name: tensors[name] for name in tensors if layout.input.match(name)}
    if len(rows) != 1 or not inputs or _C_INV not in tensors:
        raise InvalidFileError(
            f"{request.name!r} lacks {'C_inv' if _C_INV not in tensors else 'its rows or its input'}",
            hint="save it again with the program that trained it",
        )
    i_star = _settle(inputs)
    contents = RankOneContents(
        i_star=RawTensor.from_numpy(i_star),
        c_inv_i_star=RawTensor.from_numpy(_apply(tensors[_C_INV], i_star)),
        rows={(_TEXT, request.placeholder): rows[0].reshape((count_rows(rows[0].shape), rows[0].shape[-1]))},
        o_v={
            str(target.layer): RawTensor.from_numpy(_settle({target.tensor: tensors[target.tensor]}))
            for target in targets
            if target.side == _VALUE
        },
    )
    check_rank_one(contents)
    note = (
        "keys are locked to the superclass and computed anew, so their stored targets are left out; bias and "
        "temperature of the gate are in no such file, so those of the paper are taken"
    )
    return Reading(contents=(contents,), notes=(note,), covariance=digest_tensors({_C_INV: tensors[_C_INV]}))


def _settle(tensors: Mapping[str, RawTensor]) -> np.ndarray[Any, Any]:
    """Returns the one vector that all rows of all tensors are, up to rounding. Raises IncompatibleError."""
    import numpy as np

    first, *others = (
        (name, row)
        for name, tensor in tensors.items()
        for row in tensor.to_numpy().reshape(-1, tensor.shape[-1]).astype(np.float32)
    )
    for name, row in others:
        error = float(np.linalg.norm(row - first[1]) / max(float(np.linalg.norm(first[1])), 1e-30))
        if not error <= _SAME:
            raise IncompatibleError(
                f"{name!r} differs by {error:.1%} between token positions, concepts or layers, and a rank-one edit "
                "has one value for all",
                hint="train it again from its pictures: concepts train perfusion",
                where=name,
            )
    return np.ascontiguousarray(first[1])


def _apply(c_inv: RawTensor, vector: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    import numpy as np

    width = len(vector)
    if c_inv.shape != (width, width):
        raise InvalidFileError(f"its shape is {list(c_inv.shape)}, not {[width, width]}", where=_C_INV)
    product: np.ndarray[Any, Any] = c_inv.to_numpy().astype(np.float64) @ vector.astype(np.float64)
    return product.astype(np.float32)
