"""What differs between two versions is measured on their bytes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from conceptry.formats.tensors import RawTensor, write_tensors
from conceptry.registry import Registry
from conceptry.registry.diffs import Difference, compare_concepts, measure_change
from tests.registry.folders import write_folder

RNG = np.random.default_rng(7)
DOWN = RNG.standard_normal((4, 320)).astype(np.float32)


def make_file(path: Path, **arrays: np.ndarray[Any, Any]) -> bytes:
    """Return the bytes of a safetensors file with the arrays in it."""
    write_tensors(path, {name: RawTensor.from_numpy(array) for name, array in arrays.items()})
    return path.read_bytes()


def compare(registry: Registry, tmp_path: Path, first: bytes, second: bytes, **more: Any) -> Difference:
    registry.publish(write_folder(tmp_path / "one", version="1.0.0", file=first))
    registry.publish(write_folder(tmp_path / "two", version="1.1.0", file=second, **more))
    return compare_concepts(registry.get("me/imp@1.0.0"), registry.get("me/imp@1.1.0"))


def test_tensors_are_added_removed_changed_and_equal(registry: Registry, tmp_path: Path) -> None:
    first = make_file(tmp_path / "a", down=DOWN, up=DOWN, old=DOWN)
    second = make_file(tmp_path / "b", down=DOWN * np.float32(2), up=DOWN, new=DOWN)
    found = compare(registry, tmp_path, first, second, title="Imp")
    assert found.added_tensors == ("sd1-lora/lora.safetensors: new",)
    assert found.removed_tensors == ("sd1-lora/lora.safetensors: old",)
    (changed,) = found.changed_tensors
    assert (changed.tensor, changed.before) == ("down", "F32 [4, 320]")
    assert changed.relative_change == pytest.approx(1, rel=1e-12)
    assert found.equal_tensors == 1
    assert [(row.place, row.before, row.after) for row in found.fields] == [
        ("title", "", "Imp"),
        ("version", "1.0.0", "1.1.0"),
    ]


def test_another_order_of_the_same_tensors_is_no_difference(registry: Registry, tmp_path: Path) -> None:
    data = make_file(tmp_path / "a", down=DOWN, up=DOWN)
    padded = int.from_bytes(data[:8], "little")
    spaced = (padded + 8).to_bytes(8, "little") + data[8 : 8 + padded] + b" " * 8 + data[8 + padded :]
    found = compare(registry, tmp_path, data, spaced)
    assert (found.changed_tensors, found.added_tensors, found.equal_tensors) == ((), (), 2)


def test_change_is_that_of_numpy_in_float64_across_dtypes_and_pieces() -> None:
    before = RNG.standard_normal((600, 601))
    after = before + 0.01 * RNG.standard_normal(before.shape)
    one, two = before.astype(np.float16), after.astype(np.float32)
    wide = one.astype(np.float64)
    expected = np.linalg.norm(two.astype(np.float64) - wide) / np.linalg.norm(wide)
    found = measure_change(RawTensor.from_numpy(one), RawTensor.from_numpy(two))
    assert found == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        (np.zeros(4, np.float32), np.ones(4, np.float32), None),
        (np.zeros(4, np.float32), np.zeros(4, np.float32), 0.0),
        (np.ones(4, np.float32), np.ones(5, np.float32), None),
        (np.ones(4, np.int64), np.zeros(4, np.int64), None),
        (np.ones((0, 3), np.float32), np.ones((0, 3), np.float32), 0.0),
        (np.ones((), np.float32), np.full((), 3, np.float32), 2.0),
    ],
)
def test_change_that_is_no_number_is_none(
    before: np.ndarray[Any, Any],
    after: np.ndarray[Any, Any],
    expected: float | None,
) -> None:
    assert measure_change(RawTensor.from_numpy(before), RawTensor.from_numpy(after)) == expected


def test_scores_of_both_versions_are_shown(registry: Registry, tmp_path: Path) -> None:
    data = make_file(tmp_path / "a", down=DOWN)
    registry.publish(write_folder(tmp_path / "one", file=data))
    folder = write_folder(tmp_path / "two", version="1.1.0", file=data)
    manifest = (folder / "concept.json").read_bytes()
    metric = b'"metrics":[{"name":"identity","protocol":"toybox-1","value":0.75}]'
    assert b'"metrics":[]' in manifest
    (folder / "concept.json").write_bytes(manifest.replace(b'"metrics":[]', metric))
    registry.publish(folder)
    found = compare_concepts(registry.get("me/imp@1.0.0"), registry.get("me/imp@1.1.0"))
    (row,) = found.metrics
    assert (row.name, row.before, row.after) == ("sd1-lora: identity (toybox-1)", None, 0.75)
    assert found.equal_tensors == 1


def test_version_does_not_differ_from_itself(registry: Registry, tmp_path: Path) -> None:
    registry.publish(write_folder(tmp_path / "one", file=make_file(tmp_path / "a", down=DOWN)))
    concept = registry.get("me/imp")
    assert compare_concepts(concept, concept).is_empty
