"""The table of kinds of remotes by the scheme of their addresses; what they all speak is in ``protocol``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit

from conceptry.errors import NotFoundError, UsageError, suggest_nearest
from conceptry.names import RemoteName
from conceptry.registry.answers import check_address
from conceptry.registry.directory import DirectoryRemote
from conceptry.registry.places import locate_file_uri
from conceptry.registry.protocol import Remote


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoteKind:
    """One kind of remote: the scheme of its addresses, and what opens it."""

    scheme: str
    title: str
    example: str
    check: Callable[[str], object]
    """Raises UsageError for an address that cannot be one; nothing is contacted."""

    open: Callable[[str], Remote]


def _open_hub(uri: str) -> Remote:
    from conceptry.registry.hub import HubRemote

    return HubRemote.open(uri)


def _open_site(uri: str) -> Remote:
    from conceptry.registry.static_http import StaticRemote  # a command without the network loads no TLS

    return StaticRemote.open(uri)


def _check_registry(uri: str) -> object:
    from conceptry.registry.oci_layout import OciAddress

    return OciAddress.parse(uri)


def _open_registry(uri: str) -> Remote:
    from conceptry.registry.oci import OciRemote

    return OciRemote.open(uri)


def _check_bucket(uri: str) -> object:
    from conceptry.registry.objects import check_bucket

    return check_bucket(uri)


def _open_bucket(uri: str) -> Remote:
    from conceptry.registry.buckets import BucketRemote

    return BucketRemote.open(uri)


REMOTES: Final[tuple[RemoteKind, ...]] = (
    RemoteKind(
        scheme="file",
        title="a folder: local, on a network share or on a memory stick",
        example="file:///srv/concepts",
        check=locate_file_uri,
        open=DirectoryRemote.open,
    ),
    RemoteKind(
        scheme="hf",
        title="a namespace on the Hugging Face Hub: one repository a concept",
        example="hf://namespace",
        check=_open_hub,
        open=_open_hub,
    ),
    RemoteKind(
        scheme="https",
        title="a folder that concepts were pushed to, behind any web server: read-only",
        example="https://example.org/concepts",
        check=check_address,
        open=_open_site,
    ),
    RemoteKind(
        scheme="http",
        title="the same without encryption, as in a laboratory's own network",
        example="http://studio.local/concepts",
        check=check_address,
        open=_open_site,
    ),
    RemoteKind(
        scheme="oci",
        title="a registry of containers: one repository a concept",
        example="oci://ghcr.io/me/concepts",
        check=_check_registry,
        open=_open_registry,
    ),
    RemoteKind(
        scheme="oci+http",
        title="the same without encryption, as on this machine",
        example="oci+http://localhost:5000/concepts",
        check=_check_registry,
        open=_open_registry,
    ),
    RemoteKind(
        scheme="s3",
        title="a bucket of S3 or of anything that speaks its protocol",
        example="s3://bucket/concepts",
        check=_check_bucket,
        open=_open_bucket,
    ),
)


def find_remote_row(uri: str) -> RemoteKind:
    """Returns the kind of remote that an address is of. Raises UsageError."""
    scheme = urlsplit(uri).scheme
    for row in REMOTES:
        if row.scheme == scheme:
            return row
    known = ", ".join(row.example for row in REMOTES)
    raise UsageError(f"no remote has addresses like {uri[:200]!r}", hint=f"addresses are written {known}")


def open_remote(remote: RemoteName | str, configured: Mapping[RemoteName, str]) -> Remote:
    """Returns the remote of that name or address.

    Raises:
        NotFoundError: if no remote is configured under the name.
        UsageError: if the address is of no known kind.
    """
    uri = configured.get(RemoteName(remote))
    if uri is None and "://" not in remote:
        raise NotFoundError(
            f"no remote is called {remote[:80]!r}",
            hint=suggest_nearest(remote, configured) or f"concepts remote add {remote[:80]} file:///path",
        )
    address = uri if uri is not None else remote
    return find_remote_row(address).open(address)
