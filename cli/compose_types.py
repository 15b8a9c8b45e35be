"""Types of the options that say how one concept of a composition is used: ``NS/NAME:`` and what it has."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from conceptry.cli.options import TextType
from conceptry.errors import UsageError
from conceptry.names import ConceptName

if TYPE_CHECKING:
    from conceptry.composition import Region, Schedule

_MASK_SUFFIX: Final = ".png"
_NUMBER: Final = r"\d+(?:\.\d+)?|\.\d+"
_SCHEDULE: Final = re.compile(rf"({_NUMBER})?\.\.({_NUMBER})?(?:~({_NUMBER}))?", re.ASCII)
_BOX: Final = re.compile(
    rf"({_NUMBER}),({_NUMBER}),({_NUMBER}),({_NUMBER})(?:~({_NUMBER}))?",
    re.ASCII,
)
_BOUNDS: Final = {"less_than_equal": ("le", "at most"), "greater_than_equal": ("ge", "at least")}
"""What pydantic calls a bound that a number is beyond, under which name it gives it, and what we say."""


class _OfConcept(TextType):
    """``ns/name:...``: something that one concept of the composition has."""

    example: str

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, Any]:
        """Returns the concept's name and what it has. Raises InvalidNameError, UsageError."""
        if isinstance(value, tuple):
            return value
        name, colon, text = value.partition(":")
        if not colon or not text:
            raise UsageError(f"not a {self.name}: {value[:80]!r}", hint=f"write {self.example}")
        return str(ConceptName.parse(name)), self.read(text)

    def read(self, text: str) -> Any:
        """Returns what stands behind the name. Raises UsageError."""
        return text

    def refuse(self, text: str, error: ValueError | None = None) -> UsageError:
        """Returns the error for ``text``."""
        why = "" if error is None else f": {explain_refusal(error)}"
        return UsageError(f"not a {self.name}: {text[:80]!r}{why}", hint=f"write {self.example}")


class ScheduleType(_OfConcept):
    """``me/look:0.2..0.8~0.1``: from 0.2 to 0.8 of the steps, rising and falling over 0.1 of them."""

    name = "schedule"
    example = "--schedule 'me/look:0.2..0.8~0.1', in shares of the steps; either end may be left out"

    def read(self, text: str) -> Schedule:
        """Returns the schedule. Raises UsageError."""
        from conceptry.composition import Schedule

        match = _SCHEDULE.fullmatch(text)
        if match is None:
            raise self.refuse(text)
        given = zip(("start", "stop", "ramp"), match.groups(), strict=True)
        try:
            return Schedule(**{name: float(number) for name, number in given if number is not None})
        except ValueError as error:
            raise self.refuse(text, error) from error


class RegionType(_OfConcept):
    """``me/imp:0,0,0.5,1~0.1``, a box with a soft edge, or ``me/imp:mask.png``."""

    name = "region"
    example = "--region 'me/imp:0,0,0.5,1~0.1' (left, top, right, bottom, soft edge) or 'me/imp:mask.png'"

    def read(self, text: str) -> Region | Path:
        """Returns the box, or where the mask lies. Raises UsageError."""
        from conceptry.composition import Region

        if text.lower().endswith(_MASK_SUFFIX):
            return Path(text)
        match = _BOX.fullmatch(text)
        if match is None:
            raise self.refuse(text)
        numbers = [float(number or 0) for number in match.groups()]
        try:
            return Region(box=(numbers[0], numbers[1], numbers[2], numbers[3]), feather=numbers[4])
        except ValueError as error:
            raise self.refuse(text, error) from error


class RegionPromptType(_OfConcept):
    """``me/imp:a photo of <imp>``."""

    name = "region prompt"
    example = "--region-prompt 'me/imp:a photo of <imp>'"


class PartType(_OfConcept):
    """``me/imp:unet.up_blocks.1=0.5``: what the strength is multiplied by there."""

    name = "part"
    example = "--part 'me/imp:unet.up_blocks.1=0.5' or --part 'me/imp:text_encoder=0'"

    def read(self, text: str) -> tuple[str, float]:
        """Returns the part and its share. Raises UsageError."""
        part, _, share = text.partition("=")
        try:
            return part.strip(), float(share)
        except ValueError as error:
            raise self.refuse(text) from error


def explain_refusal(error: ValueError) -> str:
    """Returns the first thing that a model refused: a number out of its bounds with its place, else its own words."""
    from pydantic import ValidationError

    if not isinstance(error, ValidationError):
        return str(error)
    first = error.errors(include_url=False)[0]
    if first["type"] in _BOUNDS:
        bound, words = _BOUNDS[first["type"]]
        parts = [f"[{part}]" if isinstance(part, int) else f".{part}" for part in first["loc"]]
        place = "".join(parts).lstrip(".")
        return f"{place} is {first['input']:g}, it may be {words} {first['ctx'][bound]:g}"
    return str(first["msg"]).removeprefix("Value error, ")
