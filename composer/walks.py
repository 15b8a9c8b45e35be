"""The way to many modules of a component at once: walked once, then only looked at whether it still leads there.

A way that many modules share is looked at once for all of them, so that hundreds of layers take microseconds.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from torch import nn

from conceptry.composer.pipelines import spell_paths

_Step = tuple[dict[str, nn.Module | None], str, nn.Module]
"""The children of a module, the name of one of them, and which it was."""


@dataclass(frozen=True, slots=True, eq=False)
class Walk:
    """Every step from a component to some of its modules, each once."""

    steps: tuple[_Step, ...]

    def leads_there(self) -> bool:
        """Returns whether each module on the way is the one that was there: nothing was put around or in its place."""
        return all(children.get(name) is module for children, name, module in self.steps)


def walk_to(root: nn.Module, paths: Iterable[str]) -> Walk:
    """Returns the way to the modules at ``paths``, spelled as published files do; what is not there is left out."""
    steps: dict[tuple[int, str], _Step] = {}
    for path in paths:
        for spelling in spell_paths(path):
            found = _walk(root, spelling.split("."))
            if found is not None:
                steps |= {(id(step[0]), step[1]): step for step in found}
                break
    return Walk(tuple(steps.values()))


def _walk(root: nn.Module, names: list[str]) -> list[_Step] | None:
    steps = []
    module = root
    for name in names:
        child = module._modules.get(name)
        if child is None:
            return None
        steps.append((module._modules, name, child))
        module = child
    return steps
