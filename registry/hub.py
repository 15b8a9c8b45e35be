"""The Hugging Face Hub as a remote: ``hub_reading`` reads, this writes, both through the Hub's own client.

A push commits files, card and record in one commit that names its parent, and makes the version's git tag last: a tag
is created for exactly one of several writers.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

from conceptry.digests import Digest
from conceptry.errors import ConflictError, IntegrityError, NotFoundError
from conceptry.names import LATEST, ConceptName, Tag, Version
from conceptry.registry.file_reading import digest_file
from conceptry.registry.hub_client import ATTEMPTS, PassingError
from conceptry.registry.hub_layout import (
    CARD_PATH,
    MANIFEST_PATH,
    RECORD_PATH,
    HubAddress,
    HubRecord,
    name_member,
    name_version_tag,
)
from conceptry.registry.hub_reading import HubReader, State
from conceptry.registry.os_errors import explain_os_errors
from conceptry.registry.protocol import EVERYTHING, Capabilities
from conceptry.registry.refs import Resolved, describe_conflict
from conceptry.registry.tags import TagMove
from conceptry.registry.yanks import check_reason

if TYPE_CHECKING:
    from huggingface_hub import HfApi

    from conceptry.manifest import File, Manifest
    from conceptry.registry.blobs import CountBytes

T = TypeVar("T")

_ROUNDS: Final = 40  # how often a commit is made anew because somebody else committed in between
_ROUND_SECONDS: Final = 0.05
_STRANGERS: Final = frozenset({".gitattributes"})  # what the Hub itself puts into a new repository


class HubRemote(HubReader):
    """The remote at ``hf://namespace``."""

    capabilities: Capabilities = EVERYTHING

    def __init__(self, address: HubAddress) -> None:
        super().__init__(address)
        self._made: Final[set[str]] = set()
        self._lock: Final = threading.Lock()

    @classmethod
    def open(cls, uri: str) -> HubRemote:
        """Returns the remote at an address; nothing is contacted. Raises UsageError."""
        return cls(HubAddress.parse(uri))

    # --- writing -----------------------------------------------------------------------------------------------

    def has(self, version: Resolved, file: File) -> bool:
        """Returns whether the version's git tag has the file; an unfinished push is asked for again."""
        number = version.reference.version
        try:
            state = self.find(version.reference.concept, name_version_tag(number)) if number else None
        except NotFoundError:
            return False
        return state is not None and name_member(file.path) in state.paths

    def put(self, version: Resolved, file: File, source: Path, *, on_bytes: CountBytes) -> None:
        """Uploads a large file, which no commit names yet; a small one goes with the commit. Raises IntegrityError."""
        from huggingface_hub import CommitOperationAdd

        with explain_os_errors("read", source):
            found, _ = digest_file(source)
        if found != file.sha256:
            raise IntegrityError(f"the bytes have digest {found}, not {file.sha256}")
        repository = self._make_repository(version.reference.concept)

        def upload(api: HfApi) -> None:
            addition = CommitOperationAdd(name_member(file.path), str(source))
            api.preupload_lfs_files(repository, [addition], free_memory=False)

        self._client.ask(upload, about=f"{version.reference} ({file.path})")
        on_bytes(file.size)

    def put_manifest(self, version: Resolved, data: bytes, sources: Mapping[Digest, Path]) -> bool:
        """Returns True if the version is there from now on, False if it was already. Raises ConflictError."""
        from conceptry.manifest import parse_manifest

        name, number = version.reference.concept, version.reference.version
        if number is None or Digest.of_bytes(data) != version.digest:
            raise IntegrityError(f"the manifest of {version.reference} does not have digest {version.digest}")
        self._make_repository(name)
        package = _gather(parse_manifest(data), data, sources)

        def once() -> bool | None:
            there = self.read_version(name, number)
            if there is not None:
                if there != version.digest:
                    raise describe_conflict(version, there)
                return False
            commit = self._commit(
                name, package, lambda record: record.with_version(number), f"{name} {number}"
            )
            return None if commit is None else self._tag(name, number, commit)

        return self._repeat(once, name)

    def read_tag(self, name: ConceptName, tag: Tag) -> TagMove | None:
        """Returns where a tag points there."""
        return self.read_record(name).find_tag(tag)

    def move_tag(self, name: ConceptName, tag: Tag, to: Resolved, *, expected: TagMove | None) -> TagMove:
        """Moves a tag if it still is where it was seen. Raises ConflictError."""
        version = to.reference.version
        if version is None or tag == LATEST:
            raise ConflictError(
                f"the tag {tag!r} cannot be moved to {to.reference}", hint="latest is computed"
            )

        def once() -> TagMove | None:
            now = self.read_record(name).find_tag(tag)
            if now != expected:
                raise ConflictError(
                    f"the tag {name}:{tag} was moved by somebody else"
                    + (f" to {now.version}" if now else ""),
                    hint="look at it again, then repeat the command if it should still move",
                )
            if now is not None and (now.version, now.digest) == (version, to.digest):
                return now
            move = TagMove(1 if now is None else now.number + 1, version, to.digest)
            made = self._commit(
                name,
                {},
                lambda record: record.with_move(tag, move),
                f"{tag} is {version}",
                expected=(tag, now),
            )
            return None if made is None else move

        return self._repeat(once, name)

    def yank(self, name: ConceptName, version: Version, reason: str | None) -> None:
        """Marks a version as one that nobody should choose anew; None takes the mark back. Raises NotFoundError."""
        text = None if reason is None else check_reason(reason)
        found = self.resolve_version(name, version, self.read_record(name))
        if text is None and found.yanked is None:
            raise NotFoundError(f"{name}@{version} is not yanked on {self.uri}")
        verb = "is yanked" if text else "is no longer yanked"

        def once() -> str | None:
            return self._commit(name, {}, lambda record: record.with_yank(version, text), f"{version} {verb}")

        self._repeat(once, name)

    def _make_repository(self, name: ConceptName) -> str:
        """Returns the repository of a concept, which exists now and is ours."""
        repository = self.address.name_repository(name)
        with self._lock:
            if repository in self._made:
                return repository
            private = True if self.address.private else None
            self._client.ask(
                lambda api: api.create_repo(repository, private=private, exist_ok=True), about=repository
            )
            commit, _ = self.read_head(name)
            if commit is None and (strange := self.find(name, "main").paths - _STRANGERS):
                raise ConflictError(
                    f"the repository {repository} holds something else ({min(strange)!r}, and no {RECORD_PATH})",
                    hint="give the concept another name; what lies there is left as it is",
                )
            self._made.add(repository)
        return repository

    def _commit(
        self,
        name: ConceptName,
        package: Mapping[str, bytes | Path],
        change: Callable[[HubRecord], HubRecord],
        title: str,
        *,
        expected: tuple[Tag, TagMove | None] | None = None,
    ) -> str | None:
        """Returns the new commit on top of the head that was read, None if somebody else was faster."""
        from huggingface_hub import CommitOperationAdd, CommitOperationDelete

        repository = self.address.name_repository(name)
        head, record = self.read_head(name)
        if expected is not None and record.find_tag(expected[0]) != expected[1]:
            return None
        state = self.find(name, head or "main")
        content = {**package, RECORD_PATH: change(record).to_bytes()}
        gone = self._list_replaced(name, state) - content.keys() if package else frozenset()
        operations: list[Any] = [
            CommitOperationAdd(path, value if isinstance(value, bytes) else str(value))
            for path, value in sorted(content.items())
        ]
        operations += [CommitOperationDelete(path) for path in sorted(gone)]
        try:
            made = self._client.ask_once(
                lambda api: api.create_commit(
                    repository, operations, commit_message=title, parent_commit=state.commit
                ),
                about=str(name),
            )
        except ConflictError:
            return None
        return str(made.oid)

    def _list_replaced(self, name: ConceptName, state: State) -> frozenset[str]:
        """The files of the version that ``main`` has; what else lies there was put by people and stays."""
        from conceptry.manifest import parse_manifest

        if MANIFEST_PATH not in state.paths:
            return frozenset()
        try:
            before = parse_manifest(self.read_manifest(name, state.commit))
        except (IntegrityError, NotFoundError):
            return frozenset()
        return frozenset(name_member(file.path) for file in before.iter_files()) & state.paths

    def _tag(self, name: ConceptName, number: Version, commit: str) -> bool | None:
        """Returns True once the version's tag is at this commit, None if somebody else made it."""
        repository, tag = self.address.name_repository(name), name_version_tag(number)
        try:
            self._client.ask(
                lambda api: api.create_tag(repository, tag=tag, revision=commit), about=f"{name} {number}"
            )
        except ConflictError:
            return True if self.find(name, tag).commit == commit else None
        return True

    def _repeat(self, once: Callable[[], T | None], name: ConceptName) -> T:
        """Returns what ``once`` comes to; None means that somebody else was faster, and that it is tried anew.

        After an answer that was lost on its way back, the next round finds what was done.
        """
        failures = 0
        for _ in range(_ROUNDS):
            try:
                done = once()
            except PassingError as error:
                failures += 1
                if failures >= ATTEMPTS:
                    raise
                time.sleep(error.choose_pause(failures))
                continue
            if done is not None:
                return done
            time.sleep(random.uniform(0, _ROUND_SECONDS))
        raise ConflictError(
            f"others change {self.address.name_repository(name)} on {self.uri} all the time",
            hint="run the same command again later",
        )


def _gather(manifest: Manifest, data: bytes, sources: Mapping[Digest, Path]) -> dict[str, bytes | Path]:
    """Returns everything that ``main`` shows of a version, by path."""
    from conceptry.registry.hub_card import make_card

    package: dict[str, bytes | Path] = {MANIFEST_PATH: data, CARD_PATH: make_card(manifest)}
    for file in manifest.iter_files():
        package[name_member(file.path)] = sources[file.sha256]
    return package
