"""Low-rank adapters in the names of each program: what they are, and their canonical form with explicit scales.

The delta of a module is scale times B A (arXiv 2106.09685, section 4.1); how the scale follows from what a file holds,
or from what it lacks, differs between programs and is recorded.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, Final

from conceptry.documents import MAX_DOCUMENT_BYTES, load_strict_json
from conceptry.errors import InvalidFileError, InvalidManifestError
from conceptry.formats.companions import Companions, find_companions
from conceptry.formats.contract import Detection, Format, Reading, ReadRequest, ScaleRule, share_of
from conceptry.formats.header import Header
from conceptry.formats.lora import LoraContents, LoraModule, check_lora
from conceptry.formats.lora_keys import Dialect, Key, KeySet, list_dialects, parse_keys, split_suffix
from conceptry.formats.tensors import RawTensor, read_tensors
from conceptry.formats.triggers import find_triggers

STORED_ALGORITHM: Final = "lora"
_CONFIG_NAME: Final = "adapter_config.json"
_EMBEDDED_CONFIG: Final = "lora_adapter_metadata"


def list_lora_formats() -> tuple[Format, ...]:
    """Returns one row for each dialect of the data file."""
    return tuple(
        Format(
            id=f"lora_{dialect.id}",
            kind="lora",
            title=f"low-rank adapter, {dialect.title}",
            detect=partial(detect_lora, dialect=dialect),
            read=partial(read_lora_dialect, dialect=dialect),
            stored_kind="lora",
        )
        for dialect in list_dialects().values()
    )


# --- what is it? ---------------------------------------------------------------------------------------------------


def detect_lora(header: Header, *, dialect: Dialect) -> Detection | None:
    """Returns what ``dialect`` makes of a header, or None where no name is of it."""
    found = parse_keys(header, dialect)
    if not found.keys:
        return None
    orphans = _find_orphans(found)
    companions = find_companions(header, found.keys.keys())
    roles = {name: _describe(key) for name, key in found.keys.items() if name not in orphans}
    roles |= companions.describe(header)
    algorithms = Counter(key.algorithm for key in found.keys.values() if key.part != "alpha")
    ranks = Counter(
        header.tensors[name].shape[0]
        for name, key in found.keys.items()
        if key.part == "down" and header.tensors[name].shape
    )
    share = share_of(roles, len(header.tensors))
    return Detection(
        roles=roles,
        confidence=share * (found.verdict.confidence if found.verdict.family else 0.3),
        family=found.verdict.family,
        family_is_certain=found.verdict.certain,
        reasons=(
            f"{len(found.keys)} names are of {dialect.title}",
            *(f"{name} has lost its other half" for name in sorted(orphans)[:3]),
            *found.verdict.reasons,
        ),
        triggers=tuple(dict.fromkeys((*companions.words, *find_triggers(header.metadata)))),
        algorithms=tuple(sorted(algorithms)),
        ranks=dict(sorted(ranks.items())),
    )


def _describe(key: Key) -> str:
    return f"{key.algorithm} {key.part} of {key.module}"


def _find_orphans(found: KeySet) -> set[str]:
    """Returns the tensors of plain LoRA modules whose factors are not both there."""
    orphans: set[str] = set()
    for parts in found.modules.values():
        if {key.algorithm for key in parts.values()} == {STORED_ALGORITHM} and not {
            "down",
            "up",
        } <= parts.keys():
            orphans |= {key.tensor for key in parts.values()}
    return orphans


# --- what does it hold? --------------------------------------------------------------------------------------------


def read_lora_dialect(request: ReadRequest, *, dialect: Dialect) -> Reading:
    """Returns the canonical modules, each with an explicit scale, and the rule that gave it.

    Raises:
        InvalidFileError: if a tensor is of no algorithm that is stored, has no place in the base, or breaks a rule.
    """
    header = request.header
    found = parse_keys(header, dialect, request.family)
    companions = find_companions(header, found.keys.keys())
    refuse_unknown(request, found, companions)
    config = _read_config(request, dialect)
    tensors = read_tensors(request.path)
    modules: dict[str, LoraModule] = {}
    assumed = 0
    for name, parts in sorted(found.modules.items()):
        down, up = tensors[parts["down"].tensor], tensors[parts["up"].tensor]
        rank = down.shape[0] if down.shape else 0
        # Programs that read 0 as "nobody said" wrote these files.
        alpha = _parse_alpha(parts, tensors) or (config.find_alpha(name, rank) if config else None)
        assumed += alpha is None
        modules[name] = LoraModule.of_factors(down=down, up=up, alpha=float(rank if alpha is None else alpha))
    contents = LoraContents(modules=modules)
    check_lora(contents)
    rule: ScaleRule = "alpha/sqrt(rank)" if config and config.rank_stabilised else "alpha/rank"
    return Reading(
        contents=(contents, *companions.read(request)),
        notes=_note_alphas(assumed, len(modules), config),
        scale_rule=rule,
    )


def refuse_unknown(request: ReadRequest, found: KeySet, companions: Companions) -> None:
    """Raises InvalidFileError for the first tensor that would be lost, naming how many there are."""
    lost: dict[str, str] = {}
    for name in request.header.tensors.keys() - companions.tensors:
        key = found.keys.get(name)
        if key is None:
            known = split_suffix(name)
            lost[name] = "is of no module that is known" if known else "has a role that is not known"
        elif key.algorithm != STORED_ALGORITHM:
            lost[name] = f"belongs to {key.algorithm}, which is not stored yet"
        elif key.canonical is None:
            lost[name] = f"is of the layout {key.layout.id}, whose names are not translated yet"
    lost |= dict.fromkeys(_find_orphans(found), "has lost its other half")
    if lost:
        name, why = min(lost.items())
        raise InvalidFileError(
            f"{len(lost)} of {len(request.header.tensors)} tensors of {request.name!r} would be lost: "
            f"{name!r} {why}",
            hint=f"concepts identify {request.name} lists them",
        )


def _parse_alpha(parts: Mapping[str, Key], tensors: Mapping[str, RawTensor]) -> float | None:
    key = parts.get("alpha")
    if key is None:
        return None
    tensor = tensors[key.tensor]
    if tensor.elements != 1:
        raise InvalidFileError(f"alpha has the shape {list(tensor.shape)}, not one number", where=key.tensor)
    alpha = float(tensor.to_numpy().reshape(()))
    if not math.isfinite(alpha):
        raise InvalidFileError(f"alpha is {alpha}", where=key.tensor)
    return alpha


def _note_alphas(assumed: int, total: int, config: _Config | None) -> tuple[str, ...]:
    notes = []
    if assumed:
        notes.append(
            f"{assumed} of {total} modules say no alpha (or 0): alpha = rank, as their programs read it"
        )
    if config:
        notes.append(f"alpha of modules without one comes from {config.source}")
    return tuple(notes)


# --- alpha beside the tensors --------------------------------------------------------------------------------------


class _Config:
    """PEFT's settings: ``lora_alpha`` for all modules, ``alpha_pattern`` for some, rank-stabilised or not."""

    def __init__(self, source: str, fields: Mapping[str, Mapping[str, Any]]) -> None:
        self.source = source
        self._fields = fields
        self.rank_stabilised = any(bool(row.get("use_rslora")) for row in fields.values())

    def find_alpha(self, module: str, rank: int) -> float | None:
        """Returns the alpha for which alpha / rank is the module's effective scale."""
        component, _, path = module.partition(".")
        row = self._fields.get(component) or self._fields.get("")
        if row is None:
            return None
        patterns = row.get("alpha_pattern")
        patterns = patterns if isinstance(patterns, dict) else {}
        matched = (
            value for pattern, value in patterns.items() if path == pattern or path.endswith(f".{pattern}")
        )
        alpha = next(matched, row.get("lora_alpha"))
        if not isinstance(alpha, int | float) or not math.isfinite(alpha):
            return None
        # arXiv 2312.03732: the scale is alpha / sqrt(rank).
        return alpha * math.sqrt(rank) if row.get("use_rslora") else float(alpha)


