"""``concepts import``: a file of another program becomes a published version."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from conceptry.cli.groups import ConceptsCommand
from conceptry.cli.options import yes_option
from conceptry.cli.output import has_terminal
from conceptry.cli.publish import describe, publish_folder, to_json
from conceptry.cli.session import Session, pass_session
from conceptry.cli.show import describe_license
from conceptry.errors import MissingAnswerError, UsageError
from conceptry.names import ConceptName, parse_placeholder, parse_version
from conceptry.sources import Source, parse_source
from conceptry.written_files import remember_written_files

if TYPE_CHECKING:
    from conceptry.base_locations import BaseLocation
    from conceptry.formats.import_plans import ImportPlan, ImportSettings
    from conceptry.manifest import Base

_SCHEMES = ("hf://", "https://", "http://", "urn:")
_QUESTIONS = {
    "placeholder": "Which word calls it, such as <imp>?",
    "base": "Which base was it made for, such as sd1, sd2, sdxl or flux?",
    "superclass": "Which ordinary word does it specialise, such as creature?",
}


class FileType(click.Path):
    """A file: a path, hf://ns/repo@rev/path, or a URL with #sha256=."""

    name = "file"

    def __init__(self) -> None:
        super().__init__(path_type=Path)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path | Source:  # type: ignore[override]  # it reads more than a path
        """Returns where the file is. Raises InvalidNameError."""
        if isinstance(value, str) and value.startswith(_SCHEMES):
            source = parse_source(value)
            if source is not None:
                return source
        return Path(os.fsdecode(super().convert(value, param, ctx)))


@click.command(
    "import",
    cls=ConceptsCommand,
    examples=(
        "concepts import imp.safetensors --name me/imp --version 1.0.0 --placeholder '<imp>' --base sd1 "
        "--license CC0-1.0 --yes",
        "concepts import imp.safetensors --name me/imp --dry-run",
        "concepts import learned_embeds.safetensors learned_embeds_2.safetensors --name me/imp --yes",
        "concepts import bundle.safetensors --name me/imp --split --yes",
        "concepts import hf://ns/repo@main/imp.safetensors --name me/imp --yes",
    ),
)
@click.argument("files", type=FileType(), nargs=-1, required=True, metavar="FILE...")
@click.option("--name", required=True, metavar="NS/NAME", help="What the concept is to be called.")
@click.option("--version", default="0.1.0", show_default=True, metavar="V", help="Its version.")
@click.option(
    "--placeholder",
    multiple=True,
    metavar="WORD",
    help="The word that calls it; once for each row where each row of an embedding is a word of its own.",
)
@click.option("--superclass", metavar="WORD", help="The ordinary word that it specialises.")
@click.option(
    "--base", metavar="BASE", help="What it was made for: a family id such as sd1, or a base on this machine."
)
@click.option("--license", metavar="SPDX", help="Its licence, as its author says.")
@click.option("--title", default="", metavar="TEXT", help="A title for listings.")
@click.option("--description", default="", metavar="TEXT", help="What others should know of it.")
@click.option("--split", is_flag=True, help="Publish each word of the file as a concept of its own.")
@click.option("--dry-run", is_flag=True, help="Say what would be published and stop.")
@yes_option
@pass_session
def import_file(
    session: Session, /, files: tuple[Path | Source, ...], *, split: bool, dry_run: bool, **given: Any
) -> None:
    """Publish a file that another program made.

    Several files are the parts of one concept, such as the two embeddings of SDXL. Every tensor is kept, or the file
    is refused; what had to be decided on the way is said. A whole model is kept as what differs from its --base.

    A file is a path, hf://ns/repo@rev/path, or a URL with #sha256=.
    """
    with tempfile.TemporaryDirectory(prefix="conceptry-fetched-") as folder:
        paths = tuple(
            file if isinstance(file, Path) else _fetch(session, file, Path(folder) / str(number))
            for number, file in enumerate(files)
        )
        _import_paths(session, paths, split=split, dry_run=dry_run, given=given)


def _fetch(session: Session, source: Source, folder: Path) -> Path:
    from conceptry.cli.progress import track
    from conceptry.registry.foreign import fetch_source

    folder.mkdir()
    with track(session.out, f"fetching {source}"):
        path, _, _ = fetch_source(source, Path.cwd(), folder)
    return path


