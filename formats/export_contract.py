"""What a row of WRITERS must offer: the files that one program reads, and what it would lose."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final

from conceptry.bases import FamilyId
from conceptry.formats.contract import Contents
from conceptry.formats.tensors import RawTensor
from conceptry.kinds import KindId


@dataclass(frozen=True, slots=True, kw_only=True)
class WordFiles:
    """How files are called that stand for words, and what a prompt calls them."""

    qualified: bool = False
    """Where a concept has several words, its own name stands first: many concepts call theirs ``s0`` and ``s1``."""

    call: str = "{}"
    """What a prompt says, with ``{}`` for the file's name."""


BY_WORD: Final = WordFiles()
"""Each file is called as its word, and so is the word."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WriteRequest:
    """One part of a concept, and what its files must say."""

    contents: Contents
    family: FamilyId
    stem: str
    """What files are called where the program does not prescribe it, without a suffix."""

    named: bool = False
    """The caller chose ``stem``; else a file that is called by its word is called so."""

    metadata: Mapping[str, str]
    """ModelSpec keys, equal for all files."""

    lossy: bool = False
    """The caller agreed to an approximation where there is no exact form."""

    words: WordFiles = BY_WORD


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputFile:
    """A file as it will be written: tensors with metadata, or bytes."""

    name: str
    """Relative, with ``/`` between folders."""

    tensors: Mapping[str, RawTensor] = field(default_factory=dict)
    metadata: Mapping[str, str] = field(default_factory=dict)
    data: bytes | None = None


@dataclass(frozen=True, slots=True)
class Loss:
    """What is lost of one module: the error of its delta relative to the delta (Frobenius), and why."""

    module: str
    relative_error: float
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Written:
    """The files of one part, what the person must know, and what was lost, worst first."""

    files: tuple[OutputFile, ...]
    warnings: tuple[str, ...] = ()
    losses: tuple[Loss, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Writer:
    """One program that files are written for."""

    id: str
    title: str
    folder: bool = False
    """What it reads is a folder, even for a single network."""

    sidecars: tuple[str, ...] = ()
    """Rows of SIDECARS that it reads beside a file."""

    write: Mapping[KindId, Callable[[WriteRequest], Written]]
    """Raises IncompatibleError for what the program cannot read, with the reason."""
