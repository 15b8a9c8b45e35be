"""A double of the Hugging Face Hub that the real ``huggingface_hub`` client (1.32 to 2.4) talks to over real sockets.

It speaks what the client asks for when it creates a repository, uploads (regular files inside the commit, large ones
through the LFS batch protocol to another origin), commits with a check of the parent, tags, lists and downloads with
ranges through a redirect to that other origin. It has no Xet, no datasets, no pull requests. ``Hub.faults`` spoils
chosen requests, ``Hub.log`` has every request that arrived. Source of the protocol: the client's own code.
"""

from __future__ import annotations

import base64
import contextlib
import json
import secrets
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import parse_qs

from tests.simulators.hub.cdn import CdnHandler
from tests.simulators.hub.handling import Handler, Hub, Refusal, Server
from tests.simulators.hub.repositories import Commit, Entry, Repositories, Repository

__all__ = ["Hub", "run_hub"]


class _HubHandler(Handler):
    """The API, and the addresses of files."""

    POSTS: ClassVar[dict[str, str]] = {
        "preupload": "_preupload",
        "commit": "_commit",
        "tag": "_tag",
        "branch": "_branch",
        "paths-info": "_paths_info",
    }

    def _route(self) -> None:
        match (self.command, *self.parts):
            case ("GET", "api", "whoami-v2"):
                user, role = self._require_user()
                access = {"accessToken": {"role": role, "displayName": "test"}}
                self.send_json({"type": "user", "name": user, "orgs": [], "auth": access})
            case ("POST", "api", "repos", "create"):
                self._create()
            case ("DELETE", "api", "repos", "delete"):
                self._delete()
            case ("POST", "api", "validate-yaml"):
                self.read_body()
                self.send_json({"errors": [], "warnings": []})
            case ("GET", "api", "models"):
                self._search()
            case (_, "api", "models", namespace, name, *rest):
                self._serve_model(self._find(f"{namespace}/{name}"), rest)
            case ("POST", namespace, name, "info", "lfs", "objects", "batch"):
                self._batch(self._find(f"{namespace}/{name.removesuffix('.git')}", write=True))
            case ("POST", "verify"):
                wanted = json.loads(self.read_body())
                if not self.hub.repositories.path(wanted["oid"]).exists():
                    raise Refusal(404, None, "these bytes did not arrive")
                self.send_json({})
            case ("GET" | "HEAD", namespace, name, "resolve", revision, *path):
                self._resolve(self._find(f"{namespace}/{name}"), revision, "/".join(path))
            case _:
                raise Refusal(404, None, f"no such place: {self.command} {self.path}")

    # --- who, and what -----------------------------------------------------------------------------------------

    def _user(self) -> tuple[str, str] | None:
        authorization = self.headers.get("Authorization")
        if authorization is None:
            return None
        user = self.hub.tokens.get(authorization.removeprefix("Bearer "))
        if user is None:
            raise Refusal(401, None, "Invalid credentials in Authorization header")
        return user

    def _require_user(self) -> tuple[str, str]:
        user = self._user()
        if user is None:
            raise Refusal(401, None, "Invalid username or password.")
        return user

    def _find(self, name: str, *, write: bool = False) -> Repository:
        repository, user = self.hub.repositories.get(name), self._user()
        owner = name.partition("/")[0]
        if repository is None or (repository.private and (user is None or user[0] != owner)):
            raise Refusal(401 if user is None else 404, "RepoNotFound", "Repository not found")
        if write:
            self._check_right(owner)
        return repository

    def _check_right(self, owner: str) -> None:
        user, role = self._require_user()
        if role != "write" or user != owner:
            raise Refusal(403, None, "Forbidden: you must use a write token of the namespace")

    def _at(self, repository: Repository, revision: str) -> Commit:
        commit = repository.find(revision)
        if commit is None:
            raise Refusal(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return commit

    # --- repositories ------------------------------------------------------------------------------------------

    def _create(self) -> None:
        wanted = json.loads(self.read_body())
        name = f"{wanted.get('organization') or self._require_user()[0]}/{wanted['name']}"
        self._check_right(name.partition("/")[0])
        url = {"url": f"{self.hub.endpoint}/{name}", "name": name}
        with self.hub.repositories.lock:
            if self.hub.repositories.get(name) is not None:
                self.send_json(url | {"error": "You already created this model repo"}, status=409)
                return
            private = wanted.get("private") is True or wanted.get("visibility") == "private"
            self.hub.repositories.create(name, private=private)
        self.send_json(url)

    def _delete(self) -> None:
        wanted = json.loads(self.read_body())
        name = f"{wanted['organization']}/{wanted['name']}"
        self._find(name, write=True)
        del self.hub.repositories.by_name[name.lower()]
        self.send_json({})

    def _search(self) -> None:
        user = self._user()
        found = []
        for repository in sorted(self.hub.repositories.by_name.values(), key=lambda row: row.name):
            row = self.hub.repositories.describe(repository, repository.head)
            if repository.private and (user is None or user[0] != row["author"]):
                continue
            author = self.query.get("author", [row["author"]])[0]
            words = self.query.get("search", [""])[0].lower()
            filters = set(self.query.get("filter", []))
            if author == row["author"] and words in repository.name.lower() and filters <= set(row["tags"]):
                found.append(row)
        start, limit = int(self.query.get("cursor", ["0"])[0]), int(self.query.get("limit", ["1000"])[0])
        headers = {}
        if start + limit < len(found):
            query = "&".join(
                f"{key}={value}" for key, rows in self.query.items() if key != "cursor" for value in rows
            )
            headers["Link"] = f'<{self.hub.endpoint}/api/models?{query}&cursor={start + limit}>; rel="next"'
        self.send_json(found[start : start + limit], headers=headers)

    def _serve_model(self, repository: Repository, rest: list[str]) -> None:
        match (self.command, *rest):
            case ("GET",):
                self.send_json(self.hub.repositories.describe(repository, repository.head))
            case ("GET", "revision", revision):
                commit = self._at(repository, revision)
                self.send_json(self.hub.repositories.describe(repository, commit))
            case ("GET", "tree", revision, *path):
                self.send_json(_list_tree(self._at(repository, revision), "/".join(path)))
            case ("GET", "refs"):
                self.send_json(_list_refs(repository))
            case ("GET", "commits", revision):
                self.send_json(_list_commits(repository, self._at(repository, revision)))
            case ("DELETE", "tag", tag):
                self._check_right(repository.name.partition("/")[0])
                if repository.tags.pop(tag, None) is None:
                    raise Refusal(404, "RevisionNotFound", "no such tag")
                self.send_json({})
            case ("POST", verb, revision) if verb in self.POSTS:
                if verb != "paths-info":
                    self._check_right(repository.name.partition("/")[0])
                getattr(self, self.POSTS[verb])(repository, revision)
            case _:
                raise Refusal(404, None, f"no such place: {self.command} {self.path}")

    def _paths_info(self, repository: Repository, revision: str) -> None:
        wanted = parse_qs(self.read_body().decode())["paths"]
        rows = _list_tree(self._at(repository, revision), "")
        self.send_json([row for row in rows if row["path"] in wanted])

    def _branch(self, repository: Repository, branch: str) -> None:
        wanted = json.loads(self.read_body() or b"{}")
        if branch in repository.branches:
            raise Refusal(409, None, "Reference already exists")
        repository.branches[branch] = self._at(repository, wanted.get("startingPoint") or "main").oid
        self.send_json({})

    def _tag(self, repository: Repository, revision: str) -> None:
        wanted, commit = json.loads(self.read_body()), self._at(repository, revision)
        with self.hub.repositories.lock:
            if wanted["tag"] in repository.tags:
                raise Refusal(409, None, "Reference already exists")
            repository.tags[wanted["tag"]] = commit.oid
        self.send_json({})

    # --- uploads -----------------------------------------------------------------------------------------------

    def _preupload(self, repository: Repository, revision: str) -> None:
        wanted, files = json.loads(self.read_body()), self._at(repository, revision).files
        rows = []
        for row in wanted["files"]:
            lfs = self.hub.repositories.is_lfs(row["path"], row["size"])
            known = files.get(row["path"])
            rows.append(
                {
                    "path": row["path"],
                    "uploadMode": "lfs" if lfs else "regular",
                    "shouldIgnore": False,
                    "oid": known.oid if known else None,
                }
            )
        self.send_json({"files": rows})

    def _batch(self, repository: Repository) -> None:
        wanted = json.loads(self.read_body())
        objects = [self._offer(row["oid"], row["size"]) for row in wanted["objects"]]
        self.send_json({"transfer": "basic", "objects": objects})

    def _offer(self, oid: str, size: int) -> dict[str, Any]:
        row: dict[str, Any] = {"oid": oid, "size": size}
        if self.hub.repositories.path(oid).exists():
            return row
        nonce = secrets.token_hex(16)
        self.hub.uploads[nonce] = (oid, size)
        href = f"{self.hub.cdn}/upload/{nonce}"
        header: dict[str, str] = {}
        if self.hub.multipart_bytes and size > self.hub.multipart_bytes:
            count = -(-size // self.hub.multipart_bytes)
            header = {str(number): f"{href}?part={number}" for number in range(1, count + 1)}
            header["chunk_size"] = str(self.hub.multipart_bytes)
        verify = {"href": f"{self.hub.endpoint}/verify"}
        return row | {"actions": {"upload": {"href": href, "header": header}, "verify": verify}}

    def _commit(self, repository: Repository, branch: str) -> None:
        lines = [json.loads(line) for line in self.read_body().splitlines() if line.strip()]
        header: dict[str, Any] = {}
        additions: dict[str, Entry] = {}
        deletions: list[str] = []
        for line in lines:
            value = line["value"]
            if line["key"] == "header":
                header = value
            elif line["key"] == "file":
                additions[value["path"]] = self.hub.repositories.add_bytes(base64.b64decode(value["content"]))
            elif line["key"] == "lfsFile":
                if not self.hub.repositories.path(value["oid"]).exists():
                    raise Refusal(400, None, f"the bytes of {value['path']} were not uploaded")
                additions[value["path"]] = Entry(value["oid"], value["size"], lfs=True)
            else:
                deletions.append(value["path"])
        with self.hub.repositories.lock:
            parent = header.get("parentCommit")
            if parent is not None and repository.branches.get(branch) != parent:
                raise Refusal(412, None, "A commit has happened since. Please refresh and try again.")
            commit = self.hub.repositories.commit(
                repository, header["summary"], additions, tuple(deletions), branch
            )
        url = f"{self.hub.endpoint}/{repository.name}/commit/{commit.oid}"
        self.send_json({"success": True, "commitUrl": url, "commitOid": commit.oid})

    # --- downloads ---------------------------------------------------------------------------------------------

    def _resolve(self, repository: Repository, revision: str, path: str) -> None:
        commit = self._at(repository, revision)
        entry = commit.files.get(path)
        if entry is None:
            raise Refusal(404, "EntryNotFound", "Entry not found", X_Repo_Commit=commit.oid)
        headers = {"X-Repo-Commit": commit.oid, "ETag": f'"{entry.oid}"'}
        if not entry.lfs:
            self.send_file(self.hub.repositories.path(entry.oid), headers=headers)
            return
        headers |= {"X-Linked-Etag": f'"{entry.oid}"', "X-Linked-Size": str(entry.size)}
        if self.hub.redirect_to_cdn:
            place = f"{self.hub.cdn}/blob/{entry.oid}"
            self.send_bytes(b"Found", status=302, headers={**headers, "Location": place})
        else:
            self.send_file(self.hub.repositories.path(entry.oid), headers=headers)


def _list_tree(commit: Commit, below: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for path, entry in sorted(commit.files.items()):
        if below and not path.startswith(f"{below}/"):
            continue
        row: dict[str, Any] = {"type": "file", "path": path, "oid": entry.oid, "size": entry.size}
        if entry.lfs:
            row["lfs"] = {"oid": entry.oid, "size": entry.size, "pointerSize": 134}
        rows.append(row)
    return rows


def _list_refs(repository: Repository) -> dict[str, Any]:
    def rows(names: Mapping[str, str], kind: str) -> list[dict[str, str]]:
        return [
            {"name": name, "ref": f"refs/{kind}/{name}", "targetCommit": oid}
            for name, oid in sorted(names.items())
        ]

    return {
        "branches": rows(repository.branches, "heads"),
        "tags": rows(repository.tags, "tags"),
        "converts": [],
    }


def _list_commits(repository: Repository, commit: Commit | None) -> list[dict[str, Any]]:
    rows = []
    while commit is not None:
        row = {"id": commit.oid, "title": commit.title, "message": "", "date": repository.created}
        rows.append(row | {"authors": [{"user": "test"}]})
        commit = repository.commits.get(commit.parent or "")
    return rows


@contextmanager
def run_hub(folder: Path) -> Iterator[Hub]:
    """Run the double, and the other origin that its large files come from, on two free ports."""
    hub = Hub(Repositories(folder))
    with contextlib.ExitStack() as stack:
        servers = [Server(_HubHandler, hub, "hub"), Server(CdnHandler, hub, "cdn")]
        hub.endpoint, hub.cdn = (server.url for server in servers)
        for server in servers:
            threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
            stack.callback(server.server_close)
            stack.callback(server.shutdown)
        yield hub
