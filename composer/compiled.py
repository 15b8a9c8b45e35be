"""Compiled components: what goes into weights is seen by compiled code, what hooks do is not, so it is passed by.

torch compiles a module in two ways: ``torch.compile(module)`` wraps it, ``module.compile()`` keeps the compiled call on
the module itself, or on blocks inside (``compile_repeated_blocks`` of diffusers). Compiled code is guarded against new
weights and not against new hooks.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Sequence
from typing import Any, Final

from torch import nn

from conceptry.bases import ComponentName
from conceptry.composer.hooks import Patch

_CALL: Final = "_compiled_call_impl"
_WRAPPED: Final = "_orig_mod"


def unwrap_compiled(module: nn.Module) -> nn.Module:
    """Returns the module that was compiled; ``module`` itself where it was not wrapped."""
    inner = module._modules.get(_WRAPPED)
    return module if inner is None else inner


def is_compiled(module: nn.Module) -> bool:
    """Returns whether calling ``module`` runs compiled code, all of it or some blocks."""
    return next(_iter_compiled(module), None) is not None


def _iter_compiled(module: nn.Module) -> Iterator[nn.Module]:
    if _WRAPPED in module._modules:
        yield module
    for inner in list_modules(module):
        if vars(inner).get(_CALL) is not None:
            yield inner


def list_modules(root: nn.Module) -> list[nn.Module]:
    """Returns ``root`` and all modules inside; as ``modules()``, in a tenth of its time."""
    found, known = [root], {id(root)}
    for module in found:
        for child in module._modules.values():
            if child is not None and id(child) not in known:
                known.add(id(child))
                found.append(child)
    return found


class _Bypassed:
    """A module whose compiled call stands aside, and which patches want that."""

    def __init__(self, module: nn.Module) -> None:
        self.holders: set[object] = set()
        self._is_wrapper = _WRAPPED in module._modules
        self._kept: Any = vars(module)["forward" if self._is_wrapper else _CALL]

    def hold(self, module: nn.Module, holder: object) -> None:
        """Lets ``module`` run as it was written."""
        self.holders.add(holder)
        vars(module)["forward" if self._is_wrapper else _CALL] = (
            module._modules[_WRAPPED] if self._is_wrapper else None
        )

    def release(self, module: nn.Module, holder: object) -> None:
        """Gives ``module`` its compiled call back when nobody holds it any longer. Twice does nothing."""
        self.holders.discard(holder)
        if not self.holders:
            vars(module)["forward" if self._is_wrapper else _CALL] = self._kept


_BYPASSED: Final[weakref.WeakKeyDictionary[nn.Module, _Bypassed]] = weakref.WeakKeyDictionary()


class BypassPatch(Patch):
    """Lets compiled components run uncompiled while attached; the compiled code is kept and runs again after.

    Args:
        pipeline: with the components as they are called, wrapped or not.
        components: the names of those that hooks are put on.
    """

    def __init__(self, pipeline: Any, components: Sequence[ComponentName]) -> None:
        super().__init__()
        self._roots = [getattr(pipeline, name) for name in components]
        self._held: list[nn.Module] = []

    def _put_in(self) -> None:
        for root in self._roots:
            for module in list(_iter_compiled(root)):
                self._held.append(module)
                _BYPASSED.setdefault(module, _Bypassed(module)).hold(module, self)

    def _take_out(self) -> None:
        for module in self._held:
            found = _BYPASSED.get(module)
            if found is None:
                continue
            found.release(module, self)
            if not found.holders:
                del _BYPASSED[module]
        self._held.clear()
