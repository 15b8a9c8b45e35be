"""Writes ``captions.txt.gz``, the natural captions that a base's covariance is computed from.

``python -m conceptry.trainer.caption_grammar [OUT]`` writes the same bytes each time; the grammar is the project's
own, in ``caption_grammar.toml``.
"""

from __future__ import annotations

import gzip
import random
import re
import sys
import tomllib
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Final

CAPTIONS: Final = 12_000
SEED: Final = 20_261_121
_SLOT: Final = re.compile(r"\{(\w+)\}")
_VOWEL: Final = re.compile(r"\ba (?=[aeiou])(?!u(?:ni|se))")


def write_captions(count: int = CAPTIONS) -> list[str]:
    """Returns ``count`` distinct captions, all sentence forms about equally often."""
    text = files(__package__).joinpath("caption_grammar.toml").read_text(encoding="utf-8")
    grammar: Mapping[str, Sequence[str]] = tomllib.loads(text)
    chance = random.Random(SEED)
    forms = grammar["sentences"]
    found: dict[str, None] = {}
    turn = 0
    while len(found) < count:
        found.setdefault(_expand(forms[turn % len(forms)], grammar, chance))
        turn += 1
    return list(found)


def _expand(form: str, grammar: Mapping[str, Sequence[str]], chance: random.Random) -> str:
    while _SLOT.search(form):
        form = _SLOT.sub(lambda slot: chance.choice(grammar[slot.group(1)]), form)
    return _VOWEL.sub("an ", form)


def pack_lines(lines: Sequence[str]) -> bytes:
    """Returns ``lines`` as gzip without name or date, so that equal lines are equal bytes."""
    return gzip.compress("\n".join([*lines, ""]).encode(), compresslevel=9, mtime=0)


def main() -> None:
    """Writes the file; the first argument is where to, if not beside this module."""
    here = Path(__file__).parent / "data" / "captions.txt.gz"
    out = Path(sys.argv[1]) if len(sys.argv) > 1 else here
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_bytes(pack_lines(write_captions()))


if __name__ == "__main__":
    main()
