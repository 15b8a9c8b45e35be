"""``concepts compose``: a composition as a file that can be shared and run again, or as weights for other programs."""

from __future__ import annotations

import os
import secrets
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from conceptry.cli.check import describe, find_identity, plan_composition, to_json
from conceptry.cli.compose_export import (
    COMPOSED_TARGETS,
    ExportBase,
    Request,
    describe_export,
    export_composition,
    export_to_json,
    read_request,
)
from conceptry.cli.compose_publish import PublishRequest, publish_composition, read_publish_request
from conceptry.cli.composing import is_asked, use_concepts, use_options
from conceptry.cli.groups import ConceptsCommand
from conceptry.cli.members import expand, fetch_composition, read_document, read_masks, rename_members
from conceptry.cli.options import MEMBER, PATH, RENAME, base_option
from conceptry.cli.publish import describe as describe_published
from conceptry.cli.publish import to_json as to_published_json
from conceptry.cli.session import Session, pass_session
from conceptry.errors import ConflictError, StoreError, UsageError

if TYPE_CHECKING:
    from conceptry.composer.exports import PreparedExport
    from conceptry.composer.masks import Mask
    from conceptry.composer.overlaps import Overlap
    from conceptry.composer.plan import Plan, PlannedMember
    from conceptry.composition import CompositionDocument, Member
    from conceptry.formats.export_files import Exported
    from conceptry.registry.publish import Published

DEFAULT: Final = Path("composition.toml")


@click.command(
    "compose",
    cls=ConceptsCommand,
    examples=(
        "concepts compose me/imp me/look*0.7 --out composition.toml",
        "concepts compose me/imp me/other --rename 'me/other:<imp>=<devil>' --out two.toml",
        "concepts compose me/imp me/look --schedule me/look:0.3.. --region me/imp:0,0,0.5,1~0.1 --out left.toml",
        "concepts compose --file composition.toml",
        "concepts compose me/imp me/look*0.7 --publish me/imp-look --title 'The imp in ink'",
        "concepts compose me/imp me/look*0.7 --export both.safetensors --for kohya",
        "concepts compose --file composition.toml --export pipeline-with-both --for pipeline",
    ),
)
@click.argument("members", type=MEMBER, nargs=-1, metavar="REF[*STRENGTH]...")
@click.option("--file", type=PATH, metavar="FILE", help="Check this file instead of writing one.")
@click.option("--rename", type=RENAME, multiple=True, help="Another word for a concept: NS/NAME:OLD=NEW.")
@use_options
@base_option
@click.option("--out", type=PATH, metavar="FILE", help="Where to write.  [default: composition.toml]")
@click.option("--publish", "name", metavar="NS/NAME", help="Make a concept of the composition instead.")
@click.option("--version", metavar="V", help="Of --publish.  [default: 0.1.0]")
@click.option("--title", metavar="TEXT", help="Of --publish, for listings.")
@click.option("--force", is_flag=True, help="Replace a file that is there; what --export wrote never is.")
@click.option(
    "--export",
    "export_path",
    type=PATH,
    metavar="PATH",
    help="Write weights instead: an adapter if it ends in .safetensors, else a folder.",
)
@click.option(
    "--for",
    "target",
    type=click.Choice(COMPOSED_TARGETS),
    help="Who reads --export; a pipeline is a whole diffusers folder, a checkpoint a whole model in one file.  "
    "[default: diffusers, pipeline where need be]",
)
@click.option("--lossy", is_flag=True, help="Take an approximation where --for has no exact form.")
@pass_session
def compose(
    session: Session, /, members: tuple[Member, ...], *, file: Path | None, base: str | None, **given: Any
) -> None:
    """Write or check a composition file, or make a concept or weights of the composition.

    References become exact versions with their digests, so that the file means the same later, or is refused, and
    concepts gc keeps them. It is written only if the concepts fit the base and one another; concepts generate
    --composition takes it. Masks of regions are named by their digests and lie beside it, in masks. With --export
    the concepts are added up at their strengths into files that other programs read; what weights cannot hold, such
    as gates and schedules, is refused, and the composition file is written only if --out names it. With --publish
    the composition becomes a concept, which is pushed, pulled, locked and composed like any other; pulling it
    brings what it names. A composition among REF is its concepts, times its strength.
    """
    asked = _read_asked(session, members, file=file, base=base, given=given)
    composition = fetch_composition(session, asked.document, asked.masks)
    published = None
    if asked.request is None:
        exported = None
        identity = find_identity(session, asked.document.base, composition)
        plan, overlaps = plan_composition(composition, identity)
    else:
        opened = ExportBase(session, asked.document.base, composition)
        plan, overlaps = plan_composition(composition, opened.identity)
        exported = export_composition(session, composition, opened.base, asked.request)
    if asked.publish is not None:
        published = publish_composition(session, asked.publish, plan, asked.document, asked.masks)
    if asked.path is not None:
        if file is None:
            _write(asked.path, asked.document, asked.masks)
        _keep(session, asked.path, plan)
    _say(session, asked, plan, overlaps, made=_Made(exported=exported, published=published))
    if file is None and asked.path is not None:
        _suggest(session, asked.path, plan)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Asked:
    """What one run of the command is about."""

    document: CompositionDocument
    masks: tuple[Mask, ...]
    path: Path | None
    """The composition file that is written or checked, None where only weights are written."""

    request: Request | None
    publish: PublishRequest | None
    verb: str


