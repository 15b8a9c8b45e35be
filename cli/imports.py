"""``concepts import``: a file of another program becomes a published version."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from conceptry.cli.groups import ConceptsCommand
from conceptry.cli.options import PATH, yes_option
from conceptry.cli.publish import describe, publish_folder, to_json
from conceptry.cli.session import Session, pass_session
from conceptry.cli.show import describe_license
from conceptry.errors import UsageError
from conceptry.names import ConceptName, parse_placeholder, parse_version

if TYPE_CHECKING:
    from conceptry.formats.import_plans import ImportPlan, ImportSettings
    from conceptry.manifest import Base


@click.command(
    "import",
    cls=ConceptsCommand,
    examples=(
        "concepts import imp.safetensors --name me/imp --version 1.0.0 --placeholder '<imp>' --base sd1 "
        "--license CC0-1.0 --yes",
        "concepts import imp.safetensors --name me/imp --dry-run",
    ),
)
@click.argument("file", type=PATH)
@click.option("--name", required=True, metavar="NS/NAME", help="What the concept is to be called.")
@click.option("--version", default="0.1.0", show_default=True, metavar="V", help="Its version.")
@click.option("--placeholder", metavar="WORD", help="The word that calls it.")
@click.option("--superclass", metavar="WORD", help="The ordinary word that it specialises.")
@click.option(
    "--base", metavar="BASE", help="What it was made for: a family id such as sd1, or a base on this machine."
)
@click.option("--license", metavar="SPDX", help="Its licence, as its author says.")
@click.option("--title", default="", metavar="TEXT", help="A title for listings.")
@click.option("--description", default="", metavar="TEXT", help="What others should know of it.")
@click.option("--dry-run", is_flag=True, help="Say what would be published and stop.")
@yes_option
@pass_session
def import_file(session: Session, /, file: Path, *, dry_run: bool, **given: Any) -> None:
    """Publish a file that another program made.

    Every tensor of the file is kept, or the file is refused; what had to be decided on the way is said.
    """
    from conceptry.formats.import_plans import plan_import
    from conceptry.formats.importing import write_import

    plan = plan_import(file, _make_settings(session, given))
    for note in plan.notes:
        session.out.warn(note)
    summary = _to_json(plan)
    if dry_run:
        session.out.emit({**summary, "created": False}, ["would publish", *_describe(plan)])
        return
    if session.out.mode == "human" and not session.yes:
        for line in _describe(plan):
            session.out.note(line)
    session.confirm(f"Publish {plan.settings.name}@{plan.settings.version}?")
    with tempfile.TemporaryDirectory(prefix="conceptry-import-") as folder:
        write_import(plan, Path(folder) / "package")
        published = publish_folder(session, Path(folder) / "package")
    session.out.emit(
        {**summary, **to_json(published)}, [describe(published)], quiet=[str(published.reference)]
    )


def _make_settings(session: Session, given: Mapping[str, Any]) -> ImportSettings:
    from conceptry.formats.import_plans import ImportSettings

    placeholder = given["placeholder"]
    return ImportSettings(
        name=ConceptName.parse(given["name"]),
        version=parse_version(given["version"]),
        placeholder=None if placeholder is None else parse_placeholder(placeholder),
        superclass=given["superclass"],
        base=None if given["base"] is None else _declare_base(session, given["base"]),
        license=given["license"],
        title=given["title"],
        description=given["description"],
    )


def _declare_base(session: Session, text: str) -> Base:
    """Returns the base that a file is declared for; nothing of it is loaded."""
    from conceptry.base_locations import resolve_base
    from conceptry.formats.import_plans import declare_base

    location = resolve_base(text, session.registry.bases())
    if location.family is None:
        raise UsageError(f"nothing tells the family of the base {text!r}", hint="name the family: --base sd1")
    declared = declare_base(location.family)
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
