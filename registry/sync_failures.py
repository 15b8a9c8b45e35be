"""Why a sync failed where a remote has not what was locked: something else is under its name, or nothing is."""

from __future__ import annotations

from collections.abc import Callable

from conceptry.errors import ConceptryError, IdentityChangedError, NotFoundError
from conceptry.names import RemoteName
from conceptry.registry.lockfile import Lock
from conceptry.registry.places import LOCK_FILE
from conceptry.registry.protocol import Remote

OpenRemote = Callable[[RemoteName], Remote]


def explain_failed_sync(lock: Lock, open_remote: OpenRemote) -> ConceptryError | None:
    """Returns why something locked could not be had: a remote has other contents under its name, or it is gone.

    None if no remote says so.
    """
    gone: ConceptryError | None = None
    for one in lock.concepts:
        if one.remote is None:
            continue
        try:
            found = open_remote(one.remote).read_version(one.name, one.version)
        except ConceptryError:
            continue
        if found is None:
            gone = gone or NotFoundError(
                f"{one.reference} is not on {one.remote} any more",
                hint=f"ask who keeps that remote; concepts lock --upgrade-package {one.name} takes another version",
            )
        elif found != one.manifest:
            return IdentityChangedError(
                f"{one.reference} on {one.remote} is {found}, but {one.manifest} was locked",
                hint=f"ask who keeps that remote; to take what is there now: remove {LOCK_FILE}, then concepts lock",
            )
    return gone
