"""The Hub from the command line, as processes of their own: the whole loop, a killed pull, and no token anywhere."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from conceptry.names import RemoteName
from conceptry.registry import Registry
from tests.registry.folders import write_folder
from tests.simulators.hub.server import Hub, run_hub
from tests.simulators.hub.use import ADDRESS, USER, point_client

LARGE = bytes(range(256)) * (32 << 12)  # 32 MiB
CONCEPTS = [sys.executable, "-m", "conceptry"]


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    """Give a running double of the Hub."""
    with run_hub(tmp_path / "hub") as running:
        yield running


def settings(hub: Hub, home: Path, token: str) -> Mapping[str, str]:
    """Return the environment of somebody who is logged in to the Hub."""
    rest = {
        name: value for name, value in os.environ.items() if not name.startswith(("HF_", "TRANSFORMERS_"))
    }
    ours = {
        "CONCEPTRY_HOME": str(home),
        "HF_ENDPOINT": hub.endpoint,
        "HF_TOKEN": token,
        "HF_HOME": str(home / "hf"),
    }
    return {**rest, **ours, "HF_HUB_DISABLE_TELEMETRY": "1"}


def test_the_loop_works_and_no_output_shows_the_token(hub: Hub, tmp_path: Path) -> None:
    token = hub.add_token(USER)
    said: list[str] = []

    def run(home: str, *words: str) -> None:
        done = subprocess.run(
            [*CONCEPTS, *words],
            env=settings(hub, tmp_path / home, token),
            capture_output=True,
            text=True,
            check=False,
        )
        said.append(done.stdout + done.stderr)
        assert done.returncode == 0, said[-1]

    folder = write_folder(tmp_path / "imp")
    run("first", "publish", str(folder))
    run("first", "push", "me/imp", ADDRESS, "--verbose")
    run("second", "remote", "add", "hub", ADDRESS)
    run("second", "search", "imp", "--remote", "hub", "--json")
    run("second", "pull", "hub::me/imp", "--verbose", "--json")
    run("second", "verify")
    assert "me" in said[3]
    assert token not in "".join(said)


def test_pull_that_was_killed_goes_on_where_it_ended(hub: Hub, tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as monkeypatch:
        point_client(monkeypatch, hub)
        token = hub.add_token(USER)
        monkeypatch.setenv("HF_TOKEN", token)
        registry = Registry(tmp_path / "first")
        registry.publish(write_folder(tmp_path / "imp", file=LARGE))
        registry.push("me/imp", ADDRESS)
    home = tmp_path / "second"
    Registry(home).add_remote(RemoteName("hub"), ADDRESS)
    hub.stall_after_bytes = len(LARGE) * 6 // 10
    words = [*CONCEPTS, "pull", "hub::me/imp"]
    with subprocess.Popen(words, env=settings(hub, home, token), stderr=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 120
        while sum(path.stat().st_size for path in home.glob("partial/*")) < hub.stall_after_bytes // 2:
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
    hub.stall_after_bytes = None
    hub.log.clear()
    subprocess.run(words, env=settings(hub, home, token), check=True, stdout=subprocess.DEVNULL)
    (request,) = hub.requests("GET", "/blob/")
    assert request.range is not None
    assert int(request.range.removeprefix("bytes=").rstrip("-")) >= len(LARGE) // 4
    assert Registry(home).verify() == ()
