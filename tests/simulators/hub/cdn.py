"""The other origin, to which the Hub sends those who want large files or bring some."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from tests.simulators.hub.handling import COPY_BYTES, Handler, Refusal


class CdnHandler(Handler):
    """Where the bytes of large files come from and go to; it knows no tokens, only addresses that nobody can guess."""

    def _route(self) -> None:
        hub, oid = self.hub, self.parts[-1]
        if self.parts[0] == "blob" and self.command in ("GET", "HEAD"):
            self.send_file(hub.repositories.path(oid), headers={"ETag": f'"{oid}"'})
        elif self.parts[0] == "upload" and self.command == "PUT":
            self._receive(self.parts[1], self.query.get("part", ["0"])[0])
        elif self.parts[0] == "upload" and self.command == "POST":
            self._join(self.parts[1])
        else:
            raise Refusal(404, None, "no such place")

    def _receive(self, nonce: str, part: str) -> None:
        if nonce not in self.hub.uploads:
            raise Refusal(403, None, "this address has expired")
        path = self.hub.repositories.folder / f"upload-{nonce}-{part}"
        with path.open("wb") as file:
            if (self.headers.get("Transfer-Encoding") or "").lower() == "chunked":
                file.writelines(self._iter_chunks())
            while self.length > 0:
                piece = self.rfile.read(min(self.length, COPY_BYTES))
                self.length -= len(piece)
                file.write(piece)
        if part == "0":
            self._finish(nonce, [path])
        self.send_bytes(b"", headers={"ETag": f'"{part}"'})

    def _join(self, nonce: str) -> None:
        wanted = json.loads(self.read_body())
        folder = self.hub.repositories.folder
        self._finish(nonce, [folder / f"upload-{nonce}-{row['partNumber']}" for row in wanted["parts"]])
        self.send_json({})

    def _finish(self, nonce: str, parts: list[Path]) -> None:
        """Keep what arrived, if it is what was announced."""
        oid, size = self.hub.uploads[nonce]
        hasher, whole = hashlib.sha256(), self.hub.repositories.folder / f"whole-{nonce}"
        with whole.open("wb") as file:
            for part in parts:
                data = part.read_bytes()
                hasher.update(data)
                file.write(data)
        if hasher.hexdigest() == oid and whole.stat().st_size == size:
            whole.replace(self.hub.repositories.path(oid))