def _read_config(request: ReadRequest, dialect: Dialect) -> _Config | None:
    if dialect.alpha == "metadata" and _EMBEDDED_CONFIG in request.header.metadata:
        text = request.header.metadata[_EMBEDDED_CONFIG]
        return _Config(
            f"the metadata {_EMBEDDED_CONFIG}", _group_by_component(_load(text.encode(), request.path))
        )
    beside = request.source.with_name(_CONFIG_NAME)
    if dialect.alpha == "config" and beside.is_file() and beside.stat().st_size <= MAX_DOCUMENT_BYTES:
        return _Config(_CONFIG_NAME, {"": _load(beside.read_bytes(), beside)})
    return None


def _load(data: bytes, path: Path) -> dict[str, Any]:
    try:
        value = load_strict_json(data)
    except InvalidManifestError as error:
        raise InvalidFileError(
            f"the adapter settings of {path.name!r} cannot be read: {error.message}"
        ) from error
    if not isinstance(value, dict):
        raise InvalidFileError(
            f"the adapter settings of {path.name!r} are {json.dumps(value)[:80]}, no object"
        )
    return value


def _group_by_component(flat: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """``unet.lora_alpha`` -> ``{"unet": {"lora_alpha": ...}}``."""
    grouped: dict[str, dict[str, Any]] = {}
    for key, value in flat.items():
        component, _, field = key.rpartition(".")
        grouped.setdefault(component, {})[field] = value
    return grouped
