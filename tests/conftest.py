"""What every test stands on: one torch thread, no network, and a store that is not the user's."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest

# How long an example takes says how busy the machine is, and nothing about the code.
hypothesis.settings.register_profile("conceptry", deadline=None)
hypothesis.settings.load_profile("conceptry")

# Before torch is first imported: results on one thread do not depend on the number of workers.
os.environ.update(
    {
        "OMP_NUM_THREADS": "1",
        "MKL_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "NO_COLOR": "1",
    }
)
os.environ.pop("SOURCE_DATE_EPOCH", None)
os.environ.pop("FORCE_COLOR", None)

# A shell that starts tests in the background has them ignore Ctrl-C, and all their children too.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def _point_home_at(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONCEPTRY_HOME", str(folder / "conceptry"))
    monkeypatch.setenv("HF_HOME", str(folder / "huggingface"))
    for variable in ("XDG_DATA_HOME", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "XDG_STATE_HOME"):
        monkeypatch.setenv(variable, str(folder / variable.lower()))


@pytest.fixture(scope="session", autouse=True)
def _session_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Give session-wide fixtures a store that is nobody's."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        _point_home_at(tmp_path_factory.mktemp("session-home"), monkeypatch)
        yield


@pytest.fixture(autouse=True)
def _own_home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Give each test an empty store."""
    _point_home_at(tmp_path_factory.mktemp("home"), monkeypatch)
