"""``attach``: a composition into a pipeline, and out again exactly."""

from __future__ import annotations

from types import TracebackType
from typing import Final

from conceptry.bases import Fit
from conceptry.composer.compositions import Composition
from conceptry.composer.fingerprints import identify_pipeline
from conceptry.composer.hooks import Patch
from conceptry.composer.parts import Gathered, gather_member
from conceptry.composer.pipelines import Pipeline
from conceptry.composer.placeholders import private_tokenizers
from conceptry.composer.plan import Plan, make_plan
from conceptry.composer.report import Report

_ATTACHMENTS: Final = "_conceptry_attachments"


class Attachment:
    """A composition that is in a pipeline; as a context manager it gives its report and detaches at the end."""

    def __init__(self, pipeline: Pipeline, report: Report, patches: tuple[Patch, ...]) -> None:
        self.report = report
        self._pipeline = pipeline
        self._patches = patches

    def detach(self) -> None:
        """Takes the composition out; every parameter, buffer and tokenizer is then as before. Twice does nothing."""
        detach_all(self._patches)
        state = self._pipeline.__dict__
        remaining = [other for other in state.get(_ATTACHMENTS, ()) if other is not self]
        if remaining:
            state[_ATTACHMENTS] = remaining
        else:
            state.pop(_ATTACHMENTS, None)

    def __enter__(self) -> Report:
        return self.report

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.detach()


def attach(composition: Composition, pipeline: Pipeline, *, fit: Fit | None = None) -> Attachment:
    """Puts a composition into a pipeline and returns the attachment; after an error the pipeline is as it was.

    Several attachments may be in one pipeline, and come out in any order.

    Args:
        composition: concepts with strengths.
        pipeline: an open diffusers pipeline, on any device and in any precision.
        fit: how closely every concept must fit the base; None asks what each kind asks.

    Raises:
        IncompatibleError: if a concept does not fit the base, another concept, or anything at all of the pipeline.
        InvalidPlaceholderError: if a placeholder is a word of the base's vocabulary.
        InvalidFileError: if a file is malformed.
        NotFoundError: if a file of a concept is not on this machine.
    """
    plan = make_plan(composition, identify_pipeline(pipeline), fit)
    with private_tokenizers(pipeline):
        gathered = [gather_member(member, pipeline) for member in plan.members]
    patches = Gathered.build(pipeline, gathered)
    attached: list[Patch] = []
    try:
        for patch in patches:
            attached.append(patch)
            patch.attach()
    except BaseException:
        detach_all(attached)
        raise
    attachment = Attachment(pipeline, _make_report(plan, gathered), tuple(patches))
    pipeline.__dict__[_ATTACHMENTS] = [*pipeline.__dict__.get(_ATTACHMENTS, ()), attachment]
    return attachment


def detach(pipeline: Pipeline) -> None:
    """Takes everything out that ``attach`` put into ``pipeline``."""
    for attachment in reversed(pipeline.__dict__.get(_ATTACHMENTS, [])):
        attachment.detach()


def detach_all(patches: tuple[Patch, ...] | list[Patch]) -> None:
    """Takes all patches out, the last first; one that fails does not keep the others in."""
    failure: BaseException | None = None
    for patch in reversed(patches):
        try:
            patch.detach()
        except BaseException as error:  # noqa: BLE001  # raised below, when the rest is out
            failure = failure or error
    if failure is not None:
        raise failure


def _make_report(plan: Plan, gathered: list[Gathered]) -> Report:
    warnings = [*plan.warnings, *(text for one in gathered for text in one.warnings)]
    return Report(plan=plan, concepts=tuple(one.describe() for one in gathered), warnings=tuple(warnings))
