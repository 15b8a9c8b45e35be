"""``concepts eval``: what concepts do, measured, and kept with them where that is asked for."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from conceptry.cli.bases import choose_base, open_base
from conceptry.cli.groups import ConceptsCommand
from conceptry.cli.options import PATH, REFERENCE, SEED, base_option, device_option
from conceptry.cli.progress import track
from conceptry.cli.publish import publish_folder
from conceptry.cli.session import Session, pass_session
from conceptry.concepts import MANIFEST_NAME
from conceptry.names import Reference, Version

if TYPE_CHECKING:
    from conceptry.bases import BaseIdentity
    from conceptry.concepts import Concept
    from conceptry.evaluation.concepts import ExamOptions
    from conceptry.evaluation.examination import Examination
    from conceptry.evaluation.scores import ConceptScores
    from conceptry.manifest import Manifest
    from conceptry.trainer.precision import DeviceName

RECORD_NAME: Final = "train.json"


def exam_options(function: Any) -> Any:
    """Adds the options that say how concepts are measured; ``read_options`` makes a value of them."""
    rows = (
        click.option(
            "--protocol", default="toybox-1", show_default=True, metavar="NAME", help="toybox-1 or clip-dino."
        ),
        click.option(
            "--references",
            type=PATH,
            metavar="DIR",
            help="Held-out pictures of the true thing, to compare with.",
        ),
        click.option(
            "--subject",
            type=click.Choice(["object", "style"]),
            default="object",
            show_default=True,
            help="What the pictures of --references share.",
        ),
        click.option(
            "--pictures",
            type=PATH,
            metavar="DIR",
            help="What it was taught from: backgrounds that could leak.",
        ),
        click.option(
            "--clip", metavar="MODEL", help="CLIP model of clip-dino: a folder, or hf://ns/repo in the cache."
        ),
        click.option(
            "--dino", metavar="MODEL", help="DINO model of clip-dino: a folder, or hf://ns/repo in the cache."
        ),
        click.option(
            "-n",
            "count",
            type=click.IntRange(1, 1000),
            help="Pictures of each prompt.  [default: the protocol's]",
        ),
        click.option("--strength", type=float, help="Of the concept.  [default: what its manifest says]"),
        click.option(
            "--steps", type=click.IntRange(1, 1000), help="Denoising steps.  [default: 20 toybox, 30 others]"
        ),
        click.option("--seed", type=SEED, default=7000, show_default=True, help="Of the first picture."),
    )
    for add in reversed(rows):
        function = add(function)
    return function


def read_options(given: Mapping[str, Any]) -> ExamOptions:
    """Returns how concepts are to be measured. Raises UsageError for an unknown protocol."""
    from conceptry.evaluation.concepts import ExamOptions
    from conceptry.evaluation.protocols import find_protocol

    return ExamOptions(
        protocol=find_protocol(given["protocol"]).id,
        references=given["references"],
        subject="style" if given["subject"] == "style" else "instance",
        training=given["pictures"],
        models={name: given[name] for name in ("clip", "dino") if given[name]},
        pictures_per_prompt=given["count"],
        strength=given["strength"],
        steps=given["steps"],
        seed=given["seed"],
    )


@click.command(
    "eval",
    cls=ConceptsCommand,
    examples=(
        "concepts eval me/imp",
        "concepts eval me/imp me/mug --publish",
        "concepts eval me/imp@1.0.0 --references held-out --json",
        "concepts eval me/dog --base sd15 --protocol clip-dino --clip clip-b32 --dino dino-s16 --references held-out",
    ),
)
@click.argument("references_", type=REFERENCE, nargs=-1, required=True, metavar="REF...")
@exam_options
@click.option("--publish", is_flag=True, help="Keep the scores: a patch version with the same files.")
@base_option
@device_option
@pass_session
def evaluate(
    session: Session,
    /,
    references_: tuple[Reference, ...],
    *,
    publish: bool,
    base: str | None,
    device: DeviceName,
    **given: Any,
) -> None:
    """Measure how well a concept does what it should.

    Identity: are its pictures of the thing it was taught? Prompt: do they show what the prompt asks for?
    Preservation: does the superclass word still draw what it did? Diversity: do pictures of one prompt differ?
    Leakage: do backgrounds of the training pictures stay away? Each between the worst and the best to be expected. A
    concept taught from concepts toybox render is compared with held-out renders by itself; any other needs
    --references.
    """
    options = read_options(given)
    concepts = [session.registry.get(reference) for reference in references_]
    pipeline = open_base(session, choose_base(session, base, concepts), device=device)
    rows = []
    for concept in concepts:
        scores = examine_one(session, concept, pipeline, options).scores
        row = {"reference": concept.label, "digest": str(concept.digest), **scores.to_json()}
        if publish:
            row["published"] = _publish(session, concept, scores, pipeline)
        rows.append((row, _describe(concept.label, scores)))
    documents = [row for row, _ in rows]
    document = {"concepts": documents, **(documents[0] if len(documents) == 1 else {})}
    session.out.emit(document, [line for _, lines in rows for line in lines])


def examine_one(session: Session, concept: Concept, pipeline: Any, options: ExamOptions) -> Examination:
    """Returns what was measured on one concept, with a bar while it is drawn."""
    with track(session.out, f"measuring {concept.label}") as meter:
        from conceptry.evaluation.concepts import examine_concept

        return examine_concept(
            concept,
            pipeline,
            options,
            on_progress=lambda done, total: meter.update(done, total, f"{done} of {total} pictures"),
        )


# --- keeping -------------------------------------------------------------------------------------------------------


def _publish(session: Session, concept: Concept, scores: ConceptScores, pipeline: Any) -> str:
    """Returns the version that carries the scores: the concept's own if it has them, else a new patch version."""
    from conceptry.composer.fingerprints import identify_pipeline
    from conceptry.evaluation.publishing import has_metrics

    if has_metrics(concept.manifest, scores):
        session.out.note(f"{concept.label} carries these scores already")
        return concept.label
    manifest = make_release(session, concept, scores, identify_pipeline(pipeline))
    shown = session.registry.show(Reference(concept.manifest.name, concept.manifest.version))
    with tempfile.TemporaryDirectory(prefix="conceptry-") as name:
        folder = Path(name)
        write_release(folder, manifest, concept, shown.record)
        published = publish_folder(session, folder)
    session.out.note(f"published {published.reference}: the same files, measured")
    return str(published.reference)


