"""``composition.toml``: which concepts, how strongly, under which words; a document that can be shared and locked."""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Final, Literal

from pydantic import Field, ValidationError, model_validator

from conceptry.digests import Digest, canonical_json
from conceptry.errors import IntegrityError, InvalidNameError, UsageError
from conceptry.fields import Count, DigestText
from conceptry.manifest import AS_TEXT, TEXT_SCHEMA, Model, Number, PlaceholderText, Text, parsed_by
from conceptry.names import Reference

PLAN_NAME: Final = "composition.toml"
MAX_STRENGTH: Final = 10.0
Way = Literal["sum", "switch", "composite", "focus"]
"""All at once; by turns; as the mean of what each alone predicts (both arXiv 2402.16843); or each alone where it
changes most."""

ReferenceText = Annotated[Reference, parsed_by(Reference.parse), AS_TEXT, TEXT_SCHEMA]


Share = Annotated[Number, Field(ge=0, le=1)]


class Schedule(Model):
    """When a concept is in effect, as shares of the steps: from ``start`` on and until ``stop``.

    ``ramp`` is how long it takes to rise behind ``start`` and to fall before ``stop``; at the ends of the drawing
    there is neither.
    """

    start: Share = 0.0
    stop: Share = 1.0
    ramp: Share = 0.0

    @model_validator(mode="after")
    def _check_order(self) -> Schedule:
        if self.start >= self.stop:
            raise ValueError(f"start {self.start:g} is not before stop {self.stop:g}")
        return self

    def factor(self, progress: float) -> float:
        """Returns what the strength is multiplied by when ``progress`` of the steps are done, 0 to 1."""
        if not self.start <= progress < self.stop:
            return 0.0
        rising = (progress - self.start) / self.ramp if self.ramp and self.start > 0 else 1.0
        falling = (self.stop - progress) / self.ramp if self.ramp and self.stop < 1 else 1.0
        return min(1.0, rising, falling)


class Region(Model):
    """Where a concept is in effect: a box, or a mask.

    A ``box`` is left, top, right and bottom as shares of the picture, and ``feather`` the width of its soft edge, as a
    share of the picture too. A ``mask`` is the digest of a grayscale PNG, stretched over the picture: white is inside,
    black outside, gray in between. With a ``prompt`` the region is drawn by that prompt instead of the whole picture's.
    """

    box: tuple[Share, Share, Share, Share] | None = None
    mask: DigestText | None = None
    feather: Annotated[Number, Field(ge=0, le=0.5)] = 0.0
    prompt: Text | None = None

    @model_validator(mode="after")
    def _check_shape(self) -> Region:
        if (self.box is None) == (self.mask is None):
            raise ValueError("a region is a box or a mask, one of them")
        if self.mask is not None and self.feather:
            raise ValueError("a mask has soft edges of its own, so it takes no feather")
        if self.box is not None:
            left, top, right, bottom = self.box
            if left >= right or top >= bottom:
                raise ValueError(f"the box {list(self.box)} is empty: it is left, top, right, bottom")
        return self


class Use(Model):
    """How one concept is used beside its strength: in which parts of the network, when, and where."""

    parts: dict[str, Annotated[Number, Field(ge=-MAX_STRENGTH, le=MAX_STRENGTH)]] = Field(
        default_factory=dict
    )
    """What the strength is multiplied by in a component or block: ``{"text_encoder": 0, "unet.up_blocks.1": 0.5}``.
    The longest name that fits a layer counts."""

    schedule: Schedule | None = None
    region: Region | None = None

    def find_share(self, name: str) -> float:
        """Returns what the strength is multiplied by in the layer ``component.path``."""
        found = [part for part in self.parts if name == part or name.startswith(f"{part}.")]
        return self.parts[max(found, key=len)] if found else 1.0


class Member(Use):
    """One concept of a composition."""

    reference: ReferenceText
    digest: DigestText | None = None
    """What the reference meant when this was written; None in what was written by hand, or by an earlier release."""

    strength: Annotated[Number, Field(ge=-MAX_STRENGTH, le=MAX_STRENGTH)] = 1.0
    rename: dict[PlaceholderText, PlaceholderText] = Field(default_factory=dict)


class CompositionDocument(Model):
    """Several concepts with strengths, for one base, and the way in which they work together."""

    schema_version: Literal[1] = Field(default=1, alias="schema")
    base: Text | None = None
    concepts: Annotated[tuple[Member, ...], Field(min_length=1)]
    way: Way = "sum"
    period: Annotated[Count, Field(ge=1, le=1000)] = 5
    """Of ``switch``: for how many steps each concept has its turn."""

    @model_validator(mode="after")
    def _check_passes(self) -> CompositionDocument:
        if self.way in ("composite", "focus") and any(member.region is not None for member in self.concepts):
            raise ValueError(
                f"regions and the way {self.way!r} both take passes of their own: use one of them"
            )
        return self

    @property
    def digest(self) -> Digest:
        """The SHA-256 of the document in canonical JSON: equal where the same concepts are used in the same way."""
        document = self.model_dump(mode="json", by_alias=True)
        for member in document["concepts"]:
            if member["digest"] is None:  # as before there were any
                del member["digest"]
        return Digest.of_bytes(canonical_json(document))

    def check_digests(self, found: Sequence[Digest]) -> None:
        """Raises IntegrityError where a concept has another digest, in the order of ``concepts``, than is named."""
        for place, (member, digest) in enumerate(zip(self.concepts, found, strict=True)):
            if member.digest is not None and member.digest != digest:
                raise IntegrityError(
                    f"{member.reference} is {digest.short} here, and the composition names {member.digest.short}",
                    where=f"concepts.{place}.digest",
                    hint=f"pull it from whoever wrote the composition, or write what is here into a new one: "
                    f"concepts compose {member.reference} --out FILE",
                )

    def list_masks(self) -> tuple[Digest, ...]:
        """Returns the digests of the masks that regions name, in order, each once."""
        regions = (member.region for member in self.concepts)
        return tuple(dict.fromkeys(one.mask for one in regions if one is not None and one.mask is not None))


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
        data = path.read_bytes()
    except OSError as error:
        raise UsageError(f"cannot read {str(path)!r}: {error}") from error
    return parse_composition(data, str(path))


def parse_composition(data: bytes, name: str) -> CompositionDocument:
    """Returns the document in the bytes of a TOML file, which errors call ``name``. Raises UsageError."""
    try:
        return CompositionDocument.model_validate(tomllib.loads(data.decode("utf-8")))
    except (UnicodeDecodeError, tomllib.TOMLDecodeError, RecursionError) as error:
        raise UsageError(f"cannot read {name!r}: {error}") from error
    except ValidationError as error:
        raise explain_fault(error, name) from error


def explain_fault(error: ValidationError, name: str) -> UsageError:
    """Returns the first fault of a document, which is called ``name``, with its place."""
    first = error.errors(include_url=False)[0]
    where = ".".join(str(place) for place in first["loc"])
    return UsageError(f"{str(first['msg']).removeprefix('Value error, ')} in {name!r}", where=where or None)


def format_composition(document: CompositionDocument) -> str:
    """Returns the document as TOML text."""
    import tomlkit

    table = document.model_dump(mode="json", by_alias=True, exclude_none=True)
    for member in table["concepts"]:
        for name in ("rename", "parts"):
            if not member[name]:
                del member[name]
    if table["way"] == "sum":
        del table["way"]
    if table.get("way") != "switch":
        del table["period"]
    return tomlkit.dumps(table)
