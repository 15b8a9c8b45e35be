"""Concepts in turn, for a part of the steps, or in a part of the picture: what changes while a picture is drawn.

Time is read from the scheduler, which every pipeline tells its timestep before it asks the denoiser; passes over
regions, and over concepts one by one, are runs of the denoiser with other strengths, whose answers are put together.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import torch
from torch import Tensor, nn

from conceptry.bases import ComponentName
from conceptry.composer.compiled import BypassPatch
from conceptry.composer.compositions import Composition
from conceptry.composer.emphasis import emphasized, join_pieces, set_aside
from conceptry.composer.focus import Focus
from conceptry.composer.hooks import Patch
from conceptry.composer.pipelines import Pipeline, get_device, list_components
from conceptry.composer.prompts import parse_weights
from conceptry.composer.regions import weigh_regions
from conceptry.composer.slots import DENOISERS, Slot
from conceptry.composer.standins import together
from conceptry.composer.ways import WAY_BY_ID, Pass
from conceptry.errors import IncompatibleError, UsageError

_MARK: Final = "_conceptry_steering"


class Clock:
    """Which step of how many a drawing is in."""

    def __init__(self) -> None:
        self.step = 0
        self.steps = 1

    @property
    def progress(self) -> float:
        """The share of the steps that are done."""
        return self.step / self.steps


class Steering(Patch):
    """Sets the strengths of a composition's concepts before each step, and draws regions and turns in passes.

    Args:
        pipeline: the one that the slots are in.
        composition: whose schedules, regions and way are followed.
        slots: of its concepts, in order.

    Raises:
        UsageError: if regions are asked for in a way that takes passes of its own.
        IncompatibleError: at ``attach``, if something else steers this pipeline; nothing is then changed.
    """

    def __init__(self, pipeline: Pipeline, composition: Composition, slots: Sequence[Slot]) -> None:
        super().__init__()
        self._pipeline, self._composition, self._slots = pipeline, composition, slots
        self._clock = Clock()
        self._way = WAY_BY_ID[composition.way]
        self._regions = {
            place: member.use.region
            for place, member in enumerate(composition.members)
            if member.use.region is not None
        }
        self._masks = {mask.digest: mask for mask in composition.masks}
        if self._regions and self._way.passes:
            raise UsageError(
                f"regions and the way {self._way.id!r} both take passes of their own", hint="use one"
            )
        focused = self._way.focused and len(slots) > 1
        self._focus = Focus(pipeline, [slot.member for slot in slots]) if focused else None
        self._prompts: dict[int, tuple[Tensor, Tensor | None]] = {}
        self._wrapped: list[tuple[Any, str, Callable[..., Any], Callable[..., Any] | None]] = []
        self._bypass: BypassPatch | None = None

    @property
    def needed(self) -> bool:
        """Whether anything changes while a picture is drawn."""
        timed = any(member.use.schedule is not None for member in self._composition.members)
        return timed or bool(self._regions) or self._way.id != "sum"

    @property
    def _in_passes(self) -> bool:
        return bool(self._regions) or self._way.passes

    def _put_in(self) -> None:
        if not self.needed:
            return
        scheduler = self._pipeline.scheduler
        if _MARK in scheduler.__dict__:
            raise IncompatibleError(
                "another composition follows the steps of this pipeline already",
                hint="put the concepts into one composition",
            )
        component, denoiser = _find_denoiser(self._pipeline)
        scheduler.__dict__[_MARK] = self
        for name, make in _CLOCKWORK.items():
            if hasattr(scheduler, name):
                self._wrap(scheduler, name, make(self, getattr(scheduler, name)))
        if self._in_passes:
            # What is compiled would be traced through us, and anew whenever a pass has other strengths.
            self._bypass = BypassPatch(self._pipeline, [component])
            self._bypass.attach()
            self._read_prompts()
            self._wrap(denoiser, "forward", _make_forward(self, denoiser.forward))
        if self._focus is not None:
            watching = self._focus.watch(self._pipeline.encode_prompt, is_needed=self._is_attached)
            self._wrap(self._pipeline, "encode_prompt", watching)
        self.follow(0)

    def _take_out(self) -> None:
        if not self.needed:
            return
        for owner, name, wrapper, below in reversed(self._wrapped):
            # What somebody else put over it stays; ours lets everything pass from now on.
            if owner.__dict__.get(name) is wrapper and below is not None:
                owner.__dict__[name] = below
            elif owner.__dict__.get(name) is wrapper:
                del owner.__dict__[name]
        for owner in (self._pipeline.scheduler, *(row[0] for row in self._wrapped)):
            if owner.__dict__.get(_MARK) is self:
                del owner.__dict__[_MARK]
        self._prompts.clear()
        if self._bypass is not None:
            self._bypass.detach()
            self._bypass = None
        with together():
            for slot in self._slots:
                slot.steer(1.0)
        self._wrapped.clear()

    def _is_attached(self) -> bool:
        return self.attached

    def _wrap(self, owner: Any, name: str, wrapper: Callable[..., Any]) -> None:
        below = owner.__dict__.get(name)
        self._wrapped.append((owner, name, wrapper, below))
        owner.__dict__[name] = wrapper

    # --- while a picture is drawn --------------------------------------------------------------------------------

    def follow(self, step: int, steps: int | None = None) -> None:
        """Takes note of the step that comes next, and sets the strengths for it."""
        self._clock.step = step
        self._clock.steps = max(1, steps or self._clock.steps)
        if self._focus is not None and step == 0:
            self._focus.begin()
        if not self._in_passes:
            self._steer(self.list_passes()[0])

    def begin(self, steps: int) -> None:
        """Takes note of a picture that begins: what regions read is encoded with all that is in by now."""
        if self._prompts:
            self._read_prompts()
        self.follow(0, steps)

    def _read_prompts(self) -> None:
        # Encoded long ago they would be strangers to those who watch text encoders for the words of the last prompts.
        self._prompts = {
            place: _encode(self._pipeline, region.prompt)
            for place, region in self._regions.items()
            if region.prompt is not None
        }

    def list_passes(self) -> tuple[Pass, ...]:
        """Returns what the way has in this step, each with the factors of the schedules."""
        steerable = [slot.steerable for slot in self._slots]
        passes = self._way.arrange(steerable, self._clock.step, self._composition.period)
        schedules = [member.use.schedule for member in self._composition.members]
        timed = [1.0 if one is None else one.factor(self._clock.progress) for one in schedules]
        return tuple(
            Pass(tuple(a * b for a, b in zip(one.factors, timed, strict=True)), one.weight) for one in passes
        )

    def _steer(self, one: Pass) -> None:
        with together():
            for slot, factor in zip(self._slots, one.factors, strict=True):
                slot.steer(factor)

    def run(self, original: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Returns what the passes answer together, in the form in which the denoiser answers."""
        sample = args[0] if args else kwargs["sample"]
        passes = self.list_passes()
        if self._focus is not None:
            return _wrap_answer(*self._focus.run(original, args, kwargs, passes=passes, steer=self._steer))
        if self._regions:
            passes = weigh_regions(passes[0], self._regions, sample=sample, masks=self._masks)
        total: Any = None
        answer: Any = None
        for one in passes:
            self._steer(one)
            answer = original(*args, **self._exchange_prompt(one, kwargs))
            part = answer[0] * one.weight
            total = part if total is None else total + part
        return _wrap_answer(total, answer)

    def _exchange_prompt(self, one: Pass, kwargs: dict[str, Any]) -> dict[str, Any]:
        """Returns the arguments with the region's own prompt in the half of the batch that is drawn by a prompt."""
        own = None if one.region is None else self._prompts.get(one.region)
        if own is None:
            return kwargs
        guided = bool(getattr(self._pipeline, "do_classifier_free_guidance", False))
        changed = {
            **kwargs,
            "encoder_hidden_states": _exchange(kwargs["encoder_hidden_states"], own[0], guided),
        }
        conditions = kwargs.get("added_cond_kwargs")
        if own[1] is not None and conditions and "text_embeds" in conditions:
            pooled = _exchange(conditions["text_embeds"], own[1], guided)
            changed["added_cond_kwargs"] = {**conditions, "text_embeds": pooled}
        return changed


