"""An empty registry, one concept that can be published into it, and a Hub to push it to."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from conceptry.names import RemoteName
from conceptry.registry import Registry
from tests.registry.folders import write_folder
from tests.simulators.hub.server import Hub
from tests.simulators.hub.use import ADDRESS, use_hub

IN_MEMORY = Path("/dev/shm")
NEEDED_BYTES = 256 << 20


@pytest.fixture
def tmp_path(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Give a folder in memory where there is room: each write here waits for the disk, on purpose."""
    if not IN_MEMORY.is_dir() or shutil.disk_usage(IN_MEMORY).free < NEEDED_BYTES:
        yield tmp_path_factory.mktemp("registry")
        return
    folder = Path(tempfile.mkdtemp(prefix="conceptry-", dir=IN_MEMORY))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    """Give a registry on a folder that does not exist yet."""
    return Registry(tmp_path / "home")


@pytest.fixture
def imp(tmp_path: Path) -> Path:
    """Give a folder that can be published as ``me/imp@1.0.0``."""
    return write_folder(tmp_path / "imp")


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """Give a running double of the Hub, empty, to which this process is logged in."""
    with use_hub(tmp_path / "hub", monkeypatch) as running:
        yield running


@pytest.fixture
def pushed(registry: Registry, imp: Path, hub: Hub) -> Registry:
    """Give a registry whose concept lies on the Hub."""
    registry.add_remote(RemoteName("hub"), ADDRESS)
    registry.publish(imp)
    registry.push("me/imp", RemoteName("hub"))
    return registry