def make_release(
    session: Session, concept: Concept, scores: ConceptScores, identity: BaseIdentity
) -> Manifest:
    """Returns the manifest with the scores, at the next patch version that nobody took."""
    from conceptry.evaluation.publishing import add_metrics

    own: Version = concept.manifest.version
    known = set(session.registry.show(Reference(concept.manifest.name, own)).versions)
    version = own.bump_patch()
    while version in known:
        version = version.bump_patch()
    return add_metrics(concept.manifest, scores, identity, version)


def write_release(folder: Path, manifest: Manifest, concept: Concept, record: Path | None) -> None:
    """Writes a folder to publish: the manifest, the concept's files by link where that is possible, its record."""
    for file in manifest.iter_files():
        target = folder / file.path
        target.parent.mkdir(parents=True, exist_ok=True)
        if not target.exists():
            link_or_copy(concept.locate(file), target)
    if record is not None:
        shutil.copyfile(record, folder / RECORD_NAME)
    (folder / MANIFEST_NAME).write_bytes(manifest.to_bytes())


def link_or_copy(source: Path, target: Path) -> None:
    """Makes ``target`` another name of the file ``source``, or a copy where the file system has no such names."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


# --- for people ----------------------------------------------------------------------------------------------------


def _describe(label: str, scores: ConceptScores) -> Iterator[str]:
    yield f"{label}, protocol {scores.protocol}, {scores.pictures} pictures"
    for name, measure in scores.to_json().items():
        if not isinstance(measure, dict):
            continue
        low, high = measure["interval"]
        yield (
            f"{name:12}  {measure['score']:.3f} (95 %: {low:.3f} to {high:.3f}), floor {measure['floor']:.3f}, "
            f"ceiling {measure['ceiling']:.3f}, normalised {measure['normalised']:.2f}"
        )
