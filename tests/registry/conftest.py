"""An empty registry, and one concept that can be published into it."""

from __future__ import annotations

from pathlib import Path

import pytest

from conceptry.registry import Registry
from tests.registry.folders import write_folder


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    """Give a registry on a folder that does not exist yet."""
    return Registry(tmp_path / "home")


@pytest.fixture
def imp(tmp_path: Path) -> Path:
    """Give a folder that can be published as ``me/imp@1.0.0``."""
    return write_folder(tmp_path / "imp")
