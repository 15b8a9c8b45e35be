"""Charts as SVG text: points with intervals, and curves. No library is asked for, so that a report needs no extra."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Final

_WIDTH: Final = 640
_HEIGHT: Final = 420
_LEFT: Final = 64
_RIGHT: Final = 20
_TOP: Final = 34
_BOTTOM: Final = 50
_INK: Final = "#1e2026"
_FAINT: Final = "#c9ccd2"
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
        for share in (0.0, 0.25, 0.5, 0.75, 1.0):
            x = self.x_low + share * (self.x_high - self.x_low)
            y = self.y_low + share * (self.y_high - self.y_low)
            left, bottom = self.place(x, self.y_low)
            start, level = self.place(self.x_low, y)
            parts += [
                f'<line x1="{start}" y1="{level}" x2="{_WIDTH - _RIGHT}" y2="{level}" stroke="{_FAINT}"/>',
                f'<text x="{left}" y="{bottom + 18}" text-anchor="middle" font-size="11">{x:.3g}</text>',
                f'<text x="{start - 6}" y="{level + 4}" text-anchor="end" font-size="11">{y:.3g}</text>',
            ]
        return parts


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
        anchor, shift = ("end", -7) if x > _WIDTH - 180 else ("start", 7)
        parts.append(
            f'<text x="{x + shift}" y="{y - 6}" text-anchor="{anchor}" font-size="11">{escape(point.name)}</text>'
        )
    return _wrap(parts, title)


def draw_curves(curves: Sequence[Curve], *, title: str, x_label: str, y_label: str) -> str:
    """Returns lines with their names at the right."""
    values = [value for curve in curves for value in curve.values]
    frame = _Frame([x for x, _ in values], [y for _, y in values])
    parts = frame.draw(title, x_label, y_label)
    for number, curve in enumerate(curves):
        color = _COLORS[number % len(_COLORS)]
        path = " ".join(f"{x},{y}" for x, y in (frame.place(*one) for one in curve.values))
        parts.append(f'<polyline points="{path}" fill="none" stroke="{color}" stroke-width="1.6"/>')
        parts.append(
            f'<text x="{_WIDTH - _RIGHT}" y="{_TOP + 14 * number}" text-anchor="end" fill="{color}" '
            f'font-size="11">{escape(curve.name)}</text>'
        )
    return _wrap(parts, title)
