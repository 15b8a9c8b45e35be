"""The layers of a network that a method adapts, picked by patterns or by the name of a group of ``targets.toml``."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from functools import cache
from importlib.resources import files
from typing import Any, TypeVar

from torch import nn

from conceptry.composer.pipelines import spell_published
from conceptry.errors import UsageError, suggest_nearest

ValueT = TypeVar("ValueT")
Layers = dict[str, nn.Linear | nn.Conv2d]


def find_layers(root: Any, targets: Sequence[str]) -> Layers:
    """Returns the linear and convolution layers whose path matches one of ``targets``, by published path.

    Raises:
        UsageError: if there is none, or a group of layers is not known.
    """
    patterns = expand_targets(targets)
    found = {
        spell_published(root, path): layer
        for path, layer in root.named_modules()
        if isinstance(layer, nn.Linear | nn.Conv2d) and any(fnmatchcase(path, target) for target in patterns)
    }
    if not found:
        raise UsageError(
            f"no layer of the base matches {', '.join(targets) or 'nothing'}",
            where="settings.targets",
            hint=f"groups of layers: {', '.join(load_groups())}",
        )
    return found


def expand_targets(targets: Sequence[str]) -> tuple[str, ...]:
    """Returns ``targets`` with the patterns of each group that is named. Raises UsageError for an unknown one."""
    groups = load_groups()
    patterns: list[str] = []
    for target in targets:
        if target.isidentifier() and target not in groups:
            raise UsageError(
                f"no group of layers is called {target!r}",
                where="settings.targets",
                hint=suggest_nearest(target, groups)
                or f"groups: {', '.join(groups)}; patterns have a * in them",
            )
        patterns += groups.get(target, [target])
    return tuple(patterns)


def pick_by_pattern(path: str, values: Mapping[str, ValueT], default: ValueT) -> ValueT:
    """Returns the value of the first pattern that ``path`` matches, else ``default``."""
    for pattern, value in values.items():
        if any(fnmatchcase(path, one) for one in expand_targets([pattern])):
            return value
    return default


@cache
def load_groups() -> Mapping[str, list[str]]:
    """Returns ``targets.toml``: the patterns of each group."""
    return tomllib.loads(files(__package__).joinpath("targets.toml").read_text(encoding="utf-8"))
