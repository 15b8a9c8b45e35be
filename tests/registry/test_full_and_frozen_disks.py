"""A disk that is full, or a store that cannot be written: one sentence, its hint, and everything as it was."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from conceptry.registry import Registry
from tests.registry.folders import files_below, write_folder

needs_mounts = pytest.mark.skipif(
    not hasattr(os, "geteuid")
    or os.geteuid() != 0
    or subprocess.run(
        ["/usr/bin/env", "unshare", "--mount", "mount", "-t", "tmpfs", "tmpfs", "/mnt"],
        check=False,
        capture_output=True,
    ).returncode
    != 0,
    reason="only root may mount a small disk",
)

# Runs methods of the registry and says for each how it ended, as the command line would.
PROGRAM = """
import json, sys
from pathlib import Path
from conceptry.errors import ConceptryError
from conceptry.registry import Registry
for method, *arguments in json.loads(sys.argv[2]):
    try:
        registry = Registry(Path(sys.argv[1]))
        value = getattr(registry, method)(*(Path(a) if a.startswith("/") else a for a in arguments))
        print(json.dumps({"exit": 0, "said": str(value)}))
    except ConceptryError as error:
        print(json.dumps({"exit": error.exit_code, "said": str(error), "hint": error.hint}))
"""


def call(home: Path, *calls: list[str], before: str = "", after: str = "") -> list[dict[str, Any]]:
    """Return how methods of the registry ended, between two shell commands that may mount a disk and look at it."""
    run = [sys.executable, "-c", PROGRAM, str(home), json.dumps(calls)]
    if before:
        script = f'{before}; "$@"; {after}'
        run = ["/usr/bin/env", "unshare", "--mount", "sh", "-ec", script, "sh", *run]
    finished = subprocess.run(run, check=False, capture_output=True, text=True, timeout=60)
    assert finished.returncode == 0, finished.stderr
    return [json.loads(line) for line in finished.stdout.splitlines()]


@needs_mounts
@pytest.mark.parametrize("kib", [4, 256])
def test_full_disk_stops_a_publish_and_lists_nothing(tmp_path: Path, kib: int) -> None:
    disk, left = tmp_path / "disk", tmp_path / "left"
    disk.mkdir()
    folder = write_folder(tmp_path / "imp", file=os.urandom(1 << 20))
    before = f"mount -t tmpfs -o size={kib}k tmpfs {disk}"
    (answer,) = call(
        disk / "home", ["publish", str(folder)], before=before, after=f"find {disk} -type f >{left}"
    )
    assert answer["exit"] == 1
    assert "no space left on device" in answer["said"]
    assert "free some space" in answer["hint"]
    assert [name for name in names_in(left, disk / "home") if name != "store.json"] == []


@needs_mounts
def test_full_disk_stops_a_pull_and_leaves_the_blob_away(tmp_path: Path, registry: Registry) -> None:
    studio = (tmp_path / "studio").as_uri()
    registry.publish(write_folder(tmp_path / "imp", file=os.urandom(1 << 20)))
    registry.push("me/imp", studio)
    disk, left = tmp_path / "disk", tmp_path / "left"
    disk.mkdir()
    added, answer = call(
        disk / "home",
        ["add_remote", "studio", studio],
        ["pull", "studio::me/imp"],
        before=f"mount -t tmpfs -o size=512k tmpfs {disk}",
        after=f"find {disk} -type f >{left}",
    )
    assert (added["exit"], answer["exit"]) == (0, 1)
    assert "no space left on device" in answer["said"]
    assert names_in(left, disk / "home") == ["config.toml", "store.json"]


def names_in(listing: Path, root: Path) -> list[str]:
    """Return the files that ``find`` saw."""
    return sorted(Path(line).relative_to(root).as_posix() for line in listing.read_text().split())


def test_limit_on_file_sizes_stops_a_publish_and_leaves_nothing(tmp_path: Path) -> None:
    """What a user without privileges can see of a full disk: a write that the kernel cuts short."""
    home = tmp_path / "home"
    folder = write_folder(tmp_path / "imp", file=bytes(1 << 20))
    limited = f"ulimit -f {1 << 9}"
    run = [sys.executable, "-c", PROGRAM, str(home), json.dumps([["publish", str(folder)]])]
    finished = subprocess.run(
        ["/bin/sh", "-ec", f'{limited}; "$@"', "sh", *run],
        check=True,
        capture_output=True,
        text=True,
        timeout=60,
    )
    answer = json.loads(finished.stdout)
    assert answer["exit"] == 1
    assert "file too large" in answer["said"]
    assert files_below(home) == ["store.json"]
    assert Registry(home).publish(folder).created


@needs_mounts
def test_read_only_store_serves_reading_and_refuses_changes_in_one_sentence(
    tmp_path: Path, registry: Registry
) -> None:
    registry.publish(write_folder(tmp_path / "imp", title="Blue imp"))
    other = write_folder(tmp_path / "other", version="2.0.0")
    home = registry.root
    frozen = f"mount --bind {home} {home}; mount -o remount,ro,bind {home}"
    reading = [["get", "me/imp"], ["show", "me/imp"], ["list"], ["search", "blu"], ["verify"]]
    changing = [["publish", str(other)], ["remove", "me/imp"]]
    answers = call(home, *reading, *changing, before=frozen)
    assert [answer["exit"] for answer in answers] == [0, 0, 0, 0, 0, 1, 1]
    for answer in answers[5:]:
        assert "read-only file system" in answer["said"]
        assert "CONCEPTRY_HOME" in answer["hint"]
    (home / "index.sqlite").unlink()
    for answer in call(home, ["list"], ["search", "blu"], before=frozen):
        assert "'me', 'imp', '1.0.0'" in answer["said"]
    assert [str(row.reference) for row in registry.list()] == ["me/imp@1.0.0"]
    assert registry.verify() == ()
