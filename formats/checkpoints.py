"""Whole models in one file or a diffusers folder: what they are, and which of their tensors differ from a base."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from conceptry.base_locations import detect_folder_family
from conceptry.bases import ComponentName, FamilyId
from conceptry.errors import IncompatibleError, InvalidFileError, UsageError
from conceptry.formats.checks import COMPONENTS
from conceptry.formats.contract import Detection, Format, Reading, ReadRequest, share_of
from conceptry.formats.data_files import load_table
from conceptry.formats.families import Seen, judge_family
from conceptry.formats.full import FullContents
from conceptry.formats.header import Header, TensorInfo, read_header
from conceptry.formats.module_names import TEXT_LEVEL, choose_ldm_blocks, translate_ldm
from conceptry.formats.tensors import RawTensor, read_tensors
from conceptry.formats.triggers import find_triggers

_MARKS: Final = re.compile(
    r"^(model\.diffusion_model|first_stage_model|cond_stage_model|conditioner\.embedders)\."
)
_SUFFIX: Final = re.compile(r"^(.+)\.(weight|bias)$")
_SPLIT: Final = ("q", "k", "v")
_FOLDER_KEY: Final = "conceptry.folder"


@dataclass(frozen=True, slots=True)
class Place:
    """How a tensor of a checkpoint becomes one of the diffusers folder: which third of it, or turned around."""

    tensor: str
    cut: int | None = None
    turned: bool = False

    def take(self, tensor: RawTensor) -> RawTensor:
        """Returns the values as the diffusers folder has them."""
        if self.turned:
            return RawTensor.from_numpy(tensor.to_numpy().T)
        if self.cut is None:
            return tensor
        rows = tensor.shape[0] // len(_SPLIT)
        return RawTensor.from_numpy(tensor.to_numpy()[self.cut * rows : (self.cut + 1) * rows])


Places = Mapping[ComponentName, Mapping[str, Place]]


def list_checkpoint_formats() -> tuple[Format, ...]:
    """Returns the rows for whole models: in one file, and in a folder of diffusers."""
    rows = (
        ("full_checkpoint", "whole model in one file", detect_checkpoint),
        ("full_folder", "whole model in a diffusers folder", detect_folder),
    )
    return tuple(
        Format(id=id, kind="full", title=title, detect=detect, read=read_checkpoint, stored_kind="full")
        for id, title, detect in rows
    )


# --- what is it? ---------------------------------------------------------------------------------------------------


def detect_checkpoint(header: Header) -> Detection | None:
    """Returns what a single-file model is, or None where no name is of one."""
    found = next((name for name in header.tensors if _MARKS.search(name)), None)
    if found is None or any(".lora_" in name for name in header.tensors):
        return None
    seen = [
        Seen(
            f"unet.{name.removeprefix('model.diffusion_model.').removesuffix('.weight')}",
            info.shape[1],
            len(info.shape),
        )
        for name, info in header.tensors.items()
        if name.startswith("model.diffusion_model.") and name.endswith(".weight") and len(info.shape) > 1
    ]
    verdict = judge_family(seen, header.metadata)
    roles = {name: role for name in header.tensors if (role := _find_role(name)) is not None}
    return Detection(
        roles=roles,
        confidence=share_of(roles, len(header.tensors)) * (verdict.confidence or 0.5),
        family=verdict.family,
        family_is_certain=verdict.certain,
        reasons=(f"the name {found!r} is of a whole model", *verdict.reasons),
        triggers=find_triggers(header.metadata),
    )


def read_folder_header(folder: Path) -> Header:
    """Returns all tensors of a diffusers folder, called ``{component}/{name}``; nothing but headers is read.

    Raises:
        InvalidFileError: if a file is not sound, or there is no weight at all.
    """
    tensors: dict[str, TensorInfo] = {}
    size_bytes = 0
    for component in sorted(path.name for path in folder.iterdir() if path.is_dir()):
        for file in choose_weight_files(folder / component):
            header = read_header(file)
            size_bytes += header.size_bytes
            tensors |= {f"{component}/{name}": info for name, info in header.tensors.items()}
    if not tensors:
        raise InvalidFileError(f"{folder.name!r} holds no weights as safetensors")
    return Header(tensors, {_FOLDER_KEY: str(detect_folder_family(folder) or "")}, 0, size_bytes)


def detect_folder(header: Header) -> Detection | None:
    """Returns what a diffusers folder is, by the header that ``read_folder_header`` made; None for a file."""
    family = header.metadata.get(_FOLDER_KEY)
    if family is None:
        return None
    roles = {name: f"weight of {name.partition('/')[0]}" for name in header.tensors}
    known = FamilyId(family) if family else None
    reason = (
        f"its configuration files are those of {family}" if family else "its configuration tells no family"
    )
    return Detection(
        roles=roles,
        confidence=1.0 if known else 0.5,
        family=known,
        family_is_certain=known is not None,
        reasons=("a folder with model_index.json", reason),
    )


def _find_role(name: str) -> str | None:
    table = load_table("checkpoints")
    row = next((row for row in table["component"] if name.startswith(row["prefix"])), None)
    if row is not None:
        return f"weight of {row['component']}"
    return next((role for pattern, role in _list_others() if pattern.search(name)), None)


@functools.cache
def _list_others() -> tuple[tuple[re.Pattern[str], str], ...]:
    rows = load_table("checkpoints")["others"]["names"]
    return tuple((re.compile(pattern, re.ASCII), role) for pattern, role in rows)


# --- where do its tensors belong? ----------------------------------------------------------------------------------


def place_tensors(header: Header, family: FamilyId | None) -> Places:
    """Returns component -> name in the diffusers folder -> tensor of the checkpoint that holds it."""
    places: dict[ComponentName, dict[str, Place]] = {}
    blocks = choose_ldm_blocks((), family)
    for row in load_table("checkpoints")["component"]:
        how, prefix = row.get("how"), row["prefix"]
        for name in header.tensors:
            if name.startswith(prefix):
                mine = places.setdefault(ComponentName(row["component"]), {})
                mine.update(_place(name, name.removeprefix(prefix), how, blocks))
    return {component: mine for component, mine in places.items() if mine}


def _place(tensor: str, name: str, how: str | None, blocks: str | None) -> Iterator[tuple[str, Place]]:
    if how == "ldm":
        match = _SUFFIX.match(name)
        path = translate_ldm(match.group(1), blocks) if match and blocks else None
        if match and path:
            yield f"{path}.{match.group(2)}", Place(tensor)
    elif how == "open_clip":
        spelled = next(_rewrite_open_clip(name), None)
        if spelled and "{}" in spelled:
            for cut, letter in enumerate(_SPLIT):
                yield spelled.format(letter), Place(tensor, cut=cut)
        elif spelled:
            yield spelled, Place(tensor, turned=name == "text_projection")
    elif not name.endswith("position_ids"):
        yield name, Place(tensor)


def _rewrite_open_clip(name: str) -> Iterator[str]:
    for pattern, replacement in load_table("checkpoints")["open_clip"]["rewrites"]:
        spelled, count = re.subn(pattern, replacement, name, count=1, flags=re.ASCII)
        if count:
            yield spelled


# --- the base, or a folder -----------------------------------------------------------------------------------------


class Model:
    """A whole model on this machine: its tensors by component and published name, read one at a time."""

    def __init__(self, path: Path, family: FamilyId | None) -> None:
        self.path = path
        self._tensors: dict[ComponentName, dict[str, tuple[Path, Place]]] = {}
        self._open: dict[Path, Mapping[str, RawTensor]] = {}
        if path.is_dir():
            self._open_folder(path)
        else:
            for component, mine in place_tensors(read_header(path), family).items():
                self._tensors[component] = {name: (path, place) for name, place in mine.items()}

    def _open_folder(self, folder: Path) -> None:
        for component in map(ComponentName, COMPONENTS):
            files = choose_weight_files(folder / component)
            mine = {
                _spell_published(component, name): (file, Place(name))
                for file in files
                for name in read_header(file).tensors
                if not name.endswith("position_ids")
            }
            if mine:
                self._tensors[component] = mine

    @property
    def components(self) -> tuple[ComponentName, ...]:
        """The denoiser and the text encoders that it has."""
        return tuple(self._tensors)

    def list_names(self, component: ComponentName) -> tuple[str, ...]:
        """Returns the published names of a component's tensors."""
        return tuple(self._tensors.get(component, {}))

    def read(self, component: ComponentName, name: str) -> RawTensor | None:
        """Returns one tensor as the diffusers folder has it, or None where the model has none of that name."""
        found = self._tensors.get(component, {}).get(name)
        if found is None:
            return None
        file, place = found
        if file not in self._open:
            self._open[file] = read_tensors(file)
        return place.take(self._open[file][place.tensor])


