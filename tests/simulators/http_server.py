"""A web server for a folder that can do everything wrong, on real sockets.

An ordinary answer knows ranges, entity tags and ``If-Range``; a fault plays instead of it, for some requests to one
file.
"""

from __future__ import annotations

import socket
import struct
import threading
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote

from tests.simulators.http_plays import (
    Ask,
    Fault,
    Pause,
    Play,
    Reset,
    answer_rightly,
    cut_body,
    head,
)


@dataclass(frozen=True, slots=True)
class Seen:
    """One request that arrived."""

    path: str
    headers: dict[str, str]


@dataclass(slots=True)
class _State:
    fault: Fault | None = None
    target: str = ""
    cut: int = 0
    left: int = 0
    cuts_left: int = 0
    seen: list[Seen] = field(default_factory=list)


class FaultServer:
    """A running server for a folder; ``with FaultServer(folder) as server``."""

    def __init__(self, folder: Path, *, other: str = "http://127.0.0.1:1") -> None:
        self._folder = folder
        self._other = other
        self._state = _State()
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        self._healed = threading.Event()
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.uri = f"http://127.0.0.1:{self._socket.getsockname()[1]}"
        self._thread = threading.Thread(target=self._accept, daemon=True)

    def __enter__(self) -> FaultServer:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stopped.set()
        self._healed.set()
        self._socket.shutdown(socket.SHUT_RDWR)  # closing alone wakes nobody who waits in accept
        self._socket.close()
        self._thread.join(timeout=5)

    @property
    def seen(self) -> list[Seen]:
        """The requests that arrived since the last fault was set."""
        with self._lock:
            return list(self._state.seen)

    def set_fault(self, fault: Fault, target: str, *, cut: int) -> None:
        """Let a fault play for requests whose path ends with ``target``, after ``cut`` bytes."""
        self._healed.clear()
        first = 1 if fault.after_cut else 0
        with self._lock:
            self._state = _State(fault, target, cut, fault.times, first)

    def heal(self) -> None:
        """Serve everything rightly from now on, and end what still plays."""
        with self._lock:
            self._state = _State()
        self._healed.set()

    def _accept(self) -> None:
        while not self._stopped.is_set():
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with connection:
            try:
                connection.settimeout(10)
                ask = self._read(connection)
                if ask is not None:
                    self._play(connection, self._choose(ask), ask)
            except OSError:
                return

    def _read(self, connection: socket.socket) -> Ask | None:
        received = b""
        while b"\r\n\r\n" not in received:
            piece = connection.recv(65536)
            if not piece or len(received) > 65536:
                return None
            received += piece
        first, *lines = received.split(b"\r\n\r\n")[0].decode("latin-1").split("\r\n")
        method, path, _ = first.split(" ")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        with self._lock:
            self._state.seen.append(Seen(path, headers))
            cut = self._state.cut
        place = self._folder / unquote(path).lstrip("/")
        data = place.read_bytes() if place.is_file() else None
        if data is None:
            connection.sendall(head(404, "Content-Length: 0"))
            return None
        return Ask(
            method=method, path=path, headers=headers, data=data, cut=cut, here=self.uri, other=self._other
        )

    def _choose(self, ask: Ask) -> Play:
        with self._lock:
            state = self._state
            if state.fault is None or not ask.path.endswith(state.target):
                return answer_rightly
            if state.cuts_left:
                state.cuts_left -= 1
                return cut_body
            if state.left:
                state.left -= 1
                return state.fault.play
            return answer_rightly

    def _play(self, connection: socket.socket, play: Play, ask: Ask) -> None:
        for action in play(ask):
            if self._stopped.is_set():
                return
            if isinstance(action, Pause):
                if self._healed.wait(action.seconds):
                    return
            elif isinstance(action, Reset):
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                return
            else:
                connection.sendall(action)
        connection.shutdown(socket.SHUT_WR)
