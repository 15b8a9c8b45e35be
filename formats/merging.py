"""Several readings as the parts of one concept, and one concept's parts as several."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from conceptry.bases import ComponentName
from conceptry.errors import IncompatibleError
from conceptry.formats.contract import Contents, Reading
from conceptry.formats.embedding import EmbeddingContents, check_embedding
from conceptry.formats.full import FullContents
from conceptry.formats.lora import LoraContents
from conceptry.formats.tensors import RawTensor
from conceptry.names import Placeholder


def merge_readings(readings: Sequence[tuple[str, Reading]]) -> Reading:
    """Returns the parts of all files together; each comes with the name of its file.

    The two halves of an SDXL embedding become one, adapters of several networks too.

    Raises:
        IncompatibleError: if two files hold the same thing, or two halves of an embedding name different words.
    """
    _compare_words(readings)
    embeddings: dict[tuple[str, ...] | None, dict[tuple[ComponentName, Placeholder], RawTensor]] = {}
    others: list[Contents] = []
    for name, reading in readings:
        for contents in reading.contents:
            if isinstance(contents, EmbeddingContents):
                rows = embeddings.setdefault(contents.layers, {})
                for key, tensor in contents.rows.items():
                    if key in rows:
                        raise IncompatibleError(
                            f"{name!r} holds rows of {key[1]} for {key[0]} as another file does"
                        )
                    rows[key] = tensor
            else:
                _add(others, contents, name)
    merged = [EmbeddingContents(rows=rows, layers=layers) for layers, rows in embeddings.items()]
    for one in merged:
        check_embedding(one)
    totals = [reading.total_tensors for _, reading in readings if reading.total_tensors]
    return Reading(
        contents=(*others, *merged),
        notes=tuple(dict.fromkeys(note for _, reading in readings for note in reading.notes)),
        words=tuple(dict.fromkeys(word for _, reading in readings for word in reading.words)),
        total_tensors=sum(totals) or None,
        covariance=next((reading.covariance for _, reading in readings if reading.covariance), None),
    )


def _compare_words(readings: Iterable[tuple[str, Reading]]) -> None:
    """Raises IncompatibleError where two files of nothing but one word each name different words."""
    halves = [
        (name, reading.words[0])
        for name, reading in readings
        if len(reading.words) == 1 and all(isinstance(one, EmbeddingContents) for one in reading.contents)
    ]
    for name, word in halves[1:]:
        if word != halves[0][1]:
            raise IncompatibleError(
                f"{halves[0][0]!r} holds rows of {halves[0][1]!r}, {name!r} rows of {word!r}: they are no pair",
                hint="import each by itself, or name the two files of one concept",
            )


def _add(others: list[Contents], contents: Contents, name: str) -> None:
    for index, known in enumerate(others):
        if isinstance(known, LoraContents) and isinstance(contents, LoraContents):
            twice = sorted(known.modules.keys() & contents.modules.keys())
            if twice:
                raise IncompatibleError(f"{name!r} changes {twice[0]} as another file does")
            others[index] = LoraContents(modules={**known.modules, **contents.modules})
            return
        if (
            isinstance(known, FullContents)
            and isinstance(contents, FullContents)
            and known.component == contents.component
        ):
            raise IncompatibleError(f"{name!r} replaces weights of {known.component} as another file does")
    others.append(contents)


def split_contents(
    contents: Sequence[Contents],
) -> tuple[tuple[Placeholder | None, tuple[Contents, ...]], ...]:
    """Returns each word's rows by themselves, and before them everything else together."""
    rest = tuple(one for one in contents if not isinstance(one, EmbeddingContents))
    words: dict[Placeholder, list[Contents]] = {}
    for one in contents:
        if isinstance(one, EmbeddingContents):
            for word in dict.fromkeys(word for _, word in one.rows):
                rows = {key: tensor for key, tensor in one.rows.items() if key[1] == word}
                words.setdefault(word, []).append(EmbeddingContents(rows=rows, layers=one.layers))
    groups = [(word, tuple(parts)) for word, parts in words.items()]
    return ((None, rest), *groups) if rest else tuple(groups)
