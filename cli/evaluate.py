"""``concepts eval``: identity and prompt agreement of one concept, measured."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from conceptry.cli.bases import choose_base, open_base
from conceptry.cli.groups import ConceptsCommand
from conceptry.cli.options import PATH, REFERENCE, base_option
from conceptry.cli.progress import track
from conceptry.cli.session import Session, pass_session
from conceptry.names import Reference

if TYPE_CHECKING:
    from conceptry.evaluation.scores import ConceptScores
    from conceptry.trainer.precision import DeviceName


@click.command(
    "eval",
    cls=ConceptsCommand,
    examples=("concepts eval me/imp", "concepts eval me/imp@1.0.0 --references held-out --json"),
)
@click.argument("reference", type=REFERENCE, metavar="REF")
@click.option(
    "--references", type=PATH, metavar="DIR", help="Held-out pictures of the true thing, to compare with."
)
@base_option
@click.option(
    "--device", type=click.Choice(["auto", "cpu", "cuda", "mps"]), default="auto", show_default=True
)
@pass_session
def evaluate(
    session: Session,
    /,
    reference: Reference,
    *,
    references: Path | None,
    base: str | None,
    device: DeviceName,
) -> None:
    """Measure how well a concept does what it should.

    Identity: are its pictures of the thing it was taught? Prompt: do they show what the prompt asks for? Both beside
    what the base does alone. A concept taught from concepts toybox render is compared with held-out renders by
    itself; any other needs --references.
    """
    concept = session.registry.get(reference)
    location = choose_base(session, base, [concept])
    pipeline = open_base(session, location, device=device)
    with track(session.out, "measuring") as meter:
        from conceptry.evaluation.concepts import evaluate_concept

        scores = evaluate_concept(
            concept,
            pipeline,
            references=references,
            on_progress=lambda done, total: meter.update(done, total, f"{done} of {total} pictures"),
        )
    document = {"reference": concept.label, "digest": str(concept.digest), **scores.to_json()}
    session.out.emit(document, _describe(concept.label, scores))


def _describe(label: str, scores: ConceptScores) -> Iterator[str]:
    identity, prompt = scores.identity, scores.prompt
    yield f"{label}, protocol {scores.protocol}, {scores.pictures} pictures"
    yield (
        f"identity  {identity.score:.3f} (95 %: {identity.interval[0]:.3f} to {identity.interval[1]:.3f}), "
        f"floor {identity.floor:.3f}, ceiling {identity.ceiling:.3f}, normalised {identity.normalised:.2f}"
    )
    yield (
        f"prompt    {prompt.score:.3f} (95 %: {prompt.interval[0]:.3f} to {prompt.interval[1]:.3f}), "
        f"base alone {prompt.base:.3f}"
    )
