"""What must not be done to a pipeline while concepts are in it: refused at the call, before anything changes."""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from torch import Tensor, nn

from conceptry.composer.compiled import list_modules
from conceptry.composer.hooks import Patch
from conceptry.composer.mapped import MappedFile
from conceptry.composer.presence import EncodingLog
from conceptry.errors import IncompatibleError

# Method of a pipeline or a component -> what it would do.
JOINS_PROJECTIONS: Final = {
    "fuse_qkv_projections": "joins keys, queries and values into layers that the concepts are not in",
    "unfuse_qkv_projections": "takes layers apart that the concepts may be in",
}
CHANGES_WEIGHTS: Final = {
    "fuse_lora": "adds to weights that concepts stand in for",
    "unfuse_lora": "subtracts from weights that concepts stand in for",
    "enable_sequential_cpu_offload": "puts weights elsewhere that concepts stand in for",
    "enable_group_offload": "keeps copies of weights that concepts stand in for",
}

_GUARDED: Final[weakref.WeakKeyDictionary[Any, dict[str, set[object]]]] = weakref.WeakKeyDictionary()
"""What refuses each method of an owner: the call is its own again when nothing does."""

_CHECKS: Final[weakref.WeakKeyDictionary[Any, list[CallPatch]]] = weakref.WeakKeyDictionary()


class GuardPatch(Patch):
    """Refuses calls of ``methods`` on ``owners`` while attached.

    Args:
        owners: a pipeline and its components.
        methods: names, and what each would do; owners without a method are left alone.
    """

    def __init__(self, owners: Sequence[Any], methods: Mapping[str, str]) -> None:
        super().__init__()
        self._owners = tuple(owners)
        self._methods = dict(methods)
        self._mark = object()

    def _put_in(self) -> None:
        for owner in self._owners:
            for name in self._methods:
                if callable(getattr(type(owner), name, None)):
                    _GUARDED.setdefault(owner, {}).setdefault(name, set()).add(self._mark)
                    vars(owner)[name] = _refuse(name, self._methods[name])

    def _take_out(self) -> None:
        for owner in self._owners:
            for name, marks in _GUARDED.get(owner, {}).items():
                if self._mark in marks and len(marks) == 1:
                    vars(owner).pop(name, None)
                marks.discard(self._mark)


def _refuse(name: str, why: str) -> Callable[..., Any]:
    def refuse(*_: Any, **__: Any) -> Any:
        raise IncompatibleError(
            f"{name} {why}", hint=f"detach first: attachment.detach(); then {name}, then attach again"
        )

    return refuse


class CallPatch(Patch):
    """Looks at every call of the pipeline before it draws, while attached: each asks ``encode_prompt`` first."""

    def __init__(self, pipeline: Any) -> None:
        super().__init__()
        self._pipeline = pipeline

    def check(self, options: Mapping[str, Any]) -> None:
        """Raises an error if the pipeline must not be called so, or now."""
        raise NotImplementedError

    def _put_in(self) -> None:
        checks = _CHECKS.setdefault(self._pipeline, [])
        checks.append(self)
        if len(checks) == 1 and callable(getattr(self._pipeline, "encode_prompt", None)):
            below = vars(self._pipeline).get("encode_prompt")
            vars(self._pipeline)["encode_prompt"] = _run_checks(self._pipeline.encode_prompt, checks, below)

    def _take_out(self) -> None:
        checks = _CHECKS.get(self._pipeline, [])
        if self in checks:
            checks.remove(self)
        wrapper = vars(self._pipeline).get("encode_prompt")
        if not checks and getattr(wrapper, "checks", None) is checks:
            # What somebody else put over it stays; without checks it lets everything pass.
            below = getattr(wrapper, "below", None)
            if below is not None and getattr(below, "is_needed", _always)():
                vars(self._pipeline)["encode_prompt"] = below
            else:
                del vars(self._pipeline)["encode_prompt"]


class PromptPatch(CallPatch):
    """Refuses text encodings that were not made with the words in place, while attached.

    Args:
        pipeline: its ``encode_prompt`` is asked by every call.
        log: what knows the encodings of prompts since the words came in.
    """

    def __init__(self, pipeline: Any, log: EncodingLog) -> None:
        super().__init__(pipeline)
        self._log = log

    def check(self, options: Mapping[str, Any]) -> None:
        """Raises IncompatibleError for encodings from elsewhere."""
        for name in ("prompt_embeds", "negative_prompt_embeds"):
            given = options.get(name)
            if isinstance(given, Tensor) and None in self._log.find(given):
                raise IncompatibleError(
                    f"{name} was not encoded with the concepts' words in place",
                    hint="give the pipeline prompt=, or call pipeline.encode_prompt(...) after attach(...)",
                )


class FilePatch(CallPatch):
    """Refuses to draw with files that changed since they were checked, while attached; it goes in after no change.

    Args:
        pipeline: its ``encode_prompt`` is asked by every call.
        files: that lie in memory as they lie on the disk.
    """

    def __init__(self, pipeline: Any, files: Sequence[MappedFile]) -> None:
        super().__init__(pipeline)
        self._files = tuple(files)

    def check(self, options: Mapping[str, Any]) -> None:
        """Raises IntegrityError if a file was written to."""
        for file in self._files:
            file.check()

    def _put_in(self) -> None:
        self.check({})
        super()._put_in()


def _run_checks(
    encode: Callable[..., Any], checks: list[CallPatch], below: Callable[..., Any] | None
) -> Callable[..., Any]:
    @functools.wraps(encode)
    def encode_prompt(*args: Any, **options: Any) -> Any:
        for one in checks:
            one.check(options)
        return encode(*args, **options)

    vars(encode_prompt).update(checks=checks, below=below)
    return encode_prompt


def _always() -> bool:
    return True


def is_guarded(owner: Any, name: str) -> bool:
    """Returns whether calls of ``name`` on ``owner`` are refused now, so that what it does was not done since."""
    return bool(_GUARDED.get(owner, {}).get(name))


def is_joined(module: nn.Module) -> bool:
    """Returns whether an attention reads keys and values from one joined layer; its flag stays set after unfusing."""
    joined = vars(module).get("fused_projections", False)
    return joined and type(vars(module).get("processor")).__name__.startswith("Fused")


def refuse_joined(root: nn.Module, name: str) -> None:
    """Raises IncompatibleError if a layer of ``root`` is one of those that joined projections stand in for."""
    if any(is_joined(module) for module in list_modules(root)):
        raise IncompatibleError(
            f"keys and values of {name} are fused into one layer, so that a change to one of them does nothing",
            hint="call pipeline.unfuse_qkv_projections() first",
        )


def refuse_grouped(root: nn.Module, name: str) -> None:
    """Raises IncompatibleError if diffusers keeps copies of weights by group, which a change would not reach."""
    for module in list_modules(root):
        hooks = vars(module).get("_diffusers_hook")
        if hooks is not None and hooks.get_hook("group_offloading") is not None:
            raise IncompatibleError(
                f"the weights of {name} are offloaded by group, so that a change to them does nothing",
                hint="attach the concept unfused, or open the pipeline without enable_group_offload",
            )
