"""Text for people: what came from elsewhere made harmless, numbers in words."""

from __future__ import annotations

import unicodedata
from typing import Final

from conceptry.units import format_bytes

__all__ = ["count_things", "format_bytes", "format_seconds", "make_visible", "split_visible"]

# Control and format characters (escape sequences, text direction, zero width), line separators, surrogates, unassigned.
_HIDDEN: Final = frozenset({"Cc", "Cf", "Zl", "Zp", "Cs", "Cn", "Co"})


def make_visible(text: str) -> str:
    r"""Returns ``text`` with every character that a terminal would obey or hide written as ``\x1b`` or ``\u202e``."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(_escape(char) if unicodedata.category(char) in _HIDDEN else char for char in text)


def _escape(char: str) -> str:
    code = ord(char)
    if code <= 0xFF:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code <= 0xFFFF else f"\\U{code:08x}"


def split_visible(text: str) -> list[str]:
    """Returns the lines of ``text``, each made visible; a line break is the only character that keeps its meaning."""
    return [make_visible(line) for line in text.replace("\r\n", "\n").split("\n")]


def format_seconds(seconds: float) -> str:
    """Returns a duration for people: ``3.2 s``, ``4 min 05 s``."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s"


def count_things(count: int, singular: str, plural: str | None = None) -> str:
    """Returns ``1 picture`` or ``3 pictures``."""
    return f"{count} {singular if count == 1 else plural or singular + 's'}"
