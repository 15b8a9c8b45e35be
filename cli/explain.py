"""What pictures used, and where that is: those of ``concepts generate``, of A1111 and its relatives, of ComfyUI."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from conceptry.cli.session import Session
from conceptry.errors import ConceptryError, InvalidFileError, NotFoundError
from conceptry.names import Reference

if TYPE_CHECKING:
    from conceptry.formats.picture_notes import PictureNotes
    from conceptry.formats.picture_records import PictureRecord
    from conceptry.registry.mentions import Shelf


def explain(session: Session, pictures: Sequence[Path]) -> None:
    """Prints what each picture used, and what of that is missing; nothing is fetched and nothing opened.

    Raises:
        InvalidFileError: if a picture carries no notes, or damaged ones.
    """
    rows = read_notes(session, pictures)
    missing = list_missing(rows)
    lines = (line for row in rows for line in describe_notes(row))
    session.out.emit({"pictures": rows, "missing": missing}, lines, quiet=missing)


def read_notes(session: Session, pictures: Sequence[Path]) -> list[dict[str, Any]]:
    """Returns a row for each picture: what it used, where that is, and what is missing. Raises as ``explain``."""
    from conceptry.registry.mentions import Shelf

    shelf = Shelf(session.registry)
    return [_explain(session, shelf, path) for path in pictures]


def list_missing(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Returns what is missing of all pictures, each once."""
    return list(dict.fromkeys(name for row in rows for name in row["missing"]))


def _explain(session: Session, shelf: Shelf, path: Path) -> dict[str, Any]:
    from conceptry.formats.picture_graphs import read_graph
    from conceptry.formats.picture_notes import PARAMETERS_KEY, read_parameters
    from conceptry.formats.picture_records import TEXT_KEY, parse_record
    from conceptry.formats.png_text import read_texts

    texts = read_texts(path)
    try:
        if TEXT_KEY in texts:
            return _explain_record(session, path, parse_record(texts[TEXT_KEY]))
        notes = read_graph(texts) if PARAMETERS_KEY not in texts else read_parameters(texts[PARAMETERS_KEY])
    except ConceptryError as error:
        raise error.inside(path.name) from error
    if notes is None:
        raise InvalidFileError(
            f"{str(path)!r} carries no notes of a program that is known here",
            hint="many sites take the notes out of pictures; the file as it was first written has them",
        )
    return _explain_notes(shelf, path, notes)


def _explain_record(session: Session, path: Path, record: PictureRecord) -> dict[str, Any]:
    files = []
    for member in record.composition.concepts if record.composition else ():
        wanted = Reference(member.reference.concept, member.digest)
        try:
            found = [
                {"reference": str(session.registry.resolve(wanted).reference), "how": "hash", "path": None}
            ]
        except NotFoundError:
            found = []
        files.append(
            {
                "kind": "concept",
                "name": str(member.reference),
                "strength": member.strength,
                "hashes": [member.digest.hex],
                "found": found,
            }
        )
    return _make_row(path, "conceptry", (record.prompt, record.negative), files)


def _explain_notes(shelf: Shelf, path: Path, notes: PictureNotes) -> dict[str, Any]:
    files = [
        {
            "kind": mention.kind,
            "name": mention.name,
            "strength": mention.strength,
            "hashes": list(mention.hashes),
            "found": [
                {"reference": match.reference, "how": match.how, "path": match.path}
                for match in shelf.find(mention)
            ],
        }
        for mention in notes.files
    ]
    return _make_row(path, notes.program, (notes.prompt, notes.negative), files)


def _make_row(
    path: Path, program: str, words: tuple[str, str], files: list[dict[str, Any]]
) -> dict[str, Any]:
    return {
        "picture": str(path),
        "program": program,
        "prompt": words[0],
        "negative": words[1],
        "files": files,
        "missing": [_name(file) for file in files if not file["found"]],
    }


def _name(file: Mapping[str, Any]) -> str:
    return str(file["name"] or "/".join(file["hashes"]))


def describe_notes(row: Mapping[str, Any]) -> Iterator[str]:
    """Returns a row of ``read_notes`` in lines."""
    yield f"{Path(row['picture']).name}, by {row['program']}: {row['prompt'][:200]}"
    for file in row["files"]:
        strength = "" if file["strength"] is None else f" at {file['strength']:g}"
        yield f"  {file['kind']} {_name(file)}{strength}: {_say_found(file)}"
    if not row["files"]:
        yield "  it names no file"


def _say_found(file: Mapping[str, Any]) -> str:
    if not file["found"]:
        digits = (
            f", known by {', '.join(file['hashes'])}"
            if file["hashes"]
            else ", and its notes have no hash of it"
        )
        return f"missing{digits}"
    first = file["found"][0]
    place = f" ({first['path']})" if first["path"] else ""
    proof = "by its hash" if first["how"] == "hash" else "by its name only"
    more = len(file["found"]) - 1
    return f"{first['reference']}{place}, {proof}{f', and {more} more' if more else ''}"
