"""What attaching did: which tensors of which concept were applied, under which words, and how well it fits."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from conceptry.composer.plan import Plan
from conceptry.digests import Digest
from conceptry.names import Placeholder


@dataclass(frozen=True, slots=True, kw_only=True)
class Applied:
    """One concept of the composition as it was applied."""

    label: str
    digest: Digest
    strength: float
    build: str
    kinds: tuple[str, ...]
    fit: str
    words: Mapping[Placeholder, Placeholder]
    """The word to write in prompts, by the placeholder as published."""

    tensors: int
    """How many stored tensors were applied."""

    unmatched: tuple[str, ...] = ()
    """Stored tensors for which the pipeline has no place."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What is attached to a pipeline now."""

    plan: Plan
    concepts: tuple[Applied, ...]
    warnings: tuple[str, ...]

    @property
    def words(self) -> tuple[Placeholder, ...]:
        """All words that call a concept here, in order."""
        return tuple(word for applied in self.concepts for word in applied.words.values())

    def to_json(self) -> dict[str, Any]:
        """Returns what reproduces the composition: references, digests, strengths, words; and the base's family."""
        return {
            "base": {
                "family": self.plan.identity.family,
                "prediction_type": self.plan.identity.prediction_type,
            },
            "concepts": [
                {
                    "reference": applied.label,
                    "digest": str(applied.digest),
                    "strength": applied.strength,
                    "build": applied.build,
                    "kinds": list(applied.kinds),
                    "fit": applied.fit,
                    "words": {str(old): str(new) for old, new in applied.words.items()},
                    "tensors": applied.tensors,
                    "unmatched": list(applied.unmatched),
                }
                for applied in self.concepts
            ],
            "warnings": list(self.warnings),
        }

    def to_text(self) -> str:
        """Returns ``to_json`` as one line, for a text chunk of a picture."""
        return json.dumps(self.to_json(), ensure_ascii=False, sort_keys=True)
