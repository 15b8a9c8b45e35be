"""Charts: round numbers at the axes, and names that do not cover one another."""

from __future__ import annotations

import re
from itertools import pairwise

import pytest

from conceptry.evaluation.charts import Point, draw_front, list_ticks


@pytest.mark.parametrize(
    ("low", "high"), [(0.379, 0.934), (-0.36, 6.36), (0.0, 1e-4), (-3e5, 9e5), (0.1982, 0.2258)]
)
def test_ticks_are_a_few_round_numbers_inside(low: float, high: float) -> None:
    ticks = list_ticks(low, high)
    assert 3 <= len(ticks) <= 8
    assert low <= min(ticks)
    assert max(ticks) <= high
    assert all(len(f"{tick:g}".strip("-").replace(".", "").strip("0").split("e")[0]) <= 4 for tick in ticks)
    steps = {round((b - a) / (high - low), 9) for a, b in pairwise(ticks)}
    assert len(steps) == 1


def test_names_of_near_points_do_not_cover_one_another() -> None:
    points = [Point(name=f"method-{n}", x=0.5 + 0.01 * n, y=0.5 + 0.004 * n) for n in range(5)]
    points += [Point(name="far", x=0.0, y=0.0), Point(name="away", x=1.0, y=1.0)]
    chart = draw_front(points, title="t", x_label="x", y_label="y")
    found = re.findall(r'<text x="([\d.]+)" y="([\d.]+)" font-size="11">([\w-]+)</text>', chart)
    assert sorted(name for *_, name in found) == sorted(point.name for point in points)
    boxes = [(float(x), float(y), float(x) + 6 * len(name), float(y) + 11) for x, y, name in found]
    for place, one in enumerate(boxes):
        for other in boxes[place + 1 :]:
            apart = one[2] <= other[0] or other[2] <= one[0] or one[3] <= other[1] or other[3] <= one[1]
            assert apart, (one, other)
