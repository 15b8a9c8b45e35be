"""A project in a folder of its own, a registry that publishes, and one of somebody else who only has the lock."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from conceptry.registry import Registry
from conceptry.registry.workspace import Workspace
from tests.registry.folders import write_folder


@dataclass(frozen=True, slots=True)
class Studio:
    """Where concepts are made and pushed from; ``uri`` is the remote that all share."""

    root: Path
    registry: Registry
    uri: str

    def publish(
        self, name: str, version: str, *, push: bool = True, file: bytes | None = None, **more: Any
    ) -> None:
        """Publishes a version whose bytes are its own, and pushes it."""
        folder = self.root / "made" / f"{name.replace('/', '-')}-{version}"
        contents = f"weights of {name} {version}".encode() * 20 if file is None else file
        self.registry.publish(write_folder(folder, name, version, file=contents, **more))
        if push:
            self.registry.push(f"{name}@{version}", self.uri)


def make_studio(root: Path) -> Studio:
    """Return a studio with an empty store; the remote's folder appears with the first push."""
    return Studio(root, Registry(root / "studio-store"), (root / "remote").as_uri())


def make_workspace(folder: Path, store: Path, text: str) -> Workspace:
    """Return a project with that ``concepts.toml``, on a store of its own."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "concepts.toml").write_text(text, encoding="utf-8")
    return Workspace(Registry(store), folder)


def write_project(uri: str, *lines: str, about: str = "") -> str:
    """Return the text of a project that requires ``lines`` from the remote ``studio``."""
    rows = "\n".join(lines)
    return f'[project]\n{about}\n\n[concepts]\n{rows}\n\n[remotes]\nstudio = "{uri}"\n'
