"""``concepts generate``: pictures, with all that draws them again written into each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from conceptry.cli.bases import choose_base, open_base
from conceptry.cli.check import FIT
from conceptry.cli.composing import is_asked, use_concepts, use_options
from conceptry.cli.drawing import (
    Task,
    attached,
    iter_free_names,
    lock_composition,
    made_folder,
    name_base,
    write_picture,
)
from conceptry.cli.drawing_settings import Settings, make_settings
from conceptry.cli.groups import ConceptsCommand
from conceptry.cli.members import expand, fetch_composition, read_document, read_masks, rename_members
from conceptry.cli.options import MEMBER, PATH, RENAME, SEED, base_option, device_option
from conceptry.cli.progress import track
from conceptry.cli.session import Session, pass_session
from conceptry.cli.tags import TagReader, settle_wording
from conceptry.cli.text import count_things
from conceptry.errors import UsageError

if TYPE_CHECKING:
    from PIL.Image import Image

    from conceptry.base_locations import BaseLocation
    from conceptry.bases import Fit
    from conceptry.composer.compositions import Composition
    from conceptry.composer.generate import Canvas
    from conceptry.composer.masks import Mask
    from conceptry.composer.report import Report
    from conceptry.composition import CompositionDocument
    from conceptry.formats.picture_records import PictureRecord

MAX_PICTURES: Final = 10_000
MAX_BATCH: Final = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Prompts that are drawn with the same concepts."""

    tasks: tuple[Task, ...]
    document: CompositionDocument | None
    composition: Composition | None


@click.command(
    "generate",
    cls=ConceptsCommand,
    examples=(
        "concepts generate --with me/imp --prompt 'a photo of <imp> on the beach' --seed 1 -n 4 --out pictures",
        "concepts generate --with me/imp --with 'me/look*0.7' --prompt '<imp> in the style of <look>' --out pictures",
        "concepts generate --composition composition.toml --prompt 'a photo of <imp>' --out pictures",
        "concepts generate --with me/imp --region me/imp:left.png --prompt 'a photo of <imp>' --out pictures",
        "concepts generate --with me/imp --prompt 'a photo of <imp>' --image room.png --mask chair.png --out pictures",
    ),
)
@click.option(
    "--with", "members", type=MEMBER, multiple=True, help="A concept, perhaps with a strength. Repeatable."
)
@click.option(
    "--composition", type=PATH, metavar="FILE", help="A file of concepts compose instead of --with."
)
@click.option("--rename", type=RENAME, multiple=True, help="Another word for a concept: NS/NAME:OLD=NEW.")
@use_options
@click.option(
    "--prompt", "prompts", multiple=True, required=True, metavar="TEXT", help="What to draw. Repeatable."
)
@click.option("--negative", default="", metavar="TEXT", help="What to keep out.")
@click.option(
    "--seed", type=SEED, default=0, show_default=True, help="Of the first picture; the next ones follow."
)
@click.option(
    "-n",
    "count",
    type=click.IntRange(1, MAX_PICTURES),
    default=1,
    show_default=True,
    help="Pictures of each prompt.",
)
@click.option(
    "--batch",
    type=click.IntRange(1, MAX_BATCH),
    default=1,
    show_default=True,
    help="Pictures drawn together: faster, and equal to single ones up to rounding.",
)
@click.option(
    "--out", type=PATH, required=True, metavar="DIR", help="Folder for the pictures; none is overwritten."
)
@click.option("--image", type=PATH, metavar="FILE", help="A picture to draw over.")
@click.option("--mask", type=PATH, metavar="FILE", help="White where it is drawn; the rest of --image stays.")
@click.option(
    "--strength",
    type=click.FloatRange(0, 1, min_open=True),
    help="How much of --image is drawn anew.  [default: 0.75]",
)
@click.option("--size", metavar="WxH", help="In pixels.  [default: the base's, in the shape of --image]")
@click.option(
    "--steps",
    type=click.IntRange(1, 1000),
    help="Denoising steps.  [default: 20 toybox, 30 SD, or the family's own]",
)
@click.option(
    "--guidance",
    type=float,
    help="Classifier-free guidance.  [default: 3 toybox, 7.5 SD, or the family's own]",
)
@click.option(
    "--sampler", metavar="NAME", help="ddim, euler, euler_a, dpmpp_2m, ...  [default: the base's own]"
)
@base_option
@click.option("--fit", type=FIT, help="How closely every concept must fit.  [default: what its kind asks]")
@device_option
@pass_session
def generate(session: Session, /, *, out: Path, **given: Any) -> None:
    """Draw pictures with concepts attached to a base.

    Each PNG carries all that draws it again: prompt, seed, sampler, and the exact concepts. Without --with the base
    draws alone; concepts reproduce draws a picture again. Prompts may name concepts as <lora:name:0.8> or
    embedding:name, and weigh words as (word:1.2) or [word].
    """
    asked = _read_asked(session, given)
    document, masks = asked.document, asked.masks
    groups = _group_tasks(session, _make_tasks(session, document, given), masks)
    members = [member for group in groups if group.composition for member in group.composition.members]
    named = given["base"] or (groups[0].document.base if groups[0].document else None)
    location = choose_base(session, named, [member.concept for member in members])
    settings = make_settings(given, named, location.family)
    pipeline, canvas, facts = _open(session, location, settings, given)
    if asked.way_is_free:
        groups = [_choose_way(group, pipeline, given["fit"]) for group in groups]
    from conceptry.composer.masks import keep_masks
    from conceptry.composer.pictures import draw_batch, same_rounding

    names, total = iter_free_names(out), settings.count * len(given["prompts"])
    rows: list[dict[str, Any]] = []
    with made_folder(out), track(session.out, "drawing") as meter, same_rounding():
        for group in groups:
            with attached(pipeline, group.composition, given["fit"]) as report:
                _warn(session, report, group)
                for record in _iter_batches(group, settings, facts, report):
                    pictures = draw_batch(pipeline, record, canvas)
                    keep_masks(masks, out)
                    rows += _write(pictures, record, names=names)
                    meter.update(len(rows), total, Path(rows[-1]["path"]).name)
    _say(session, rows, out)