def choose_weight_files(folder: Path) -> tuple[Path, ...]:
    """Returns the safetensors files of one component's folder: the plain ones, else those of one variant."""
    files = sorted(folder.glob("*.safetensors")) if folder.is_dir() else []
    plain = [file for file in files if not re.search(r"\.(fp16|bf16|non_ema|ema)[.-]", file.name)]
    return tuple(plain or files)


def _spell_published(component: ComponentName, name: str) -> str:
    is_text = component.startswith("text_encoder") and name.startswith(
        ("encoder.layers", "embeddings", "final_layer")
    )
    return TEXT_LEVEL + name if is_text else name


# --- what differs? -------------------------------------------------------------------------------------------------


def read_checkpoint(request: ReadRequest) -> Reading:
    """Returns the tensors that differ from the base, one part a component; they stay in their file until wanted.

    A tensor is equal where its bytes are, or would be after rounding one side to the precision of the other.

    Raises:
        UsageError: if no base is given whose weights lie on this machine.
        IncompatibleError: if a tensor has another shape than the base's, or nothing differs.
    """
    if request.base is None:
        raise UsageError(
            f"{request.name!r} is a whole model, which is kept as what differs from its base",
            hint="add --base PATH, the folder or the checkpoint that it was trained from",
        )
    mine, base = Model(request.path, request.family), Model(request.base, request.family)
    parts, notes, total = [], [], 0
    for component in mine.components:
        if component not in base.components:
            notes.append(f"{component} is left out: the base has none to compare it with")
            continue
        changed, count = _compare(component, mine, base)
        total += count
        if changed:
            parts.append(FullContents(component=component, tensors=changed))
        notes.append(f"{component}: {len(changed)} of {count} tensors differ from the base")
    if not parts:
        raise IncompatibleError(
            f"nothing in {request.name!r} differs from the base", hint="name the base it came from"
        )
    return Reading(contents=tuple(parts), notes=(*notes, *_list_left_out(request)), total_tensors=total)


