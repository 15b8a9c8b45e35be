"""Parts of a picture in which concepts of their own are in effect (as in Mix-of-Show, arXiv 2305.18292, section 3.3).

What the denoiser answers with a region's concepts counts inside the region; without them, outside of all. Where regions
overlap their answers are averaged.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

import torch
from jaxtyping import Float
from torch import Tensor

from conceptry.composer.masks import Mask
from conceptry.composer.ways import Pass
from conceptry.composition import Region
from conceptry.digests import Digest
from conceptry.errors import IncompatibleError

_NO_MASKS: Final[Mapping[Digest, Mask]] = MappingProxyType({})


def make_mask(
    region: Region, height: int, width: int, *, masks: Mapping[Digest, Mask] = _NO_MASKS
) -> Float[Tensor, "height width"]:
    """Returns 1 inside the region, 0 outside, and in between over a box's feather or where a mask is gray.

    Boxes are taken by centres of pixels, masks by the mean of what a pixel covers.

    Args:
        region: a box, or a mask by its digest.
        height: rows of the latents.
        width: columns of the latents.
        masks: by their digests, those that regions name.
    """
    if region.mask is not None:
        return masks[region.mask].shrink(height, width)
    left, top, right, bottom = region.box or (0.0, 0.0, 1.0, 1.0)
    across = _rise(torch.arange(width).add(0.5) / width, left, right, region.feather)
    down = _rise(torch.arange(height).add(0.5) / height, top, bottom, region.feather)
    return down[:, None] * across[None, :]


def _rise(places: Tensor, begin: float, end: float, feather: float) -> Tensor:
    if feather == 0:
        return ((places >= begin) & (places < end)).float()
    # An edge of the picture is no edge of a box that reaches it.
    rising = (places - begin) / feather + 0.5 if begin > 0 else torch.ones_like(places)
    falling = (end - places) / feather + 0.5 if end < 1 else torch.ones_like(places)
    return torch.minimum(rising, falling).clamp(0, 1)


def weigh_regions(
    one: Pass,
    regions: Mapping[int, Region],
    *,
    sample: Tensor,
    masks: Mapping[Digest, Mask] = _NO_MASKS,
) -> tuple[Pass, ...]:
    """Returns a pass for what lies outside of all regions, and one for each region; weights add up to 1 everywhere.

    Concepts of one and the same region share a pass; those without a region are in effect in all.

    Args:
        one: what is run without regions.
        regions: by the place of the concept whose they are.
        sample: what the denoiser reads, whose rows and columns the weights have.
        masks: by their digests, those that regions name.

    Raises:
        IncompatibleError: if what the denoiser reads is no picture of rows and columns.
    """
    if sample.ndim != 4:
        raise IncompatibleError(
            f"regions need latents of rows and columns, those of this base are {list(sample.shape)}",
            hint="leave out the regions",
        )
    groups: dict[Region, list[int]] = {}
    for place, region in regions.items():
        groups.setdefault(region, []).append(place)
    weights = [make_mask(region, *sample.shape[-2:], masks=masks).to(sample) for region in groups]
    total = torch.stack(weights).sum(dim=0)
    passes = [
        Pass(_keep(one.factors, regions, places), mask / total.clamp(min=1), region=places[0])
        for mask, places in zip(weights, groups.values(), strict=True)
    ]
    outside = (1 - total).clamp(min=0)
    if bool(outside.any()):
        passes.insert(0, Pass(_keep(one.factors, regions, []), outside))
    return tuple(passes)


def _keep(factors: tuple[float, ...], regions: Mapping[int, Region], places: list[int]) -> tuple[float, ...]:
    return tuple(
        factor if place not in regions or place in places else 0.0 for place, factor in enumerate(factors)
    )
