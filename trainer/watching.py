"""What looks on while a run is made: previews, curves, events for TensorBoard, the share of the device's limit.

The run is the same with it and without. What cannot be drawn or written is a warning, never the end of a run.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image

from conceptry.concepts import Concept
from conceptry.errors import ConceptryError
from conceptry.trainer.arithmetic import OperationCounter, measure_ceiling
from conceptry.trainer.boards import Board, check_tensorboard
from conceptry.trainer.curves import CURVES_NAME, HISTORY_NAME, History, Point, check_plots, draw_curves
from conceptry.trainer.events import OnEvent, Onlooker, TrainEvent, WatchOptions
from conceptry.trainer.jobs import TrainJob
from conceptry.trainer.previews import (
    SEEDS,
    can_draw,
    clear_previews,
    draw_preview,
    draw_sheet,
    list_milestones,
    list_prompts,
    save_sheet,
)

if TYPE_CHECKING:
    from conceptry.trainer.context import TrainingContext
    from conceptry.trainer.loop import Run


def check_options(options: WatchOptions) -> None:
    """Raises MissingExtraError if a package is missing for what is wanted, before anything begins."""
    if options.curves:
        check_plots()
    if options.tensorboard is not None:
        check_tensorboard()


class Watch(Onlooker):
    """Looks on at one run, whose files go into ``folder``."""

    def __init__(self, options: WatchOptions, job: TrainJob, folder: Path, on_event: OnEvent) -> None:
        self._options, self._job, self._folder, self._tell = options, job, folder, on_event
        wanted = options.curves or options.tensorboard is not None
        self._history = History(folder / HISTORY_NAME) if wanted else None
        self._board = None if options.tensorboard is None else Board(options.tensorboard, job)
        self._pace = _Pace()
        self._begun = False

    def follow(self, event: TrainEvent) -> None:
        """Takes an event of the run, and passes it on with the share of the limit."""
        if event.kind == "step":
            if event.loss is not None:
                self._add(Point("training", event.step, event.loss))
            event = replace(event, share=self._pace.note(event.step))
        self._tell(event)

    def note_measure(self, step: int, loss: float) -> None:
        """Takes a loss on held-out noise."""
        self._add(Point("held_out", step, loss))

    def _add(self, point: Point) -> None:
        with self._forgiven("the curves"):
            if self._history is not None and self._begun:
                self._history.add(point)
            elif self._history is not None:  # before it is known whether the run goes on with another
                self._history.points.append(point)
            if self._board is not None and self._begun:
                self._board.add(point)

    @contextmanager
    def counted(self, runs: int) -> Iterator[None]:
        """Counts the operations of the first step, where one run has the device to itself."""
        if self._options.share and self._pace.wants_count and runs == 1:
            with OperationCounter() as counter:
                yield
            self._pace.operations = counter.operations
        else:
            yield

    def look(self, run: Any) -> None:
        """Draws what is due at this step; the first call is before the first step."""
        with self._pace.paused():
            if not self._begun:
                self._begin(run)
            percent = list_milestones(run.context.job.settings.steps).get(run.state.step)
            wanted = self._options.previews and not run.state.ended and can_draw(run.context)
            if wanted and percent is not None and (run.state.step > run.first_step or not run.first_step):
                with self._forgiven("the previews"):
                    self._keep(draw_preview(run), percent, run.state.step, run.context)

    def _begin(self, run: Run) -> None:
        self._begun = True
        first_step, context = run.first_step, run.context
        if self._options.previews and not first_step:
            clear_previews(self._folder)
        if self._options.previews and not can_draw(context):
            context.warn("on a base that is packed, away or compiled, only the finished concept is drawn")
        if self._options.share and not context.job.settings.compile:
            self._pace.ceiling = measure_ceiling(context.device, context.autocast_dtype or torch.float32)
        with self._forgiven("the curves"):
            if self._history is not None:
                self._history.begin(first_step)
            if self._board is not None and self._history is not None:
                self._board.begin(first_step)
                for point in [] if first_step else self._history.points:
                    self._board.add(point)

    def conclude(self, concept: Concept, context: TrainingContext) -> None:
        """Draws the finished concept."""
        if self._options.previews:
            context.announce("drawing the finished concept")
            with self._forgiven("the previews"):
                sheet = draw_sheet(context.pipeline, concept, list_prompts(context))
                self._keep(sheet, 100, context.job.settings.steps, context)

    def close(self) -> None:
        """Writes the curves, also of a run that failed or was stopped."""
        with self._forgiven("the curves"):
            if self._history is not None and self._begun:
                self._history.flush()
                if self._options.curves:
                    draw_curves(self._history.points, self._folder / CURVES_NAME, title=str(self._job.name))
            if self._board is not None:
                self._board.close()

    def _keep(self, sheet: Image.Image, percent: int, step: int, context: TrainingContext) -> None:
        facts = {
            "concept": f"{self._job.name}@{self._job.version}",
            "step": str(step),
            "prompts": "; ".join(list_prompts(context)),
            "seeds": ", ".join(str(seed) for seed in SEEDS),
        }
        save_sheet(sheet, self._folder, percent, facts)
        if self._board is not None:
            self._board.add_picture(sheet, step)

    @contextmanager
    def _forgiven(self, what: str) -> Iterator[None]:
        try:
            yield
        except (ConceptryError, OSError, RuntimeError, MemoryError) as error:
            reason = str(error).splitlines()[0][:160] if str(error) else type(error).__name__
            self._tell(TrainEvent(kind="warning", message=f"{what} cannot be made now: {reason}"))


class _Pace:
    """The share of the ceiling that the steps after the counted one reach, without the time of looking on."""

    def __init__(self) -> None:
        self.operations = 0
        self.ceiling = 0.0
        self._first_step: int | None = None
        self._started = 0.0
        self._away = 0.0

    @property
    def wants_count(self) -> bool:
        return self.ceiling > 0 and not self.operations

    def note(self, step: int) -> float | None:
        """Returns the share so far, once a step was made after the counted one."""
        now = time.perf_counter()
        if self._first_step is None:
            self._first_step, self._started, self._away = step, now, 0.0
            return None
        seconds = now - self._started - self._away
        if not self.operations or seconds <= 0:
            return None
        return self.operations * (step - self._first_step) / seconds / self.ceiling

    @contextmanager
    def paused(self) -> Iterator[None]:
        started = time.perf_counter()
        try:
            yield
        finally:
            self._away += time.perf_counter() - started
