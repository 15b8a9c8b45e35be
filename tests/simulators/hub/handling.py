"""What both servers of the double share: requests with faults in between, bodies, and files in ranges."""

from __future__ import annotations

import json
import os
import secrets
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from tests.simulators.hub.faults import Fault, Faults
from tests.simulators.hub.repositories import Repositories, Repository

COPY_BYTES = 1 << 20


@dataclass(frozen=True)
class Request:
    """One request as it arrived."""

    method: str
    path: str
    authorization: str | None
    range: str | None
    origin: str
    """``hub`` or ``cdn``."""


class Refusal(Exception):
    """An answer that is an error, as the Hub words it."""

    def __init__(self, status: int, code: str | None, message: str, **more: str) -> None:
        super().__init__(message)
        self.status = status
        self.headers = {"X-Error-Message": message, **({"X-Error-Code": code} if code else {})}
        self.headers |= {name.replace("_", "-"): value for name, value in more.items()}


@dataclass
class Hub:
    """The running double."""

    repositories: Repositories
    tokens: dict[str, tuple[str, str]] = field(default_factory=dict)
    """User and role (``write`` or ``read``) by token."""

    faults: Faults = field(default_factory=Faults)
    log: list[Request] = field(default_factory=list)
    redirect_to_cdn: bool = True
    delay_seconds: float = 0.0
    stall_after_bytes: int | None = None
    """Send so many bytes of a file, and then nothing while this is set."""

    multipart_bytes: int | None = None
    """Ask for uploads in parts of this size."""

    uploads: dict[str, tuple[str, int]] = field(default_factory=dict)
    endpoint: str = ""
    cdn: str = ""

    def add_token(self, user: str, role: str = "write") -> str:
        """Return a token of a user."""
        token = f"hf_{secrets.token_hex(17)}"
        self.tokens[token] = (user, role)
        return token

    def requests(self, method: str, containing: str = "", origin: str | None = None) -> list[Request]:
        """Return the requests of a method whose path contains some text."""
        return [
            row
            for row in self.log
            if row.method == method and containing in row.path and origin in (None, row.origin)
        ]

    def reborn(self, name: str) -> Repository:
        """Replace a repository by another one of the same name and the same files, as a stranger could."""
        old = self.repositories.by_name.pop(name.lower())
        new = self.repositories.create(name)
        new.created = "2026-11-21T09:00:00.000Z"
        for tag, oid in old.tags.items():
            commit = self.repositories.commit(new, "again", old.commits[oid].files, ())
            new.tags[tag] = commit.oid
        return new


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def log_message(self, format: str, *args: Any) -> None:
        """Write nothing."""

    def setup(self) -> None:
        super().setup()
        self.connection.setsockopt(6, 1, 1)  # TCP_NODELAY: headers and body are two writes

    @property
    def hub(self) -> Hub:
        return self.server.hub

    def answer(self) -> None:
        hub, url = self.hub, urlsplit(self.path)
        header = self.headers.get
        hub.log.append(
            Request(self.command, self.path, header("Authorization"), header("Range"), self.server.origin)
        )
        self.query = parse_qs(url.query)
        self.parts = [unquote(part) for part in url.path.strip("/").split("/")]
        self.fault = hub.faults.take(self.command, url.path)
        time.sleep(hub.delay_seconds + (self.fault.delay_seconds if self.fault else 0.0))
        if self.fault and self.fault.drop and not self.fault.after:
            self.close_connection = True
            return
        self.length = int(header("Content-Length") or 0)
        if self.fault and self.fault.status is not None and not self.fault.after:
            self._drain()
            self.send_bytes(self.fault.body, status=self.fault.status)
            return
        try:
            self._route()
        except Refusal as refusal:
            self._drain()
            self.send_json({"error": str(refusal)}, status=refusal.status, headers=refusal.headers)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True

    def _route(self) -> None:
        raise NotImplementedError

    # --- bodies ------------------------------------------------------------------------------------------------

    def read_body(self) -> bytes:
        if (self.headers.get("Transfer-Encoding") or "").lower() == "chunked":
            return b"".join(self._iter_chunks())
        data = self.rfile.read(self.length)
        self.length = 0
        return data

    def _iter_chunks(self) -> Iterator[bytes]:
        while size := int(self.rfile.readline().split(b";")[0], 16):
            yield self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()

    def _drain(self) -> None:
        while self.length > 0 and (piece := self.rfile.read(min(self.length, COPY_BYTES))):
            self.length -= len(piece)

    def send_json(self, value: Any, *, status: int = 200, headers: Mapping[str, str] | None = None) -> None:
        data = json.dumps(value).encode()
        self.send_bytes(data, status=status, headers={"Content-Type": "application/json", **(headers or {})})

    def send_bytes(self, data: bytes, *, status: int = 200, headers: Mapping[str, str] | None = None) -> None:
        if self.fault and self.fault.after:
            self.close_connection = True
            return
        fields = {"Content-Length": str(len(data)), **(headers or {})}
        fields |= self.fault.headers if self.fault else {}
        self.send_response(status)
        for name, value in fields.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self._write(data)

    def send_file(self, path: Path, *, headers: Mapping[str, str]) -> None:
        """Answer with a file or the part of it that was asked for."""
        fault = self.fault or Fault("")
        if fault.replace_bytes is not None:
            path = self.hub.repositories.folder / f"replaced-{secrets.token_hex(4)}"
            path.write_bytes(fault.replace_bytes)
        size = path.stat().st_size
        start, end, status = 0, size, 200
        wanted = self.headers.get("Range")
        if wanted and not fault.ignore_range:
            first, _, last = wanted.removeprefix("bytes=").partition("-")
            start, end, status = int(first), min(size, int(last) + 1 if last else size), 206
            if start >= size:
                self.send_bytes(b"", status=416, headers={"Content-Range": f"bytes */{size}"})
                return
        fields = {"Accept-Ranges": "bytes", "Content-Length": str(end - start), **headers}
        if status == 206:
            fields["Content-Range"] = f"bytes {start}-{end - 1}/{size}"
        self.send_response(status)
        for name, value in {**fields, **fault.headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        self.wfile.flush()
        limit = end - start if fault.cut_after_bytes is None else min(fault.cut_after_bytes, end - start)
        with path.open("rb") as file:
            stall_at = start + (self.hub.stall_after_bytes or end)
            while limit > 0:
                while start >= stall_at and self.hub.stall_after_bytes is not None:
                    time.sleep(0.05)
                sent = os.sendfile(self.connection.fileno(), file.fileno(), start, min(limit, COPY_BYTES))
                start, limit = start + sent, limit - sent
        if fault.cut_after_bytes is not None:
            self.close_connection = True

    def _write(self, data: bytes) -> None:
        cut = self.fault.cut_after_bytes if self.fault else None
        self.wfile.write(data if cut is None else data[:cut])
        if cut is not None:
            self.close_connection = True


for _method in ("GET", "HEAD", "POST", "PUT", "DELETE"):
    setattr(Handler, f"do_{_method}", Handler.answer)


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 256

    def __init__(self, handler: type[Handler], hub: Hub, origin: str) -> None:
        super().__init__(("127.0.0.1", 0), handler)
        self.hub = hub
        self.origin = origin

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of clients that leave."""