def _compare(component: ComponentName, mine: Model, base: Model) -> tuple[dict[str, RawTensor], int]:
    changed: dict[str, RawTensor] = {}
    names = mine.list_names(component)
    for name in names:
        theirs = base.read(component, name)
        if theirs is None:
            raise IncompatibleError(
                f"the base has no tensor {name!r} in {component}", hint="name the base it came from"
            )
        ours = mine.read(component, name)
        if ours is None:
            raise InvalidFileError(f"the tensor {name!r} is gone", where=component)
        if ours.shape != theirs.shape:
            raise IncompatibleError(
                f"{name} is {list(ours.shape)}, that of the base {list(theirs.shape)}",
                hint="name the base it came from",
            )
        if not are_equal(ours, theirs):
            changed[name] = ours
    return changed, len(names)


def are_equal(one: RawTensor, other: RawTensor) -> bool:
    """Returns whether two tensors hold the same values, up to the precision of the coarser of the two."""
    if one.dtype == other.dtype:
        return one.data == other.data
    first, second = one.to_numpy(), other.to_numpy()
    return _round_equals(first, second) or _round_equals(second, first)


def _round_equals(values: Any, other: Any) -> bool:
    import numpy as np

    with np.errstate(over="ignore", invalid="ignore"):
        return bool(np.array_equal(values.astype(other.dtype), other))


def _list_left_out(request: ReadRequest) -> Iterator[str]:
    counts: dict[str, int] = {}
    for name in request.header.tensors:
        component, joint, _ = name.partition("/")
        if joint and component not in COMPONENTS:
            role = f"weight of {component}, which is not kept"
            counts[role] = counts.get(role, 0) + 1
            continue
        for pattern, role in _list_others():
            if pattern.search(name) and "not kept" in role:
                counts[role] = counts.get(role, 0) + 1
                break
    yield from (f"{count} tensors are left out, each a {role}" for role, count in counts.items())
