"""Requests to an OCI registry (distribution-spec 1.1) over our own transport, and its login.

Logins are those of docker and oras (``~/.docker/config.json`` and credential helpers, read by the oras library), or
``CONCEPTRY_OCI_HOST``, ``_USERNAME`` and ``_PASSWORD``. Each belongs to one host, and its site decides where a token
may be fetched.
"""

from __future__ import annotations

import base64
import ipaddress
import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final
from urllib.parse import urlencode, urljoin, urlsplit

from conceptry.digests import Digest, new_hasher
from conceptry.documents import MAX_DOCUMENT_BYTES
from conceptry.errors import IntegrityError, MissingExtraError, NotFoundError, RemoteError
from conceptry.registry.answers import Answer, UnauthorizedError, find_host, find_origin, follow_redirect
from conceptry.registry.blobs import CountBytes
from conceptry.registry.file_reading import OpenFile, open_regular
from conceptry.registry.http import Body, Credential, Transport
from conceptry.registry.oci_layout import MANIFEST_TYPE
from conceptry.registry.os_errors import explain_os_errors

HOST_VARIABLE: Final = "CONCEPTRY_OCI_HOST"
USERNAME_VARIABLE: Final = "CONCEPTRY_OCI_USERNAME"
PASSWORD_VARIABLE: Final = "CONCEPTRY_OCI_PASSWORD"  # noqa: S105 - the name of a variable

_PARAMETER: Final = re.compile(r'([a-z]+)="([^"]*)"')
_NEXT: Final = re.compile(r'<([^>]+)>\s*;\s*rel="?next"?')
_MAX_PAGES: Final = 1000
_OK: Final = frozenset({200})
_NO_HEADERS: Final[Mapping[str, str]] = MappingProxyType({})


