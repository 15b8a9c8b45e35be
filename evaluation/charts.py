"""Charts as SVG text: points with intervals, and curves. No library is asked for, so that a report needs no extra."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from typing import Final

_WIDTH: Final = 640
_HEIGHT: Final = 420
_LEFT: Final = 64
_RIGHT: Final = 20
_TOP: Final = 34
_BOTTOM: Final = 50
_TICKS: Final = 6
_LABEL_PIXELS: Final = 11
_CHAR_PIXELS: Final = 6.0
_FEW_VALUES: Final = 12
_INK: Final = "#1e2026"
_FAINT: Final = "#dfe2e6"
_AXIS: Final = "#8a909c"
_COLORS: Final = ("#1f6feb", "#d1492e", "#2d8a4e", "#8250df", "#b8860b", "#0d8a8a", "#c2408b", "#57606a")


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One named point; the interval is of x."""

    name: str
    x: float
    y: float
    interval: tuple[float, float] | None = None
    is_front: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """One named line."""

    name: str
    values: tuple[tuple[float, float], ...]


class _Frame:
    """Maps values to pixels."""

    def __init__(self, xs: Sequence[float], ys: Sequence[float]) -> None:
        self.x_low, self.x_high = _widen(xs)
        self.y_low, self.y_high = _widen(ys)

    def place(self, x: float, y: float) -> tuple[float, float]:
        across = (x - self.x_low) / (self.x_high - self.x_low)
        up = (y - self.y_low) / (self.y_high - self.y_low)
        return (
            round(_LEFT + across * (_WIDTH - _LEFT - _RIGHT), 1),
            round(_HEIGHT - _BOTTOM - up * (_HEIGHT - _TOP - _BOTTOM), 1),
        )

    def draw(self, title: str, x_label: str, y_label: str) -> list[str]:
        parts = [
            f'<text x="{_LEFT}" y="20" font-size="15" font-weight="600">{escape(title)}</text>',
            f'<text x="{_WIDTH / 2}" y="{_HEIGHT - 12}" text-anchor="middle">{escape(x_label)}</text>',
            f'<text transform="translate(16 {_HEIGHT / 2}) rotate(-90)" text-anchor="middle">{escape(y_label)}</text>',
        ]
        left, bottom = self.place(self.x_low, self.y_low)
        parts.append(
            f'<line x1="{left}" y1="{bottom}" x2="{_WIDTH - _RIGHT}" y2="{bottom}" stroke="{_AXIS}"/>'
        )
        for x in list_ticks(self.x_low, self.x_high):
            place = self.place(x, self.y_low)[0]
            parts += [
                f'<line x1="{place}" y1="{bottom}" x2="{place}" y2="{bottom + 4}" stroke="{_AXIS}"/>',
                f'<text x="{place}" y="{bottom + 18}" text-anchor="middle" font-size="11">{x:g}</text>',
            ]
        for y in list_ticks(self.y_low, self.y_high):
            start, level = self.place(self.x_low, y)
            parts += [
                f'<line x1="{start}" y1="{level}" x2="{_WIDTH - _RIGHT}" y2="{level}" stroke="{_FAINT}"/>',
                f'<text x="{start - 6}" y="{level + 4}" text-anchor="end" font-size="11">{y:g}</text>',
            ]
        return parts


def list_ticks(low: float, high: float) -> list[float]:
    """Returns about six round numbers between ``low`` and ``high``: multiples of 1, 2 or 5 of a power of ten."""
    rough = (high - low) / _TICKS
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * digit for digit in (1, 2, 5, 10) if power * digit >= rough)
    first, last = math.ceil(low / step), math.floor(high / step)
    return [float(f"{number * step:.12g}") for number in range(first, last + 1)]


def _widen(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values, default=0.0), max(values, default=1.0)
    margin = 0.06 * (high - low) or 0.5
    return low - margin, high + margin


def _wrap(parts: Sequence[str], label: str) -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" '
        f'aria-label="{escape(label, quote=True)}" font-family="sans-serif" font-size="12" fill="{_INK}">'
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="#ffffff"/>{"".join(parts)}</svg>'
    )


