"""The canonical form of kind ``lora``: the tensors of each module under one name, its scale explicit.

``{component}.{module}.lora_A.weight`` [rank, in(, h, w)], ``.lora_B.weight`` [out, rank(, 1, 1)] and ``.alpha`` [] for
LoRA (arXiv 2106.09685), whose delta is alpha / rank times B A; the parts of the other algorithms are in ``algorithms``,
their numbers are F32 scalars as alpha is. Module names are those of published diffusers folders, so those of every text
encoder begin with ``text_model.`` Where a scale came from another rule than usual, the metadata says so.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, get_args

from conceptry.documents import load_strict_json
from conceptry.errors import InvalidFileError, InvalidManifestError
from conceptry.formats.checks import add_schema, read_canonical_header, split_component
from conceptry.formats.lora_modules import (
    USUAL_RULES,
    LoraModule,
    check_module,
    read_canonical_module,
    split_canonical,
    write_module,
)
from conceptry.formats.tensors import RawTensor, Written, read_tensors, write_tensors
from conceptry.kinds import ScaleRule

__all__ = ["LORA_NAME", "LoraContents", "LoraModule", "check_lora", "read_lora", "write_lora"]

LORA_NAME: Final = "lora.safetensors"
RULES_KEY: Final = "conceptry.scale_rules"
_ALL: Final = "*"
_RULES: Final[tuple[ScaleRule, ...]] = get_args(ScaleRule)


@dataclass(frozen=True, slots=True, kw_only=True)
class LoraContents:
    """What an adapter holds, by ``{component}.{module path}``."""

    modules: Mapping[str, LoraModule]


def check_lora(contents: LoraContents) -> None:
    """Raises InvalidFileError as ``check_module``, or where there is no module at all."""
    if not contents.modules:
        raise InvalidFileError("there is no module with tensors of an adapter")
    for name, module in contents.modules.items():
        split_component(name, ".")
        check_module(name, module)


def write_lora(path: Path, contents: LoraContents, metadata: Mapping[str, str] | None = None) -> Written:
    """Writes the canonical file and returns its digests, or leaves nothing. Raises InvalidFileError, StoreError."""
    check_lora(contents)
    tensors: dict[str, RawTensor] = {}
    for name, module in contents.modules.items():
        for suffix, tensor in write_module(module).items():
            if name + suffix in tensors:
                raise InvalidFileError("two modules have a tensor of this name", where=name + suffix)
            tensors[name + suffix] = tensor
    return write_tensors(path, tensors, add_schema("lora", {**(metadata or {}), **_describe_rules(contents)}))


def read_lora(path: Path) -> LoraContents:
    """Returns what a canonical file holds, checked. Raises NotFoundError, InvalidFileError."""
    header = read_canonical_header(path, "lora")
    groups: dict[str, dict[str, RawTensor]] = {}
    for name, tensor in read_tensors(path).items():
        parts = split_canonical(name)
        if parts is None:
            raise InvalidFileError("it belongs to no module of an adapter", where=name)
        groups.setdefault(parts[0], {})[parts[1]] = tensor
    rules = _parse_rules(header.metadata.get(RULES_KEY), path.name)
    if stray := sorted(rules.keys() - groups.keys() - {_ALL}):
        raise InvalidFileError(f"{RULES_KEY} names {stray[0][:80]!r}, which has no tensor", where=stray[0])
    modules = {
        name: read_canonical_module(name, groups[name], rules.get(name, rules.get(_ALL)))
        for name in sorted(groups)
    }
    contents = LoraContents(modules=modules)
    check_lora(contents)
    return contents


# --- where scales came from ----------------------------------------------------------------------------------------


def _describe_rules(contents: LoraContents) -> dict[str, str]:
    """Returns the metadata that names the modules whose scale came from another rule than is usual."""
    found: dict[ScaleRule, list[str]] = {}
    for name, module in sorted(contents.modules.items()):
        if module.rule != USUAL_RULES[module.match().form.scale]:
            found.setdefault(module.rule, []).append(name)
    if not found:
        return {}
    rows: dict[str, list[str] | str] = {
        rule: _ALL if len(names) == len(contents.modules) else names for rule, names in found.items()
    }
    return {RULES_KEY: json.dumps(rows, sort_keys=True, separators=(",", ":"))}


def _parse_rules(text: str | None, file_name: str) -> dict[str, ScaleRule]:
    if text is None:
        return {}
    try:
        rows: Any = load_strict_json(text.encode())
    except InvalidManifestError as error:
        raise InvalidFileError(f"{RULES_KEY} of {file_name!r} cannot be read: {error.message}") from error
    rules: dict[str, ScaleRule] = {}
    for rule in _RULES if isinstance(rows, dict) else ():
        names = rows.pop(rule, [])
        listed = [_ALL] if names == _ALL else names
        if not isinstance(listed, list) or not all(isinstance(name, str) for name in listed):
            raise InvalidFileError(f"{RULES_KEY} of {file_name!r} names no modules for {rule!r}")
        rules |= dict.fromkeys(listed, rule)
    if rows or not rules:
        raise InvalidFileError(f"{RULES_KEY} of {file_name!r} holds what is no rule: {str(rows)[:80]}")
    return rules
