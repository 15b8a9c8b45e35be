"""Which methods one of several processes measures: each method in one of them, those that share a training together."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from conceptry.digests import canonical_json
from conceptry.errors import UsageError
from conceptry.evaluation.bench_methods import BenchMethod

_FORM: Final = re.compile(r"([1-9][0-9]?)/([1-9][0-9]?)")
_TRAINING: Final = 1.5
"""What teaching a subject takes beside drawing it once: 18 to 41 against 20 seconds of one core."""


@dataclass(frozen=True, slots=True)
class Shard:
    """One of several parts."""

    number: int = 1
    count: int = 1

    def choose(self, methods: Sequence[BenchMethod]) -> tuple[BenchMethod, ...]:
        """Returns those of all methods that are this part's, in their order; the same for the same methods."""
        groups: dict[bytes, list[BenchMethod]] = {}
        for method in methods:
            groups.setdefault(_name_training(method), []).append(method)
        loads, own = [0.0] * self.count, set[str]()
        for group in sorted(groups.values(), key=lambda group: -len(group)):
            lightest = loads.index(min(loads))
            loads[lightest] += _TRAINING + len(group)
            if lightest == self.number - 1:
                own |= {method.id for method in group}
        return tuple(method for method in methods if method.id in own)


def parse_shard(text: str | None) -> Shard:
    """Returns the part that ``2/3`` names; all for None. Raises UsageError."""
    found = _FORM.fullmatch(text) if text is not None else None
    if text is None:
        return Shard()
    if found is None or int(found[1]) > int(found[2]):
        raise UsageError(
            f"{text[:20]!r} names no part", hint="--shard 1/2 in one process and --shard 2/2 in the other"
        )
    return Shard(int(found[1]), int(found[2]))


def _name_training(method: BenchMethod) -> bytes:
    """Returns what is equal for methods that use one training in several ways: all settings but those of use."""
    if method.origin is not None:
        return method.id.encode()
    return canonical_json({name: value for name, value in method.settings.items() if name != "gate"})
