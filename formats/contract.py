"""What a row of FORMATS must offer: say what it makes of a header, and read the file into canonical contents."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from conceptry.bases import FamilyId
from conceptry.digests import Digest
from conceptry.formats.embedding import EmbeddingContents
from conceptry.formats.full import FullContents
from conceptry.formats.header import Header
from conceptry.formats.hypernetwork import HypernetworkContents
from conceptry.formats.lora import LoraContents
from conceptry.formats.rank_one import RankOneContents
from conceptry.kinds import KindId
from conceptry.names import Placeholder

Contents = EmbeddingContents | RankOneContents | LoraContents | FullContents | HypernetworkContents


@dataclass(frozen=True, slots=True, kw_only=True)
class Detection:
    """What one row makes of a file: the role of each tensor that it explains, and how sure it is."""

    roles: Mapping[str, str]
    """Tensor name -> its role in words; what is missing here is unexplained."""

    claims: int = 0
    """How many tensors have names of this row, sound or not: what decides where nothing is explained."""

    confidence: float
    """0 to 1, that kind, dialect and family are right."""

    family: FamilyId | None = None
    family_is_certain: bool = False
    """The shapes fit no other family; a caller who declares another one is wrong."""

    reasons: tuple[str, ...] = ()
    triggers: tuple[str, ...] = ()
    """Words that may call the concept, from names and metadata: hints, not truth."""

    algorithms: tuple[str, ...] = ()
    ranks: Mapping[int, int] = field(default_factory=dict)
    """Rank -> how many modules have it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadRequest:
    """What the caller knows and the file may not say."""

    path: Path
    """The safetensors file to read; for a pickle, what was made of it."""

    header: Header
    origin: Path | None = None
    """The file that the caller named, where ``path`` was made of it."""

    placeholder: Placeholder | None = None
    row_placeholders: tuple[Placeholder, ...] = ()
    """A word for each row, where each row of the file is a token of its own."""

    family: FamilyId | None = None
    base: Path | None = None
    """Where the weights of the base lie on this machine; None where only its family is known."""

    @property
    def source(self) -> Path:
        """The file that the caller named."""
        return self.origin or self.path

    @property
    def name(self) -> str:
        """Its name, for messages."""
        return self.source.name


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """The parts of a file in canonical form, and what had to be decided on the way, in words."""

    contents: tuple[Contents, ...]
    notes: tuple[str, ...] = ()
    words: tuple[str, ...] = ()
    """The words of the rows as the file itself spells them."""

    total_tensors: int | None = None
    """Of kind full: how many tensors the components have that were compared with the base."""

    covariance: Digest | None = None
    """Of kind rank_one: which statistics of the base's encodings it was made with."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Format:
    """One way to write a concept file. Rows of one kind that explain a file equally well are tried in table order."""

    id: str
    kind: str
    """A kind of KINDS, or the id of a kind that is recognised and not stored."""

    title: str
    detect: Callable[[Header], Detection | None]
    """Returns None where nothing in the header is of this format."""

    can_explain_all: Callable[[Header], bool] = lambda header: True
    """Tells quickly: where False, ``detect`` would leave a tensor unexplained, and is asked after the other rows."""

    read: Callable[[ReadRequest], Reading] | None = None
    """Raises InvalidFileError, IncompatibleError or UsageError; None where the kind is not stored."""

    stored_kind: KindId | None = None


def share_of(values: Mapping[str, str], total: int) -> float:
    """Returns the share of ``total`` tensors that have a role."""
    return len(values) / total if total else 0.0