def _import_paths(
    session: Session, files: tuple[Path, ...], *, split: bool, dry_run: bool, given: dict[str, Any]
) -> None:
    from conceptry.formats.import_plans import split_plan

    plan = _ask_until_known(session, files, given)
    plans = split_plan(plan) if split else (plan,)
    for note in plan.notes:
        session.out.warn(note)
    if dry_run:
        lines = [line for one in plans for line in ("would publish", *_describe(one))]
        session.out.emit(_join([{**_to_json(one), "created": False} for one in plans]), lines)
        return
    if session.out.mode == "human" and not session.yes:
        for line in (line for one in plans for line in _describe(one)):
            session.out.note(line)
    names = " and ".join(f"{one.settings.name}@{one.settings.version}" for one in plans)
    session.confirm(f"Publish {names}?")
    _publish(session, plans)


def _publish(session: Session, plans: tuple[ImportPlan, ...]) -> None:
    from conceptry.formats.importing import write_import

    rows, lines, references = [], [], []
    with session.registry.stage() as folder, remember_written_files() as written:
        packages = [folder / str(number) for number in range(len(plans))]
        # All are written before the first is published: a file that cannot be kept leaves no half of it behind.
        for plan, package in zip(plans, packages, strict=True):
            write_import(plan, package)
        for plan, package in zip(plans, packages, strict=True):
            published = publish_folder(session, package, written=written)
            rows.append({**_to_json(plan), **to_json(published)})
            lines.append(describe(published))
            references.append(str(published.reference))
    session.out.emit(_join(rows), lines, quiet=references)


def _join(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Returns what ``--json`` prints: one concept as it is, several in a list."""
    return rows[0] if len(rows) == 1 else {"concepts": rows}


def _ask_until_known(session: Session, files: tuple[Path, ...], given: dict[str, Any]) -> ImportPlan:
    """Returns the plan; what only the caller can know is asked for at a terminal, and is an error elsewhere."""
    from conceptry.formats.import_plans import plan_import

    while True:
        try:
            return plan_import(files, _make_settings(session, given))
        except MissingAnswerError as error:
            asked = error.option in _QUESTIONS and not given[error.option]
            if not asked or not has_terminal(sys.stdin) or session.out.mode != "human":
                raise
            session.out.note(error.message)
            answer = click.prompt(_QUESTIONS[error.option], err=True)
            given = {**given, error.option: (answer,) if error.option == "placeholder" else answer}


def _make_settings(session: Session, given: dict[str, Any]) -> ImportSettings:
    from conceptry.formats.import_plans import ImportSettings

    words = tuple(map(parse_placeholder, given["placeholder"]))
    location = None if given["base"] is None else _locate_base(session, given["base"])
    return ImportSettings(
        name=ConceptName.parse(given["name"]),
        version=parse_version(given["version"]),
        placeholder=words[0] if len(words) == 1 else None,
        row_placeholders=words if len(words) > 1 else (),
        superclass=given["superclass"],
        base=None if location is None else _declare_base(location, given["base"]),
        base_path=None if location is None else location.path,
        license=given["license"],
        title=given["title"],
        description=given["description"],
    )


def _locate_base(session: Session, text: str) -> BaseLocation:
    from conceptry.base_locations import resolve_base

    return resolve_base(text, session.registry.bases())


def _declare_base(location: BaseLocation, text: str) -> Base:
    """Returns the base that a file is declared for; nothing of it is loaded."""
    from conceptry.formats.identify import identify
    from conceptry.formats.import_plans import declare_base

    family = location.family
    if family is None and location.path is not None:
        family = identify(location.path).family
    if family is None:
        raise UsageError(f"nothing tells the family of the base {text!r}", hint="name the family: --base sd1")
    declared = declare_base(family)
    return declared.model_copy(update={"repo": location.repo, "revision": location.revision})


def _to_json(plan: ImportPlan) -> dict[str, Any]:
    return {
        "reference": f"{plan.settings.name}@{plan.settings.version}",
        "kind": plan.identification.kind,
        "dialect": plan.identification.dialect,
        "family": plan.base.family,
        "placeholders": [token.placeholder for token in plan.tokens],
        "license": plan.license.spdx or plan.license.name,
        "imported_from": str(plan.source),
        "notes": list(plan.notes),
    }


def _describe(plan: ImportPlan) -> Iterator[str]:
    yield f"  {plan.settings.name}@{plan.settings.version}"
    yield f"  {plan.identification.title}, for {plan.base.family}"
    yield f"  word: {', '.join(token.placeholder for token in plan.tokens) or 'none'}"
    yield f"  licence: {describe_license(plan.license)}"
