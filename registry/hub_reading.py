"""Reading from the Hugging Face Hub: names through its own client, bytes by ranged reads of ours.

A name is resolved to one commit, and everything after asks for that commit only.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from conceptry.bases import FAMILY_BY_ID
from conceptry.digests import Digest
from conceptry.documents import MAX_DOCUMENT_BYTES
from conceptry.errors import (
    ConflictError,
    IdentityChangedError,
    InvalidNameError,
    NotFoundError,
    RemoteError,
)
from conceptry.kinds import KIND_BY_ID
from conceptry.names import LATEST, ConceptName, Reference, Version, pick_latest
from conceptry.registry.choosing import has_words
from conceptry.registry.http import Transport
from conceptry.registry.hub_client import HubClient
from conceptry.registry.hub_layout import (
    GENERIC_TAG,
    MANIFEST_PATH,
    RECORD_PATH,
    HubAddress,
    HubRecord,
    name_member,
    name_version_tag,
    parse_record,
)
from conceptry.registry.protocol import (
    DEFAULT_SEARCH_LIMIT,
    RemoteConcept,
    RemoteEntry,
    RemoteVersion,
)
from conceptry.registry.resolution import describe_all_yanked

if TYPE_CHECKING:
    from conceptry.manifest import File

_CONNECTIONS: Final = 32
_DERIVED_TAG: Final = re.compile(r"[a-z_]+:.*|text-to-image")
_MAX_TITLE_CHARS: Final = 200


class State(NamedTuple):
    """One state of a repository, and which repository it is."""

    commit: str
    identity: str
    paths: frozenset[str]


class HubReader:
    """What can be read of ``hf://namespace``."""

    def __init__(self, address: HubAddress) -> None:
        self.address: Final = address
        self.uri: Final = address.uri
        self._client: Final = HubClient(address.endpoint)
        self._manifests: Final[dict[str, bytes]] = {}

    @cached_property
    def _transport(self) -> Transport:
        return Transport(self.address.endpoint, credential=self._client.credential, connections=_CONNECTIONS)

    # --- names -------------------------------------------------------------------------------------------------

    def resolve(self, reference: Reference) -> RemoteVersion:
        """Returns what a reference means there now. Raises NotFoundError, RemoteError."""
        name, selector = reference.concept, reference.selector
        record = self.read_record(name)
        if isinstance(selector, Version):
            return self.resolve_version(name, selector, record)
        if isinstance(selector, Digest):
            return self._resolve_digest(name, selector, record)
        if selector == LATEST:
            return self._resolve_latest(name, record)
        move = record.find_tag(selector)
        if move is None:
            known = ", ".join([*record.tags, LATEST])
            raise NotFoundError(f"{name} has no tag {selector!r} on {self.uri}", hint=f"its tags: {known}")
        found = self.resolve_version(name, move.version, record)
        if found.digest != move.digest:
            raise IdentityChangedError(
                f"{name}:{selector} on {self.uri} names {move.digest}, but {found.reference} is {found.digest}",
                hint=f"ask who pushed it; {name}@{move.version} is what the git tag has now",
            )
        return replace(found, move=move.number)

    def list_versions(self, name: ConceptName) -> tuple[RemoteEntry, ...]:
        """Returns the versions of a concept there, smallest first, none where there is no such concept."""
        repository = self.address.name_repository(name)
        try:
            record = self.read_record(name)
            refs = self._client.ask(lambda api: api.list_repo_refs(repository), about=str(name))
        except NotFoundError:
            return ()
        made = {tag.name for tag in refs.tags}
        return tuple(
            RemoteEntry(version=version, yanked=record.yanked.get(version))
            for version in record.versions
            if name_version_tag(version) in made
        )

    def search(self, words: str = "", *, limit: int = DEFAULT_SEARCH_LIMIT) -> Iterator[RemoteConcept]:
        """Yields the concepts of the namespace that have all words in their names or tags, in order of name."""
        wanted = words.casefold().split()
        models = self._client.ask(
            lambda api: list(
                api.list_models(
                    author=self.address.namespace, filter=GENERIC_TAG, cardData=True, limit=10_000
                )
            ),
            about=self.uri,
        )
        concepts = (concept for model in models if (concept := _describe_model(model)) is not None)
        found = [concept for concept in concepts if has_words(concept, wanted)]
        yield from sorted(found, key=lambda concept: concept.name)[:limit]

    def read_version(self, name: ConceptName, version: Version) -> Digest | None:
        """Returns the digest of a version there, None if there is none."""
        try:
            commit = self.find(name, name_version_tag(version)).commit
            return Digest.of_bytes(self.read_manifest(name, commit))
        except NotFoundError:
            return None

    def resolve_version(self, name: ConceptName, version: Version, record: HubRecord) -> RemoteVersion:
        """Returns one version, by its git tag. Raises NotFoundError with those that there are."""
        try:
            state = self.find(name, name_version_tag(version))
            data = self.read_manifest(name, state.commit)
        except NotFoundError as error:
            known = ", ".join(str(entry.version) for entry in self.list_versions(name)[-5:])
            if not known:
                raise self._missing(name) from error
            raise NotFoundError(
                f"{name} has no version {version} on {self.uri}", hint=f"its versions: {known}"
            ) from error
        return RemoteVersion(
            reference=Reference(name, version),
            digest=Digest.of_bytes(data),
            commit=state.commit,
            identity=state.identity,
            yanked=record.yanked.get(version),
        )

    def _resolve_latest(self, name: ConceptName, record: HubRecord) -> RemoteVersion:
        rest = [version for version in record.versions if version not in record.yanked]
        while latest := pick_latest(rest):
            try:
                return self.resolve_version(name, latest, record)
            except NotFoundError:  # its push was not finished
                rest.remove(latest)
        made = self.list_versions(name)
        raise describe_all_yanked(name, made[-1].version) if made else self._missing(name)

    def _resolve_digest(self, name: ConceptName, digest: Digest, record: HubRecord) -> RemoteVersion:
        for version in reversed(record.versions):
            if self.read_version(name, version) == digest:
                return self.resolve_version(name, version, record)
        known = ", ".join(map(str, record.versions[-5:]))
        raise NotFoundError(f"{name} has no version {digest} on {self.uri}", hint=f"its versions: {known}")

    def _missing(self, name: ConceptName) -> NotFoundError:
        who = "hf auth login" if self._client.credential is None else "does your login have access to it?"
        return NotFoundError(
            f"no concept is called {str(name)!r} on {self.uri}",
            hint=f"concepts search --remote {self.uri} shows what is there; if it is private: {who}",
        )

    # --- states and documents ----------------------------------------------------------------------------------

    def find(self, name: ConceptName, revision: str) -> State:
        """Returns the commit that a revision names, and the identity of the repository, in one request."""
        repository = self.address.name_repository(name)
        info = self._client.ask(
            lambda api: api.model_info(repository, revision=revision), about=f"{name} ({revision})"
        )
        identity = getattr(info, "_id", None) or info.created_at
        if not info.sha or identity is None:
            raise RemoteError(f"{self.address.endpoint} does not say which commit {name} ({revision}) is")
        paths = frozenset(row.rfilename for row in info.siblings or ())
        return State(info.sha, f"hf:{identity}", paths)

    def read_manifest(self, name: ConceptName, commit: str) -> bytes:
        """Returns the manifest of a commit, which is asked for once: a commit never changes. Raises NotFoundError."""
        key = f"{name}@{commit}"
        data = self._manifests.get(key)
        if data is None:
            data = self._manifests[key] = self._read_file(name, commit, MANIFEST_PATH)[0]
        return data

    def read_record(self, name: ConceptName) -> HubRecord:
        """Returns the record on ``main``, an empty one where a repository has none. Raises NotFoundError."""
        return self.read_head(name)[1]

    def read_head(self, name: ConceptName) -> tuple[str | None, HubRecord]:
        """Returns the commit of ``main`` and its record; None and an empty record where there is none."""
        try:
            data, commit = self._read_file(name, "main", RECORD_PATH)
        except NotFoundError:
            return None, HubRecord(concept=name)
        record = parse_record(data, self.address.name_repository(name))
        if record.concept != name:
            raise ConflictError(
                f"the repository {self.address.name_repository(name)} on {self.uri} is of {record.concept}, "
                f"not of {name}",
                hint="use another name, or a remote of another namespace",
            )
        return commit, record

    def _read_file(self, name: ConceptName, revision: str, path: str) -> tuple[bytes, str]:
        """Returns a small file and the commit it is of."""
        repository = self.address.name_repository(name)
        url = self.address.locate(repository, revision, path)
        answer = self._transport.read(url, limit_bytes=MAX_DOCUMENT_BYTES + 1)
        return answer.body, answer.headers.get("x-repo-commit", "")

    # --- bytes -------------------------------------------------------------------------------------------------

    def get_manifest(self, version: RemoteVersion) -> bytes:
        """Returns a manifest's bytes, unchecked. Raises NotFoundError, IdentityChangedError."""
        try:
            return self.read_manifest(version.reference.concept, self._commit_of(version))
        except NotFoundError as error:
            raise self._explain_absence(version, error) from error

    @contextmanager
    def get(self, version: RemoteVersion, file: File, *, offset_bytes: int = 0) -> Iterator[Iterator[bytes]]:
        """Opens a file's bytes from an offset on. Raises NotFoundError, IdentityChangedError, RemoteError."""
        repository = self.address.name_repository(version.reference.concept)
        url = self.address.locate(repository, self._commit_of(version), name_member(file.path))
        opened = self._transport.stream(url, size_bytes=file.size, offset_bytes=offset_bytes)
        try:
            chunks = opened.__enter__()
        except NotFoundError as error:
            raise self._explain_absence(version, error) from error
        try:
            yield chunks
        finally:
            opened.__exit__(None, None, None)

    def _commit_of(self, version: RemoteVersion) -> str:
        if version.commit is not None:
            return version.commit
        number = version.reference.version
        return name_version_tag(number) if number else "main"

    def _explain_absence(self, version: RemoteVersion, error: NotFoundError) -> Exception:
        """A commit that was there and is gone means that the repository is not what it was."""
        if version.commit is None:
            return error
        try:
            now = self.find(version.reference.concept, "main")
        except NotFoundError:
            return NotFoundError(f"{version.reference} is no longer on {self.uri}", hint="ask who pushed it")
        if version.identity is not None and now.identity != version.identity:
            return IdentityChangedError(
                f"{version.reference.concept} on {self.uri} is another repository now than when it was resolved",
                hint="somebody else may have taken the name: do not use it before you know who",
            )
        try:
            self.find(version.reference.concept, version.commit)
        except NotFoundError:
            return IdentityChangedError(
                f"the commit {version.commit[:12]} of {version.reference} is gone from {self.uri}",
                hint="its history was rewritten: ask who pushed it",
            )
        return error


def _describe_model(model: Any) -> RemoteConcept | None:
    """What a listing says of a model, None where it names no concept of ours."""
    tags = [str(tag) for tag in model.tags or ()]
    named = next((tag.removeprefix("concept:") for tag in tags if tag.startswith("concept:")), "")
    try:
        name = ConceptName.parse(named)
    except InvalidNameError:
        return None
    card = model.card_data.to_dict() if model.card_data else {}
    ours = card.get(GENERIC_TAG)
    title = ours.get("title") if isinstance(ours, dict) else None
    known = {*KIND_BY_ID, *FAMILY_BY_ID, GENERIC_TAG}
    return RemoteConcept(
        name=name,
        title=str(title or "")[:_MAX_TITLE_CHARS],
        kinds=tuple(tag for tag in tags if tag in KIND_BY_ID),
        families=tuple(tag for tag in tags if tag in FAMILY_BY_ID),
        tags=tuple(tag for tag in tags if tag not in known and not _DERIVED_TAG.fullmatch(tag)),
        license=next((tag.removeprefix("license:") for tag in tags if tag.startswith("license:")), None),
    )
