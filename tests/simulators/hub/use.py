"""What a test needs so that the real client talks to the double: settings, a token, an address."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.simulators.hub.server import Hub, run_hub

USER = "alice"
ADDRESS = f"hf://{USER}"


@contextmanager
def use_hub(folder: Path, monkeypatch: pytest.MonkeyPatch, *, token: bool = True) -> Iterator[Hub]:
    """Run a double to which the client of this process goes by its own settings, logged in as ``USER``."""
    with run_hub(folder) as hub:
        point_client(monkeypatch, hub)
        if token:
            monkeypatch.setenv("HF_TOKEN", hub.add_token(USER))
        yield hub


def point_client(monkeypatch: pytest.MonkeyPatch, hub: Hub) -> None:
    """Set what the client reads from its environment, also where it was imported before."""
    constants = importlib.import_module("huggingface_hub.constants")
    for variable in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_TOKEN", "HTTP_PROXY", "http_proxy"):
        monkeypatch.delenv(variable, raising=False)
    values = {
        "ENDPOINT": hub.endpoint,
        "HUGGINGFACE_CO_URL_TEMPLATE": hub.endpoint + "/{repo_id}/resolve/{revision}/{filename}",
        "HF_HUB_OFFLINE": False,
        "HF_HUB_DISABLE_XET": True,
    }
    for name, value in values.items():
        monkeypatch.setattr(constants, name, value)
    monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
    monkeypatch.setenv("HF_HUB_DISABLE_XET", "1")
    monkeypatch.setenv("HF_HUB_DISABLE_PROGRESS_BARS", "1")
