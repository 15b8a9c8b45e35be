"""The protocols, one frozen row each: what a protocol asks for, on which bases it means something, and its prompts."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from types import MappingProxyType
from typing import Any, Final, Literal

from conceptry.bases import FamilyId
from conceptry.errors import UsageError, suggest_nearest

PROTOCOL: Final = "toybox-1"
Subject = Literal["instance", "style"]
SUBJECTS: Final[tuple[Subject, ...]] = ("instance", "style")
_TABLES: Final[Mapping[Subject, str]] = MappingProxyType({"instance": "object", "style": "style"})
_STYLE_WORDS: Final = " in the style of {}"


@dataclass(frozen=True, slots=True, kw_only=True)
class ProtocolRow:
    """One named way to measure."""

    id: str
    title: str
    prompts: str
    """What the names of its tables in ``prompts.toml`` begin with."""

    pictures_per_prompt: int
    family: FamilyId | None = None
    """The only base whose pictures it can read; None reads any."""

    needs: tuple[str, ...] = ()
    """Models that have to be given by path."""


PROTOCOLS: Final[tuple[ProtocolRow, ...]] = (
    ProtocolRow(
        id=PROTOCOL,
        title="the bundled scorer reads pictures of the toy world",
        prompts="",
        pictures_per_prompt=2,
        family=FamilyId("toybox"),
    ),
    ProtocolRow(
        id="clip-dino",
        title="DINO, CLIP-I and CLIP-T as DreamBooth defines them (arXiv 2208.12242, section 4.1)",
        prompts="any_",
        pictures_per_prompt=4,
        needs=("clip", "dino"),
    ),
)
PROTOCOL_BY_ID: Final[Mapping[str, ProtocolRow]] = MappingProxyType({row.id: row for row in PROTOCOLS})


def find_protocol(id: str) -> ProtocolRow:
    """Returns the protocol called ``id``. Raises UsageError with the nearest."""
    row = PROTOCOL_BY_ID.get(id)
    if row is None:
        known = f"protocols: {', '.join(PROTOCOL_BY_ID)}"
        raise UsageError(
            f"no protocol is called {id[:80]!r}", hint=suggest_nearest(id, PROTOCOL_BY_ID) or known
        )
    return row


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """A prompt with ``{}`` where the concept's word goes, and what its picture must show."""

    text: str
    kind: str | None = None
    background: str | None = None
    position: str | None = None
    style: str | None = None
    """The named style that the picture must be in."""

    objects: int | None = None
    """How many objects it must show."""

    category: str | None = None
    """What the prompt tries, such as ``recontextualise``."""

    def with_concept(self, word: str) -> str:
        """Returns the prompt that calls the concept."""
        return self.text.replace("{}", word)

    def with_superclass(self, superclass: str | None) -> str:
        """Returns the prompt that the base model alone is asked: the superclass word, or no style at all."""
        if _STYLE_WORDS in self.text:
            return self.text.replace(_STYLE_WORDS, "")
        word = superclass or "thing"
        return self.text.replace("{}", f"{'an' if word[0] in 'aeio' else 'a'} {word}")


@cache
def load_prompts(subject: Subject, protocol: str = PROTOCOL) -> tuple[Prompt, ...]:
    """Returns the prompts of a protocol for an instance or a style. Raises UsageError."""
    return _read_table(find_protocol(protocol).prompts + _TABLES[subject])


@cache
def load_plain_prompt(subject: Subject, protocol: str = PROTOCOL) -> Prompt:
    """Returns the prompt of a protocol that asks for no background. Raises UsageError."""
    return _read_table(f"{find_protocol(protocol).prompts}{_TABLES[subject]}_plain")[0]


def _read_table(name: str) -> tuple[Prompt, ...]:
    document = tomllib.loads(files(__package__).joinpath("prompts.toml").read_text(encoding="utf-8"))
    return tuple(parse_prompt(row) for row in document[name])


def parse_prompt(row: Mapping[str, Any]) -> Prompt:
    """Returns the prompt that a row of a data file describes."""
    return Prompt(
        text=row["text"],
        kind=row.get("class"),
        background=row.get("background"),
        position=row.get("position"),
        style=row.get("style"),
        objects=row.get("objects"),
        category=row.get("category"),
    )
