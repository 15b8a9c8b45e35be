"""The files of one import, identified: what each is, which row of FORMATS reads it, where its tensors can be read."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from conceptry.digests import Digest, canonical_json
from conceptry.errors import InvalidFileError, UsageError
from conceptry.formats.checkpoints import read_folder_header
from conceptry.formats.contract import Format
from conceptry.formats.conversion import as_safetensors
from conceptry.formats.header import Header, read_header
from conceptry.formats.identify import Identification, find_format, identify_header
from conceptry.formats.members import is_model_folder, list_members

# Of these the manifest holds what the file does not: the superclass, the gate, the base.
_NEED_MANIFEST: Final = frozenset({"canonical_rank_one", "canonical_full"})


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportSource:
    """One file (or a whole model's folder) that is imported."""

    path: Path
    readable: Path
    """A safetensors file with its tensors: itself, or what was made of a pickle."""

    header: Header
    identification: Identification
    row: Format

    def digest(self) -> Digest:
        """Returns the digest of its bytes; of a folder, that of the digests of its files."""
        if not self.path.is_dir():
            return Digest.of_file(self.path)
        files = sorted(file for file in self.path.glob("*/*") if file.is_file())
        listing = [[file.relative_to(self.path).as_posix(), str(Digest.of_file(file))] for file in files]
        return Digest.of_bytes(canonical_json(listing))


@contextlib.contextmanager
def open_sources(paths: Sequence[Path]) -> Iterator[tuple[ImportSource, ...]]:
    """Gives the files that ``paths`` mean, each identified; converted files are gone after the block.

    Raises:
        NotFoundError: if there is no file.
        InvalidFileError: if one is not sound, or of no kind that is stored.
        UsageError: if a folder does not tell which file is meant, or a file means nothing without its manifest.
    """
    with contextlib.ExitStack() as stack:
        members = [member for path in paths for member in list_members(path)]
        yield tuple(_open(member, stack) for member in members)


def _open(path: Path, stack: contextlib.ExitStack) -> ImportSource:
    if is_model_folder(path):
        readable, header = path, read_folder_header(path)
    else:
        readable = stack.enter_context(as_safetensors(path))
        header = read_header(readable)
    identification = identify_header(header)
    found = find_format(header)
    if found is None or found[0].read is None:
        raise InvalidFileError(
            f"{path.name!r} is {identification.title}; {identification.reasons[0]}",
            hint=f"concepts identify {path.name} says what is known of it",
        )
    if found[0].id in _NEED_MANIFEST:
        raise UsageError(
            f"{path.name!r} is a file of kind {identification.kind!r}, which means nothing without its concept.json",
            hint="concepts publish FOLDER takes the folder that holds both",
        )
    return ImportSource(
        path=path, readable=readable, header=header, identification=identification, row=found[0]
    )