class OciClient:
    """One registry. Tokens are kept in memory, one a repository."""

    def __init__(self, origin: str, *, transport: Transport | None = None) -> None:
        self.origin: Final = origin
        self._transport = transport or Transport(origin)
        self._credentials: dict[str, Credential] = {}

    # --- manifests and tags ------------------------------------------------------------------------------------

    def get_manifest(self, repository: str, reference: str) -> bytes | None:
        """Returns the registry's manifest under a tag or digest, None if there is none. Raises RemoteError."""
        try:
            url = f"{self.origin}/v2/{repository}/manifests/{reference}"
            return self.send("GET", url, repository, headers={"Accept": MANIFEST_TYPE}).body
        except NotFoundError:
            return None

    def put_manifest(self, repository: str, reference: str, data: bytes) -> None:
        """Puts a manifest under a tag, over what was there. Raises RemoteError."""
        url = f"{self.origin}/v2/{repository}/manifests/{reference}"
        headers = {"Content-Type": MANIFEST_TYPE}
        self.send("PUT", url, repository, body=data, headers=headers, accept=frozenset({200, 201, 202}))

    def list_tags(self, repository: str) -> list[str]:
        """Returns all tags of a repository, none if there is no such repository. Raises RemoteError."""
        return self._list(f"{self.origin}/v2/{repository}/tags/list?n=1000", repository, "tags")

    def list_repositories(self) -> list[str]:
        """Returns all repositories of the registry. Raises NotFoundError, RemoteError where it does not tell."""
        return self._list(f"{self.origin}/v2/_catalog?n=1000", "", "repositories")

    def _list(self, url: str, repository: str, key: str) -> list[str]:
        found: list[str] = []
        for _ in range(_MAX_PAGES):
            try:
                answer = self.send("GET", url, repository, limit_bytes=8 << 20)
            except NotFoundError:
                if key == "repositories":
                    raise
                return found
            found += _read_texts(answer, key)
            following = _NEXT.search(answer.headers.get("link", ""))
            if following is None:
                return found
            url = urljoin(url, following[1])
            if find_origin(url) != find_origin(self.origin):
                raise RemoteError(
                    f"{self.origin} continues its list at another address", hint="tell who runs it"
                )
        raise RemoteError(f"{self.origin} lists without an end", hint="tell who runs that registry")

    # --- blobs -------------------------------------------------------------------------------------------------

    def has_blob(self, repository: str, digest: Digest, size_bytes: int) -> bool:
        """Returns whether a repository has a blob of that size. Raises RemoteError."""
        try:
            answer = self.send("HEAD", self._locate(repository, digest), repository)
        except NotFoundError:
            return False
        return answer.headers.get("content-length") == str(size_bytes)

    def get_blob(self, repository: str, digest: Digest, *, limit_bytes: int = MAX_DOCUMENT_BYTES) -> bytes:
        """Returns a small blob. Raises NotFoundError, RemoteError."""
        return self.send("GET", self._locate(repository, digest), repository, limit_bytes=limit_bytes).body

    @contextmanager
    def stream_blob(
        self, repository: str, digest: Digest, *, size_bytes: int, offset_bytes: int
    ) -> Iterator[Iterator[bytes]]:
        """Opens a blob's bytes from an offset on. Raises NotFoundError, RemoteError."""
        url = self._locate(repository, digest)

        def open_once() -> Any:
            return self._transport.stream(
                url,
                size_bytes=size_bytes,
                offset_bytes=offset_bytes,
                credential=self._credentials.get(repository),
            )

        stream = open_once()
        try:
            pieces = stream.__enter__()
        except UnauthorizedError as error:
            self._log_in(repository, error)
            stream = open_once()
            pieces = stream.__enter__()
        try:
            yield pieces
        finally:
            stream.__exit__(None, None, None)

    def put_bytes(self, repository: str, data: bytes) -> Digest:
        """Returns the digest of a small blob, which is in the repository now. Raises RemoteError."""
        digest = Digest.of_bytes(data)
        if not self.has_blob(repository, digest, len(data)):
            target = self._begin_upload(repository, digest, None)
            if target is not None:
                self._finish_upload(repository, target, digest, body=data, size_bytes=len(data))
        return digest

    def put_file(
        self,
        repository: str,
        digest: Digest,
        size_bytes: int,
        source: Path,
        *,
        on_bytes: CountBytes,
        known_in: str | None,
    ) -> None:
        """Sends a file as a blob; where the registry has its bytes already, it is told to share them.

        Raises:
            IntegrityError: if the file does not hold the bytes of the digest; nothing is kept there.
            RemoteError: if the registry fails.
        """
        target = self._begin_upload(repository, digest, known_in)
        if target is None:
            on_bytes(size_bytes)
            return
        with explain_os_errors("read", source), open_regular(source) as file:
            body = _CheckedBody(file, digest, size_bytes, on_bytes)
            self._finish_upload(repository, target, digest, body=body, size_bytes=size_bytes)

    def _begin_upload(self, repository: str, digest: Digest, known_in: str | None) -> str | None:
        """Returns where to send a blob, None if the registry shared the bytes it had."""
        query = {"mount": str(digest)} | ({"from": known_in} if known_in else {})
        url = f"{self.origin}/v2/{repository}/blobs/uploads/?{urlencode(query)}"
        answer = self.send("POST", url, repository, body=b"", accept=frozenset({201, 202}))
        return None if answer.status == 201 else follow_redirect(url, answer.headers.get("location"))

    def _finish_upload(
        self, repository: str, target: str, digest: Digest, *, body: Body, size_bytes: int
    ) -> None:
        joint = "&" if urlsplit(target).query else "?"
        url = f"{target}{joint}{urlencode({'digest': str(digest)})}"
        headers = {"Content-Type": "application/octet-stream", "Content-Length": str(size_bytes)}
        self.send("PUT", url, repository, body=body, headers=headers, accept=frozenset({201, 202, 204}))

    def _locate(self, repository: str, digest: Digest) -> str:
        return f"{self.origin}/v2/{repository}/blobs/{digest}"

    # --- login -------------------------------------------------------------------------------------------------

    def send(
        self,
        method: str,
        url: str,
        repository: str,
        *,
        body: Body = None,
        headers: Mapping[str, str] = _NO_HEADERS,
        accept: frozenset[int] = _OK,
        limit_bytes: int = MAX_DOCUMENT_BYTES,
    ) -> Answer:
        """Returns the answer to a request, logged in where the registry asks for it. Raises RemoteError."""
        for last in (False, True):
            try:
                return self._transport.send(
                    method,
                    url,
                    body=body,
                    headers=headers,
                    credential=self._credentials.get(repository),
                    accept=accept,
                    limit_bytes=limit_bytes,
                )
            except UnauthorizedError as error:
                if last:
                    raise
                self._log_in(repository, error, write=method not in ("GET", "HEAD"))
        raise RemoteError(f"{self.origin} did not answer")  # not reached: the second round returns or raises

    def _log_in(self, repository: str, error: UnauthorizedError, *, write: bool = False) -> None:
        """Gets what a repository asks for: the login itself, or a token that it is changed for."""
        login = find_login(find_registry_host(self.origin))
        scheme, _, rest = error.challenge.partition(" ")
        if scheme.lower() == "basic" and login:
            self._credentials[repository] = Credential(find_origin(self.origin), login)
            return
        if scheme.lower() != "bearer":
            raise error
        asked = dict(_PARAMETER.findall(rest))
        realm = urljoin(f"{self.origin}/", asked.get("realm", ""))
        if not is_same_site(realm, self.origin):
            raise RemoteError(
                f"{self.origin} wants its login to be sent to {find_host(realm)!r}",
                hint="nothing was sent; that is another site, ask who runs the registry",
            )
        scope = asked.get("scope") or f"repository:{repository}:pull" + (",push" if write else "")
        query = {key: asked[key] for key in ("service",) if key in asked} | {"scope": scope}
        credential = Credential(find_origin(realm), login) if login else None
        token_transport = Transport(realm, credential=credential, limits=self._transport.limits)
        answer = token_transport.read(f"{realm}?{urlencode(query)}", limit_bytes=1 << 20)
        self._credentials[repository] = Credential(find_origin(self.origin), f"Bearer {_read_token(answer)}")


