"""Python's collector of cyclic garbage, paused while thousands of small values are made that all stay."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def pause_collection() -> Iterator[None]:
    """Gives a block in which no cyclic garbage is looked for: it would go through all that was made, again and again.

    Threads may enter it at the same time: the first that leaves turns the collector on again.
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
