"""Files that nobody published: brought here, checked by digest, and described by a generated manifest.

The manifest is marked unpublished and says nothing of where the file lay, so that the same file with the same words
has the same digest on every machine. One frozen row for each kind of source; what fetches is replaced by nobody.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from conceptry.digests import Digest
from conceptry.errors import ConceptryError, IntegrityError, NotFoundError, RemoteError, UsageError
from conceptry.manifest import Base, Manifest, parse_manifest
from conceptry.names import ConceptName, parse_version
from conceptry.registry.answers import read_length
from conceptry.registry.file_reading import digest_file, is_file
from conceptry.registry.files import STATE_MODE, write_file, write_new_file
from conceptry.registry.http import Transport
from conceptry.registry.hub_files import fetch_hub_file
from conceptry.registry.lockfile import LockedSource
from conceptry.registry.os_errors import explain_os_errors
from conceptry.registry.places import (
    draw_name_beside,
    locate_download,
    locate_manifest,
    locate_package,
    locate_source,
)
from conceptry.registry.project import Project, ProjectRequirement
from conceptry.sources import Source, SourceKind, split_hub_source

FOREIGN_EXTENSION: Final = "conceptry.foreign"
MAX_FOREIGN_BYTES: Final = 64 << 30
_VERSION_DIGITS: Final = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class ForeignKind:
    """One kind of source: how its file comes into an empty folder."""

    kind: SourceKind
    title: str
    fetch: Callable[[Source, Path, Path], Path]
    """Returns the file of a source, whose path is seen from the first folder; what was downloaded lies in the second.

    Raises NotFoundError, RemoteError, also where the network is forbidden and the file is not here.
    """


@dataclass(frozen=True, slots=True, kw_only=True)
class ForeignPackage:
    """A foreign file as a package in a folder of its own, and where it was read."""

    folder: Path
    data: bytes
    manifest: Manifest
    source: LockedSource

    @property
    def digest(self) -> Digest:
        """Of the generated manifest."""
        return Digest.of_bytes(self.data)


def is_unpublished(manifest: Manifest) -> bool:
    """Returns whether a manifest was generated for a foreign file."""
    return FOREIGN_EXTENSION in manifest.extensions


def read_foreign(project: Project, requirement: ProjectRequirement, folder: Path) -> ForeignPackage:
    """Returns the package made of a requirement's foreign file; ``folder`` is empty and the caller's to remove.

    Raises:
        NotFoundError, RemoteError: if the file cannot be had.
        IntegrityError: if it is not the bytes of its digest, or no file that can be imported.
        UsageError: if the project does not say what has to be said of it.
    """
    foreign = requirement.foreign
    if foreign is None:
        raise UsageError(f"{requirement.name} is no foreign file")
    where = f'concepts."{requirement.name}"'
    try:
        path, digest, size_bytes = fetch_source(foreign.source, project.folder, folder)
        data, manifest = _make_package(project, requirement, path, digest, locate_package(folder))
    except ConceptryError as error:
        raise error.inside(where) from error
    source = LockedSource(foreign.source.kind, str(foreign.source), size_bytes, digest)
    return ForeignPackage(folder=locate_package(folder), data=data, manifest=manifest, source=source)


def fetch_source(source: Source, beside: Path, folder: Path) -> tuple[Path, Digest, int]:
    """Returns the file of a source, its digest and size.

    A path is seen from ``beside``; what has to be downloaded lies in ``folder``, which is empty and the caller's to
    remove.

    Raises:
        NotFoundError, RemoteError: if the file cannot be had.
        IntegrityError: if it is not the bytes of the digest that the source carries.
        UsageError: if the source does not say where the file lies.
    """
    path = FOREIGN[source.kind].fetch(source, beside, folder)
    with explain_os_errors("read", path):
        digest, size_bytes = digest_file(path)
    if source.digest is not None and digest != source.digest:
        raise IntegrityError(
            f"{source} has digest {digest}", hint="the file changed: take another, or its new digest"
        )
    return path, digest, size_bytes


def number_foreign(digest: Digest) -> str:
    """Returns the version of a foreign file's package, which its bytes decide."""
    return f"0.0.0+{digest.hex[:_VERSION_DIGITS]}"


