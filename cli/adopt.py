"""``concepts adopt``: a collection of models becomes known where it lies; nothing is copied."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from conceptry.cli.groups import ConceptsCommand
from conceptry.cli.options import PATH
from conceptry.cli.progress import follow_transfer, track
from conceptry.cli.session import Session, pass_session
from conceptry.cli.text import count_things, format_bytes
from conceptry.errors import NotFoundError, UsageError

if TYPE_CHECKING:
    from conceptry.registry.adopted_files import AdoptedFile, Collection
    from conceptry.registry.adoption import Adoption
    from conceptry.registry.adoption_hashing import Hashed

SHOWN: int = 20


@click.command(
    "adopt",
    cls=ConceptsCommand,
    examples=(
        "concepts adopt ~/ComfyUI/models/loras",
        "concepts adopt --hash",
        "concepts adopt ~/ComfyUI/models/loras --forget",
    ),
)
@click.argument("folder", type=PATH, required=False, metavar="[DIR]")
@click.option("--namespace", metavar="NS", help="Where the concepts are listed. Default: adopted.")
@click.option(
    "--hash", "with_hash", is_flag=True, help="Also read every byte, so that the files can be used."
)
@click.option("--forget", is_flag=True, help="List the folder's files no longer; they stay as they are.")
@pass_session
def adopt(
    session: Session, /, folder: Path | None, *, namespace: str | None, with_hash: bool, forget: bool
) -> None:
    """List the models of a folder as concepts, in place.

    Each file is identified by its header, and the notes of A1111, Civitai Helper and ComfyUI-Lora-Manager beside it are
    read. What stays in doubt is written to adopt.toml in the folder: correct it and adopt again. With --hash, which
    goes on where it was stopped, the files can be used; without DIR it hashes all that was adopted. Exit code 1 when a
    file is no sound model.
    """
    if forget:
        _forget(session, folder)
        return
    adoptions, hashings = [], []
    for place in _choose_folders(session, folder, with_hash=with_hash):
        with track(session.out, f"looking at {place.name}") as meter:
            adoption = session.registry.adopt(place, namespace=namespace, on_event=follow_transfer(meter))
        adoptions.append(adoption)
        if with_hash:
            with track(session.out, f"hashing {place.name}") as meter:
                hashed = session.registry.hash_adopted(adoption.collection, on_event=follow_transfer(meter))
            hashings.append(hashed)
    _report(session, adoptions, hashings)


def _choose_folders(session: Session, folder: Path | None, *, with_hash: bool) -> list[Path]:
    if folder is not None:
        return [folder]
    known = [collection.folder for collection in session.registry.adopted()]
    if not with_hash:
        raise UsageError("no folder is named", hint="concepts adopt DIR, or concepts adopt --hash for all")
    if not known:
        raise NotFoundError("nothing was adopted yet", hint="concepts adopt DIR")
    return known


def _forget(session: Session, folder: Path | None) -> None:
    if folder is None:
        raise UsageError("no folder is named", hint="concepts adopt DIR --forget")
    place = folder.expanduser().absolute()
    if not session.registry.forget_adopted(place):
        raise NotFoundError(f"{str(place)!r} was not adopted", hint="concepts adopt DIR")
    session.out.emit({"folder": str(place), "forgotten": True}, [f"{place} is listed no longer"])


def _report(session: Session, adoptions: Sequence[Adoption], hashings: Sequence[Hashed]) -> None:
    collections = [one.collection for one in (hashings or adoptions)]
    rows = [(collection, file) for collection in collections for file in collection.files]
    failed = [*((file.path, file.fault or "") for _, file in rows if file.state == "unreadable")]
    failed += [pair for hashed in hashings for pair in hashed.failed]
    states = [file.state for _, file in rows]
    document = {
        "folders": [str(collection.folder) for collection in collections],
        "files": [describe_adopted(collection, file) for collection, file in rows],
        "states": {state: states.count(state) for state in sorted(set(states))},
        "added": sum(one.added for one in adoptions),
        "changed": sum(one.changed for one in adoptions),
        "moved": sum(one.moved for one in adoptions) + sum(one.found_again for one in hashings),
        "hashed": sum(one.count for one in hashings),
        "new_doubts": sum(one.new_doubts for one in adoptions),
        "answers": [str(one.answers) for one in adoptions],
        "skipped": [{"path": path, "message": why} for one in adoptions for path, why in one.skipped],
        "failed": [{"path": path, "message": message} for path, message in failed],
    }
    lines = _iter_lines(adoptions, hashings, document)
    session.out.emit(document, lines, quiet=[str(collection.name(file)) for collection, file in rows])
    for path, message in failed[:SHOWN]:
        session.out.warn(f"{path}: {message}")
    if failed:
        raise click.exceptions.Exit(1)


def _iter_lines(
    adoptions: Sequence[Adoption], hashings: Sequence[Hashed], document: dict[str, Any]
) -> Iterator[str]:
    for one in adoptions:
        count = len(one.collection.files)
        yield f"{one.collection.folder}: {count_things(count, 'file')}, nothing copied"
        if one.new_doubts:
            yield f"  {count_things(one.new_doubts, 'doubt')} to look at: {one.answers}"
        remarks = [f"{file.path}: {text}" for file in one.collection.files for text in file.remarks]
        yield from (f"  {text}" for text in remarks[:SHOWN])
        yield from (f"  {path}: {why}" for path, why in one.skipped[:SHOWN])
    yield "  " + ", ".join(
        f"{count} {state.replace('_', ' ')}" for state, count in document["states"].items()
    )
    for hashed in hashings:
        yield f"  hashed {count_things(hashed.count, 'file')} ({format_bytes(hashed.size_bytes)})"
    if document["failed"]:
        yield f"  {count_things(len(document['failed']), 'file')} could not be read"
    if document["states"].get("pending"):
        yield "  pending files can be used after: concepts adopt --hash"


def describe_adopted(collection: Collection, file: AdoptedFile) -> dict[str, Any]:
    """Returns what ``--json`` prints of an adopted file."""
    return {
        "name": str(collection.name(file)),
        "path": str(collection.folder / file.path),
        "state": file.state,
        "kind": file.kind or None,
        "family": file.base,
        "placeholders": list(file.words),
        "title": file.title,
        "size_bytes": file.size_bytes,
        "sha256": None if file.sha256 is None else f"sha256:{file.sha256}",
        "version": None if file.made is None else file.made[1],
        "claims": dict(file.claims),
        "message": file.fault,
    }
