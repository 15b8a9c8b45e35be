"""Writes the generated pages of this folder, or with ``--check`` says which are not current."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import click

DOCS: Final = Path(__file__).parent


def manifest_schema() -> str:
    """Returns the JSON Schema of ``concept.json``, as text."""
    from conceptry.manifest import Manifest

    schema = Manifest.model_json_schema(by_alias=True)
    return json.dumps({"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}, indent=2) + "\n"


def help_pages() -> str:
    """Returns the help of every command, as one page."""
    from conceptry.cli.main import concepts

    return "# The command line\n\nGenerated from the commands' own help.\n" + "".join(
        _help_sections(concepts)
    )


def _help_sections(command: click.Command, parent: click.Context | None = None) -> Iterator[str]:
    context = command.context_class(
        command, info_name=command.name, parent=parent, terminal_width=100, **command.context_settings
    )
    yield f"\n## `{context.command_path}`\n\n```text\n{command.get_help(context)}\n```\n"
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            child = command.get_command(context, name)
            if child is not None:
                yield from _help_sections(child, context)


PAGES: Final[dict[str, Callable[[], str]]] = {
    "concept.schema.json": manifest_schema,
    "help.md": help_pages,
}


def main(arguments: list[str]) -> int:
    """Returns the exit code: 1 when ``--check`` finds a page that is not current."""
    stale: list[str] = []
    for name, generate in PAGES.items():
        page, text = DOCS / name, generate()
        if page.is_file() and page.read_text(encoding="utf-8") == text:
            continue
        stale.append(name)
        if "--check" not in arguments:
            page.write_text(text, encoding="utf-8")
            print(f"written: docs/{name}")
    if stale and "--check" in arguments:
        print(f"not current: {', '.join(stale)}\nhint: run python docs/generate.py", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
