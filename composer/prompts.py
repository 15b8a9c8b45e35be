"""Prompts as people write them for A1111 and ComfyUI: tags that name concepts, and brackets that weigh words.

``<lora:name:0.8>``, ``<hypernet:name:0.5>`` and ``embedding:name`` name concepts; ``(word)``, ``(word:1.2)`` and
``[word]`` weigh words, and a backslash takes the meaning of a bracket away. What changes with the step, or joins
prompts, is refused with a hint.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final, Literal

from conceptry.errors import UsageError

UP: Final = 1.1
MAX_WEIGHT: Final = 10.0
_MAX_DEPTH: Final = 32
_TAG: Final = re.compile(r"<(lora|lyco|hypernet):([^<>]{0,300})>", re.ASCII | re.IGNORECASE)
_EMBEDDING: Final = re.compile(r"\bembedding:([^\s,():\[\]<>\"]{1,200})", re.IGNORECASE)
_JOINING: Final = re.compile(r"(?<!\S)(AND|BREAK)(?!\S)")
_WEIGHT: Final = re.compile(r"(.*):\s*([+-]?(?:\d+\.?\d*|\.\d+))\s*", re.DOTALL | re.ASCII)
_TOKEN: Final = re.compile(r"\\[\\()\[\]]|[()\[\]]|[^\\()\[\]]+|\\")


TagKind = Literal["lora", "hypernetwork", "embedding"]
_KINDS: Final[dict[str, TagKind]] = {"lora": "lora", "lyco": "lora", "hypernet": "hypernetwork"}
_SPELLED: Final = {"lora": "lora", "hypernetwork": "hypernet"}


@dataclass(frozen=True, slots=True)
class Tag:
    """A concept that a prompt names, and how strongly it is asked for."""

    kind: TagKind
    name: str
    strength: float = 1.0

    def __str__(self) -> str:
        """Returns it as it is written in a prompt."""
        if self.kind == "embedding":
            return f"embedding:{self.name}"
        return f"<{_SPELLED[self.kind]}:{self.name}:{self.strength:g}>"


@dataclass(frozen=True, slots=True)
class Piece:
    """Words of one weight."""

    text: str
    weight: float = 1.0


def find_tags(text: str) -> tuple[Tag, ...]:
    """Returns the concepts that a prompt names, in order.

    Raises:
        UsageError: for a tag that cannot be followed here, with what to write instead.
    """
    found = [_parse_tag(match) for match in _TAG.finditer(text)]
    return (*found, *(Tag("embedding", match[1]) for match in _EMBEDDING.finditer(text)))


def replace_tags(text: str, call: Callable[[str], str]) -> str:
    """Returns the prompt without tags in angles, and with the words that ``call`` gives in place of embeddings."""
    if not find_tags(text):
        return text
    bare = re.sub(r"\s+", " ", _TAG.sub(" ", text)).strip()
    return _EMBEDDING.sub(lambda match: escape(call(match[1])), bare)


def escape(text: str) -> str:
    """Returns ``text`` with every bracket a plain character."""
    return re.sub(r"([\\()\[\]])", r"\\\1", text)


def parse_weights(text: str) -> tuple[Piece, ...]:
    r"""Returns the words of a prompt with their weights; neighbours of one weight are one piece.

    ``(a)`` weighs a by 1.1, ``[a]`` by 1 / 1.1, ``(a:1.3)`` by 1.3, brackets inside brackets multiply, ``\(`` is a
    bracket. One that is never closed counts to the end, as in A1111.

    Raises:
        UsageError: for what depends on the step or joins prompts, and for weights that are no finite small number.
    """
    joining = _JOINING.search(text)
    if joining:
        raise UsageError(
            f"{joining[1]} joins prompts, which is not done here",
            hint="write one prompt of up to 75 tokens, with commas; lower case is a plain word",
        )
    pieces: list[Piece] = []
    for piece in _read(text):
        if pieces and pieces[-1].weight == piece.weight:
            pieces[-1] = Piece(pieces[-1].text + piece.text, piece.weight)
        elif piece.text:
            pieces.append(piece)
    return tuple(pieces)


# --- tags ----------------------------------------------------------------------------------------------------------


def _parse_tag(match: re.Match[str]) -> Tag:
    name, *rest = (part.strip() for part in match[2].split(":"))
    kind = _KINDS[match[1].lower()]
    try:
        numbers = [float(part) for part in rest]
        if not name or len(set(numbers)) > 1 or not all(abs(number) <= MAX_WEIGHT for number in numbers):
            raise ValueError(match[0])
    except ValueError as error:
        raise UsageError(
            f"{match[0][:80]} asks for more than a name and one strength",
            hint=f"write {Tag(kind, name or 'name', 0.8)}, with a strength between -{MAX_WEIGHT:g} and {MAX_WEIGHT:g}",
        ) from error
    return Tag(kind, name, numbers[0] if numbers else 1.0)


# --- weights -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Open:
    """What stands in a bracket so far."""

    bracket: Literal["", "(", "["]
    pieces: list[Piece]


def _read(text: str) -> Iterator[Piece]:
    stack = [_Open("", [])]
    for match in _TOKEN.finditer(text):
        part = match[0]
        if part in ("(", "["):
            if len(stack) > _MAX_DEPTH:
                raise UsageError(f"brackets are nested deeper than {_MAX_DEPTH}")
            stack.append(_Open("(" if part == "(" else "[", []))
        elif part in (")", "]") and stack[-1].bracket == ("(" if part == ")" else "["):
            closed = _close(stack.pop(), is_closed=True)
            stack[-1].pieces.extend(closed)
        else:
            is_escape = len(part) == 2 and part[0] == "\\" and part[1] in "\\()[]"
            stack[-1].pieces.append(Piece(part[1] if is_escape else part))
    while len(stack) > 1:
        open_one = stack.pop()
        stack[-1].pieces.extend(_close(open_one))
    yield from stack[0].pieces


def _close(found: _Open, *, is_closed: bool = False) -> list[Piece]:
    if not found.bracket:
        return found.pieces
    pieces, weight = found.pieces, UP if found.bracket == "(" else 1 / UP
    last = pieces[-1].text if pieces and is_closed else ""
    if found.bracket == "[":
        _refuse_schedule(pieces)
    match = _WEIGHT.fullmatch(last) if found.bracket == "(" else None
    if match:
        weight = float(match[2])
        if not abs(weight) <= MAX_WEIGHT:
            raise UsageError(
                f"a word is weighted by {match[2][:40]}",
                hint=f"weights are up to {MAX_WEIGHT:g}, as (word:1.2)",
            )
        pieces = [*pieces[:-1], Piece(match[1], pieces[-1].weight)]
    return [Piece(piece.text, piece.weight * weight) for piece in pieces]


def _refuse_schedule(pieces: list[Piece]) -> None:
    inside = "".join(piece.text for piece in pieces)
    if "|" in inside or re.search(r":\s*\d*\.?\d*\s*$", inside):
        raise UsageError(
            f"[{inside[:60]}] changes the prompt with the step, which is not done here",
            hint=r"write the words that are to be drawn; \[ and \] are plain brackets",
        )
