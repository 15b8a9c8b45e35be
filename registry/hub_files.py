"""Single files of repositories on the Hub that are no concepts, through the client's own cache."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

from conceptry.errors import IntegrityError, NotFoundError, RemoteError
from conceptry.registry.credentials import find_hub_endpoint
from conceptry.registry.file_reading import digest_file
from conceptry.registry.http import is_offline
from conceptry.registry.hub_client import HubClient
from conceptry.registry.os_errors import explain_os_errors
from conceptry.registry.places import read_place

_SHA256: Final = re.compile(r"[0-9a-f]{64}", re.ASCII)


def fetch_hub_file(repository: str, revision: str, path: str) -> Path:
    """Returns where a file of a repository lies in the Hub's cache, downloaded if need be and allowed.

    The client looks at sizes alone; a large file is named by its digest in the cache, and is held to that here.

    Raises:
        NotFoundError: if there is no such repository, revision or file.
        IntegrityError: if the bytes in the cache are not those of their name.
        RemoteError: if the Hub cannot be reached, or offline the file is not in the cache.
    """
    about = f"hf://{repository}@{revision}/{path}"
    found = _find_cached(repository, revision, path)
    if found is None:
        if is_offline():
            raise RemoteError(
                f"{about} is not in the Hub's cache, and the network is forbidden",
                hint="leave out --offline, or unset HF_HUB_OFFLINE",
            )
        client = HubClient(find_hub_endpoint())
        try:
            found = client.ask(
                lambda api: read_place(api.hf_hub_download(repository, path, revision=revision)),
                about=about,
            )
        except NotFoundError as error:
            raise NotFoundError(
                f"{about} is not there", hint="check the name; if it is private: hf auth login"
            ) from error
    _check_name(found, about)
    return found


def _find_cached(repository: str, revision: str, path: str) -> Path | None:
    """Only a whole commit id always means the same bytes; a branch is looked up while there is a network."""
    from huggingface_hub import try_to_load_from_cache

    if not is_offline() and re.fullmatch(r"[0-9a-f]{40}", revision) is None:
        return None
    try:
        cached = try_to_load_from_cache(repository, path, revision=revision)
    except ValueError as error:
        raise NotFoundError(f"no repository can be called {repository!r}", hint=str(error)[:120]) from error
    return read_place(cached) if isinstance(cached, str) else None


def _check_name(found: Path, about: str) -> None:
    stored = found.resolve()
    if _SHA256.fullmatch(stored.name) is None:
        return
    with explain_os_errors("read", stored):
        digest, _ = digest_file(stored)
    if digest.hex != stored.name:
        raise IntegrityError(
            f"{about}: the bytes in the Hub's cache have digest {digest}, not sha256:{stored.name}",
            hint=f"delete {str(stored)!r}, then repeat the command",
        )
