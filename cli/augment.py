"""``concepts augment``: does a classifier with few pictures of a class gain from generated ones?"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from conceptry.cli.bases import TOYBOX, choose_base, open_base
from conceptry.cli.groups import ConceptsCommand
from conceptry.cli.options import PATH, REFERENCE, SEED, base_option, device_option
from conceptry.cli.progress import track
from conceptry.cli.session import Session, pass_session
from conceptry.cli.uses import say_use
from conceptry.errors import UsageError
from conceptry.names import Reference

if TYPE_CHECKING:
    from conceptry.concepts import Concept
    from conceptry.evaluation.class_pictures import ClassPictures
    from conceptry.evaluation.use_context import Artist
    from conceptry.evaluation.use_results import OnStep, UseResult


@click.command(
    "augment",
    cls=ConceptsCommand,
    examples=(
        "concepts augment",
        "concepts augment me/imp --out results",
        "concepts augment me/lesion --images data --rare melanoma --base sd15",
        "concepts augment --images data --rare melanoma --superclass mole --method pivotal",
    ),
)
@click.argument("reference", type=REFERENCE, required=False, metavar="[REF]")
@click.option(
    "--images", type=PATH, metavar="DIR", help="Your own pictures, DIR/CLASS/*.png.  [default: the toy world]"
)
@click.option(
    "--rare",
    metavar="CLASS",
    help="What the concept draws.  [default: the folder with fewest pictures; fish in the toy world]",
)
@click.option(
    "--real",
    type=click.IntRange(1, 1000),
    default=10,
    show_default=True,
    help="Real pictures of it to learn from.",
)
@click.option(
    "-n", "count", type=click.IntRange(1, 10_000), default=40, show_default=True, help="Pictures to generate."
)
@click.option("--seeds", type=click.IntRange(1, 100), default=5, show_default=True, help="Repetitions.")
@click.option(
    "--classifier-steps",
    type=click.IntRange(1, 100_000),
    default=300,
    show_default=True,
    help="Of each classifier's training.",
)
@click.option("--method", default="lora", show_default=True, metavar="ID", help="How to teach without REF.")
@click.option(
    "--passes", type=click.IntRange(1), default=640, show_default=True, help="Sample passes to teach it."
)
@click.option(
    "--superclass", metavar="WORD", help="An ordinary word for the rare class.  [default: its name]"
)
@click.option(
    "--steps", type=click.IntRange(1, 1000), help="Denoising steps.  [default: 20 toybox, 30 others]"
)
@click.option("--seed", type=SEED, default=31_000, show_default=True, help="Of pictures and classifiers.")
@click.option(
    "--out", type=PATH, metavar="DIR", help="Keep the table and pictures for concepts report --uses."
)
@base_option
@device_option
@pass_session
def augment(session: Session, /, reference: Reference | None, *, out: Path | None, **given: Any) -> None:
    """Measure whether generated pictures help a classifier that has few of a rare class.

    A small classifier is trained from nothing with the real pictures alone, with the rare ones repeated, with
    pictures that the base draws for the class's word, and with pictures of the concept; its balanced accuracy on other
    real pictures is compared over several seeds. Without REF a concept is taught from the real pictures of the rare
    class. Pictures that REF was taught from must not lie in --images, or they are tested on.
    """
    with track(session.out, "augmentation") as meter:
        result = _measure(session, reference, given, meter.phase)
    say_use(session, result, out)


def _measure(
    session: Session, reference: Reference | None, given: dict[str, Any], on_step: OnStep
) -> UseResult:
    concept = None if reference is None else session.registry.get(reference)
    location = choose_base(session, given["base"], [concept] if concept else [])
    if given["images"] is None and location.family != TOYBOX:
        raise UsageError(
            "without --images the classes are those of the toy world, which this base does not draw",
            hint="add --images DIR with a folder of pictures for each class",
        )
    classes = _find_classes(concept, given)
    pipeline = open_base(session, location, device=given["device"])
    from conceptry.evaluation.augmentation import Plan
    from conceptry.evaluation.augmentation import augment as compare

    plan = Plan(
        pictures=given["count"],
        seeds=given["seeds"],
        steps=given["classifier_steps"],
        first_seed=given["seed"],
    )
    return compare(classes, _find_artist(concept, classes, pipeline, given, on_step), plan, on_step)


def _find_classes(concept: Concept | None, given: dict[str, Any]) -> ClassPictures:
    from conceptry.evaluation.class_pictures import TOYBOX_RARE, FolderClasses, Sizes, ToyboxClasses

    sizes, seed = Sizes(real=given["real"]), given["seed"]
    if given["images"] is not None:
        return FolderClasses(given["images"], given["rare"], sizes, seed=seed)
    if given["rare"] is not None or concept is None:
        return ToyboxClasses(given["rare"] or TOYBOX_RARE, sizes, seed=seed)
    from conceptry.evaluation.concepts import find_words
    from conceptry.toybox.vocabulary import CLASSES

    _, superclass = find_words(concept)
    if superclass not in CLASSES:
        raise UsageError(
            f"{concept.label} is of the kind {superclass or 'that is not said'}, which is no class of the toy world",
            hint="name the class with --rare, or your own pictures with --images DIR",
        )
    return ToyboxClasses(superclass, sizes, seed=seed)


def _find_artist(
    concept: Concept | None, classes: ClassPictures, pipeline: Any, given: dict[str, Any], on_step: OnStep
) -> Artist:
    from dataclasses import replace

    from conceptry.evaluation.use_context import Teaching, find_artist, teach_artist

    word = given["superclass"] or classes.rare.replace("_", " ").replace("-", " ")
    if concept is not None:
        found = find_artist(pipeline, concept, steps=given["steps"])
        return replace(found, superclass=given["superclass"] or found.superclass or word)
    on_step(f"teaching a concept from {len(classes.rare_pictures)} pictures of {classes.rare}")
    teaching = Teaching(method=given["method"], sample_passes=given["passes"], seed=given["seed"])
    return teach_artist(pipeline, classes.rare_pictures, word, teaching, steps=given["steps"])
