"""A plugin of pytest that runs tests behind another system: ``-p tests.faults.behind_double`` and ``STORE_BEHIND``.

Tests that put operations of their own in place, or that make links and modes which the system does not have, say
nothing about it and are left out, by the table below.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Final

import pytest

from conceptry.registry.operations import FileOperations, use_operations
from tests.faults.crowd import AlwaysLocked
from tests.faults.doubles import NetworkShare, WindowsRules

DOUBLES: Final[dict[str, Callable[[], FileOperations]]] = {
    "windows": WindowsRules,
    "share": NetworkShare,
    "lockless": AlwaysLocked,
}

_NOBODY_WAITS: Final = "nobody waits for a lock there"
_NO_OWNERS: Final = "files have no owners and no modes there"
_NO_LINKS: Final = "links need a privilege there"
LEFT_OUT: Final[dict[str, dict[str, str]]] = {
    "windows": {
        "test_store_that_others_can_write_is_refused": _NO_OWNERS,
        "test_store_of_another_user_is_refused": _NO_OWNERS,
        "test_empty_folder_made_beforehand_becomes_private": _NO_OWNERS,
        "test_stored_files_cannot_be_written_by_accident": _NO_OWNERS,
        "test_folder_that_others_can_write_is_made_private_unless_the_store_is_shared": _NO_OWNERS,
        "test_symbolic_link_leads_to_what_it_was_made_for": _NO_LINKS,
    },
    "share": {
        "test_lock_held_by_another_process_is_waited_for_and_then_named": _NOBODY_WAITS,
    },
    "lockless": {
        "test_lock_held_by_another_process_is_waited_for_and_then_named": _NOBODY_WAITS,
    },
}
"""By double: part of a test's name, and why it says nothing about that system."""


@pytest.fixture(autouse=True)
def _behind_double() -> Iterator[None]:
    """Puts the chosen system under the store."""
    with use_operations(DOUBLES[os.environ["STORE_BEHIND"]]()):
        yield


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skips what is left out, with its reason."""
    for item in items:
        for part, reason in LEFT_OUT[os.environ["STORE_BEHIND"]].items():
            if part in item.nodeid:
                item.add_marker(pytest.mark.skip(reason=reason))
