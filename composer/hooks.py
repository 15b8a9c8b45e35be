"""What every patch shares: it goes in once, comes out once, and leaves nothing behind."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import TypeVar

from torch.utils.hooks import RemovableHandle

# Not typing.Self, which the run-time type checks of the tests cannot read in methods.
PatchT = TypeVar("PatchT", bound="Patch")


class Generation:
    """A number that grows whenever any patch goes in or comes out; what was derived from weights is stale then."""

    value: int = 0

    strengths: int = 0
    """Grows whenever the strength of any patch is set."""

    texts: int = 0
    """Grows whenever that of a patch on a text encoder is."""


class Probing:
    """Whether a layer or a text encoder is asked what it makes of what is no prompt, or none that is new; those who
    read prompts, or remember them, look away."""

    active: bool = False


@contextmanager
def probing() -> Iterator[None]:
    """Has readers of prompts look away while the block runs."""
    before, Probing.active = Probing.active, True
    try:
        yield
    finally:
        Probing.active = before


def move_last(handles: Iterable[RemovableHandle]) -> None:
    """Lets hooks run after all others of their modules; those that are gone stay so."""
    for handle in handles:
        hooks = handle.hooks_dict_ref()
        if hooks is not None and handle.id in hooks:
            hooks.move_to_end(handle.id)


class Patch(ABC):
    """One change to a pipeline. ``attach`` and ``detach`` may be called twice; the second call does nothing.

    A ``detach`` that an exception cut short is finished by the next one: ``_take_out`` may run again, and after a
    ``_put_in`` that did not come to its end. Whatever is changed is therefore noted before it is changed.
    """

    share: float = 1.0
    """What the concept's strength is multiplied by here."""

    component: str = ""
    """The component that is changed; empty for words."""

    _strength: float = 1.0

    def __init__(self) -> None:
        self._handles: list[RemovableHandle] = []
        self._attached = False

    @property
    def strength(self) -> float:
        """How much of the change is made; linear, 1 is as trained. It may be set while attached."""
        return self._strength

    @strength.setter
    def strength(self, value: float) -> None:
        self._strength = value
        self._note_strength()

    def _note_strength(self) -> None:
        Generation.strengths += 1
        if self.component.startswith("text_encoder"):
            Generation.texts += 1

    @property
    def attached(self) -> bool:
        """Whether the change is in effect."""
        return self._attached

    def attach(self: PatchT) -> PatchT:
        """Puts the change in and returns this patch; after an error nothing of it is left."""
        if self._attached:
            return self
        try:
            self._attached = True
            Generation.value += 1
            self._put_in()
        except BaseException:
            self.detach()
            raise
        return self

    def detach(self) -> None:
        """Takes the change out, exactly."""
        if not self._attached:
            return
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._take_out()
        self._attached = False
        Generation.value += 1

    def come_last(self) -> None:
        """Stands behind all others from now on, as if it were the last to come in; most meet no others."""
        move_last(self._handles)

    @abstractmethod
    def _put_in(self) -> None: ...

    def _take_out(self) -> None:  # noqa: B027  # hooks alone are removed above; only swapped values need more
        pass

    def __enter__(self: PatchT) -> PatchT:
        return self.attach()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.detach()
