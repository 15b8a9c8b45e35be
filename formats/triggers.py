"""Words that may call a concept, from metadata: hints, never truth."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

from conceptry.formats.conversion import read_values
from conceptry.names import MAX_PLACEHOLDER_CHARS

_PHRASE_KEY: Final = "modelspec.trigger_phrase"
_KEYS: Final = (_PHRASE_KEY, "ss_trained_words", "trained_words")
_BREAK: Final = re.compile(r"[\s,]")
MAX_TRIGGERS: Final = 16


def find_triggers(metadata: Mapping[str, str]) -> tuple[str, ...]:
    """Returns the words that metadata names, without repeats, sixteen at most; last, what a pickle calls itself."""
    words = [word.strip() for key in _KEYS for word in metadata.get(key, "").split(",")]
    words.append(find_own_name(metadata) or "")
    return tuple(dict.fromkeys(word[:64] for word in words if word))[:MAX_TRIGGERS]


def find_own_name(metadata: Mapping[str, str]) -> str | None:
    """Returns the name that an embedding's pickle carries beside its tensors; A1111 called it so when it was made."""
    values = read_values(metadata)
    name = values.get("name") if isinstance(values, dict) else None
    return name.strip() or None if isinstance(name, str) else None


def find_phrase(metadata: Mapping[str, str]) -> str | None:
    """Returns the trigger phrase of ModelSpec where it is one word, which leaves nothing to choose; else None."""
    phrase = metadata.get(_PHRASE_KEY, "").strip()
    is_word = 0 < len(phrase) <= MAX_PLACEHOLDER_CHARS and phrase.isprintable()
    return phrase if is_word and not _BREAK.search(phrase) else None
