"""Which words call concepts that are used together: one rule for compositions and for locks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from conceptry.kinds import KIND_BY_ID
from conceptry.manifest import Build, Manifest
from conceptry.names import Placeholder


@dataclass(frozen=True, slots=True, kw_only=True)
class Speaker:
    """One concept's words, in order; those in ``expanding`` become ids of their own, the others are plain text."""

    words: tuple[Placeholder, ...]
    expanding: frozenset[Placeholder] = frozenset()
    rename: Mapping[Placeholder, Placeholder] = field(default_factory=dict)


def describe_speaker(
    manifest: Manifest, build: Build | None, rename: Mapping[Placeholder, Placeholder]
) -> Speaker:
    """Returns the words of a concept as one of its builds reads them; without a build, as any of them might.

    A composition has none of its own: those that it names say theirs.
    """
    builds = manifest.builds if build is None else (build,)
    if any(KIND_BY_ID[kind].names_others for one in builds for kind in one.kinds):
        return Speaker(words=())
    expands = any(KIND_BY_ID[kind].expands_placeholder for one in builds for kind in one.kinds)
    return Speaker(
        words=tuple(token.placeholder for token in manifest.tokens),
        expanding=frozenset(token.placeholder for token in manifest.tokens if expands and token.vectors),
        rename=rename,
    )


def choose_words(speakers: Sequence[Speaker]) -> list[dict[Placeholder, Placeholder]]:
    """Returns the word to write by the word as published, for each concept.

    Words that become ids give way to those before them and to plain text, which stays as its author trained it; case
    makes no difference, since tokenizers fold it.
    """
    taken = {word.casefold() for word in _iter_plain(speakers)}
    chosen = []
    for speaker in speakers:
        words: dict[Placeholder, Placeholder] = {}
        for word in speaker.words:
            wanted = speaker.rename.get(word, word)
            if word in speaker.expanding:
                wanted = _make_free(wanted, taken)
                taken.add(wanted.casefold())
            words[word] = wanted
        chosen.append(words)
    return chosen


def _iter_plain(speakers: Sequence[Speaker]) -> Iterable[Placeholder]:
    for speaker in speakers:
        yield from (word for word in speaker.words if word not in speaker.expanding)


def _make_free(word: Placeholder, taken: set[str]) -> Placeholder:
    stem, end = (word[:-1], ">") if word.startswith("<") and word.endswith(">") else (word, "")
    free, number = word, 1
    while free.casefold() in taken:
        number += 1
        free = Placeholder(f"{stem}-{number}{end}")
    return free
