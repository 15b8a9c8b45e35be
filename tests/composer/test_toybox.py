"""The bundled base is a base like any other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from conceptry.base_locations import resolve_base
from conceptry.bases import locate_toybox
from conceptry.composer import Composition, attach, identify_pipeline, load_pipeline
from conceptry.composer.generate import generate
from conceptry.errors import NotFoundError
from tests.fakes.concepts import MAKERS
from tests.fakes.pipelines import assert_same, snapshot


@pytest.fixture(scope="module")
def toybox() -> Any:
    try:
        locate_toybox()
    except NotFoundError:
        pytest.skip("the toybox has no weights yet")
    return load_pipeline(resolve_base("toybox", {}))


def test_it_is_told_by_its_widths(toybox: Any) -> None:
    found = identify_pipeline(toybox)
    assert (found.family, found.prediction_type) == ("toybox", "v_prediction")


def test_all_kinds_work_on_it_and_leave_nothing_behind(toybox: Any, tmp_path: Path) -> None:
    concepts = [make(tmp_path / kind, toybox) for kind, make in MAKERS.items()]
    plain = generate(toybox, ["a red ball"], [1], steps=2, guidance=2.0)[0].tobytes()
    before = snapshot(toybox, with_settings=False)
    with attach(Composition(*concepts[:2]), toybox):
        assert generate(toybox, ["a red ball"], [1], steps=2, guidance=2.0)[0].tobytes() == plain
    with attach(Composition(*concepts), toybox):
        assert generate(toybox, ["a <e> and a <r>"], [1], steps=2, guidance=2.0)[0].tobytes() != plain
    assert_same(before, snapshot(toybox, with_settings=False))
    assert generate(toybox, ["a red ball"], [1], steps=2, guidance=2.0)[0].tobytes() == plain