def _wrap_answer(total: Tensor, answer: Any) -> Any:
    """Returns a prediction in the form in which the denoiser answers."""
    return (total, *answer[1:]) if isinstance(answer, tuple) else type(answer)(sample=total)


def _exchange(given: Tensor, own: Tensor, guided: bool) -> Tensor:
    start = len(given) // 2 if guided else 0
    return torch.cat([given[:start], own.to(given).expand(len(given) - start, *own.shape[1:])])


@torch.no_grad()
def _encode(pipeline: Pipeline, prompt: str) -> tuple[Tensor, Tensor | None]:
    """Returns a region's prompt as it is read, with the weights of its words as in any other prompt."""
    pieces = parse_weights(prompt)
    with set_aside(pipeline), emphasized(pipeline, pieces):
        encoded = pipeline.encode_prompt(
            prompt=[join_pieces(pieces)],
            device=get_device(pipeline),
            num_images_per_prompt=1,
            do_classifier_free_guidance=False,
        )
    return encoded[0], encoded[2] if len(encoded) > 2 else None


def _find_denoiser(pipeline: Pipeline) -> tuple[ComponentName, nn.Module]:
    for name, module in list_components(pipeline).items():
        if name in DENOISERS:
            return name, module
    raise IncompatibleError("this pipeline has no denoiser whose steps could be followed")


