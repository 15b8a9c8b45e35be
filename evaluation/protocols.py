"""What a protocol asks for: prompts, and what must be seen in their pictures."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from types import MappingProxyType
from typing import Final, Literal

PROTOCOL: Final = "toybox-1"
Subject = Literal["instance", "style"]
_TABLES: Final[Mapping[Subject, str]] = MappingProxyType({"instance": "object", "style": "style"})
_STYLE_WORDS: Final = " in the style of {}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """A prompt with ``{}`` where the concept's word goes, and what its picture must show."""

    text: str
    kind: str | None = None
    background: str | None = None
    position: str | None = None

    def with_concept(self, word: str) -> str:
        """Returns the prompt that calls the concept."""
        return self.text.format(word)

    def with_superclass(self, superclass: str | None) -> str:
        """Returns the prompt that the base model alone is asked: the superclass word, or no style at all."""
        if self.text.endswith(_STYLE_WORDS):
            return self.text.removesuffix(_STYLE_WORDS)
        word = superclass or "thing"
        return self.text.format(f"{'an' if word[0] in 'aeio' else 'a'} {word}")


@cache
def load_prompts(subject: Subject) -> tuple[Prompt, ...]:
    """Returns the prompts of protocol ``toybox-1`` for an instance or a style."""
    document = tomllib.loads(files(__package__).joinpath("prompts.toml").read_text(encoding="utf-8"))
    return tuple(
        Prompt(
            text=row["text"],
            kind=row.get("class"),
            background=row.get("background"),
            position=row.get("position"),
        )
        for row in document[_TABLES[subject]]
    )
