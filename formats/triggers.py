"""Words that may call a concept, from metadata: hints, never truth."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

_KEYS: Final = ("modelspec.trigger_phrase", "ss_trained_words", "trained_words")
MAX_TRIGGERS: Final = 16


def find_triggers(metadata: Mapping[str, str]) -> tuple[str, ...]:
    """Returns the words that metadata names, without repeats, sixteen at most."""
    words = (word.strip() for key in _KEYS for word in metadata.get(key, "").split(","))
    return tuple(dict.fromkeys(word[:64] for word in words if word))[:MAX_TRIGGERS]
