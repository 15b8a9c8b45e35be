"""The losses of a run as it went on: kept as lines of JSON, over interruptions too, and drawn as a picture."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Final

from conceptry.errors import MissingExtraError, StoreError

HISTORY_NAME: Final = "history.jsonl"
CURVES_NAME: Final = "curves.png"
TITLES: Final[Mapping[str, str]] = {
    "training": "loss while training (running mean)",
    "held_out": "loss on held-out noise (what the best values are kept by)",
}
_LINES_AT_ONCE: Final = 20


@dataclass(frozen=True, slots=True)
class Point:
    """One measured loss."""

    curve: str
    step: int
    loss: float


@dataclass(slots=True)
class History:
    """The points of one run, in a file of its folder. A run that goes on drops what lies beyond its checkpoint."""

    path: Path
    points: list[Point] = field(default_factory=list)
    _written: int = 0

    def begin(self, first_step: int) -> None:
        """Takes over the points up to ``first_step`` of the run before, where this one goes on with it."""
        before = [point for point in _read(self.path) if point.step <= first_step] if first_step else []
        self.points[:0] = before
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.unlink(missing_ok=True)
        self._written = 0
        self.flush()

    def add(self, point: Point) -> None:
        """Adds a point, and writes those of some steps at once. Raises OSError."""
        self.points.append(point)
        if len(self.points) - self._written >= _LINES_AT_ONCE:
            self.flush()

    def flush(self) -> None:
        """Writes what is not written yet. Raises OSError."""
        with self.path.open("a", encoding="utf-8") as file:
            for point in self.points[self._written :]:
                file.write(json.dumps({"curve": point.curve, "step": point.step, "loss": point.loss}) + "\n")
        self._written = len(self.points)


def _read(path: Path) -> list[Point]:
    found = []
    with suppress(OSError, ValueError):
        for line in path.read_text(encoding="utf-8").splitlines():
            with suppress(ValueError, KeyError, TypeError):  # the last line of a process that was killed
                row = json.loads(line)
                found.append(Point(str(row["curve"]), int(row["step"]), float(row["loss"])))
    return found


def check_plots() -> None:
    """Raises MissingExtraError if there is nothing to draw curves with."""
    try:
        found = find_spec("matplotlib")
    except ImportError:
        found = None
    if found is None:
        raise MissingExtraError(
            "curves are drawn with the package matplotlib, which is not installed",
            hint="pip install 'conceptry[plots]', or leave --curves out",
        )


def draw_curves(points: Sequence[Point], path: Path, *, title: str) -> None:
    """Writes the curves to ``path`` as PNG. Raises StoreError if it cannot be written."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    for curve, label in TITLES.items():
        own = [point for point in points if point.curve == curve]
        if own:
            mark = "o" if curve == "held_out" else None
            axes.plot([point.step for point in own], [point.loss for point in own], marker=mark, label=label)
    axes.set_title(title, parse_math=False)
    axes.set_xlabel("step")
    axes.set_ylabel("loss")
    if points:
        axes.legend()
    private = path.with_suffix(".part")
    try:
        figure.savefig(private, format="png", dpi=120)
        private.replace(path)
    except OSError as error:
        private.unlink(missing_ok=True)
        raise StoreError(f"the curves cannot be written to {str(path)!r}: {error}") from error
