"""``composition.toml``: which concepts, how strongly, under which words; a document that can be shared and locked."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Annotated, Final, Literal

from pydantic import Field, ValidationError

from conceptry.errors import InvalidNameError, UsageError
from conceptry.manifest import AS_TEXT, TEXT_SCHEMA, Model, Number, PlaceholderText, Text, parsed_by
from conceptry.names import Reference

MAX_STRENGTH: Final = 10.0
ReferenceText = Annotated[Reference, parsed_by(Reference.parse), AS_TEXT, TEXT_SCHEMA]


class Member(Model):
    """One concept of a composition."""

    reference: ReferenceText
    strength: Annotated[Number, Field(ge=-MAX_STRENGTH, le=MAX_STRENGTH)] = 1.0
    rename: dict[PlaceholderText, PlaceholderText] = Field(default_factory=dict)


class CompositionDocument(Model):
    """Several concepts with strengths, for one base."""

    schema_version: Literal[1] = Field(default=1, alias="schema")
    base: Text | None = None
    concepts: Annotated[tuple[Member, ...], Field(min_length=1)]


def parse_member(text: str) -> Member:
    """Returns the member that ``REF`` or ``REF*STRENGTH`` writes. Raises InvalidNameError."""
    reference, star, strength = text.partition("*")
    try:
        value = float(strength) if star else 1.0
        return Member(reference=Reference.parse(reference), strength=value)
    except (ValueError, ValidationError) as error:
        if isinstance(error, InvalidNameError):
            raise
        raise InvalidNameError(
            f"not a strength: {strength[:40]!r}",
            hint=f"write {reference}*0.7, between -{MAX_STRENGTH:g} and {MAX_STRENGTH:g}",
        ) from error


def read_composition(path: Path) -> CompositionDocument:
    """Returns the document in a TOML file. Raises UsageError with the place of the first fault."""
    try:
        return CompositionDocument.model_validate(tomllib.loads(path.read_text(encoding="utf-8")))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UsageError(f"cannot read {str(path)!r}: {error}") from error
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(place) for place in first["loc"])
        raise UsageError(f"{first['msg']} in {str(path)!r}", where=where) from error


def format_composition(document: CompositionDocument) -> str:
    """Returns the document as TOML text."""
    import tomlkit

    table = document.model_dump(mode="json", by_alias=True, exclude_none=True)
    for member in table["concepts"]:
        if not member["rename"]:
            del member["rename"]
    return tomlkit.dumps(table)
