"""Does a concept fit a base? Four answers, the same for every copy of one model."""

from __future__ import annotations

import struct
from dataclasses import replace

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from conceptry.bases import (
    FAMILIES,
    PROBE_TENSORS,
    PROBES_PER_TENSOR,
    BaseIdentity,
    ComponentName,
    FamilyId,
    Fingerprint,
    Fit,
    choose_probes,
    digest_layout,
    find_family,
    judge_fit,
)
from conceptry.digests import Digest
from conceptry.errors import NotFoundError

LAYOUT, OTHER_LAYOUT = Digest("1" * 64), Digest("2" * 64)
UNET, ENCODER = ComponentName("unet"), ComponentName("text_encoder")
SHAPES = {f"layer.{number}.weight": (number + 1, 7) for number in range(100)}
WEIGHTS = tuple(float(value) for value in np.random.default_rng(0).normal(0, 0.05, 64).astype(np.float32))


def round_with_numpy(values: tuple[float, ...], *dtypes: type) -> tuple[float, ...]:
    """Return the values as copies in other precisions have them, by an implementation that is not ours."""
    array = np.array(values, np.float32)
    for dtype in dtypes:
        array = array.astype(dtype)
    return tuple(float(value) for value in array)


def make_base(weights: tuple[float, ...] = WEIGHTS, layout: Digest = LAYOUT, **more: object) -> BaseIdentity:
    base = BaseIdentity(
        family=FamilyId("sd1"), prediction_type="epsilon", fingerprints={UNET: Fingerprint(layout, weights)}
    )
    return replace(base, **more)  # type: ignore[arg-type]


OTHER = tuple(value + 0.01 for value in WEIGHTS)

COPIES = {
    "as published": WEIGHTS,
    "fp16": round_with_numpy(WEIGHTS, np.float16),
    "bf16": round_with_numpy(WEIGHTS, ml_dtypes.bfloat16),
    "fp16, then bf16": round_with_numpy(WEIGHTS, np.float16, ml_dtypes.bfloat16),
}


@pytest.mark.parametrize("copy", COPIES)
def test_every_precision_of_one_model_is_one_base(copy: str) -> None:
    verdict = judge_fit(make_base(), make_base(COPIES[copy]))
    assert verdict.fit == Fit.EXACT
    assert verdict.warnings == ()
    assert judge_fit(make_base(COPIES[copy]), make_base()).fit == Fit.EXACT


@pytest.mark.parametrize("copy", COPIES)
def test_one_value_beyond_rounding_is_another_base(copy: str) -> None:
    values = COPIES[copy]
    changed = (values[0] * 1.02, *values[1:])
    verdict = judge_fit(make_base(), make_base(changed))
    assert verdict.fit == Fit.ARCHITECTURE
    assert verdict.warnings


def test_values_rounded_in_different_ways_are_another_base() -> None:
    mixed = COPIES["fp16"][:32] + COPIES["bf16"][32:]
    assert judge_fit(make_base(), make_base(mixed)).fit == Fit.ARCHITECTURE


@given(st.floats(width=32, min_value=-60000, max_value=60000))
def test_rounding_is_that_of_numpy_and_ml_dtypes(value: float) -> None:
    published = Fingerprint(LAYOUT, (value,))
    for dtypes in [(np.float16,), (ml_dtypes.bfloat16,), (np.float16, ml_dtypes.bfloat16)]:
        assert published.matches(Fingerprint(LAYOUT, round_with_numpy((value,), *dtypes)))


@pytest.mark.parametrize(
    "value", [1e5, -1e5, 65504.0, 65519.9, 65520.0, 3.3e38, 5e-8, 2.98e-8, 1e-45, 0.0, -0.0]
)
def test_rounding_at_the_edges_of_half_precision_is_that_of_numpy(value: float) -> None:
    (single,) = struct.unpack("<f", struct.pack("<f", value))
    with np.errstate(over="ignore"):
        halves = round_with_numpy((single,), np.float16)
    assert Fingerprint(LAYOUT, (single,)).matches(Fingerprint(LAYOUT, halves))


