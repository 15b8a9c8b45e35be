"""Words and gates of two concepts: the same word, rows that mean nearly the same, a word that opens another's gate."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from conceptry.composer.plan import PlannedMember
from conceptry.formats.embedding import EmbeddingContents, read_embedding
from conceptry.formats.rank_one import RankOneContents, read_rank_one
from conceptry.formats.tensors import RawTensor
from conceptry.kinds import KindId
from conceptry.manifest import RankOneMethod
from conceptry.names import Placeholder

if TYPE_CHECKING:
    Array = np.ndarray[Any, np.dtype[np.float64]]

# Beyond this cosine, rows of the token embedding are one word in two spellings: those of words of one sense in CLIP's
# own table lie below it.
SIMILAR: Final = 0.8


@dataclass(frozen=True, slots=True, kw_only=True)
class GateConflict:
    """A word of one Perfusion concept at the gate of another (arXiv 2305.01644, eq. 3)."""

    word: str
    opens: str
    """The concept whose gate it is."""

    similarity: float
    """i_a^T C^-1 i_b / (i_a^T C^-1 i_a), a's own word being 1."""

    gate: float
    """How far the gate opens, 0 to 1."""

    fires: bool
    """Whether the similarity passes the gate's bias less twice its temperature."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WordConflict:
    """Two concepts' words."""

    first: str
    second: str
    relation: str
    """``renamed``: one word of both, of which one is written otherwise here; ``shared``: one plain word, which calls
    both; ``similar``: rows that point the same way."""

    cosine: float | None = None

    @property
    def advice(self) -> str | None:
        """What to do about it; None where nothing needs doing."""
        if self.relation == "shared":
            return f"{self.first} calls both: there is no way to ask for one of them"
        if self.relation == "similar":
            return f"{self.first} and {self.second} mean nearly the same (cosine {self.cosine:.2f})"
        return None


def find_gate_conflicts(first: PlannedMember, second: PlannedMember) -> tuple[GateConflict, ...]:
    """Returns both directions, for two Perfusion concepts with one covariance; nothing for other kinds."""
    mine, theirs = _read_edit(first), _read_edit(second)
    if mine is None or theirs is None or mine[1].covariance != theirs[1].covariance:
        return ()
    return (_cross(theirs, second, first, mine), _cross(mine, first, second, theirs))


_Edit = tuple[RankOneContents, RankOneMethod]


def _cross(word: _Edit, owner: PlannedMember, gated: PlannedMember, gate: _Edit) -> GateConflict:
    """Returns what the target input of ``word`` does at the gate of ``gate``."""
    contents, method = gate
    dual, own = _widen(contents.c_inv_i_star), _widen(contents.i_star)
    similarity = float(dual @ _widen(word[0].i_star) / (dual @ own))
    bias, temperature = method.gate.bias, method.gate.temperature
    return GateConflict(
        word=next(iter(owner.words.values()), owner.concept.label),
        opens=gated.concept.label,
        similarity=similarity,
        gate=1 / (1 + math.exp(-min(max((similarity - bias) / temperature, -60), 60))),
        fires=similarity > bias - 2 * temperature,
    )


def _read_edit(member: PlannedMember) -> _Edit | None:
    for part in member.build.parts:
        if isinstance(part.method, RankOneMethod):
            for file in part.files:
                if file.role == "weights":
                    return read_rank_one(member.concept.locate(file)), part.method
    return None


def find_word_conflicts(first: PlannedMember, second: PlannedMember) -> tuple[WordConflict, ...]:
    """Returns words that both have, as plan and tokenizer treat them, and rows that mean nearly the same."""
    return (*_iter_same(first, second), *_iter_similar(first, second))


def _iter_same(first: PlannedMember, second: PlannedMember) -> Iterator[WordConflict]:
    for old, new in first.words.items():
        for other, written in second.words.items():
            if old.casefold() == other.casefold():
                same = new.casefold() == written.casefold()
                yield WordConflict(first=new, second=written, relation="shared" if same else "renamed")


def _iter_similar(first: PlannedMember, second: PlannedMember) -> Iterator[WordConflict]:
    mine, theirs = _read_rows(first), _read_rows(second)
    for (component, word), rows in mine.items():
        for (place, other), values in theirs.items():
            if place == component and rows.shape[-1] == values.shape[-1]:
                cosine = float((_normalise(rows) @ _normalise(values).T).max())
                if cosine >= SIMILAR:
                    yield WordConflict(
                        first=first.words.get(word, word),
                        second=second.words.get(other, other),
                        relation="similar",
                        cosine=cosine,
                    )


def _read_rows(member: PlannedMember) -> dict[tuple[str, Placeholder], Array]:
    found: dict[tuple[str, Placeholder], Array] = {}
    for part in member.build.parts:
        read = _ROWS.get(part.kind)
        for file in part.files if read else ():
            if read and file.role == "weights":
                for (component, word), raw in read(member.concept.locate(file)).rows.items():
                    rows = _widen(raw)
                    found[component, word] = rows.reshape(-1, rows.shape[-1])
    return found


_ROWS: Final[Mapping[KindId, Callable[[Path], EmbeddingContents | RankOneContents]]] = {
    "embedding": read_embedding,
    "rank_one": read_rank_one,
}


def _widen(raw: RawTensor) -> Array:
    return raw.to_numpy().astype(np.float64)


def _normalise(rows: Array) -> Array:
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    return rows / np.where(norms == 0, 1, norms)