def _open(
    session: Session, location: BaseLocation, settings: Settings, given: dict[str, Any]
) -> tuple[Any, Canvas, dict[str, Any]]:
    """Returns the pipeline, what is drawn on, and what of a picture's record is the same for all."""
    from conceptry.composer.canvases import describe_source, make_canvas
    from conceptry.composer.generate import adapt_pipeline, check_negative
    from conceptry.composer.pictures import describe_base, describe_machine, set_sampler

    image, mask = given["image"], given["mask"]
    source = describe_source(image, mask, settings.strength)
    pipeline = open_base(session, location, device=given["device"])
    check_negative(pipeline, given["negative"])
    canvas = make_canvas(pipeline, image, mask, strength=settings.strength, size=settings.size)
    facts = {
        "sampler": set_sampler(pipeline, settings.sampler),
        "source": source,
        "base": describe_base(pipeline, name_base(session, location, settings.base)),
        "machine": describe_machine(pipeline),
        "width": canvas.width,
        "height": canvas.height,
        "fit": given["fit"],
    }
    return adapt_pipeline(pipeline, canvas), canvas, facts


# --- what is asked -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class _Asked:
    """The composition that is asked for beside what prompts name."""

    document: CompositionDocument | None = None
    masks: tuple[Mask, ...] = ()
    """Those of its regions."""

    way_is_free: bool = True
    """Nobody said how the concepts are to work together."""


def _read_asked(session: Session, given: dict[str, Any]) -> _Asked:
    if not given["members"] and not given["composition"]:
        if is_asked(given):
            raise UsageError(
                "a schedule, a region, a part or a way is of concepts that are named",
                hint="add --with NS/NAME or --composition FILE",
            )
        return _Asked()
    read = read_document(given["members"], given["composition"])
    expanded, brought = expand(session, read, given["way"])
    renamed = expanded.model_copy(update={"concepts": rename_members(expanded.concepts, given["rename"])})
    document, masks = use_concepts(renamed, given)
    found = {mask.digest: mask for mask in (*brought, *read_masks(read, given["composition"]), *masks)}
    return _Asked(
        document=document,
        masks=tuple(found[digest] for digest in document.list_masks()),
        way_is_free=given["composition"] is None and given["way"] is None and expanded is read,
    )


def _make_tasks(
    session: Session, document: CompositionDocument | None, given: dict[str, Any]
) -> Iterator[Task]:
    reader = TagReader(session)
    for prompt in given["prompts"]:
        _check_words(prompt, given["negative"])
        whole, called = reader.add_members(document, prompt, given["negative"])
        yield Task(prompt=prompt, negative=given["negative"], document=whole, called=called)


