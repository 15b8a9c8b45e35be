"""Where things lie that are no part of a store: projects, published folders, bases, views, adopted collections.

Only this module and ``registry/paths.py`` build paths. Names in them come from a manifest that was checked, from the
user's own project and configuration, or from listing the folder; what a document names stays inside.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from conceptry.errors import InvalidNameError, UsageError
from conceptry.names import ConceptName
from conceptry.registry.paths import draw_name
from conceptry.registry.processes import own_mark

if TYPE_CHECKING:
    from conceptry.manifest import File

MANIFEST_FILE: Final = "concept.json"
RECORD_FILE: Final = "train.json"
PROJECT_FILE: Final = "concepts.toml"
LOCK_FILE: Final = "concepts.lock"
_VIEW_PART: Final = re.compile(r"[^/\\\\:\x00-\x1f]{1,255}")


def locate_file_uri(uri: str) -> Path:
    """Returns the folder that ``file:///path`` names.

    Raises:
        UsageError: for another scheme, another host, or a path that is not absolute.
    """
    from urllib.parse import unquote, urlsplit

    parts = urlsplit(uri)
    path = Path(unquote(parts.path))
    if parts.scheme != "file" or parts.netloc not in ("", "localhost") or not path.is_absolute():
        raise UsageError(f"not a folder's address: {uri!r}", hint="write file:///absolute/path")
    return path


def locate_base(text: str) -> Path:
    """Returns the place of a base as the user's configuration writes it."""
    return Path(text)


def locate_manifest(folder: Path) -> Path:
    """Returns where a published folder has its manifest."""
    return folder / MANIFEST_FILE


def locate_preview(folder: Path, suffix: str) -> Path:
    """Returns where a package has its picture; ``suffix`` is that of its form, such as ``.png``."""
    return folder / f"preview{suffix}"


def locate_record(folder: Path) -> Path:
    """Returns where a published folder has its training record."""
    return folder / RECORD_FILE


def locate_member(folder: Path, file: File) -> Path:
    """Returns where a published folder has a file of its manifest; the manifest has checked the name."""
    return folder.joinpath(*file.path.split("/"))


def locate_project(folder: Path) -> Path:
    """Returns where a project's folder has its requirements."""
    return folder / PROJECT_FILE


def locate_lock(folder: Path) -> Path:
    """Returns where a project's folder has its lock."""
    return folder / LOCK_FILE


def locate_source(folder: Path, text: str) -> Path:
    """Returns the file that the user's own project names, relative to the project's folder."""
    return folder / Path(text).expanduser()


def read_place(text: str) -> Path:
    """Returns the place that a library or the system names for a file of ours."""
    return Path(text)


def locate_scheduler(base: Path) -> Path:
    """Returns where a diffusers folder says how its noise is scheduled."""
    return base / "scheduler" / "scheduler_config.json"


def locate_base_file(folder: Path, name: str) -> Path:
    """Returns where a base's folder has a file, whose name was checked."""
    return folder.joinpath(*name.split("/"))


def locate_download(folder: Path) -> Path:
    """Returns where a file that is fetched into an empty folder lies there."""
    return folder / "download.safetensors"


def locate_package(folder: Path) -> Path:
    """Returns where the package that is made of a fetched file lies beside it."""
    return folder / "package"


def draw_name_beside(path: Path) -> Path:
    """Returns a new private name in the folder of ``path``, for a file that is to take its place."""
    return path.with_name(f".{path.name}.{draw_name(8)}")


@dataclass(frozen=True, slots=True)
class ViewLayout:
    """The files of a view: a folder of another program, outside the store."""

    root: Path

    @property
    def state(self) -> Path:
        """The file that says what views made here."""
        return self.root / ".conceptry-view.json"

    def temporary(self) -> Path:
        """A new private name, on the same file system as the view."""
        return self.root / f".conceptry-{own_mark()}-{draw_name(8)}"

    def concept_folder(self, kind_folder: str, name: ConceptName) -> Path:
        """The folder of the files of one namespace, which the programs search too."""
        return self.root / kind_folder / name.namespace

    def stored_file(self, folder: Path, name: ConceptName, file: File, *, alone: bool) -> Path:
        """Where a stored file is placed: under the concept's name, with its own where there are several."""
        own = file.path.split("/")[-1]
        stem, dot, suffix = own.rpartition(".")
        return folder / (f"{name.name}.{suffix}" if alone and dot and stem else f"{name.name}-{own}")

    def name(self, path: Path) -> str:
        """Returns a file's name as seen from the view's folder."""
        return path.relative_to(self.root).as_posix()

    def file(self, name: str) -> Path:
        """Returns the file of that name, which stays inside. Raises InvalidNameError."""
        parts = name.split("/")
        if not all(_VIEW_PART.fullmatch(part) and part.strip(".") for part in parts):
            raise InvalidNameError(f"not a file of a view: {name[:80]!r}")
        return self.root.joinpath(*parts)


@dataclass(frozen=True, slots=True)
class CollectionLayout:
    """The files of a folder that somebody keeps by hand: named by listing it, and by no document."""

    root: Path

    @property
    def answers(self) -> Path:
        """The file in which a person says what files do not."""
        return self.root / "adopt.toml"

    def entry(self, name: str) -> Path:
        """Returns what is called so, as seen from the folder; it stays inside. Raises InvalidNameError."""
        return ViewLayout(self.root).file(name) if name else self.root

    def temporary(self) -> Path:
        """A new private name beside the answers."""
        return draw_name_beside(self.answers)
