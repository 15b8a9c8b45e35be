"""Steps that are all taken, whatever one of them raises: nothing stays in because something else would not come out."""

from __future__ import annotations

from collections.abc import Callable, Iterable


def run_all(steps: Iterable[Callable[[], object]]) -> None:
    """Runs every step; the first error, also Ctrl-C, is raised after the last of them."""
    failure: BaseException | None = None
    for step in steps:
        try:
            step()
        except BaseException as error:  # noqa: BLE001  # raised below
            failure = failure or error
    if failure is not None:
        raise failure
