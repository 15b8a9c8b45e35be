"""``concepts uses``: image variation, style transfer and bias reduction with a concept, measured."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from conceptry.cli.bases import choose_base, open_base
from conceptry.cli.groups import ConceptsCommand
from conceptry.cli.options import PATH, REFERENCE, SEED, base_option, device_option
from conceptry.cli.progress import track
from conceptry.cli.session import Session, pass_session
from conceptry.errors import UsageError
from conceptry.names import Reference

if TYPE_CHECKING:
    from conceptry.concepts import Concept
    from conceptry.evaluation.references import References
    from conceptry.evaluation.use_context import Artist, UseContext
    from conceptry.evaluation.use_results import Cell, OnStep, UseResult
    from conceptry.evaluation.uses import UseRow


@click.command(
    "uses",
    cls=ConceptsCommand,
    examples=(
        "concepts uses",
        "concepts uses variation me/imp",
        "concepts uses style-transfer me/look --images rooms --out results",
        "concepts uses bias me/imp --json",
        "concepts uses bias",
    ),
)
@click.argument("name", required=False, metavar="[USE]")
@click.argument("reference", type=REFERENCE, required=False, metavar="[REF]")
@click.option("--images", type=PATH, metavar="DIR", help="Your own pictures to take on a style.")
@click.option("--references", type=PATH, metavar="DIR", help="Held-out pictures of the thing or style.")
@click.option(
    "--protocol", default="toybox-1", show_default=True, metavar="NAME", help="toybox-1 or clip-dino."
)
@click.option("--clip", metavar="MODEL", help="Of clip-dino: a folder, or hf://ns/repo in the cache.")
@click.option("--dino", metavar="MODEL", help="Of clip-dino: a folder, or hf://ns/repo in the cache.")
@click.option(
    "-n", "count", type=click.IntRange(2, 1000), help="Pictures for each line.  [default: the use's]"
)
@click.option(
    "--steps", type=click.IntRange(1, 1000), help="Denoising steps.  [default: 20 toybox, 30 others]"
)
@click.option("--seed", type=SEED, default=31_000, show_default=True, help="Of the first picture.")
@click.option("--passes", type=click.IntRange(1), default=640, show_default=True, help="To teach bias anew.")
@click.option(
    "--out", type=PATH, metavar="DIR", help="Keep the table and pictures for concepts report --uses."
)
@base_option
@device_option
@pass_session
def uses(
    session: Session, /, name: str | None, reference: Reference | None, *, out: Path | None, **given: Any
) -> None:
    """Measure what a concept is good for beside new pictures of it.

    Without a name it lists the uses. Variation and style transfer draw over pictures, against the base that does the
    same. Bias compares the concept's backgrounds with the uniform distribution, before and after each is asked for;
    without REF it teaches a concept from skewed pictures first. concepts augment measures a classifier.
    """
    from conceptry.evaluation.uses import USES, find_use

    if name is None:
        _list(session, USES)
        return
    use = find_use(name)
    measure = use.measure
    if measure is None:
        raise UsageError(f"{use.id} has a command of its own", hint=f"concepts {use.id} --help")
    if reference is None and use.id != "bias":
        raise UsageError(
            f"concepts uses {use.id} needs a concept", hint=f"concepts uses {use.id} me/imp; concepts list"
        )
    with track(session.out, use.title) as meter:
        result = measure(_prepare(session, use, reference, given, meter.phase))
    say_use(session, result, out)


def _list(session: Session, rows: Sequence[UseRow]) -> None:
    session.out.emit_table(
        {"uses": [{"id": row.id, "title": row.title, "asks": row.asks, "of": row.subject} for row in rows]},
        ("USE", "OF", "WHAT IT ASKS"),
        [(row.id, row.subject, row.asks) for row in rows],
        empty="",
    )


def _prepare(
    session: Session, use: UseRow, reference: Reference | None, given: dict[str, Any], on_step: OnStep
) -> UseContext:
    """Returns what a use is measured with, the base open."""
    concept = None if reference is None else session.registry.get(reference)
    pipeline = open_base(
        session, choose_base(session, given["base"], [concept] if concept else []), device=given["device"]
    )
    from conceptry.composer.fingerprints import find_pipeline_family
    from conceptry.evaluation.judges import make_judge
    from conceptry.evaluation.protocols import find_protocol
    from conceptry.evaluation.references import read_pictures
    from conceptry.evaluation.use_context import UseContext

    row = find_protocol(given["protocol"])
    artist, truth = (
        _teach_skewed(pipeline, given, on_step) if concept is None else _find(concept, pipeline, use, given)
    )
    models = {name: given[name] for name in ("clip", "dino") if given[name]}
    judge = make_judge(row, truth, family=find_pipeline_family(pipeline), models=models)
    contents = read_pictures(given["images"]) if given["images"] else []
    if given["images"] and not contents:
        raise UsageError(f"no pictures in {str(given['images'])!r}", hint="add .png, .jpg or .webp files")
    return UseContext(
        label=concept.label if concept else f"a concept taught from skewed pictures of a {artist.superclass}",
        artist=artist,
        judge=judge,
        truth=truth,
        count=given["count"] or use.pictures,
        seed=given["seed"],
        contents=contents,
        on_step=on_step,
    )


def _find(concept: Concept, pipeline: Any, use: UseRow, given: dict[str, Any]) -> tuple[Artist, References]:
    """Returns who draws a concept, and what it is compared with. Raises UsageError for one of another sort."""
    from conceptry.evaluation.references import find_references
    from conceptry.evaluation.use_context import find_artist

    is_style = use.subject == "style"
    truth = find_references(
        concept.manifest, given["references"], subject="style" if is_style else "instance"
    )
    if (truth.subject == "style") != is_style:
        taught, wanted = ("a thing", "a style") if is_style else ("a style", "a thing")
        raise UsageError(
            f"{concept.label} was taught {taught}, {use.id} wants {wanted}",
            hint="concepts uses lists what each use is measured on",
        )
    return find_artist(pipeline, concept, steps=given["steps"]), truth


def _teach_skewed(pipeline: Any, given: dict[str, Any], on_step: OnStep) -> tuple[Artist, References]:
    from dataclasses import replace

    from conceptry.evaluation.bias import render_skewed
    from conceptry.evaluation.references import render_references
    from conceptry.evaluation.use_context import Teaching, teach_artist

    pictures, truth = render_skewed(10)
    on_step("teaching a concept from skewed pictures")
    teaching = Teaching(sample_passes=given["passes"])
    artist = teach_artist(pipeline, pictures, truth["class"], teaching, steps=given["steps"])
    return artist, replace(render_references(truth), training=pictures)


# --- saying and keeping ----------------------------------------------------------------------------------------------


def say_use(session: Session, result: UseResult, out: Path | None) -> None:
    """Prints a result, and keeps it in ``out`` where that is given. Raises StoreError."""
    from conceptry.evaluation.use_results import name_key

    kept = _keep(result, out) if out is not None else None
    document = {
        "use": result.use,
        "title": result.title,
        "rows": result.list_documents(),
        "facts": {name_key(label): value for label, value in result.facts.items()},
        "remarks": list(result.remarks),
        "path": None if kept is None else str(kept),
    }
    session.out.emit_table(
        document,
        [column.upper() for column in result.columns],
        [list(_describe(row)) for row in result.rows],
        empty="nothing was measured",
    )
    for remark in result.remarks:
        session.out.note(f"note: {remark}")
    if kept is not None:
        session.out.note(f"written: {kept}; concepts report --uses {out} makes a page of it")


def _keep(result: UseResult, out: Path) -> Path:
    import torch

    from conceptry.evaluation.use_results import write_use

    device = "cuda" if torch.cuda.is_available() else "cpu"
    return write_use(out, result, device=device, threads=torch.get_num_threads())


def _describe(row: Sequence[Cell]) -> Iterator[str]:
    from conceptry.evaluation.pages import format_value

    yield from map(format_value, row)
