"""A sample of ``make faults``: commands that are killed, that fail, or that lose their power at any operation."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from conceptry.errors import ConceptryError
from conceptry.registry import Registry
from conceptry.registry.operations import use_operations
from conceptry.registry.paths import Layout
from tests.faults import crowd, power, programs, small_disks, tracing
from tests.faults.commands import COMMANDS
from tests.faults.memory import MemoryOperations, iter_states
from tests.faults.points import Counts, set_stage, sweep_fault, sweep_kills
from tests.faults.strikes import FAULTS, Fault, fail_at
from tests.registry.folders import write_folder

ROOT = Path(__file__).parent.parent.parent
IN_MEMORY = Path("/dev/shm")

pytestmark = pytest.mark.skipif(os.name != "posix", reason="no fork on this system")


@pytest.fixture
def folder() -> Iterator[Path]:
    """Give a folder in memory, since every write waits for the disk on purpose."""
    place = Path(tempfile.mkdtemp(prefix="faults-", dir=IN_MEMORY if IN_MEMORY.is_dir() else None))
    yield place / "x"
    shutil.rmtree(place, ignore_errors=True)


def add_up(counts: Iterator[Counts]) -> Counts:
    total = Counts()
    for one in counts:
        total.add(one)
    return total


@pytest.mark.parametrize("name", ["publish (first)", "publish (moved)", "gc"])
def test_command_that_is_killed_can_be_run_again(folder: Path, name: str) -> None:
    counts = add_up(sweep_kills(set_stage(folder, name), step=31))
    assert counts.violations == []
    assert counts.points["killed"] >= 2


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_operation_that_fails_is_told_and_leaves_everything_whole(folder: Path, fault: Fault) -> None:
    counts = add_up(sweep_fault(set_stage(folder, "publish"), fault, step=37))
    assert counts.violations == []
    assert counts.struck >= 1


def test_every_state_that_a_loss_of_power_may_leave_is_whole() -> None:
    for name in ("publish (first)", "tag", "gc"):
        counts = power.sweep_power(name, most=6)
        assert counts.violations == []
        assert counts.struck >= 5


def test_what_earlier_commands_brought_outlives_a_loss_of_power_in_a_later_one() -> None:
    counts = programs.sweep_program("program 01", most=4, length=6)
    assert counts.violations == []
    assert counts.struck >= 40


class Careless(power.Recorder):
    """A disk whose user believes that it keeps everything at once."""

    def sync(self, descriptor: int) -> None:
        """Forgotten."""

    def sync_folder(self, folder: Path) -> None:
        """Forgotten."""


def test_store_that_did_not_sync_would_be_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(power, "Recorder", Careless)
    monkeypatch.setattr(programs, "Recorder", Careless)
    assert power.sweep_power("publish (first)", most=6).violations
    assert programs.sweep_program("program 01", most=6, length=4).violations


def test_disk_in_memory_keeps_what_was_synced_and_may_lose_the_rest() -> None:
    disk = MemoryOperations({"/": None})
    descriptor = disk.create(Path("/a"))
    disk.write(descriptor, b"new")
    states = [state.get("/a") for state in iter_states(disk, most=100, rng=random.Random(0))]
    assert set(states) == {None, b"", b"new", b"\0\0\0"}
    disk.sync(descriptor)
    disk.sync_folder(Path("/"))
    assert [state["/a"] for state in iter_states(disk, most=100, rng=random.Random(0))] == [b"new"]


@pytest.mark.skipif(not tracing.HAS_STRACE, reason="strace is not installed: make system-packages")
def test_kill_at_a_system_call_of_sqlite_leaves_everything_whole(folder: Path) -> None:
    counts = add_up(tracing.sweep_calls(set_stage(folder, "publish"), step=41))
    tracing.end_tracers()
    assert counts.violations == []
    assert counts.points["killed"] >= 2


def test_disk_without_room_stops_a_command_that_succeeds_with_more(folder: Path) -> None:
    if not small_disks.can_mount():
        pytest.skip("only root may mount a small disk")
    counts = small_disks.sweep_sizes("publish", folder, step=12, most=40)
    assert counts.violations == []
    assert counts.points["refused"] >= 1


@pytest.mark.parametrize("locks", crowd.LOCKS)
def test_processes_that_are_killed_among_others_take_nothing_with_them(folder: Path, locks: str) -> None:
    counts = crowd.sweep_crowd(locks, folder, processes=4, operations=60)
    assert counts.violations == []
    assert counts.struck == 60


def test_version_that_the_disk_would_not_give_is_listed_once_it_does(tmp_path: Path) -> None:
    """An index made meanwhile must not be believed later: the fault was of the disk and not of the version."""
    registry = Registry(tmp_path / "home")
    for version in ("1.0.0", "2.0.0"):
        registry.publish(write_folder(tmp_path / version, version=version, file=version.encode()))
    Layout(registry.root).index.unlink()
    fault = Fault("EIO", 5)
    for number in range(1, 60, 3):
        with use_operations(fail_at(fault, number)), contextlib.suppress(ConceptryError):
            registry.list()
        assert [str(row.reference) for row in registry.list()] == ["me/imp@2.0.0"], number
        Layout(registry.root).index.unlink()


def test_undo_of_a_collection_that_was_killed_at_its_end_succeeds(tmp_path: Path) -> None:
    command = COMMANDS["gc (undo)"]
    command.prepare(tmp_path)
    layout = Layout(tmp_path / "home")
    (entry,) = layout.collections.iterdir()
    text = entry.read_text()
    taken = Registry(tmp_path / "home").undo_collection()
    entry.write_text(text)
    assert Registry(tmp_path / "home").undo_collection() == taken


@pytest.mark.parametrize("double", ["windows", "share"])
def test_store_works_behind_another_system(double: str) -> None:
    """The rest of its suite behind both is a part of ``make faults``."""
    finished = run_behind(double, "tests/registry/test_publish.py", "tests/registry/test_store.py")
    assert finished.returncode == 0, finished.stdout[-2000:]


def run_behind(double: str, *files: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "tests.faults.behind_double", *files],
        cwd=ROOT,
        env={**os.environ, "STORE_BEHIND": double},
        check=False,
        capture_output=True,
        text=True,
        timeout=300,
    )
