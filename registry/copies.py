"""A blob's bytes under another name outside the store: shared blocks where the disk can do that, copies, or links."""

from __future__ import annotations

from pathlib import Path

from conceptry.digests import Digest
from conceptry.registry.file_reading import open_regular
from conceptry.registry.files import STATE_MODE, ensure_folder, replace_name, write_new_file
from conceptry.registry.operations import current_operations
from conceptry.registry.os_errors import explain_os_errors


def copy_file(source: Path, target: Path, *, temporary: Path, mode: int = STATE_MODE) -> Digest:
    """Returns the digest of ``source``, whose bytes ``target`` has now; blocks are shared where the disk can do that.

    Raises:
        StoreError: if one cannot be read or the other not be written; then ``target`` is as it was.
    """
    with explain_os_errors("read", source), open_regular(source) as opened, write_new_file(temporary) as file:
        if _clone(opened.descriptor, file.descriptor):
            digest = Digest.of_chunks(opened.iter_chunks())
        else:
            for chunk in opened.iter_chunks():
                file.write(chunk)
            digest = file.digest
        file.commit(target, mode=mode, replace=True)
    return digest


def link_file(source: Path, target: Path, *, temporary: Path, symbolic: bool) -> None:
    """Makes ``target`` another name of ``source``, or a symbolic link to it, replacing what was there.

    Raises:
        StoreError: if the disk refuses or has no links.
    """
    ensure_folder(target.parent)
    operations = current_operations()
    with explain_os_errors("link", target):
        if symbolic:
            operations.make_symbolic_link(source, temporary)
        else:
            operations.link(source, temporary)
        replace_name(temporary, target)


def _clone(source: int, target: int) -> bool:
    try:
        current_operations().clone(source, target)
    except OSError:
        return False
    return True
