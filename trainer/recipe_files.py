"""Configurations of other programs as they lie on disk: TOML, JSON or YAML, as leaves by path."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any, Final

from conceptry.errors import MissingExtraError, UsageError

MAX_RECIPE_BYTES: Final = 8 << 20


def parse_file(path: Path) -> Any:
    """Returns what a TOML, JSON or YAML file says. Raises UsageError, and MissingExtraError for YAML without PyYAML."""
    try:
        if path.stat().st_size > MAX_RECIPE_BYTES:
            raise UsageError(f"{str(path)!r} has more than {MAX_RECIPE_BYTES} bytes")
        text = path.read_text(encoding="utf-8-sig")
        return _PARSERS.get(path.suffix.lower(), _parse_unknown)(text)
    except (OSError, ValueError, RecursionError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UsageError(
            f"cannot read {str(path)!r}: {reason}", hint="--from takes a TOML, JSON or YAML file"
        ) from error


def _parse_yaml(text: str) -> Any:
    try:
        import yaml
    except ImportError as error:
        raise MissingExtraError("YAML needs the package PyYAML", hint="pip install pyyaml") from error
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(" ".join(str(error).split())) from error


def _parse_unknown(text: str) -> Any:
    raise ValueError("its suffix is none of .toml, .json, .yaml")


_PARSERS: Final[Mapping[str, Callable[[str], Any]]] = {
    ".toml": tomllib.loads,
    ".json": json.loads,
    ".yaml": _parse_yaml,
    ".yml": _parse_yaml,
}


def flatten(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Returns the leaves of tables and lists by their path: ``train.lr``, ``datasets.0.resolution.0``."""
    pairs: Any = (
        value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else None
    )
    if pairs is None:
        yield prefix, value
        return
    for key, one in pairs:
        yield from flatten(one, f"{prefix}.{key}" if prefix else str(key))


def read_text(value: str) -> Any:
    """Returns what a text in metadata stands for: a number, a truth value, a table, or the text itself."""
    if value in {"None", ""}:
        return None
    if value in {"True", "False"}:
        return value == "True"
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        return value


@cache
def load_table(name: str) -> dict[str, Any]:
    """Returns the table of a program: ``imports/NAME.toml``."""
    text = files(__package__).joinpath("imports", f"{name}.toml").read_text(encoding="utf-8")
    return tomllib.loads(text)
