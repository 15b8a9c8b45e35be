"""``concepts list`` and ``concepts search``: quick looks at the index, without pydantic and without torch."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

import click

from conceptry.cli.groups import ConceptsCommand
from conceptry.cli.session import Session, pass_session
from conceptry.cli.text import format_bytes
from conceptry.errors import NotFoundError, UsageError, suggest_nearest
from conceptry.names import ConceptName, parse_namespace
from conceptry.registry.listing import Filter, Listing
from conceptry.registry.rows import CELL_BREAK, ListedVersion, describe_row

SHOWN_ROWS: Final = 100
"""How many rows a person is shown without asking for more."""

MOST_FOUND: Final = 300
"""How many matches of a search are looked at for a person, who adds a word rather than read them."""

if TYPE_CHECKING:
    from conceptry.registry.adopted_files import AdoptedFile, Collection
    from conceptry.registry.protocol import RemoteConcept

    AdoptedRow = tuple[Collection, AdoptedFile]

_NOTHING_YET: Final = (
    "nothing here yet: concepts train and concepts import publish into the store, "
    "concepts pull copies into it"
)
_DIGITS: Final = re.compile(r"(?:sha256:)?([0-9a-f]{10,64})", re.ASCII)

_COLUMNS: Final = ("CONCEPT", "KIND", "BASE", "WORD", "SIZE", "LICENCE", "TITLE")


@click.command(
    "list",
    cls=ConceptsCommand,
    examples=(
        "concepts list",
        "concepts list me/imp --all",
        "concepts list --kind lora --family sdxl --json",
        "concepts list --hash 1F2E3D4C5B",
    ),
)
@click.argument("name", required=False, metavar="[NS/NAME]")
@click.option(
    "--all", "all_versions", is_flag=True, help="Every version, not the latest of each concept alone."
)
@click.option("--namespace", metavar="NS", help="Of this namespace only.")
@click.option("--kind", metavar="KIND", help="Of this kind only: embedding, rank_one, lora, full.")
@click.option("--family", metavar="FAMILY", help="For this base family only: sd1, sdxl, toybox, ...")
@click.option(
    "--hash",
    "digits",
    metavar="HEX",
    help="What has this SHA-256, AutoV2 or AutoV3, or 10 digits of it or more.",
)
@click.option(
    "--limit",
    type=click.IntRange(0),
    metavar="N",
    help=f"At most N; 0 for all. Default: {SHOWN_ROWS} for people.",
)
@pass_session
def list_concepts(session: Session, /, *, digits: str | None, **chosen: Any) -> None:
    """List the concepts in the store, and the files that were adopted.

    Each concept is shown at its latest version. --quiet prints references alone, one a line, for a pipe. --quiet,
    --json and --all print every row. --hash finds the manifest, file or tensors that are called so, and adopted files
    by what was measured or is claimed beside them.
    """
    wanted = _make_filter(session, chosen)
    if digits is None and wanted.limit is None and session.out.mode != "json":
        lines = session.registry.lines(wanted)
        cells = [_to_adopted_cells(*row) for row in _list_adopted(session, wanted)]
        session.out.emit_lines(_COLUMNS, [*lines, *map(CELL_BREAK.join, cells)], empty=_NOTHING_YET)
        return
    if digits is None:
        found, adopted = session.registry.survey(wanted), _list_adopted(session, wanted)
        hint = _NOTHING_YET
    else:
        prefix = _check_digits(digits)
        found = session.registry.find_hash(prefix, wanted)
        adopted = _list_adopted(session, wanted, prefix)
        hint = f"nothing here has the hash {prefix}"
    _print_rows(session, found, empty=hint, adopted=adopted)


def _check_digits(text: str) -> str:
    match = _DIGITS.fullmatch(text.lower())
    if match is None:
        raise UsageError(
            f"not a hash: {text[:80]!r}", hint="give 10 to 64 hexadecimal digits of SHA-256, AutoV2 or AutoV3"
        )
    return match[1]


def _list_adopted(session: Session, wanted: Filter, prefix: str | None = None) -> list[AdoptedRow]:
    """Returns the adopted files that a listing shows; of which versions were made, those are shown instead."""
    rows = []
    for collection in session.registry.adopted():
        for file in collection.files:
            name = collection.name(file)
            fits = (
                file.state != "left_out"
                and wanted.name in (None, name)
                and wanted.namespace in (None, name.namespace)
                and wanted.kind in (None, file.kind)
                and wanted.family in (None, file.base)
            )
            chosen = file.state != "ready" if prefix is None else file.has_hash(prefix)
            if fits and chosen:
                rows.append((collection, file))
    return rows


@click.command(
    "search",
    cls=ConceptsCommand,
    examples=(
        "concepts search imp",
        "concepts search 'blue creature' --kind lora",
        "concepts search imp --remote hf://alice",
    ),
)
@click.argument("words", nargs=-1, required=True)
@click.option("--kind", metavar="KIND", help="Of this kind only.")
@click.option("--family", metavar="FAMILY", help="For this base family only.")
@click.option(
    "--limit",
    type=click.IntRange(0),
    metavar="N",
    help=f"At most N; 0 for all. Default: {SHOWN_ROWS} for people.",
)
@click.option(
    "--remote", metavar="REMOTE", help="On this remote, by name or address, instead of in the store."
)
@pass_session
def search(session: Session, /, words: tuple[str, ...], *, remote: str | None, **chosen: Any) -> None:
    """Find concepts by words.

    All words must be found, each at the beginning of a word of the name, title, description, tags or placeholders.
    A digest, or 12 digits of one, finds what has that manifest, that file or those tensors. What a remote says of its
    concepts is checked when they are pulled, and not before.
    """
    if remote is not None:
        _search_remote(session, remote, " ".join(words), _make_filter(session, chosen))
        return
    found = session.registry.find(" ".join(words), _make_filter(session, chosen))
    _print_rows(session, found, empty=f"nothing has {' '.join(words)!r}: concepts list shows all")


def _search_remote(session: Session, remote: str, words: str, wanted: Filter) -> None:
    found = [
        concept
        for concept in session.registry.search_remote(remote, words, limit=wanted.limit)
        if wanted.kind in (None, *concept.kinds) and wanted.family in (None, *concept.families)
    ]
    rows = [
        (str(one.name), "+".join(one.kinds), ", ".join(one.families), one.license or "unknown", one.title)
        for one in found
    ]
    session.out.emit_table(
        {"concepts": [_describe_remote(one) for one in found], "count": len(found)},
        ("CONCEPT", "KIND", "BASE", "LICENCE", "TITLE"),
        rows,
        empty=f"nothing on {remote} has {words!r}",
    )


def _describe_remote(concept: RemoteConcept) -> dict[str, Any]:
    return {
        "namespace": concept.name.namespace,
        "name": concept.name.name,
        "title": concept.title,
        "kinds": list(concept.kinds),
        "families": list(concept.families),
        "tags": list(concept.tags),
        "license": concept.license,
    }


def _make_filter(session: Session, chosen: Mapping[str, Any]) -> Filter:
    kind, name, namespace = chosen.get("kind"), chosen.get("name"), chosen.get("namespace")
    if kind is not None:
        _check_kind(kind)
    return Filter(
        name=None if name is None else ConceptName.parse(name),
        namespace=None if namespace is None else parse_namespace(namespace),
        kind=kind,
        family=chosen.get("family"),
        all_versions=chosen.get("all_versions", False),
        limit=_choose_limit(session, chosen),
        most_found=MOST_FOUND if session.out.mode == "human" else None,
    )


def _choose_limit(session: Session, chosen: Mapping[str, Any]) -> int | None:
    limit: int | None = chosen.get("limit")
    if limit is not None:
        return limit or None
    is_for_people = session.out.mode == "human" and not chosen.get("all_versions", False)
    return SHOWN_ROWS if is_for_people else None


def _check_kind(kind: str) -> None:
    from conceptry.kinds import KIND_BY_ID

    if kind not in KIND_BY_ID:
        hint = suggest_nearest(kind, KIND_BY_ID) or f"kinds: {', '.join(KIND_BY_ID)}"
        raise NotFoundError(f"no kind is called {kind!r}", hint=hint)


def _print_rows(
    session: Session, found: Listing, *, empty: str, adopted: Sequence[AdoptedRow] | None = None
) -> None:
    as_json = session.out.mode == "json"
    document: dict[str, Any] = {
        "concepts": [_to_json(row) for row in found.rows] if as_json else [],
        "count": found.count,
    }
    if adopted is not None and as_json:
        from conceptry.cli.adopt import describe_adopted

        document["adopted"] = [describe_adopted(*row) for row in adopted]
    cells = [] if as_json else [describe_row(row) for row in found.rows]
    shown = [] if as_json else [_to_adopted_cells(*row) for row in adopted or ()]
    if session.out.mode == "human":
        shown = shown[:SHOWN_ROWS]
    session.out.emit_table(document, _COLUMNS, [*cells, *shown], empty=empty)
    if len(shown) < len(adopted or ()) and not as_json:
        session.out.note(f"{len(shown)} of {len(adopted or ())} adopted files: --json shows all")
    if len(found.rows) < found.count:
        more = "" if found.is_all else "more than "
        session.out.note(f"{len(found.rows)} of {more}{found.count}: --limit 0 shows all")


def _to_json(row: ListedVersion) -> dict[str, Any]:
    # The texts as they are in the row, which was checked: a list may be long.
    return {
        "reference": row.text,
        "namespace": row.row[0],
        "name": row.row[1],
        "version": row.row[2],
        "digest": row.row[3],
        "title": row.title,
        "kinds": list(row.kinds),
        "families": list(row.families),
        "placeholders": list(row.placeholders),
        "tags": list(row.tags),
        "license": row.license,
        "size_bytes": row.size_bytes,
        "origin": row.origin,
        "yanked": row.yanked,
    }


def _to_adopted_cells(collection: Collection, file: AdoptedFile) -> tuple[str, ...]:
    return (
        str(collection.name(file)),
        file.kind,
        file.base or "",
        " ".join(file.words),
        format_bytes(file.size_bytes),
        str(file.answers.get("license") or "unknown"),
        f"{file.title} ({file.state})".lstrip(),
    )
