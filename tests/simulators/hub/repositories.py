"""What the double keeps: repositories with commits, branches and tags, as much as the Hub's client asks for."""

from __future__ import annotations

import hashlib
import secrets
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

LFS_SUFFIXES = (".safetensors", ".bin", ".png")
LFS_ABOVE_BYTES = 1 << 20
GITATTRIBUTES = b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n"


@dataclass(frozen=True)
class Entry:
    """One file of a commit: a git blob, or a pointer to a large file."""

    oid: str
    size: int
    lfs: bool


@dataclass(frozen=True)
class Commit:
    """One state of a repository."""

    oid: str
    title: str
    parent: str | None
    files: Mapping[str, Entry]


@dataclass
class Repository:
    """One model repository."""

    name: str
    private: bool
    identity: str = field(default_factory=lambda: secrets.token_hex(12))
    created: str = "2026-11-20T08:00:00.000Z"
    commits: dict[str, Commit] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)

    def find(self, revision: str) -> Commit | None:
        """Return the commit that a branch, tag or commit id names."""
        oid = self.branches.get(revision) or self.tags.get(revision) or revision
        return self.commits.get(oid)

    @property
    def head(self) -> Commit:
        """The newest commit of main."""
        return self.commits[self.branches["main"]]


def git_oid(data: bytes) -> str:
    """Return the name that git gives to a file of these bytes."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()


class Repositories:
    """All repositories, and the bytes of their files in one folder by object id."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.by_name: dict[str, Repository] = {}
        self.lock = threading.RLock()
        self.lfs_by_rule = True
        """Whether weights and large files are LFS as on the Hub; else everything is a regular file."""

    def create(self, name: str, *, private: bool = False) -> Repository:
        """Return a new repository with its first commit."""
        repository = Repository(name, private)
        self.by_name[name.lower()] = repository
        self.commit(repository, "initial commit", {".gitattributes": self.add_bytes(GITATTRIBUTES)}, ())
        return repository

    def get(self, name: str) -> Repository | None:
        """Return a repository by name; the Hub does not care about case."""
        return self.by_name.get(name.lower())

    def path(self, oid: str) -> Path:
        """Return where the bytes of an object lie."""
        return self.folder / oid

    def add_bytes(self, data: bytes) -> Entry:
        """Keep a regular file."""
        entry = Entry(git_oid(data), len(data), lfs=False)
        self.path(entry.oid).write_bytes(data)
        return entry

    def is_lfs(self, path: str, size: int) -> bool:
        """Return whether an upload of this name and size is to be a large file."""
        return self.lfs_by_rule and size > 0 and (path.endswith(LFS_SUFFIXES) or size > LFS_ABOVE_BYTES)

    def commit(
        self,
        repository: Repository,
        title: str,
        additions: Mapping[str, Entry],
        deletions: tuple[str, ...],
        branch: str = "main",
    ) -> Commit:
        """Add a commit to a branch."""
        parent = repository.branches.get(branch)
        files = dict(repository.commits[parent].files) if parent else {}
        for path in deletions:
            files.pop(path, None)
        files.update(additions)
        text = repr((repository.identity, parent, title, sorted(files.items()), secrets.token_hex(4)))
        commit = Commit(hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest(), title, parent, files)
        repository.commits[commit.oid] = commit
        repository.branches[branch] = commit.oid
        return commit

    def describe(self, repository: Repository, commit: Commit) -> dict[str, Any]:
        """Return what the Hub says of a model at a commit."""
        card = self._read_card(commit)
        return {
            "_id": repository.identity,
            "id": repository.name,
            "modelId": repository.name,
            "author": repository.name.partition("/")[0],
            "sha": commit.oid,
            "createdAt": repository.created,
            "lastModified": repository.created,
            "private": repository.private,
            "gated": False,
            "disabled": False,
            "downloads": 0,
            "likes": 0,
            "tags": _tags_of(card),
            "cardData": card,
            "siblings": [{"rfilename": path} for path in sorted(commit.files)],
        }

    def _read_card(self, commit: Commit) -> dict[str, Any]:
        import yaml  # comes with the Hub's client

        entry = commit.files.get("README.md")
        text = self.path(entry.oid).read_text(encoding="utf-8") if entry else ""
        if not text.startswith("---\n"):
            return {}
        return yaml.safe_load(text[4:].partition("\n---")[0]) or {}


def _tags_of(card: dict[str, Any]) -> list[str]:
    """Return the tags that the Hub derives from a card, besides those that it lists."""
    base = card.get("base_model")
    bases = [base] if isinstance(base, str) else list(base or ())
    relation = card.get("base_model_relation")
    tags = list(card.get("tags") or ())
    tags += [f"base_model:{name}" for name in bases]
    tags += [f"base_model:{relation}:{name}" for name in bases if relation]
    if card.get("license"):
        tags.append(f"license:{card['license']}")
    return [*tags, "region:us"]