def _make_package(
    project: Project, requirement: ProjectRequirement, path: Path, digest: Digest, folder: Path
) -> tuple[bytes, Manifest]:
    from conceptry.formats.import_plans import ImportSettings, plan_import
    from conceptry.formats.importing import write_import

    foreign = requirement.foreign
    settings = ImportSettings(
        name=requirement.name,
        version=parse_version(number_foreign(digest)),
        placeholder=foreign.placeholder if foreign else None,
        superclass=foreign.superclass if foreign else None,
        base=_declare_base(foreign.base if foreign else None, project, requirement.name),
        license=foreign.license if foreign else None,
    )
    return mark_unpublished(write_import(plan_import(path, settings), folder), digest, folder)


def mark_unpublished(manifest: Manifest, digest: Digest, folder: Path) -> tuple[bytes, Manifest]:
    """Returns the manifest of the package in ``folder``, with the mark that nobody published its file of ``digest``."""
    mark = {FOREIGN_EXTENSION: {"unpublished": True, "sha256": str(digest)}}
    data = manifest.model_copy(update={"extensions": {**manifest.extensions, **mark}}).to_bytes()
    target = locate_manifest(folder)
    write_file(target, data, temporary=draw_name_beside(target), replace=True)
    return data, parse_manifest(data)


def _declare_base(text: str | None, project: Project, name: ConceptName) -> Base | None:
    """Returns the base that is declared: the requirement's own, else the project's family, else the file tells."""
    from conceptry.bases import FAMILY_BY_ID
    from conceptry.formats.import_plans import declare_base

    if text is None:
        return declare_base(project.base) if project.base in FAMILY_BY_ID else None
    if text not in FAMILY_BY_ID:
        raise UsageError(f"{name} is declared for {text!r}, which is no family", hint=", ".join(FAMILY_BY_ID))
    return declare_base(text)


# --- fetching ------------------------------------------------------------------------------------------------------


def _find_path(source: Source, beside: Path, folder: Path) -> Path:
    path = locate_source(beside, source.text)
    if not is_file(path):
        raise NotFoundError(
            f"no file {str(path)!r}", hint="paths are relative to the folder of concepts.toml"
        )
    return path


def _fetch_hub(source: Source, beside: Path, folder: Path) -> Path:
    repository, revision, path = split_hub_source(source)
    return fetch_hub_file(repository, revision, path).resolve()  # the Hub's cache has links to blobs


def _fetch_url(source: Source, beside: Path, folder: Path) -> Path:
    url = source.text.partition("#")[0]
    target = locate_download(folder)
    transport = Transport(url)
    try:
        size_bytes = read_length(transport.send("HEAD", url).headers)
        if size_bytes is None or not 0 < size_bytes <= MAX_FOREIGN_BYTES:
            raise RemoteError(
                f"{url} does not say how many bytes it has", hint="download it, and name it by path"
            )
        with (
            transport.stream(url, size_bytes=size_bytes) as chunks,
            write_new_file(draw_name_beside(target)) as file,
        ):
            for chunk in chunks:
                file.write(chunk)
            file.commit(target, mode=STATE_MODE)
    finally:
        transport.close()
    return target


def _refuse_air(source: Source, beside: Path, folder: Path) -> Path:
    raise UsageError(
        f"{source} names a file and not where it lies",
        hint='add where: url = "https://...#sha256=..." beside air, or path = "files/..." after a download',
    )


FOREIGN: Final[Mapping[SourceKind, ForeignKind]] = {
    row.kind: row
    for row in (
        ForeignKind(kind="path", title="a file of the project", fetch=_find_path),
        ForeignKind(kind="hf", title="a file on the Hub", fetch=_fetch_hub),
        ForeignKind(kind="url", title="an address with its digest", fetch=_fetch_url),
        ForeignKind(kind="air", title="a Civitai AIR, a record only", fetch=_refuse_air),
    )
}
