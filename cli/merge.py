"""``concepts merge``: several concepts become one new concept, which says what it was made of."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from conceptry.cli.bases import choose_base, open_base
from conceptry.cli.check import find_identity
from conceptry.cli.groups import ConceptsCommand
from conceptry.cli.members import expand, fetch_composition, read_document
from conceptry.cli.options import MEMBER, SEED, base_option
from conceptry.cli.publish import describe, publish_folder, to_json
from conceptry.cli.session import Session, pass_session
from conceptry.errors import UsageError
from conceptry.names import ConceptName, parse_version

if TYPE_CHECKING:
    from conceptry.composer.compositions import Composition
    from conceptry.composer.merging import Merged, MergeRequest
    from conceptry.composition import CompositionDocument, Member

# The rows of composer/merge_methods.py, named here too so that help needs no torch.
METHODS: Final = (
    "sum",
    "ties",
    "dare",
    "dare_ties",
    "knots",
    "orthogonal",
    "slots",
    "custom_diffusion",
    "ridge",
)
_WORST_ROWS: Final = 5
_CAPTIONS: Final = 200


@click.command(
    "merge",
    cls=ConceptsCommand,
    examples=(
        "concepts merge me/imp me/look*0.7 --name me/imp-look",
        "concepts merge me/imp me/look --name me/both --method ties --density 0.3 --rank 32",
        "concepts merge me/imp me/look --name me/both --method dare --seed 7 --json",
        "concepts merge me/imp me/look --name me/both --method ridge --base toybox",
    ),
)
@click.argument("members", type=MEMBER, nargs=-1, metavar="REF[*STRENGTH]...")
@click.option("--name", required=True, metavar="NS/NAME", help="What the new concept is to be called.")
@click.option("--version", default="0.1.0", show_default=True, metavar="V", help="Its version.")
@click.option(
    "--method", type=click.Choice(METHODS), default="sum", show_default=True, help="How deltas are merged."
)
@click.option(
    "--rank", type=click.IntRange(min=1), help="The greatest rank of a layer.  [default: nothing is cut]"
)
@click.option(
    "--density",
    type=click.FloatRange(0, 1, min_open=True),
    help="The share of entries that ties, dare and knots keep.  [default: as their papers have it]",
)
@click.option(
    "--seed",
    type=SEED,
    default=0,
    show_default=True,
    help="Of what dare drops, and of the noise in ridge.",
)
@click.option(
    "--ridge",
    type=click.FloatRange(0, min_open=True),
    default=1e-3,
    show_default=True,
    help="How much staying at the base counts for ridge.",
)
@click.option(
    "--precision",
    type=click.Choice(("fp32", "fp16", "bf16")),
    default="fp32",
    show_default=True,
    help="Of the file; fp32 keeps a sum exact.",
)
@click.option("--title", default="", metavar="TEXT", help="A title for listings.")
@base_option
@pass_session
def merge(
    session: Session,
    /,
    members: tuple[Member, ...],
    *,
    name: str,
    method: str,
    base: str | None,
    **given: Any,
) -> None:
    """Make one new concept of several.

    All deltas are taken at their strengths and merged by layer; what a rank cuts off is said. The new concept names
    what it was made of, credits all authors, and has the strictest terms of all licences; one that allows no
    derivatives is refused. Strengths are written as in me/look*0.7. Methods: sum (exact), ties, dare, dare_ties and
    knots (by entries), orthogonal (later ones give way), slots (checked to be disjoint), custom_diffusion (every word
    keeps its keys and values) and ridge (each keeps its own activations); the last two open the --base. A sum with
    --base takes new weights, DoRA and whatever else depends on the base's weights, as whole differences.
    """
    from conceptry.composer.merge_layers import MergeSettings
    from conceptry.composer.merge_methods import find_merge_method
    from conceptry.composer.merging import MergeRequest

    row = find_merge_method(method)
    request = MergeRequest(
        name=ConceptName.parse(name),
        version=parse_version(given["version"]),
        method=row,
        settings=MergeSettings(**{name: given[name] for name in ("rank", "density", "seed", "ridge")}),
        precision=given["precision"],
        title=given["title"],
    )
    composition = fetch_composition(session, _read_asked(session, members))
    with tempfile.TemporaryDirectory(prefix="conceptry-merge-") as folder:
        merged = _merge(session, composition, request, base, Path(folder) / "merged")
        published = publish_folder(session, Path(folder) / "merged")
    for warning in merged.warnings:
        session.out.warn(warning)
    session.out.emit(
        {**to_json(published), **_to_json(merged, request)},
        [describe(published), *_describe(merged)],
        quiet=[str(published.reference)],
    )


def _read_asked(session: Session, members: tuple[Member, ...]) -> CompositionDocument:
    """Returns the concepts to merge, those of compositions among them. Raises UsageError."""
    document, _ = expand(session, read_document(members, None)) if members else (None, ())
    if document is None or len(document.concepts) < 2:
        raise UsageError(
            "a merge takes two concepts or more", hint="concepts merge me/imp me/look --name me/both"
        )
    used = [one for one in document.concepts if one.parts or one.schedule or one.region]
    if used or document.way != "sum":
        what = f"where and when {used[0].reference.concept} is used" if used else f"the way {document.way!r}"
        raise UsageError(
            f"no merge holds {what}, which a composition says",
            hint="name the concepts by themselves, with their strengths",
        )
    return document


def _merge(
    session: Session, composition: Composition, request: MergeRequest, base: str | None, folder: Path
) -> Merged:
    """Returns the merge; the base is opened only for a method that reads it, after everything else was checked."""
    from conceptry.cli.progress import track
    from conceptry.composer.merge_bases import merge_concepts
    from conceptry.composer.merging import check_licenses
    from conceptry.composer.plan import make_plan

    check_licenses(make_plan(composition, find_identity(session, None, composition)))
    from conceptry.base_locations import resolve_base
    from conceptry.composer.fingerprints import identify_pipeline

    reads = request.method.reads != "nothing"
    named = None if base is None else resolve_base(base, session.registry.bases())
    if not reads and (named is None or named.path is None):
        plan = make_plan(composition, find_identity(session, base, composition))
        with track(session.out, "merging"):
            return merge_concepts(plan, request, folder)
    concepts = [member.concept for member in composition.members]
    pipeline = open_base(session, choose_base(session, base, concepts))
    plan = make_plan(composition, identify_pipeline(pipeline))
    if not reads:
        with track(session.out, "merging"):
            return merge_concepts(plan, request, folder, pipeline=pipeline)
    from conceptry.trainer.covariance import read_captions

    captions = read_captions(plan.identity.family, None)[:_CAPTIONS]
    with track(session.out, "measuring and merging"):
        return merge_concepts(plan, request, folder, pipeline=pipeline, captions=captions)


def _to_json(merged: Merged, request: MergeRequest) -> dict[str, Any]:
    from conceptry.composer.merging import EXTENSION

    return {
        "method": request.method.id,
        "recipe": merged.concept.manifest.extensions[EXTENSION],
        "license": merged.concept.manifest.license.model_dump(mode="json", exclude_none=True),
        "retained": merged.retained,
        "layers": [
            {"module": row.name, "concepts": row.concepts, "rank": row.rank, "retained": row.retained}
            for row in merged.rows
        ],
        "warnings": list(merged.warnings),
    }


def _describe(merged: Merged) -> Iterator[str]:
    ranks = sorted({row.rank for row in merged.rows})
    if ranks:
        spread = f"{ranks[0]}" if len(ranks) == 1 else f"{ranks[0]} to {ranks[-1]}"
        yield f"{len(merged.rows)} layers of rank {spread}"
    cut = sorted((row for row in merged.rows if row.retained < 1), key=lambda row: row.retained)
    if cut:
        yield f"energy retained, least first ({len(cut)} layers are approximated):"
        yield from (f"{row.retained:9.3%}  {row.name}" for row in cut[:_WORST_ROWS])
