"""Pictures that are drawn again: how close they are, and what else than the picture decides their bits."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from conceptry.composer.canvases import fit_size, make_canvas
from conceptry.composer.generate import Canvas, adapt_pipeline, generate
from conceptry.composer.pictures import (
    compare_machines,
    compare_pictures,
    describe_base,
    describe_machine,
    same_rounding,
    set_sampler,
)
from conceptry.errors import InvalidFileError, UsageError


def encode(level: int, *, at: int | None = None) -> bytes:
    """Returns a gray PNG, one pixel of which may have another level."""
    pixels = np.full((64, 64, 3), 100, np.uint8)
    if at is None:
        pixels[:] = level
    else:
        pixels[at, at] = level
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format="PNG")
    return file.getvalue()


@pytest.mark.parametrize(
    ("after", "elsewhere", "outcome"),
    [
        (encode(100), True, "same_bytes"),
        (encode(108, at=3), True, "close"),
        (encode(108, at=3), False, "different"),
        (encode(109, at=3), True, "different"),
        (encode(101), True, "different"),
    ],
)
def test_a_picture_is_close_only_elsewhere_and_within_the_stated_levels(
    after: bytes, elsewhere: bool, outcome: str
) -> None:
    assert compare_pictures(encode(100), after, elsewhere=elsewhere).outcome == outcome


def test_pixels_that_cannot_be_read_are_refused() -> None:
    with pytest.raises(InvalidFileError, match="pixels cannot be read"):
        compare_pictures(encode(100)[:60], encode(100), elsewhere=False)


def test_what_differs_between_two_machines_is_said_in_words(sd1: Any) -> None:
    here = describe_machine(sd1)
    there = here.model_copy(update={"threads": 9, "libraries": {**here.libraries, "torch": "1.0"}})
    assert compare_machines(here, here) == []
    assert compare_machines(there, here) == [
        "threads 9, here 1",
        f"torch 1.0, here {here.libraries['torch']}",
    ]


def test_settings_of_rounding_are_given_back() -> None:
    before = torch.get_num_threads(), torch.backends.cudnn.deterministic
    with same_rounding(2):
        assert torch.get_num_threads() == 2
    with same_rounding(1_000):
        assert torch.get_num_threads() < 1_000
    assert (torch.get_num_threads(), torch.backends.cudnn.deterministic) == before


def test_a_changed_weight_of_any_component_is_another_base(sd1: Any) -> None:
    before = describe_base(sd1, None).components
    weights = list(sd1.vae.decoder.parameters())
    kept = [weight.detach().clone() for weight in weights]
    with torch.no_grad():
        for weight in weights:
            weight.add_(1.0)
        changed = describe_base(sd1, None).components
        for weight, old in zip(weights, kept, strict=True):
            weight.copy_(old)
    assert [name for name in before if before[name] != changed[name]] == ["vae"]


def test_a_sampler_is_set_and_named_with_its_settings(sd1: Any) -> None:
    own = sd1.scheduler
    try:
        plain, euler = set_sampler(sd1, None), set_sampler(sd1, "euler")
        assert (plain.name, plain.scheduler) == (None, "DDIMScheduler")
        assert type(sd1.scheduler).__name__ == euler.scheduler == "EulerDiscreteScheduler"
        with pytest.raises(UsageError, match="no sampler is called 'none'"):
            set_sampler(sd1, "none")
    finally:
        sd1.scheduler = own
    assert set_sampler(sd1, None) == plain


def test_a_picture_to_draw_over_keeps_its_shape_and_takes_the_bases_number_of_pixels(sd1: Any) -> None:
    assert fit_size((2000, 1000), (512, 512)) == (728, 360)
    assert fit_size((1, 4000), (64, 64)) == (8, 4048)
    with pytest.raises(UsageError, match="multiples of 8"):
        make_canvas(sd1, None, None, size=(30, 32))


@pytest.mark.parametrize("has_mask", [False, True])
def test_each_picture_over_another_has_noise_of_its_own(sdxl: Any, has_mask: bool) -> None:
    image = Image.new("RGB", (16, 16), (200, 30, 30))
    mask = Image.new("L", (16, 16), 255) if has_mask else None
    canvas = Canvas(width=16, height=16, image=image, mask=mask, strength=0.9)
    pipeline = adapt_pipeline(sdxl, canvas)
    assert pipeline.unet is sdxl.unet
    options: dict[str, Any] = {"steps": 3, "guidance": 2.0, "canvas": canvas}
    first, second = generate(pipeline, ["a cat"] * 2, [1, 2], **options)
    (alone,) = generate(pipeline, ["a cat"], [2], **options)
    apart = np.abs(np.asarray(second, int) - np.asarray(alone, int)).max()
    assert apart <= 3 < np.abs(np.asarray(first, int) - np.asarray(alone, int)).max()
