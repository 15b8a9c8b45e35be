"""What a manifest says of an adapter: its algorithms, ranks and scales, counted over its modules."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Final, Literal

from conceptry.formats.lora_modules import LoraModule
from conceptry.kinds import AlgorithmId
from conceptry.manifest import LoraMethod

# Convolutions beside linear layers are what the field calls LoCon.
_LOCON: Final[frozenset[AlgorithmId]] = frozenset({"lora", "locon"})


def describe_modules(modules: Mapping[str, LoraModule]) -> LoraMethod:
    """Returns the method of a part that holds ``modules``; there is at least one."""
    algorithms = Counter(module.algorithm for module in modules.values())
    ranks = Counter(module.rank for module in modules.values() if module.rank)
    rules = Counter(module.rule for module in modules.values())
    scales = {module.scale for module in modules.values()}
    variant = _name_algorithms(frozenset(algorithms))
    return LoraMethod(
        variant=variant,
        algorithms=dict(algorithms) if variant == "mixed" else None,
        rank=max(ranks, default=None),
        ranks={str(rank): count for rank, count in ranks.items()} if len(ranks) > 1 else None,
        modules=len(modules),
        scale=scales.pop() if len(scales) == 1 else None,
        scale_rule=next(iter(rules)) if len(rules) == 1 else "mixed",
        scale_rules=dict(rules) if len(rules) > 1 else None,
    )


def _name_algorithms(found: frozenset[AlgorithmId]) -> AlgorithmId | Literal["mixed"]:
    if len(found) == 1:
        return next(iter(found))
    return "locon" if found == _LOCON else "mixed"
