"""Switches: what goes wrong, with which requests, and how often."""

from __future__ import annotations

import re
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass
class Fault:
    """Something that goes wrong with the next ``times`` requests whose ``METHOD /path`` matches."""

    matching: str
    times: int = 1
    status: int | None = None
    """Answer with this status instead; None: answer as ever, but spoilt as said below."""

    headers: Mapping[str, str] = field(default_factory=dict)
    """Headers to add to the answer, or to put in the place of its own."""

    body: bytes = b'{"error": "as asked for"}'
    cut_after_bytes: int | None = None
    """Close the connection after so many bytes of the body."""

    drop: bool = False
    """Close the connection instead of answering."""

    ignore_range: bool = False
    replace_bytes: bytes | None = None
    """Send these bytes in the place of the file's."""

    delay_seconds: float = 0.0
    after: bool = False
    """Do what was asked for, and only then fail: an answer that is lost on its way back."""


class Faults:
    """The faults that are still to come."""

    def __init__(self) -> None:
        self._rows: list[Fault] = []
        self._lock = threading.Lock()

    def add(self, fault: Fault) -> None:
        """Switch a fault on."""
        with self._lock:
            self._rows.append(fault)

    def clear(self) -> None:
        """Switch all faults off."""
        with self._lock:
            self._rows.clear()

    def take(self, method: str, path: str) -> Fault | None:
        """Return the fault of a request, which counts as used."""
        with self._lock:
            for row in self._rows:
                if row.times > 0 and re.search(row.matching, f"{method} {path}"):
                    row.times -= 1
                    return row
        return None