@dataclass(frozen=True, slots=True, kw_only=True)
class _Made:
    """What became of the composition beside its file."""

    exported: tuple[PreparedExport, tuple[Exported, ...]] | None
    published: Published | None


def _read_asked(
    session: Session,
    members: tuple[Member, ...],
    *,
    file: Path | None,
    base: str | None,
    given: dict[str, Any],
) -> _Asked:
    """Returns what is asked, checked as far as no concept is read. Raises UsageError, ConflictError."""
    _check_file(file, given)
    request = read_request(given["export_path"], given["target"], lossy=given["lossy"])
    publish = read_publish_request(given)
    path = file or given["out"] or (DEFAULT if request is None and publish is None else None)
    if file is None and path is not None:
        _refuse_overwriting(path, force=given["force"])
    read = read_document(members, file)
    expanded, brought = expand(session, read, given["way"])
    renamed = expanded.model_copy(update={"concepts": rename_members(expanded.concepts, given["rename"])})
    used, masks = use_concepts(renamed, given)
    return _Asked(
        document=_pin(session, used, base),
        masks=(*masks, *brought, *read_masks(read, file)),
        path=path,
        request=request,
        publish=publish,
        verb="written" if file is None else "checked",
    )


def _say(
    session: Session,
    asked: _Asked,
    plan: Plan,
    overlaps: tuple[Overlap, ...],
    *,
    made: _Made,
) -> None:
    exported, published = made.exported, made.published
    document = {
        "path": None if asked.path is None else str(asked.path),
        "digest": str(asked.document.digest),
        "way": asked.document.way,
        **to_json(plan, overlaps),
        "export": None if exported is None else export_to_json(*exported),
        "published": None if published is None else to_published_json(published),
    }
    lines = [*describe(plan, overlaps), *_describe_way(asked.document)]
    if exported is not None and asked.request is not None:
        lines += describe_export(asked.request, *exported)
    if published is not None:
        lines.append(describe_published(published))
    places = (
        asked.path,
        None if asked.request is None else asked.request.path,
        None if published is None else published.reference,
    )
    session.out.emit(document, lines, quiet=[str(one) for one in places if one is not None])
    for warning in plan.warnings:
        session.out.warn(warning)
    if asked.path is not None:
        session.out.note(f"{asked.verb}: {asked.path}")


def _suggest(session: Session, path: Path, plan: Plan) -> None:
    called = [text for member in plan.members for text in _iter_calls(member)]
    prompt = f"a photo of {' and '.join(called) or '...'}"
    command = ["concepts", "generate", "--composition", str(path), "--prompt", prompt, "--out", "pictures"]
    session.out.note(f"hint: {shlex.join(command)}")


def _iter_calls(member: PlannedMember) -> Iterator[str]:
    """Returns what calls a concept: plain text stands before its superclass, as it was taught."""
    for token in member.concept.manifest.tokens:
        word = member.words.get(token.placeholder, token.placeholder)
        yield f"a {word} {token.superclass}" if token.superclass and not token.vectors else f"a {word}"


def _keep(session: Session, path: Path, plan: Plan) -> None:
    """Keeps what the file refers to from ``concepts gc``, until ``gc --forget``."""
    from conceptry.registry.roots import keep_root

    keep_root(session.registry.store, "composition", path, [one.concept.digest for one in plan.members])


def _pin(session: Session, document: CompositionDocument, base: str | None) -> CompositionDocument:
    """Returns the document with the versions that its references mean now, and their digests."""
    found = [session.registry.resolve(member.reference) for member in document.concepts]
    members = [
        member.model_copy(update={"reference": one.reference, "digest": one.digest})
        for member, one in zip(document.concepts, found, strict=True)
    ]
    return document.model_copy(update={"concepts": tuple(members), "base": base or document.base})


def _check_file(file: Path | None, given: dict[str, Any]) -> None:
    if file is None:
        return
    if given["out"] is not None:
        raise UsageError("--file checks a file, --out writes one", hint="name one of them")
    if given["rename"] or is_asked(given):
        raise UsageError(
            "--file takes a composition as it is written", hint=f"change {file}, or name the concepts anew"
        )


def _describe_way(document: CompositionDocument) -> Iterator[str]:
    if document.way == "switch":
        yield f"way: by turns of {document.period} steps each (LoRA Switch)"
    elif document.way == "composite":
        yield "way: the mean of what each alone predicts (LoRA Composite)"
    elif document.way == "focus":
        yield "way: each by itself, where it changes most"


def _refuse_overwriting(path: Path, *, force: bool) -> None:
    if path.exists() and not force:
        raise ConflictError(f"{str(path)!r} exists already", hint="add --force, or another --out")


def _write(path: Path, document: CompositionDocument, masks: tuple[Mask, ...]) -> None:
    from conceptry.composition import format_composition

    if masks:
        from conceptry.composer.masks import keep_masks

        keep_masks(masks, path.parent)
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        partial.write_text(format_composition(document), encoding="utf-8")
        os.replace(partial, path)
    except OSError as error:
        raise StoreError(f"cannot write {str(path)!r}: {error.strerror or error}") from error
    finally:
        partial.unlink(missing_ok=True)
