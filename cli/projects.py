"""What the commands of projects share: finding the project, writing its rows, and saying what moved."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from conceptry.cli.session import Session

if TYPE_CHECKING:
    from conceptry.registry.lockfile import Lock
    from conceptry.registry.workspace import LockChange, Move, Workspace


def find_workspace(session: Session) -> Workspace:
    """Returns the project around the working folder. Raises NotFoundError where there is none."""
    from conceptry.registry.workspace import Workspace, require_folder

    return Workspace(session.registry, require_folder(Path.cwd()))


def report_change(session: Session, change: LockChange, **more: Any) -> None:
    """Prints what locking came to, and what somebody should know."""
    document = {
        **more,
        "changed": change.changed,
        "moves": [
            {"name": str(move.name), "before": move.before, "after": move.after} for move in change.moves
        ],
        "concepts": list_locked(change.lock),
        "warnings": list(change.warnings),
    }
    session.out.emit(document, _describe(change), quiet=[str(one.reference) for one in change.lock.concepts])
    for warning in change.warnings:
        session.out.warn(warning)


def report_moves(session: Session, change: LockChange) -> None:
    """Says on stderr what moved, for a command whose own result comes later."""
    for move in change.moves:
        session.out.note(_describe_move(move))
    for warning in change.warnings:
        session.out.warn(warning)


def list_locked(lock: Lock) -> list[dict[str, Any]]:
    """Returns the rows of a lock for JSON."""
    return [
        {
            "reference": str(one.reference),
            "digest": str(one.manifest),
            "remote": one.remote,
            "build": one.build,
            "source": one.source.text if one.source else None,
            "tokens": {str(old): str(new) for old, new in one.tokens.items()},
        }
        for one in lock.concepts
    ]


def _describe(change: LockChange) -> Iterator[str]:
    for move in change.moves:
        yield _describe_move(move)
    count = len(change.lock.concepts)
    said = "locked" if change.changed else "the lock is as it was:"
    yield f"{said} {count} {'concept' if count == 1 else 'concepts'}"


def _describe_move(move: Move) -> str:
    if move.before is None:
        return f"+ {move.name} {move.after}"
    if move.after is None:
        return f"- {move.name} {move.before}"
    return f"~ {move.name} {move.before} -> {move.after}"
