"""What draws a picture again, as it is written into the picture: one closed document in canonical JSON."""

from __future__ import annotations

from typing import Annotated, Final, Literal

from pydantic import Field, ValidationError

from conceptry.composition import CompositionDocument, Member
from conceptry.digests import canonical_json
from conceptry.documents import load_strict_json
from conceptry.errors import IntegrityError, InvalidFileError
from conceptry.fields import Count, DigestText, Model, Number, PlaceholderText, ShortText, Text

TEXT_KEY: Final = "conceptry"
SCHEMA_VERSION: Final = 2
MAX_BATCH: Final = 64
MAX_STEPS: Final = 1000
MAX_SIDE_PIXELS: Final = 16_384
MAX_THREADS: Final = 1024
MAX_PIXELS: Final = 1 << 26
"""Of one batch: what a stranger's picture may ask a machine to draw at once."""

Side = Annotated[int, Field(ge=8, le=MAX_SIDE_PIXELS)]


class LockedMember(Member):
    """One concept as it was attached: its exact version, and the words that called it."""

    digest: DigestText
    build: ShortText
    words: dict[PlaceholderText, PlaceholderText] = Field(default_factory=dict)
    """The word that was written, by the placeholder as published."""


class LockedComposition(CompositionDocument):
    """A composition of which every concept is known by its digest."""

    concepts: Annotated[tuple[LockedMember, ...], Field(min_length=1)]


class Wording(Model):
    """What was encoded: the prompts after tags that name concepts were resolved."""

    prompt: Text
    negative: Text = ""


class Batch(Model):
    """How many pictures were drawn together, and which of them this is; seeds follow one another."""

    size: Annotated[int, Field(ge=1, le=MAX_BATCH)] = 1
    index: Annotated[int, Field(ge=0, lt=MAX_BATCH)] = 0


class Sampler(Model):
    """The scheduler, the digest of its settings, and what ``--sampler`` calls it: None for the base's own."""

    name: ShortText | None = None
    scheduler: ShortText
    settings: DigestText


class SourceRecord(Model):
    """The picture that was drawn over: digests of the files, which stay with their owner."""

    image: DigestText
    mask: DigestText | None = None
    strength: Annotated[float, Field(gt=0, le=1)]


class BaseRecord(Model):
    """Which base drew: its name where others could know it, and the digest of each component's fingerprint."""

    name: ShortText | None = None
    family: ShortText
    prediction_type: ShortText
    components: dict[ShortText, DigestText]


class Machine(Model):
    """What decides how sums are rounded: the same values give the same bytes."""

    device: ShortText
    dtype: ShortText
    threads: Annotated[int, Field(ge=1, le=MAX_THREADS)]
    system: ShortText
    processor: ShortText
    capability: ShortText
    """Instructions of the processor, or the name of the accelerator."""

    libraries: dict[ShortText, ShortText]


class PictureRecord(Model):
    """All that draws one picture again."""

    schema_version: Literal[2] = Field(default=SCHEMA_VERSION, alias="schema")
    prompt: Text
    """As written."""

    negative: Text = ""
    wording: Wording
    seed: Count
    batch: Batch = Batch()
    width: Side
    height: Side
    steps: Annotated[int, Field(ge=1, le=MAX_STEPS)]
    guidance: Number
    sampler: Sampler
    source: SourceRecord | None = None
    base: BaseRecord
    composition: LockedComposition | None = None
    fit: Literal["exact", "lineage", "architecture"] | None = None
    """How closely every concept had to fit, None for what its kind asks."""

    machine: Machine

    @property
    def first_seed(self) -> int:
        """The seed of the batch's first picture."""
        return self.seed - self.batch.index

    def at(self, index: int) -> PictureRecord:
        """Returns the record of another picture of the same batch."""
        batch = self.batch.model_copy(update={"index": index})
        return self.model_copy(update={"batch": batch, "seed": self.first_seed + index})

    def to_text(self) -> str:
        """Returns the record as canonical JSON."""
        return canonical_json(self.model_dump(mode="json", by_alias=True)).decode("utf-8")


def parse_record(text: str) -> PictureRecord:
    """Returns the record that a picture carries.

    Raises:
        InvalidFileError: naming what is wrong, for anything but a whole record of this schema.
    """
    try:
        document = load_strict_json(text.encode("utf-8", "surrogatepass"))
    except IntegrityError as error:
        raise InvalidFileError(f"what the picture says of itself is damaged: {error.message}") from error
    schema = document.get("schema") if isinstance(document, dict) else None
    if schema != SCHEMA_VERSION:
        raise InvalidFileError(
            f"the picture describes itself by schema {str(schema)[:20]}, which says too little to draw it again",
            hint="concepts generate draws it from its prompt and seed",
        )
    try:
        record = PictureRecord.model_validate(document)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(place) for place in first["loc"])
        raise InvalidFileError(
            f"what the picture says of itself is malformed: {first['msg']}", where=where[:200]
        ) from error
    if record.batch.index >= record.batch.size or record.first_seed < 0:
        raise InvalidFileError("the picture is not of the batch that it names", where="batch.index")
    if record.width * record.height * record.batch.size > MAX_PIXELS:
        raise InvalidFileError(f"its batch has more than {MAX_PIXELS} pixels", where="batch.size")
    return record
