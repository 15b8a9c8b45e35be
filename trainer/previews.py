"""Pictures of a concept while it is learned: at some shares of the run, from the file as it would be saved then.

Each is drawn from the noise of a fixed seed with the concept attached as anybody would attach it. The run goes on as if
nobody had looked: its own parameters are taken out for that time and put back, and chance is left as it was.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from conceptry.composer.attach import attach
from conceptry.composer.compositions import Composition
from conceptry.composer.generate import generate
from conceptry.composer.pipelines import get_device
from conceptry.concepts import Concept, open_concept
from conceptry.digests import Digest
from conceptry.errors import TrainingError
from conceptry.trainer.finish import Outcome, fill_folder
from conceptry.trainer.loop import LoopResult

if TYPE_CHECKING:
    from conceptry.trainer.context import TrainingContext
    from conceptry.trainer.learners import Learner
    from conceptry.trainer.loop import Run

FOLDER_NAME: Final = "previews"
OVERVIEW_NAME: Final = "previews.png"
SEEDS: Final = (0, 1, 2, 3)
STEPS: Final = 25
PERCENTS: Final = (0, 25, 50, 75)
"""Beside 100, which is drawn of the finished concept."""


def list_milestones(steps: int) -> Mapping[int, int]:
    """Returns after how many steps the run is at which of ``PERCENTS``."""
    return {round(steps * percent / 100): percent for percent in PERCENTS}


def can_draw(context: TrainingContext) -> bool:
    """Returns whether the base can draw while it is trained through: not where it is packed, away or compiled."""
    settings = context.job.settings
    return settings.base_precision == "full" and not settings.offload_base and not settings.compile


def draw_preview(run: Run) -> Image.Image:
    """Returns the sheet of the run as it stands, from a file that is written, read and thrown away.

    Raises:
        ConceptryError: what writing, reading or attaching a concept raises.
        OSError: if the file cannot be written.
    """
    context, learner = run.context, run.learner
    with run.state.averaged(), _detached(learner):
        folder = Path(tempfile.mkdtemp(prefix=".preview-", dir=_make(run.checkpoints.folder.parent)))
        try:
            concept = _write(context, learner, run.state.step, folder)
            return draw_sheet(context.pipeline, concept, list_prompts(context))
        finally:
            shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _detached(learner: Learner) -> Iterator[None]:
    """Takes all of the concept out, also words that stay where the base alone is asked (``Learner.absent``)."""
    learner.detach()
    try:
        yield
    finally:
        learner.attach()


def _make(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _write(context: TrainingContext, learner: Learner, step: int, folder: Path) -> Concept | None:
    """Returns the concept as it is now; None where it is the base as it was."""
    try:
        draft = learner.draft()
    except TrainingError:
        if step:
            raise
        return None
    loop = LoopResult(0.0, 0.0, steps=step, seconds=0.0, last_step=step, kept_step=max(1, step))
    nothing = torch.empty(0)
    outcome = Outcome(
        draft=draft, loop=loop, data=Digest.of_bytes(b""), instance=None, expected=nothing, plain=nothing
    )
    fill_folder(context, outcome, folder, {})
    return open_concept(folder)


def list_prompts(context: TrainingContext) -> tuple[str, ...]:
    """Returns the first prompt of each subject, as it is trained with."""
    pairs = [row[0] for row in context.prompts]
    return tuple(
        next(pair.concept for pair in pairs if pair.subject == number)
        for number in range(len(context.wordings))
    )


def draw_sheet(pipeline: Any, concept: Concept | None, prompts: Sequence[str]) -> Image.Image:
    """Returns a row of pictures, one for each of ``SEEDS``; several subjects take turns."""
    device = get_device(pipeline)
    own = nullcontext() if concept is None else attach(Composition(concept), pipeline)
    pictures = []
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), own:
        for number, seed in enumerate(SEEDS):  # one by one: the run needs the memory
            pictures += generate(pipeline, [prompts[number % len(prompts)]], [seed], steps=STEPS)
    return _join(pictures, across=True)


def save_sheet(sheet: Image.Image, folder: Path, percent: int, facts: Mapping[str, str]) -> Path:
    """Writes the sheet as ``previews/025.png`` with ``facts`` in it, and all that are there, one below the other.

    Raises:
        OSError: if it cannot be written.
    """
    info = PngInfo()
    for key, value in facts.items():
        info.add_itxt(key, value)
    path = _make(folder / FOLDER_NAME) / f"{percent:03}.png"
    sheet.save(path, format="PNG", pnginfo=info)
    rows = []
    for one in sorted(path.parent.glob("[0-9][0-9][0-9].png")):
        with Image.open(one) as opened:
            rows.append(opened.convert("RGB"))
    _join(rows, across=False).save(folder / OVERVIEW_NAME, format="PNG")
    return path


def clear_previews(folder: Path) -> None:
    """Removes the previews of a run before."""
    shutil.rmtree(folder / FOLDER_NAME, ignore_errors=True)
    (folder / OVERVIEW_NAME).unlink(missing_ok=True)


def _join(pictures: Sequence[Image.Image], *, across: bool) -> Image.Image:
    widths, heights = [one.width for one in pictures], [one.height for one in pictures]
    size = (sum(widths), max(heights)) if across else (max(widths), sum(heights))
    sheet = Image.new("RGB", size)
    x = y = 0
    for one in pictures:
        sheet.paste(one, (x, y))
        x, y = (x + one.width, 0) if across else (0, y + one.height)
    return sheet
