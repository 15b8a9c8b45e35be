"""Numbers in words, for people."""

from __future__ import annotations

from typing import Final

_UNITS: Final = ("bytes", "kB", "MB", "GB", "TB")


def format_bytes(count_bytes: int) -> str:
    """Returns a size for people, in decimal units: ``812 bytes``, ``13.4 kB``."""
    size, unit = float(count_bytes), 0
    while size >= 999.95 and unit < len(_UNITS) - 1:
        size, unit = size / 1000, unit + 1
    return f"{count_bytes} bytes" if unit == 0 else f"{size:.1f} {_UNITS[unit]}"
