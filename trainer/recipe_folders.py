"""Folders of pictures as sd-scripts wants them: ``10_sks dog`` says how often, by which word and of what class."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from conceptry.trainer.images import SUFFIXES

_FOLDER: Final = re.compile(r"(?:(\d{1,5})_)?(.+)")


@dataclass(frozen=True, slots=True)
class NamedFolder:
    """A folder of pictures, what its name says, and the named folders beside it."""

    path: Path
    repeats: float
    words: str
    others: tuple[str, ...] = ()


def find_pictures(folder: Path) -> NamedFolder:
    """Returns the folder that holds the pictures: ``folder``, or ``10_sks dog`` inside, as sd-scripts wants it."""
    named = []
    if folder.is_dir():
        named = sorted(path for path in folder.iterdir() if path.is_dir() and re.match(r"\d+_", path.name))
    if not named:
        repeats, words = _split_name(folder.name)
        return NamedFolder(folder, repeats, words)
    repeats, words = _split_name(named[0].name)
    return NamedFolder(named[0], repeats, words, tuple(path.name for path in named[1:]))


def _split_name(name: str) -> tuple[float, str]:
    match = _FOLDER.fullmatch(name)
    if match is None or match.group(1) is None:
        return 1.0, ""
    return float(match.group(1)), match.group(2)


def count_steps(folder: Path, found: Mapping[str, Any], batch_size: int) -> int:
    """Returns how many batches the epochs of a recipe have on the pictures of ``folder``."""
    count = sum(1 for path in folder.iterdir() if path.suffix.lower() in SUFFIXES) if folder.is_dir() else 0
    samples = count * float(found.get("repeats") or 1) * int(found["epochs"])
    return max(1, math.ceil(samples / batch_size))
