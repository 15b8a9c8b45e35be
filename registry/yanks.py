"""Yanks: marks on versions that nobody should choose anew.

A yanked version can still be pulled by its number, and locks that have it keep working. ``yanks/<version>`` holds the
reason; it is the one file beside a version that may change.
"""

from __future__ import annotations

from typing import Final

from conceptry.errors import NotFoundError, UsageError
from conceptry.names import ConceptName, Version
from conceptry.registry.file_reading import names_in, read_small_file
from conceptry.registry.files import ensure_folder, remove_file, write_file
from conceptry.registry.paths import Layout, read_version_file_name
from conceptry.registry.refs import missing_version, parse_names, read_version

MAX_REASON_CHARS: Final = 1000


def check_reason(reason: str) -> str:
    """Returns the reason in one line. Raises UsageError if it is empty or long."""
    text = " ".join(reason.split())
    if not 0 < len(text) <= MAX_REASON_CHARS:
        raise UsageError(
            f"a yank needs a reason of 1 to {MAX_REASON_CHARS} characters, this has {len(text)}",
            hint="say what people should know: --reason 'trained on the wrong pictures'",
        )
    return text


def read_yank(layout: Layout, name: ConceptName, version: Version) -> str | None:
    """Returns why a version was yanked, None if it was not. Raises StoreError."""
    data = read_small_file(layout.yank(name, version), 4 * MAX_REASON_CHARS)
    if data is None:
        return None
    return " ".join(data.decode("utf-8", "replace").split())[:MAX_REASON_CHARS] or "no reason was given"


def read_yanks(layout: Layout, name: ConceptName) -> dict[Version, str]:
    """Returns why versions of a concept were yanked, those that were. Raises StoreError."""
    found: dict[Version, str] = {}
    for version in parse_names(names_in(layout.yanks_text(name)), read_version_file_name):
        reason = read_yank(layout, name, version)
        if reason is not None:
            found[version] = reason
    return found


def write_yank(layout: Layout, name: ConceptName, version: Version, reason: str | None) -> None:
    """Marks a version, or takes the mark away where the reason is None.

    Raises:
        NotFoundError: if there is no such version.
        UsageError: if the reason is empty or long.
    """
    if read_version(layout, name, version) is None:
        raise missing_version(layout, name, str(version))
    path = layout.yank(name, version)
    if reason is None:
        if not remove_file(path):
            raise NotFoundError(f"{name}@{version} is not yanked")
        return
    ensure_folder(path.parent)
    data = (check_reason(reason) + "\n").encode("utf-8")
    write_file(path, data, temporary=layout.temporary(), replace=True)