# --- what stands around the pipeline's own -------------------------------------------------------------------------

_Method = Callable[..., Any]


def _make_forward(steering: Steering, original: _Method) -> _Method:
    @functools.wraps(original)
    def forward(*args: Any, **kwargs: Any) -> Any:
        if not steering.attached:
            return original(*args, **kwargs)
        return steering.run(original, args, kwargs)

    return forward


def _watch_start(steering: Steering, original: _Method) -> _Method:
    @functools.wraps(original)
    def set_timesteps(*args: Any, **kwargs: Any) -> Any:
        answer = original(*args, **kwargs)
        if steering.attached:
            steering.begin(len(original.__self__.timesteps))  # type: ignore[attr-defined]
        return answer

    return set_timesteps


def _watch_input(steering: Steering, original: _Method) -> _Method:
    @functools.wraps(original)
    def scale_model_input(sample: Tensor, timestep: Any = None, *args: Any, **kwargs: Any) -> Any:
        if steering.attached and timestep is not None:
            times = original.__self__.timesteps  # type: ignore[attr-defined]
            found = (times.cpu() == torch.as_tensor(timestep).cpu()).nonzero().flatten()
            if len(found):
                steering.follow(int(found[0]), len(times))
        return original(sample, timestep, *args, **kwargs)

    return scale_model_input


def _watch_step(steering: Steering, original: _Method) -> _Method:
    """Schedulers of flows are not told the timestep beforehand: the step after this one comes next."""

    @functools.wraps(original)
    def step(model_output: Any, timestep: Any, *args: Any, **kwargs: Any) -> Any:
        answer = original(model_output, timestep, *args, **kwargs)
        times = original.__self__.timesteps  # type: ignore[attr-defined]
        if steering.attached:
            found = (times.cpu() == torch.as_tensor(timestep).cpu()).nonzero().flatten()
            if len(found):
                steering.follow(min(int(found[-1]) + 1, len(times) - 1), len(times))
        return answer

    return step


_CLOCKWORK: Final[Mapping[str, Callable[[Steering, _Method], _Method]]] = {
    "set_timesteps": _watch_start,
    "scale_model_input": _watch_input,
    "step": _watch_step,
}
