"""A merge from a plan to a package, with an open base where its method asks what the base reads."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from conceptry.composer.layer_deltas import open_weights
from conceptry.composer.merge_inputs import MergeInputs, gather_inputs
from conceptry.composer.merge_measures import Measured, measure_encodings, measure_moments
from conceptry.composer.merging import Merged, MergeRequest, check_licenses, merge_layers, write_merge
from conceptry.composer.pipelines import Pipeline, encode_prompts
from conceptry.composer.plan import Plan
from conceptry.errors import UsageError

# Keeps the second moment of few captions invertible, beside the mean of its diagonal.
_RIDGE = 1e-6


def merge_concepts(
    plan: Plan,
    request: MergeRequest,
    folder: Path,
    *,
    pipeline: Pipeline | None = None,
    captions: Sequence[str] = (),
    progress: Callable[[str], Any] = lambda label: None,
) -> Merged:
    """Returns the new concept in ``folder``.

    Args:
        plan: the concepts, their strengths and words.
        request: name, method and numbers.
        folder: where it is written; it appears whole or not at all.
        pipeline: the open base; needed by methods that read it, and by a sum of what depends on the base's weights.
        captions: ordinary captions, for the method that keeps to them.
        progress: is told which concept is being measured.

    Raises:
        IncompatibleError: if a part cannot be merged, a licence forbids it, or a concept does not fit the pipeline.
        UsageError: if the method needs a pipeline or captions and there are none.
        InvalidFileError, NotFoundError, StoreError: as reading and writing packages.
    """
    check_licenses(plan)
    method = request.method
    if method.reads == "nothing":
        weights = None if pipeline is None else open_weights(pipeline)
        inputs = gather_inputs(plan, weights, sums=method.id == "sum")
        if inputs.whole and request.settings.rank is not None:
            inputs.warnings.append(
                f"{len(inputs.whole)} layers are whole differences, which no rank cuts: such as {min(inputs.whole)}"
            )
        return write_merge(plan, inputs, merge_layers(inputs, request), request, folder)
    if pipeline is None:
        raise UsageError(f"{method.id} asks what the base reads, so it needs one", hint="--base toybox")
    if method.reads == "encodings" and not captions:
        raise UsageError(f"{method.id} keeps to ordinary captions, and there are none")
    inputs = gather_inputs(plan, open_weights(pipeline))
    measured = _measure(pipeline, plan, inputs, request, progress)
    regular = _measure_captions(pipeline, captions) if method.reads == "encodings" else None
    merged = merge_layers(inputs, request, measured, regular)
    summed = len(merged) - sum(name in measured for name in merged)
    if summed:
        inputs.warnings.append(f"{summed} of {len(merged)} layers are summed: the method does not read them")
    return write_merge(plan, inputs, merged, request, folder)


def _measure(
    pipeline: Pipeline,
    plan: Plan,
    inputs: MergeInputs,
    request: MergeRequest,
    progress: Callable[[str], Any],
) -> Measured:
    if request.method.reads == "encodings":
        return measure_encodings(pipeline, plan, inputs.factored)
    seed = request.settings.seed
    return measure_moments(pipeline, plan, inputs.factored, seed=seed, progress=progress)


@torch.no_grad()
def _measure_captions(pipeline: Pipeline, captions: Sequence[str]) -> Float[Tensor, "context context"]:
    """Returns the mean of e e^T over the tokens of captions up to their end, in float64, kept invertible."""
    total, count = torch.zeros(()), 0
    for start in range(0, len(captions), 32):
        batch = list(captions[start : start + 32])
        encoded = encode_prompts(pipeline, batch)
        for caption, rows in zip(batch, encoded.double().cpu(), strict=True):
            end = len(pipeline.tokenizer(caption, truncation=True, max_length=len(rows))["input_ids"])
            total = total + rows[1:end].T @ rows[1:end]
            count += end - 1
    moment = total / count
    moment.diagonal().add_(_RIDGE * float(moment.diagonal().mean()))
    return moment
