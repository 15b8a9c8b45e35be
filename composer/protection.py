"""What goes around a concept's patches: compiled code steps aside for hooks, calls that would break them refused."""

from __future__ import annotations

from collections.abc import Sequence

from conceptry.bases import ComponentName
from conceptry.composer.compiled import BypassPatch, is_compiled
from conceptry.composer.full import WeightPatch
from conceptry.composer.guards import (
    CHANGES_WEIGHTS,
    JOINS_PROJECTIONS,
    FilePatch,
    GuardPatch,
    PromptPatch,
    is_guarded,
    refuse_grouped,
    refuse_joined,
)
from conceptry.composer.hooks import Patch
from conceptry.composer.hypernetworks import HypernetworkPatch
from conceptry.composer.layered import LayeredPatch
from conceptry.composer.mapped import MappedFile
from conceptry.composer.pipelines import UNET, Pipeline, list_components, list_text_encoders
from conceptry.composer.rank_one import RankOnePatch
from conceptry.composer.tokens import TokenPatch


def find_compiled(pipeline: Pipeline) -> frozenset[ComponentName]:
    """Returns the components that run compiled code, which sees new weights and does not see new hooks."""
    return frozenset(name for name in list_components(pipeline) if is_compiled(getattr(pipeline, name)))


def protect(
    patches: Sequence[Patch],
    pipeline: Pipeline,
    compiled: frozenset[ComponentName] = frozenset(),
    *,
    files: Sequence[MappedFile] = (),
) -> tuple[Patch, ...]:
    """Returns the patches with what must go in before them and after them; ``files`` are what they read.

    Raises:
        IncompatibleError: if the pipeline is in a state in which a patch would do nothing.
    """
    roots = list_components(pipeline)
    changed = {ComponentName(patch.component) for patch in patches if patch.component in roots}
    if any(isinstance(patch, LayeredPatch) for patch in patches):
        changed.add(UNET)  # it gives each layer's projections what they read
    weighted = {
        ComponentName(patch.component) for patch in patches if isinstance(patch, WeightPatch)
    } & changed
    for name in changed:
        if not is_guarded(roots[name], next(iter(JOINS_PROJECTIONS))):
            refuse_joined(roots[name], name)
    for name in weighted:
        if not is_guarded(roots[name], next(iter(CHANGES_WEIGHTS))):
            refuse_grouped(roots[name], name)
    hooked = sorted(_find_hooked(patches, pipeline) & compiled)
    before: list[Patch] = [FilePatch(pipeline, files)] if files else []
    before += [BypassPatch(pipeline, hooked)] if hooked else []
    after: list[Patch] = [
        PromptPatch(pipeline, patch.log) for patch in patches if isinstance(patch, TokenPatch)
    ]
    if changed:
        after.append(GuardPatch([pipeline, *(roots[name] for name in sorted(changed))], JOINS_PROJECTIONS))
    if weighted:
        after.append(GuardPatch([pipeline, *(roots[name] for name in sorted(weighted))], CHANGES_WEIGHTS))
    return (*before, *patches, *after)


def _find_hooked(patches: Sequence[Patch], pipeline: Pipeline) -> set[ComponentName]:
    """Returns the components on which the patches put hooks that compiled code would not run."""
    encoders = {encoder.component for encoder in list_text_encoders(pipeline)}
    found: set[ComponentName] = set()
    for patch in patches:
        if isinstance(patch, TokenPatch):
            found |= encoders
        elif isinstance(patch, LayeredPatch | RankOnePatch):
            found |= {*encoders, ComponentName("unet")}
        elif isinstance(patch, HypernetworkPatch):
            found.add(ComponentName("unet"))
    return found