def draw_front(points: Sequence[Point], *, title: str, x_label: str, y_label: str) -> str:
    """Returns points with their intervals, and a line along those that no other is better than in both."""
    ends = [end for point in points for end in (point.interval or (point.x,))]
    frame = _Frame([*ends, *(point.x for point in points)], [point.y for point in points])
    parts = frame.draw(title, x_label, y_label)
    front = sorted((point.x, point.y) for point in points if point.is_front)
    if len(front) > 1:
        path = " ".join(f"{x},{y}" for x, y in (frame.place(*one) for one in front))
        parts.append(f'<polyline points="{path}" fill="none" stroke="{_COLORS[1]}" stroke-dasharray="5 4"/>')
    for point in points:
        x, y = frame.place(point.x, point.y)
        color = _COLORS[1] if point.is_front else _COLORS[0]
        if point.interval is not None:
            low, high = (frame.place(end, point.y)[0] for end in point.interval)
            parts.append(
                f'<line x1="{low}" y1="{y}" x2="{high}" y2="{y}" stroke="{color}" stroke-opacity="0.45"/>'
            )
        parts.append(f'<circle cx="{x}" cy="{y}" r="4" fill="{color}"/>')
    return _wrap([*parts, *_label([frame.place(one.x, one.y) for one in points], points)], title)


Box = tuple[float, float, float, float]


def _label(places: Sequence[tuple[float, float]], points: Sequence[Point]) -> Iterator[str]:
    """Names each point where it covers least of the points and of the names that were written before."""
    taken: list[Box] = [(x - 5, y - 5, x + 5, y + 5) for x, y in places]
    for (x, y), point in zip(places, points, strict=True):
        boxes = _list_boxes(x, y, _CHAR_PIXELS * len(point.name))
        left, top, right, bottom = min(boxes, key=lambda box: _measure_cover(box, taken))
        taken.append((left, top, right, bottom))
        yield f'<text x="{left:.1f}" y="{bottom - 2:.1f}" font-size="{_LABEL_PIXELS}">{escape(point.name)}</text>'


def _list_boxes(x: float, y: float, width: float) -> list[Box]:
    """Places for a name of that width around a point, the best first, farther ones last."""
    high = _LABEL_PIXELS + 2
    boxes = []
    for far in (0, high, 2 * high, 3 * high):
        for left in (x + 7, x - 7 - width, x - width / 2):
            boxes += [(left, y - 6 - high - far, left + width, y - 6 - far)]
            boxes += [(left, y + 6 + far, left + width, y + 6 + high + far)]
    return boxes


def _measure_cover(box: Box, taken: Sequence[Box]) -> float:
    """Returns how much of ``taken`` a box covers, and of what lies outside of the frame, in square pixels."""
    left, top, right, bottom = box
    inside = _cut(box, (_LEFT, _TOP, _WIDTH - _RIGHT, _HEIGHT - _BOTTOM))
    return (right - left) * (bottom - top) - inside + sum(_cut(box, other) for other in taken)


def _cut(one: Box, other: Box) -> float:
    across = min(one[2], other[2]) - max(one[0], other[0])
    down = min(one[3], other[3]) - max(one[1], other[1])
    return max(0.0, across) * max(0.0, down)


def draw_curves(curves: Sequence[Curve], *, title: str, x_label: str, y_label: str) -> str:
    """Returns lines with their names at the right."""
    values = [value for curve in curves for value in curve.values]
    frame = _Frame([x for x, _ in values], [y for _, y in values])
    parts = frame.draw(title, x_label, y_label)
    for number, curve in enumerate(curves):
        color = _COLORS[number % len(_COLORS)]
        places = [frame.place(*one) for one in curve.values]
        path = " ".join(f"{x},{y}" for x, y in places)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{color}" stroke-width="1.6"/>')
        if len(places) <= _FEW_VALUES:
            parts += [f'<circle cx="{x}" cy="{y}" r="3" fill="{color}"/>' for x, y in places]
        parts.append(
            f'<text x="{_WIDTH - _RIGHT}" y="{_TOP + 14 * number}" text-anchor="end" fill="{color}" '
            f'font-size="11">{escape(curve.name)}</text>'
        )
    return _wrap(parts, title)
