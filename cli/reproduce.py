"""``concepts reproduce``: pictures drawn again from what they carry, and held against themselves."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

import click

from conceptry.cli.bases import open_base
from conceptry.cli.drawing import attached, made_folder, write_picture
from conceptry.cli.explain import describe_notes, explain, list_missing, read_notes
from conceptry.cli.groups import ConceptsCommand
from conceptry.cli.options import PATH, base_option
from conceptry.cli.progress import track
from conceptry.cli.session import Session, pass_session
from conceptry.cli.sources import fetch_locked, find_base
from conceptry.cli.text import count_things
from conceptry.errors import (
    ConceptryError,
    ConflictError,
    IncompatibleError,
    IntegrityError,
    NotFoundError,
    UsageError,
)

if TYPE_CHECKING:
    from conceptry.composer.generate import Canvas
    from conceptry.composer.report import Report
    from conceptry.formats.picture_records import PictureRecord, SourceRecord

Outcome = Literal["same_bytes", "same_pixels", "close", "different"]

_SAID: Final = {
    "same_bytes": "the same, byte for byte",
    "same_pixels": "the same pixels; the file was written otherwise",
    "close": "close",
    "different": "another picture",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Carried:
    """A picture and what it says of itself."""

    path: Path
    data: bytes
    record: PictureRecord


@dataclass(frozen=True, slots=True, kw_only=True)
class Rebuilt:
    """A picture that was drawn again, and how it compares."""

    carried: Carried
    data: bytes
    outcome: Outcome
    max_levels: int
    mean_levels: float
    differences: tuple[str, ...]
    """What is otherwise here than where it was drawn first."""

    def to_json(self) -> dict[str, Any]:
        """Returns the row of ``concepts reproduce --json``, but for where it was written."""
        return {
            "picture": str(self.carried.path),
            "outcome": self.outcome,
            "max_levels": self.max_levels,
            "mean_levels": self.mean_levels,
            "differences": list(self.differences),
        }


@click.command(
    "reproduce",
    cls=ConceptsCommand,
    examples=(
        "concepts reproduce pictures/000.png",
        "concepts reproduce pictures/000.png pictures/001.png --out again",
        "concepts reproduce download.png --explain",
    ),
)
@click.argument("pictures", type=PATH, nargs=-1, required=True, metavar="PICTURE...")
@click.option(
    "--explain", "explains", is_flag=True, help="Only list what each used, and where that is; draw nothing."
)
@click.option("--out", type=PATH, metavar="DIR", help="Where to write the pictures.  [default: nowhere]")
@click.option(
    "--image",
    "sources",
    type=PATH,
    multiple=True,
    metavar="FILE",
    help="What was drawn over, or a mask. Repeatable.",
)
@base_option
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda", "mps"]), help="[default: as recorded]")
@pass_session
def reproduce(
    session: Session, /, pictures: tuple[Path, ...], *, explains: bool, out: Path | None, **given: Any
) -> None:
    """Draw pictures again from what they carry.

    Concepts that the store lacks are pulled by their digests from the remotes that are configured. On the machine
    and with the versions that drew a picture first, every byte comes back; elsewhere the difference is measured and
    said. Pictures of A1111 and ComfyUI cannot be drawn again here: the files that they used are looked up and named,
    as --explain does for every picture.
    """
    read = [] if explains else [_read(path) for path in pictures]
    carried = [one for one in read if one is not None]
    foreign = [path for path, one in zip(pictures, read, strict=True) if one is None] if read else []
    if not carried:
        explain(session, pictures)
        if foreign:
            session.out.note(
                f"drawn by other programs: nothing was drawn again of {count_things(len(foreign), 'picture')}"
            )
        return
    notes = read_notes(session, foreign)
    _check_names(carried, out)
    rows: list[Rebuilt] = []
    with made_folder(out), track(session.out, "drawing") as meter:
        for rebuilt in _rebuild_all(session, carried, given):
            meter.update(len(rows) + 1, len(carried), rebuilt.carried.path.name)
            rows.append(rebuilt)
            if out is not None:
                _keep_masks(rebuilt.carried.record, _list_places([rebuilt.carried], given), out)
                write_picture(out / rebuilt.carried.path.name, rebuilt.data)
    _say(session, rows, notes, out)


def _read(path: Path) -> Carried | None:
    """Returns what a picture carries; None where it is by another program, or says nothing."""
    from conceptry.formats.picture_records import TEXT_KEY, parse_record
    from conceptry.formats.png_text import read_texts

    text = read_texts(path).get(TEXT_KEY)
    if text is None:
        return None
    try:
        return Carried(path=path, data=path.read_bytes(), record=parse_record(text))
    except ConceptryError as error:
        raise error.inside(path.name) from error


def _check_names(carried: Sequence[Carried], out: Path | None) -> None:
    if out is None:
        return
    names = [one.path.name for one in carried]
    for name in names:
        if names.count(name) > 1:
            raise UsageError(f"two pictures are called {name!r}", hint="draw them again one after the other")
        if (out / name).exists():
            raise ConflictError(f"{str(out / name)!r} exists already", hint="name another --out")


# --- drawing -------------------------------------------------------------------------------------------------------


def _rebuild_all(session: Session, carried: Sequence[Carried], given: dict[str, Any]) -> Iterator[Rebuilt]:
    """Returns the pictures in order; those that follow one another share what they have in common."""
    for _, alike in groupby(carried, key=lambda one: (one.record.base, one.record.machine.device)):
        of_base = list(alike)
        pipeline = _open(session, of_base[0].record, given)
        scheduler = pipeline.scheduler
        for _, same in groupby(of_base, key=lambda one: (one.record.composition, one.record.fit)):
            of_concepts = list(same)
            yield from _rebuild(session, pipeline, of_concepts, given)
            pipeline.scheduler = scheduler


def _open(session: Session, record: PictureRecord, given: dict[str, Any]) -> Any:
    location = find_base(session, given["base"], record)
    from conceptry.composer.pictures import describe_base
    from conceptry.trainer.precision import choose_device

    device = given["device"]
    if device is None:
        try:
            device = choose_device(record.machine.device).type  # type: ignore[arg-type]  # refused if it is none
        except (ConceptryError, KeyError):
            device = "auto"
    pipeline = open_base(session, location, device=device)
    here = describe_base(pipeline, record.base.name)
    parts = [part for part, digest in record.base.components.items() if here.components.get(part) != digest]
    if parts or here.prediction_type != record.base.prediction_type:
        raise IncompatibleError(
            f"this base is another than the one that drew: {', '.join(parts) or 'prediction type'} differs",
            hint=f"name the right one with --base; the picture calls it {record.base.name or 'nothing'}",
        )
    return pipeline


def _rebuild(
    session: Session, pipeline: Any, carried: list[Carried], given: dict[str, Any]
) -> Iterator[Rebuilt]:
    from conceptry.composer.generate import adapt_pipeline

    first = carried[0].record
    composition = None
    if first.composition is not None:
        composition = fetch_locked(session, first.composition, _list_places(carried, given))
    own = pipeline.scheduler
    for _, alike in groupby(carried, key=_get_setting):
        same = list(alike)
        pipeline.scheduler = own
        _set_sampler(pipeline, same[0].record)
        canvas = _make_canvas(pipeline, same[0].record, given["sources"])
        adapted = adapt_pipeline(pipeline, canvas)
        with attached(adapted, composition, first.fit) as report:
            _check_same(first, report)
            for _, batch in groupby(same, key=lambda one: one.record.at(0)):
                yield from _redraw(adapted, list(batch), canvas)


def _list_places(carried: Sequence[Carried], given: dict[str, Any]) -> list[Path]:
    """Returns where masks of regions may lie: beside the pictures, and what ``--image`` names."""
    return [*dict.fromkeys(one.path.parent for one in carried), *given["sources"]]


def _keep_masks(record: PictureRecord, places: Sequence[Path], out: Path) -> None:
    if record.composition is None or not record.composition.list_masks():
        return
    from conceptry.composer.masks import find_masks, keep_masks

    keep_masks(find_masks(record.composition.list_masks(), places), out)


def _get_setting(one: Carried) -> tuple[Any, ...]:
    record = one.record
    return record.sampler, record.source, record.width, record.height


def _redraw(pipeline: Any, batch: list[Carried], canvas: Canvas) -> Iterator[Rebuilt]:
    from conceptry.composer.pictures import (
        compare_machines,
        compare_pictures,
        describe_machine,
        draw_batch,
        encode_picture,
        same_rounding,
    )

    first = batch[0].record
    with same_rounding(first.machine.threads):
        here = describe_machine(pipeline)
        drawn = draw_batch(pipeline, first, canvas)
    differences = tuple(compare_machines(first.machine, here))
    for one in batch:
        record = one.record.model_copy(update={"machine": here})
        data = encode_picture(drawn[one.record.batch.index], record)
        compared = compare_pictures(one.data, data, elsewhere=bool(differences))
        yield Rebuilt(
            carried=one,
            data=data,
            outcome=compared.outcome,
            max_levels=compared.max_levels,
            mean_levels=compared.mean_levels,
            differences=differences,
        )


def _set_sampler(pipeline: Any, record: PictureRecord) -> None:
    from conceptry.composer.pictures import set_sampler

    here = set_sampler(pipeline, record.sampler.name)
    if here != record.sampler:
        raise IncompatibleError(
            f"the picture was sampled by {record.sampler.scheduler}, which has other settings with this base now",
            hint="use the base as it was, and the version of diffusers that the picture names",
        )


def _make_canvas(pipeline: Any, record: PictureRecord, files: Sequence[Path]) -> Canvas:
    from conceptry.composer.canvases import make_canvas

    image = mask = None
    if record.source is not None:
        image, mask = _find_sources(record.source, files)
    strength = record.source.strength if record.source else 1.0
    return make_canvas(pipeline, image, mask, strength=strength, size=(record.width, record.height))


def _find_sources(source: SourceRecord, files: Sequence[Path]) -> tuple[Path, Path | None]:
    from conceptry.digests import Digest

    missing = [str(path) for path in files if not path.is_file()]
    if missing:
        raise NotFoundError(f"there is no picture at {missing[0]!r}")
    known = {Digest.of_file(path): path for path in files}
    for digest in (source.image, source.mask):
        if digest is not None and digest not in known:
            raise NotFoundError(
                f"it was drawn over a picture that is not named: {digest}",
                hint="add --image with the file that has this SHA-256",
            )
    return known[source.image], None if source.mask is None else known[source.mask]


def _check_same(record: PictureRecord, report: Report | None) -> None:
    """Builds and words are those of the first time, or the concepts and the prompt would mean something else."""
    members = record.composition.concepts if record.composition else ()
    for member, applied in zip(members, report.concepts if report else (), strict=True):
        if applied.build != member.build:
            raise IncompatibleError(
                f"{applied.label} is used in its build {applied.build} here, not in {member.build}"
            )
        if dict(applied.words) != dict(member.words):
            raise IncompatibleError(
                f"{applied.label} is called {', '.join(applied.words.values())} here, "
                f"not {', '.join(member.words.values())}"
            )


# --- saying --------------------------------------------------------------------------------------------------------


def _say(
    session: Session, rows: Sequence[Rebuilt], notes: Sequence[dict[str, Any]], out: Path | None
) -> None:
    document: dict[str, Any] = {
        "folder": None if out is None else str(out),
        "ok": all(row.outcome != "different" for row in rows),
        "pictures": [row.to_json() for row in rows],
    }
    if notes:
        document |= {"explained": list(notes), "missing": list_missing(notes)}
    lines = [*(_describe(row) for row in rows), *(line for row in notes for line in describe_notes(row))]
    session.out.emit(document, lines, quiet=[row.outcome for row in rows])
    for said in dict.fromkeys(text for row in rows for text in row.differences):
        session.out.note(f"otherwise: {said}")
    wrong = [row for row in rows if row.outcome == "different"]
    if wrong:
        raise IntegrityError(
            f"{count_things(len(wrong), 'picture')} of {len(rows)} came out otherwise than it says of itself",
            where=str(wrong[0].carried.path),
            hint="it was changed after it was drawn, or this machine rounds in a way that was never measured",
        )


def _describe(row: Rebuilt) -> str:
    said = _SAID[row.outcome]
    if row.outcome in ("close", "different"):
        said += f": at most {row.max_levels} of 255 levels apart, {row.mean_levels:.3f} on average"
    return f"{row.carried.path.name}: {said}"