class _CheckedBody:
    """A file on its way out, whose last bytes are held back until all of them are known to be right."""

    def __init__(self, file: OpenFile, digest: Digest, size_bytes: int, on_bytes: CountBytes) -> None:
        self._file = file
        self._digest = digest
        self._left = size_bytes
        self._hasher = new_hasher()
        self._on_bytes = on_bytes

    def read(self, count: int = 1 << 16, /) -> bytes:
        """Returns the next bytes. Raises IntegrityError before the last ones if the whole is not what was declared."""
        piece = self._file.read(min(max(count, 1), self._left))
        self._hasher.update(piece)
        self._left -= len(piece)
        over = self._left == 0 and bool(piece) and bool(self._file.read(1))
        short = not piece and self._left > 0
        if over or short or (self._left == 0 and Digest(self._hasher.hexdigest()) != self._digest):
            raise IntegrityError(f"the file to be sent does not have digest {self._digest}")
        self._on_bytes(len(piece))
        return piece


def find_registry_host(origin: str) -> str:
    """Returns ``host`` or ``host:port`` as logins name a registry."""
    return urlsplit(origin).netloc


def find_login(host: str) -> str | None:
    """Returns what ``Authorization`` says for the user's login to a host, None if there is none.

    Raises:
        MissingExtraError: if there is docker's configuration, but not the library that reads it.
    """
    if os.environ.get(HOST_VARIABLE) == host and os.environ.get(USERNAME_VARIABLE):
        login = f"{os.environ[USERNAME_VARIABLE]}:{os.environ.get(PASSWORD_VARIABLE, '')}"
        return f"Basic {base64.b64encode(login.encode()).decode('ascii')}"
    try:
        from oras.auth import get_auth_backend
        from oras.container import Container
        from oras.utils import find_docker_config
    except ImportError as error:
        raise MissingExtraError(
            f"the registry {host} asks for a login, and docker's logins need a further library",
            hint=f"pip install 'conceptry[oci]', or set {HOST_VARIABLE}, {USERNAME_VARIABLE} and {PASSWORD_VARIABLE}",
        ) from error
    if find_docker_config() is None:
        return None
    backend = get_auth_backend("token")
    backend.load_configs(Container("login", registry=host))
    found = getattr(backend, "_basic_auth", None)
    return f"Basic {found}" if found else None


def is_same_site(realm: str, origin: str) -> bool:
    """Returns whether a login for ``origin`` may be sent to ``realm``: the same host, or a sibling of one site."""
    if origin.startswith("https:") and not realm.startswith("https:"):
        return False
    try:
        theirs, ours = find_host(realm), find_host(origin)
    except Exception:  # noqa: BLE001 - an address that cannot be read is no site's
        return False
    if theirs == ours:
        return True
    return _site_of(theirs) is not None and _site_of(theirs) == _site_of(ours)


def _site_of(host: str) -> tuple[str, ...] | None:
    """The part of a name that one owner has: two labels, three below country domains such as co.uk."""
    try:
        ipaddress.ip_address(host)
        return None
    except ValueError:
        labels = host.split(".")
    country = len(labels) >= 2 and len(labels[-1]) == 2 and len(labels[-2]) <= 3
    count = 3 if country else 2
    return tuple(labels[-count:]) if len(labels) >= count else None


def _read_texts(answer: Answer, key: str) -> list[str]:
    try:
        found = json.loads(answer.body)[key] or []
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise RemoteError(
            f"{answer.url.split('?')[0]} answered with no list", hint="is it a registry?"
        ) from error
    return [text for text in found if isinstance(text, str)] if isinstance(found, list) else []


def _read_token(answer: Answer) -> str:
    try:
        document = json.loads(answer.body)
        token = document.get("token") or document["access_token"]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise RemoteError(
            f"{answer.url.split('?')[0]} gave no token", hint="log in again, then repeat"
        ) from error
    if not isinstance(token, str) or not re.fullmatch(r"[\x21-\x7e]{1,65536}", token):
        raise RemoteError(f"{answer.url.split('?')[0]} gave no token", hint="log in again, then repeat")
    return token
