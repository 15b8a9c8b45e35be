"""The tables that lie beside the code as TOML: suffixes, dialects, layouts, block names, families."""

from __future__ import annotations

import functools
import tomllib
from pathlib import Path
from typing import Any, Final

_FOLDER: Final = Path(__file__).with_name("data")


@functools.cache
def load_table(name: str) -> dict[str, Any]:
    """Returns the table ``data/{name}.toml``, parsed once."""
    return tomllib.loads((_FOLDER / f"{name}.toml").read_text(encoding="utf-8"))