def test_other_shapes_are_refused_with_the_component_in_the_reason() -> None:
    verdict = judge_fit(make_base(), make_base(layout=OTHER_LAYOUT))
    assert verdict.fit == Fit.REFUSED
    assert "unet" in verdict.reasons[0]


def test_missing_component_is_refused() -> None:
    declared = make_base(fingerprints={ENCODER: Fingerprint(LAYOUT, WEIGHTS)})
    verdict = judge_fit(declared, make_base())
    assert verdict.fit == Fit.REFUSED
    assert "text_encoder" in verdict.reasons[0]


def test_component_that_the_concept_does_not_touch_may_differ() -> None:
    offered = make_base(
        fingerprints={UNET: Fingerprint(LAYOUT, WEIGHTS), ENCODER: Fingerprint(OTHER_LAYOUT, OTHER)}
    )
    assert judge_fit(make_base(), offered).fit == Fit.EXACT


def test_declared_parent_is_lineage() -> None:
    parent = {UNET: Fingerprint(LAYOUT, WEIGHTS)}
    assert judge_fit(make_base(), make_base(OTHER, parents=(parent,))).fit == Fit.LINEAGE
    stranger = {UNET: Fingerprint(LAYOUT, tuple(value + 1 for value in WEIGHTS))}
    assert judge_fit(make_base(), make_base(OTHER, parents=(stranger,))).fit == Fit.ARCHITECTURE


def test_unknown_lineage_is_said() -> None:
    assert "lineage is unknown" in judge_fit(make_base(), make_base(OTHER)).reasons[0]
    assert "does not descend" in judge_fit(make_base(), make_base(OTHER, parents=())).reasons[0]


def test_other_prediction_type_warns_and_is_never_exact() -> None:
    verdict = judge_fit(make_base(), make_base(prediction_type="v_prediction"))
    assert verdict.fit == Fit.ARCHITECTURE
    assert "epsilon" in verdict.warnings[0]
    assert "v_prediction" in verdict.warnings[0]


def test_without_fingerprints_only_the_family_decides() -> None:
    declared = make_base(fingerprints={})
    assert judge_fit(declared, make_base()).fit == Fit.ARCHITECTURE
    assert judge_fit(declared, make_base(family=FamilyId("sdxl"))).fit == Fit.REFUSED


def test_closer_answers_are_greater() -> None:
    assert sorted(Fit) == [Fit.REFUSED, Fit.ARCHITECTURE, Fit.LINEAGE, Fit.EXACT]
    assert [fit.word for fit in sorted(Fit)] == ["refused", "architecture", "lineage", "exact"]


def test_probes_depend_on_names_and_shapes_only() -> None:
    probes = choose_probes(SHAPES)
    assert probes == choose_probes(dict(reversed(SHAPES.items())))
    assert len(probes) == PROBE_TENSORS * PROBES_PER_TENSOR == 64
    assert len({probe.tensor for probe in probes}) == 32
    assert all(0 <= probe.index < SHAPES[probe.tensor][0] * 7 for probe in probes)


def test_tensors_without_elements_are_not_probed() -> None:
    assert choose_probes({"empty": (0, 5), "one": ()}) == choose_probes({"one": ()})


def test_layout_ignores_order_and_sees_names_shapes_and_settings() -> None:
    digest = digest_layout(SHAPES, {"act": "gelu"})
    assert digest == digest_layout(dict(reversed(SHAPES.items())), {"act": "gelu"})
    assert digest != digest_layout(SHAPES, {"act": "silu"})
    assert digest != digest_layout({**SHAPES, "x": (1,)}, {"act": "gelu"})
    assert digest != digest_layout({**SHAPES, "layer.0.weight": (7, 1)}, {"act": "gelu"})


def test_every_family_has_its_own_id_and_architecture() -> None:
    assert (
        len({family.id for family in FAMILIES})
        == len({family.architecture for family in FAMILIES})
        == len(FAMILIES)
    )
    assert {"toybox", "sd1", "sd2", "sdxl", "sd3", "flux", "qwen_image", "wan", "z_image"} < {
        family.id for family in FAMILIES
    }


def test_unknown_family_suggests_the_nearest() -> None:
    with pytest.raises(NotFoundError) as caught:
        find_family("sdlx")
    assert caught.value.hint == "did you mean 'sdxl'?"
