"""A program that runs one command again and again, ending or failing it at each of its file operations in turn.

Python announces each change of files to audit hooks. A child process counts them and, at the chosen one, is killed,
is interrupted as by Ctrl-C, or is told that the disk is full. Afterwards another child looks at store and remote, and
runs the same command once more. The last line of output is a JSON object: points tried, and what was wrong.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import sqlite3
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

import pytest

from conceptry.errors import StoreError
from conceptry.names import RemoteName
from conceptry.registry import Registry, index, publish, transfer, verify
from tests.registry.folders import temporaries_below, write_folder

CHANGES = {"os.rename", "os.link", "os.remove", "os.mkdir", "os.chmod", "os.truncate", "sqlite3.connect"}
REFERENCE = "me/imp@1.0.0"
STORES = ("home", "studio", "second")
MODULES = (index, publish, transfer, verify)  # imported here once, not in each child


def changes_files(event: str, arguments: tuple[object, ...]) -> bool:
    """Return whether an audit event is a change of files."""
    if event == "open":
        flags = arguments[2]
        return isinstance(flags, int) and bool(flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))
    return event in CHANGES


def strike(fault: str, event: str) -> None:
    """End or fail the running command."""
    if fault == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if fault == "interrupt":
        raise KeyboardInterrupt
    if event == "sqlite3.connect":
        raise sqlite3.OperationalError("database or disk is full")
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def strike_at(number: int, fault: str) -> None:
    """Strike at the change of files with that number, counted from 0."""
    seen = -1

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        nonlocal seen
        if changes_files(event, arguments):
            cleaning = event == "os.remove" and fault != "kill"
            seen += 1
            if seen == number and not cleaning:
                strike(fault, event)

    sys.addaudithook(hook)


def run_child(work: Callable[[], str | None]) -> str:
    """Return what ``work`` says in a process of its own: its text, ``ok``, ``killed``, ``interrupted`` or a fault."""
    if not hasattr(os, "fork"):
        pytest.skip("no process forks here")
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        try:
            said = work() or "ok"
        except KeyboardInterrupt:
            said = "interrupted"
        except StoreError as error:
            said = "refused" if error.hint else "an error without a hint"
        except BaseException:  # noqa: BLE001 - whatever else comes out is what this program looks for
            said = traceback.format_exc()
        os.write(writing, said.encode())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        said = pipe.read().decode()
    _, status = os.waitpid(child, 0)
    return "killed" if os.WIFSIGNALED(status) else said


def prepare(folder: Path, command: str) -> None:
    """Make everything that the command needs."""
    source, studio = write_folder(folder / "imp"), (folder / "studio").as_uri()
    if command == "publish":
        return
    registry = Registry(folder / "home")
    registry.publish(source)
    if command == "pull":
        registry.push(REFERENCE, studio)
        Registry(folder / "second").add_remote(RemoteName("studio"), studio)


def make_command(folder: Path, command: str) -> Callable[[], None]:
    """Return the command as a function."""
    home, second, studio = folder / "home", folder / "second", (folder / "studio").as_uri()
    commands: dict[str, Callable[[], object]] = {
        "publish": lambda: Registry(home).publish(folder / "imp"),
        "push": lambda: Registry(home).push(REFERENCE, studio),
        "pull": lambda: Registry(second).pull(f"studio::{REFERENCE}"),
        "remove": lambda: Registry(home).remove(REFERENCE),
    }
    return lambda: void(commands[command]())


def void(value: object) -> None:
    """Drop a value."""


def look(folder: Path, command: str) -> str | None:
    """Return what is wrong after the command ended early, None if everything visible is complete."""
    stores = [Registry(folder / name) for name in STORES if (folder / name).exists()]
    for registry in stores:
        findings = registry.verify()
        if findings:
            return f"{command}: {findings}"
        for row in registry.list():
            registry.get(row.reference)
    return None


def repeat(folder: Path, command: str, run: Callable[[], None]) -> str | None:
    """Return what is wrong after the same command ran once more."""
    home = Registry(folder / "home")
    if command == "remove":
        if home.list():
            run()
        if home.list() or str(home.restore(REFERENCE).reference) != REFERENCE:
            return "not removed, or not restored"
    else:
        run()
        target = Registry(folder / {"publish": "home", "push": "studio", "pull": "second"}[command])
        if [str(row.reference) for row in target.list()] != [REFERENCE]:
            return "not listed"
        target.get(REFERENCE)
    return look(folder, command)


def check_point(parent: Path, command: str, fault: str, number: int) -> tuple[bool, list[str]]:
    """Return whether the fault struck, and what was wrong then."""
    folder = parent / "work"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(parent / "prepared", folder)
    run = make_command(folder, command)

    def struck() -> None:
        strike_at(number, fault)
        run()

    ended = run_child(struck)
    wrong = [] if ended in ("ok", "killed", "interrupted", "refused") else [ended]
    if fault != "kill":
        kept = "partial/" if fault == "interrupt" else "\0"  # what arrived before Ctrl-C is kept on purpose
        left = [place for name in STORES for place in temporaries_below(folder / name)]
        wrong += [place for place in left if not place.startswith(kept)]
    for check in (lambda: look(folder, command), lambda: repeat(folder, command, run)):
        said = run_child(check)
        wrong += [] if said == "ok" else [said]
    return ended != "ok", [f"{command}, {fault} at change {number}: {text}" for text in wrong]


def count_changes(parent: Path, command: str) -> int:
    """Return how many changes of files the undisturbed command makes."""
    folder = parent / "work"
    prepare(folder, command)
    shutil.copytree(folder, parent / "prepared")
    run = make_command(folder, command)

    def count() -> str:
        seen = 0

        def hook(event: str, arguments: tuple[object, ...]) -> None:
            nonlocal seen
            seen += changes_files(event, arguments)

        sys.addaudithook(hook)
        run()
        return str(seen)

    return int(run_child(count))


def main() -> None:
    """Try every STEP-th point of one command with one fault."""
    parent, command, fault, step = Path(sys.argv[1]), sys.argv[2], sys.argv[3], int(sys.argv[4])
    struck, violations = 0, []
    total = count_changes(parent, command)
    for number in range(step - 1, total, step):
        hit, wrong = check_point(parent, command, fault, number)
        struck += hit
        violations += wrong
    print(json.dumps({"points": total, "struck": struck, "violations": violations}))  # noqa: T201


if __name__ == "__main__":
    main()