def _check_words(prompt: str, negative: str) -> None:
    from conceptry.composer.prompts import parse_weights, replace_tags
    from conceptry.documents import MAX_STRING_CHARS

    if not prompt.strip():
        raise UsageError("a prompt is empty", hint="write what to draw, such as 'a photo of <imp>'")
    for text in (prompt, negative):
        parse_weights(replace_tags(text, str))
        if len(text) > MAX_STRING_CHARS or any("\ud800" <= char <= "\udfff" for char in text):
            raise UsageError(
                f"a prompt of {len(text)} characters cannot be kept: at most {MAX_STRING_CHARS}, in UTF-8"
            )


def _group_tasks(session: Session, tasks: Iterator[Task], masks: tuple[Mask, ...]) -> list[Group]:
    groups = []
    for document, alike in groupby(tasks, key=lambda task: task.document):
        composition = None if document is None else fetch_composition(session, document, masks)
        groups.append(Group(tasks=tuple(alike), document=document, composition=composition))
    return groups


def _choose_way(group: Group, pipeline: Any, fit: Fit | None) -> Group:
    """Returns a group of prompts with its concepts used in the way that the benchmark favours, where that can be.

    That is ``focus`` for several concepts that each prompt calls, without regions, on a UNet
    (docs/composing-several.md).
    """
    document, composition = group.document, group.composition
    if document is None or composition is None or len(composition.members) < 2:
        return group
    from conceptry.composer.fingerprints import identify_pipeline
    from conceptry.composer.focus import CallWords
    from conceptry.composer.plan import make_plan

    members = make_plan(composition, identify_pipeline(pipeline), fit).members
    has_region = any(member.use.region is not None for member in members)
    all_called = all(CallWords.of(member).call(task.prompt) for task in group.tasks for member in members)
    if has_region or not all_called or getattr(pipeline, "unet", None) is None:
        return group
    return replace(
        group,
        document=document.model_copy(update={"way": "focus"}),
        composition=composition.with_way("focus"),
    )


# --- what is drawn -------------------------------------------------------------------------------------------------


def _warn(session: Session, report: Report | None, group: Group) -> None:
    if report is None:
        return
    from conceptry.composer.overlaps import find_idle_parts

    for warning in (*report.warnings, *find_idle_parts(report.plan)):
        session.out.warn(warning)
    said = " ".join(_iter_texts(group)).casefold()
    tagged = {name for task in group.tasks for name in task.called.values()}
    for applied in report.concepts:
        words = list(applied.words.values())
        is_tagged = applied.label.partition("@")[0] in tagged
        if words and not is_tagged and not any(word.casefold() in said for word in words):
            session.out.warn(f"no prompt says {' or '.join(words)}, the word that calls {applied.label}")


def _iter_texts(group: Group) -> Iterator[str]:
    """Returns all that is read while a group is drawn."""
    for task in group.tasks:
        yield from (task.prompt, task.negative)
    for member in group.composition.members if group.composition else ():
        if member.use.region is not None:
            yield member.use.region.prompt or ""


def _iter_batches(
    group: Group, settings: Settings, facts: dict[str, Any], report: Report | None
) -> Iterator[PictureRecord]:
    """Returns the record of the first picture of each batch: pictures of one prompt, whose seeds follow one another."""
    from conceptry.formats.picture_records import Batch, PictureRecord

    locked = None
    if report is not None and group.document is not None:
        locked = lock_composition(group.document, report)
    for task in group.tasks:
        wording = settle_wording(task.prompt, task.negative, task.called, report)
        for start in range(0, settings.count, settings.batch):
            yield PictureRecord(
                prompt=task.prompt,
                negative=task.negative,
                wording=wording,
                seed=settings.seed + start,
                batch=Batch(size=min(settings.batch, settings.count - start)),
                steps=settings.steps,
                guidance=settings.guidance,
                composition=locked,
                **facts,
            )


def _write(
    pictures: Sequence[Image], first: PictureRecord, *, names: Iterator[Path]
) -> Iterator[dict[str, Any]]:
    from conceptry.composer.pictures import encode_picture

    for index, picture in enumerate(pictures):
        record = first.at(index)
        path = next(names)
        write_picture(path, encode_picture(picture, record))
        yield {"path": str(path), "prompt": record.prompt, "seed": record.seed}


def _say(session: Session, rows: Sequence[dict[str, Any]], out: Path) -> None:
    names = [Path(row["path"]).name for row in rows]
    which = names[0] if len(names) == 1 else f"{names[0]} to {names[-1]}"
    said = f"{count_things(len(rows), 'picture')} in {out}: {which}"
    session.out.emit(
        {"folder": str(out), "pictures": list(rows)}, [said], quiet=[row["path"] for row in rows]
    )
