"""Pipelines that the tests of this room share; each test must leave them as it found them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.fakes.pipelines import Shape, assert_same, make_pipeline, snapshot

_MADE: dict[Shape, Any] = {}


def _lend(shape: Shape) -> Iterator[Any]:
    if shape not in _MADE:
        _MADE[shape] = make_pipeline(shape)
    before = snapshot(_MADE[shape], with_settings=False)
    yield _MADE[shape]
    assert_same(before, snapshot(_MADE[shape], with_settings=False))


@pytest.fixture
def sd1() -> Iterator[Any]:
    """SD1.5 in shape; after the test every bit of it is compared with before."""
    yield from _lend("sd1")


@pytest.fixture
def sdxl() -> Iterator[Any]:
    """SDXL in shape, with both text encoders; compared likewise."""
    yield from _lend("sdxl")


@pytest.fixture(params=["sd1", "sd2", "sdxl"])
def pipeline(request: pytest.FixtureRequest) -> Iterator[Any]:
    """Each shape in turn; compared likewise."""
    yield from _lend(request.param)
