"""PEFT's settings beside an adapter's tensors: what they say of each module's scale and arithmetic."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from conceptry.documents import load_strict_json
from conceptry.errors import InvalidFileError, InvalidManifestError
from conceptry.formats.lora_reading import NOTHING_SAID, Said

CONFIG_NAME: Final = "adapter_config.json"
EMBEDDED_CONFIG: Final = "lora_adapter_metadata"
_TEXT_LEVEL: Final = "text_model."
# Settings under which the tensors alone do not give the layer; a file that was trained so is refused by name.
_CHANGES_MEANING: Final = ("coft", "fan_in_fan_out")
_DEFAULT_TERMS: Final = 5


class AdapterConfig:
    """Settings for all modules and, by pattern, for some: ``lora_alpha``, ``r``, rank-stabilised or not, ...

    Args:
        source: what to call it in notes.
        fields: by component; ``""`` for all components.

    Raises:
        InvalidFileError: if a setting gives the tensors a meaning that is not stored.
    """

    def __init__(self, source: str, fields: Mapping[str, Mapping[str, Any]]) -> None:
        self.source = source
        self._fields = fields
        for row in fields.values():
            for key in _CHANGES_MEANING:
                if row.get(key):
                    raise InvalidFileError(
                        f"{source} sets {key}, with which it cannot be stored exactly", where=key
                    )

    def find(self, module: str) -> Said:
        """Returns what is said of ``{component}.{module path}``."""
        component, _, path = module.partition(".")
        row = self._fields.get(component) or self._fields.get("")
        if row is None:
            return NOTHING_SAID
        alpha = _find_by_pattern(row.get("alpha_pattern"), path, row.get("lora_alpha", row.get("alpha")))
        rank = _find_by_pattern(row.get("rank_pattern"), path, row.get("r"))
        feedforward = row.get("feedforward_modules")
        return Said(
            alpha=float(alpha) if isinstance(alpha, int | float) and math.isfinite(alpha) else None,
            rank=rank if isinstance(rank, int) and rank > 0 else None,
            rank_stabilised=bool(row.get("use_rslora")),
            on_input=_is_named(path, feedforward),
            neumann_terms=_find_terms(row),
        )


def _find_by_pattern(patterns: Any, path: str, default: Any) -> Any:
    """Returns the value of the first pattern that matches the end of ``path``, as PEFT looks it up."""
    if not isinstance(patterns, dict):
        return default
    for pattern, value in patterns.items():
        if _matches(pattern, path):
            return value
    return default


def _matches(pattern: str, path: str) -> bool:
    if path == pattern or path.endswith(f".{pattern}"):
        return True
    # Paths are written with the outer level of a text encoder here, and patterns with or without it.
    return path.removeprefix(_TEXT_LEVEL) == pattern.removeprefix("^").removeprefix(_TEXT_LEVEL)


def _is_named(path: str, modules: Any) -> bool | None:
    """Returns whether a list of module names has ``path``; None where that is a pattern that only PEFT may run."""
    if not isinstance(modules, list):
        return None
    return any(_matches(str(one), path) for one in modules)


def _find_terms(row: Mapping[str, Any]) -> int | None:
    if "use_cayley_neumann" not in row:
        return None
    terms = row.get("num_cayley_neumann_terms", _DEFAULT_TERMS)
    return (terms if isinstance(terms, int) else None) if row["use_cayley_neumann"] else 0


# --- reading -------------------------------------------------------------------------------------------------------


def parse_config(data: bytes, file_name: str) -> dict[str, Any]:
    """Returns the object that ``data`` writes. Raises InvalidFileError."""
    try:
        value = load_strict_json(data)
    except InvalidManifestError as error:
        raise InvalidFileError(
            f"the adapter settings of {file_name!r} cannot be read: {error.message}"
        ) from error
    if not isinstance(value, dict):
        raise InvalidFileError(
            f"the adapter settings of {file_name!r} are {json.dumps(value)[:80]}, no object"
        )
    return value


def read_embedded_config(text: str, path: Path) -> AdapterConfig:
    """Returns the settings that diffusers writes into metadata. Raises InvalidFileError."""
    grouped: dict[str, dict[str, Any]] = {}
    for key, value in parse_config(text.encode(), path.name).items():
        component, _, field = key.rpartition(".")
        grouped.setdefault(component, {})[field] = value
    return AdapterConfig(f"the metadata {EMBEDDED_CONFIG}", grouped)


def read_config_file(path: Path) -> AdapterConfig:
    """Returns the settings of an ``adapter_config.json``. Raises InvalidFileError."""
    return AdapterConfig(CONFIG_NAME, {"": parse_config(path.read_bytes(), path.name)})
