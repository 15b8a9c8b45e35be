"""A command that is killed, interrupted or out of disk leaves nothing half done, and works when it is run again."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from conceptry.names import RemoteName
from conceptry.registry import Registry
from tests.registry.folders import temporaries_below, write_folder

ROOT = Path(__file__).parent.parent.parent
PUSH = "import sys; from conceptry.registry import Registry; Registry().push('me/imp', sys.argv[1])"


def try_points(folder: Path, command: str, fault: str, step: int) -> None:
    """Fail unless the command survives the fault at every STEP-th change of files."""
    finished = subprocess.run(
        [sys.executable, "-m", "tests.registry.crashing", str(folder), command, fault, str(step)],
        cwd=ROOT,
        check=False,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert finished.returncode == 0, finished.stderr
    report = json.loads(finished.stdout.splitlines()[-1])
    assert report["violations"] == []
    assert report["struck"] > 0
    assert report["points"] >= 10


@pytest.mark.parametrize(
    ("command", "fault"),
    [
        ("publish", "kill"),
        ("publish", "full"),
        ("push", "kill"),
        ("push", "interrupt"),
        ("pull", "kill"),
        ("remove", "kill"),
    ],
)
def test_command_that_ends_early_can_simply_be_run_again(tmp_path: Path, command: str, fault: str) -> None:
    try_points(tmp_path, command, fault, step=7)


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["kill", "interrupt", "full"])
@pytest.mark.parametrize("command", ["publish", "push", "pull", "remove"])
def test_command_that_ends_at_any_point_can_simply_be_run_again(
    tmp_path: Path, command: str, fault: str
) -> None:
    try_points(tmp_path, command, fault, step=1)


def has_bytes(path: Path) -> bool:
    """Return whether something is in a file, which may be gone since its folder was listed."""
    try:
        return path.stat().st_size > 0
    except FileNotFoundError:
        return False


@pytest.mark.parametrize("number", [signal.SIGINT, getattr(signal, "SIGKILL", signal.SIGTERM)])
def test_signal_in_the_middle_of_a_push_leaves_the_remote_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    """The blob is long enough that the signal arrives while it is being copied."""
    home, studio = tmp_path / "home", tmp_path / "studio"
    monkeypatch.setenv("CONCEPTRY_HOME", str(home))
    registry = Registry(home)
    registry.publish(write_folder(tmp_path / "imp", file=bytes(32 << 20)))
    with subprocess.Popen(
        [sys.executable, "-c", PUSH, studio.as_uri()], stderr=subprocess.DEVNULL
    ) as process:
        deadline = time.monotonic() + 60
        while not any(map(has_bytes, studio.glob("tmp/*"))):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.002)
        process.send_signal(number)
        process.wait(timeout=60)
    assert process.returncode == -number
    assert list(registry.open_remote(studio.as_uri()).search()) == []
    assert list(studio.glob("blobs/sha256/*")) == []
    if number == signal.SIGINT:
        assert temporaries_below(studio) == []
    assert registry.push("me/imp", studio.as_uri()).created
    other = Registry(tmp_path / "second")
    other.add_remote(RemoteName("studio"), studio.as_uri())
    other.pull("studio::me/imp")
    assert other.verify() == ()
