"""Adapters of the LoRA family in the names of each program: what they are, and their canonical form.

Which module and which part a tensor is follows from the dialect; what the parts of a module mean together, and how its
scale follows from what a file holds or lacks, is settled in ``lora_reading``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from functools import lru_cache, partial
from typing import Final

from conceptry.documents import MAX_DOCUMENT_BYTES
from conceptry.errors import InvalidFileError
from conceptry.formats.adapter_configs import (
    CONFIG_NAME,
    EMBEDDED_CONFIG,
    AdapterConfig,
    read_config_file,
    read_embedded_config,
)
from conceptry.formats.companions import Companions, can_be_companion, find_companions
from conceptry.formats.contract import Detection, Format, Reading, ReadRequest, share_of
from conceptry.formats.data_files import load_table
from conceptry.formats.header import Header
from conceptry.formats.lora import LoraContents, LoraModule, check_lora
from conceptry.formats.lora_keys import (
    Dialect,
    KeySet,
    find_foreign,
    find_modules,
    list_dialects,
    parse_keys,
)
from conceptry.formats.lora_reading import NOTHING_SAID, match_parts, read_module
from conceptry.formats.module_shapes import Shapes
from conceptry.formats.suffixes import split_suffix
from conceptry.formats.tensors import read_tensors
from conceptry.formats.triggers import find_triggers

_UNKNOWN_FAMILY: Final = 0.3
_MAX_FAULTS: Final = 3


def list_lora_formats() -> tuple[Format, ...]:
    """Returns one row for each dialect of the data file."""
    return tuple(
        Format(
            id=f"lora_{dialect.id}",
            kind="lora",
            title=f"low-rank adapter, {dialect.title}",
            detect=partial(detect_lora, dialect=dialect),
            can_explain_all=partial(_can_explain_all, dialect=dialect),
            read=partial(read_lora_dialect, dialect=dialect),
            stored_kind="lora",
        )
        for dialect in list_dialects().values()
    )


# --- what is it? ---------------------------------------------------------------------------------------------------


def _can_explain_all(header: Header, *, dialect: Dialect) -> bool:
    return all(map(can_be_companion, find_foreign(header, dialect)))


def detect_lora(header: Header, *, dialect: Dialect) -> Detection | None:
    """Returns what ``dialect`` makes of a header, or None where no name is of it."""
    found = find_modules(header, dialect)
    if not found.modules:
        return None
    matched = {name: _match_shapes(module.shapes) for name, module in found.modules.items()}
    claims = found.tensor_count
    companions = find_companions(header, found.tensors) if claims < len(header.tensors) else Companions()
    roles = {
        tensor: f"{algorithm} {part} of {name}"
        for name, (algorithm, _, fault) in matched.items()
        if not fault
        for part, (tensor, _) in found.modules[name].parts.items()
    } | dict(companions.describe(header))
    algorithms = {algorithm for algorithm, _, _ in matched.values() if algorithm}
    algorithms |= {
        algorithm
        for name, (matching, _, _) in matched.items()
        if not matching
        for part, (_, algorithm) in found.modules[name].parts.items()
        if part != "alpha"
    }
    ranks = Counter(rank for _, rank, fault in matched.values() if rank and not fault)
    faults = [f"{name}: {fault}" for name, (_, _, fault) in sorted(matched.items()) if fault]
    share = share_of(roles, len(header.tensors))
    return Detection(
        roles=roles,
        claims=claims,
        confidence=share * (found.verdict.confidence if found.verdict.family else _UNKNOWN_FAMILY),
        family=found.verdict.family,
        family_is_certain=found.verdict.certain,
        reasons=(
            f"{claims} names are of {dialect.title}",
            *faults[:_MAX_FAULTS],
            *_list_notes(header, dialect),
            *found.verdict.reasons,
        ),
        triggers=tuple(dict.fromkeys((*companions.words, *find_triggers(header.metadata)))),
        algorithms=tuple(sorted(algorithms)),
        ranks=dict(sorted(ranks.items())),
    )


@lru_cache(maxsize=4096)
def _match_shapes(shapes: Shapes) -> tuple[str | None, int, str]:
    try:
        match, _ = match_parts(dict(sorted(shapes)))
    except InvalidFileError as error:
        return None, 0, f"{error.message} ({error.where})" if error.where else error.message
    return match.algorithm.id, match.rank, ""


# --- what does it hold? --------------------------------------------------------------------------------------------


def read_lora_dialect(request: ReadRequest, *, dialect: Dialect) -> Reading:
    """Returns the canonical modules, each with an explicit scale and the rule that gave it, and words beside them.

    Raises:
        InvalidFileError: if a tensor is of no algorithm that is known, has no place in the base, or breaks a rule.
    """
    found = parse_keys(request.header, dialect, request.family)
    companions = find_companions(request.header, found.keys.keys())
    refuse_unknown(request, found, companions)
    config = _read_config(request, dialect)
    tensors = read_tensors(request.path, found.keys)
    modules: dict[str, LoraModule] = {}
    for name, parts in sorted(found.modules.items()):
        mine = {part: tensors[key.tensor] for part, key in parts.items()}
        names = {part: key.tensor for part, key in parts.items()}
        modules[name] = read_module(name, mine, config.find(name) if config else NOTHING_SAID, names=names)
    contents = LoraContents(modules=modules)
    check_lora(contents)
    notes = (*_list_notes(request.header, dialect), *_note_scales(modules, config))
    return Reading(contents=(contents, *companions.read(request)), notes=notes)


def refuse_unknown(request: ReadRequest, found: KeySet, companions: Companions) -> None:
    """Raises InvalidFileError for the first tensor that would be lost, naming how many there are."""
    lost: dict[str, str] = {}
    for name in request.header.tensors.keys() - companions.tensors:
        key = found.keys.get(name)
        if key is None:
            known = split_suffix(name)
            lost[name] = "is of no module that is known" if known else "has a role that is not known"
        elif key.canonical is None:
            lost[name] = f"is of the layout {key.layout.id}, and nothing tells which base's blocks are meant"
    if lost:
        name, why = min(lost.items())
        raise InvalidFileError(
            f"{len(lost)} of {len(request.header.tensors)} tensors of {request.name!r} would be lost: "
            f"{name!r} {why}",
            hint=f"concepts identify {request.name} lists them",
        )


def _list_notes(header: Header, dialect: Dialect) -> tuple[str, ...]:
    rows = load_table("dialects")[dialect.id].get("notes", ())
    return tuple(note for tensor, note in rows if tensor in header.tensors)


def _note_scales(modules: Mapping[str, LoraModule], config: AdapterConfig | None) -> tuple[str, ...]:
    notes = []
    assumed = sum(module.rule == "one" for module in modules.values())
    if assumed:
        notes.append(
            f"{assumed} of {len(modules)} modules say no alpha (or 0): alpha = rank, as their programs read it"
        )
    if config:
        notes.append(f"alpha of modules without one comes from {config.source}")
    return tuple(notes)


def _read_config(request: ReadRequest, dialect: Dialect) -> AdapterConfig | None:
    text = request.header.metadata.get(EMBEDDED_CONFIG)
    if dialect.alpha == "metadata" and text is not None:
        return read_embedded_config(text, request.source)
    beside = request.source.with_name(CONFIG_NAME)
    if dialect.alpha == "config" and beside.is_file() and beside.stat().st_size <= MAX_DOCUMENT_BYTES:
        return read_config_file(beside)
    return None
