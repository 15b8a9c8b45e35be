"""Types of arguments and options that several commands take; the names in the store complete in a shell."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

import click
from click.shell_completion import CompletionItem

from conceptry.errors import ConceptryError, UsageError
from conceptry.names import ConceptName, Placeholder, Reference, parse_placeholder

if TYPE_CHECKING:
    from conceptry.composition import Member

F = TypeVar("F", bound=Callable[..., Any])

MAX_SEED: Final = 2**53


class TextType(click.ParamType):  # type: ignore[type-arg]  # generic since click 8.4 only
    """Base of the types of options, whatever they read."""


class ReferenceType(TextType):
    """A reference such as ``me/imp``, ``me/imp:tag`` or ``me/imp@1.0.0``."""

    name = "ref"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Reference:
        """Returns the reference. Raises InvalidNameError."""
        return value if isinstance(value, Reference) else Reference.parse(value)

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        """Returns the concepts in the store that begin so."""
        return complete_concepts(incomplete)


class MemberType(TextType):
    """A reference with a strength: ``me/imp`` or ``me/imp*0.7``."""

    name = "ref[*strength]"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Member:
        """Returns the member of a composition. Raises InvalidNameError."""
        from conceptry.composition import parse_member

        return parse_member(value) if isinstance(value, str) else value

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        """Returns the concepts in the store that begin so."""
        return complete_concepts(incomplete)


class SettingType(TextType):
    """``name=value``; the value is read as JSON where it is JSON, else as text."""

    name = "name=value"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, Any]:
        """Returns name and value. Raises UsageError."""
        import json

        if isinstance(value, tuple):
            return value
        name, equals, text = value.partition("=")
        if not equals or not name:
            raise UsageError(
                f"not a setting: {value[:80]!r}", hint="write --set name=value, such as --set rank=16"
            )
        try:
            return name, json.loads(text)
        except ValueError:
            return name, text


class RenameType(TextType):
    """``ns/name:old=new``: another word for a concept's placeholder."""

    name = "ns/name:old=new"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, Placeholder, Placeholder]:
        """Returns concept, old and new word. Raises InvalidNameError."""
        if isinstance(value, tuple):
            return value
        name, colon, words = value.partition(":")
        old, equals, new = words.partition("=")
        if not colon or not equals:
            raise UsageError(f"not a renaming: {value[:80]!r}", hint="write --rename 'me/imp:<imp>=<devil>'")
        return str(ConceptName.parse(name)), parse_placeholder(old), parse_placeholder(new)


def complete_concepts(incomplete: str) -> list[CompletionItem]:
    """Returns the names in the store that begin with ``incomplete``; none where the store cannot be read."""
    from conceptry.registry import Registry

    try:
        rows = Registry().list()
    except (ConceptryError, OSError):
        return []
    names = [(str(row.reference.concept), row.title) for row in rows]
    return [CompletionItem(name, help=title or None) for name, title in names if name.startswith(incomplete)]


REFERENCE: Final = ReferenceType()
MEMBER: Final = MemberType()
SETTING: Final = SettingType()
RENAME: Final = RenameType()
PATH: Final = click.Path(path_type=Path)
SEED: Final = click.IntRange(0, MAX_SEED)


def yes_option(function: F) -> F:
    """Adds ``--yes``, which agrees beforehand; the command asks ``session.confirm``."""

    def agree(context: click.Context, parameter: click.Parameter, value: bool) -> None:
        from conceptry.cli.session import Session

        if value:
            context.ensure_object(Session).yes = True

    return click.option(
        "--yes", "-y", is_flag=True, expose_value=False, callback=agree, help="Agree beforehand; ask nothing."
    )(function)


def device_option(function: F) -> F:
    """Adds ``--device``: where to compute."""
    return click.option(
        "--device", type=click.Choice(["auto", "cpu", "cuda", "mps"]), default="auto", show_default=True
    )(function)


def base_option(function: F) -> F:
    """Adds ``--base``: which model the concepts go to."""
    return click.option(
        "--base",
        metavar="BASE",
        help="toybox, a diffusers folder, a .safetensors checkpoint, hf://ns/repo@rev from the local cache, "
        "a family id, or a name of concepts base add. Default: toybox where the concepts were made for it.",
    )(function)
