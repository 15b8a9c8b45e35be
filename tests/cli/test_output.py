"""Terminals are safe from what packages say, and pipes get data alone."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from conceptry.cli.output import Output
from conceptry.cli.text import count_things, format_bytes, format_seconds, make_visible
from tests.cli.conftest import Run
from tests.cli.packages import write_package

NASTY = "\x1b]0;owned\x07[link=file:///etc/passwd][bold red]x[/] \u202egnp.exe \u200b\x7f"


@pytest.fixture
def nasty(run: Run, tmp_path: Path) -> str:
    """Give a published concept whose texts attack the terminal."""
    description = f"{NASTY}\nsecond line"
    run(
        "publish",
        str(write_package(tmp_path / "nasty", title=NASTY, description=description, authors=[NASTY])),
    )
    return "me/imp@1.0.0"


def read_terminal(words: list[str], environment: dict[str, str]) -> str:
    """Returns what a person at a terminal of 200 columns sees of ``concepts``."""
    leader, follower = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "-m", "conceptry", *words],
        stdin=follower,
        stdout=follower,
        stderr=follower,
        env={**os.environ, "TERM": "xterm-256color", "COLUMNS": "200", **environment},
    ) as process:
        os.close(follower)
        seen = b""
        while True:
            try:
                chunk = os.read(leader, 65536)
            except OSError:  # the other end is closed
                break
            if not chunk:
                break
            seen += chunk
        process.wait(timeout=60)
    os.close(leader)
    return seen.decode("utf-8")


@pytest.mark.parametrize("words", [["list"], ["show", "me/imp"], ["search", "owned"], ["check", "me/imp"]])
def test_text_of_packages_is_made_visible(run: Run, nasty: str, words: list[str]) -> None:
    finished = run(*words)
    for char in "\x1b\x07\u202e\u200b\x7f":
        assert char not in finished.out + finished.err


def test_show_writes_escape_sequences_as_text(run: Run, nasty: str) -> None:
    lines = run("show", nasty).out.splitlines()
    visible = r"\x1b]0;owned\x07[link=file:///etc/passwd][bold red]x[/] \u202egnp.exe \u200b\x7f"
    assert lines[0] == f"me/imp@1.0.0  {visible}"
    assert lines[2] == "  second line"


def test_json_is_ascii_and_gives_the_text_back(run: Run, nasty: str) -> None:
    finished = run("show", nasty, "--json")
    assert finished.out.isascii()
    assert "\x7f" not in finished.out
    assert finished.document["manifest"]["title"] == NASTY
    assert json.loads(run("list", "--json").out)["concepts"][0]["title"] == NASTY


def test_markup_of_packages_means_nothing_at_a_terminal(run: Run, nasty: str) -> None:
    seen = read_terminal(["list"], {})
    assert "[bold red]x[/]" in seen
    assert "\x1b]0;" not in seen
    assert "\u202e" not in seen


def test_no_color_leaves_errors_plain_at_a_terminal(run: Run) -> None:
    assert "\x1b[" not in read_terminal(["show", "me/imp"], {"NO_COLOR": "1"})


def test_errors_are_coloured_at_a_terminal(run: Run) -> None:
    assert "\x1b[31m\x1b[1merror:\x1b[0m no concept" in read_terminal(["show", "me/imp"], {"NO_COLOR": ""})


def test_a_bar_moves_at_a_terminal_and_is_gone_afterwards(run: Run, imp: str) -> None:
    seen = read_terminal(["verify"], {})
    assert "reading" in seen
    assert seen.rstrip().endswith("the store: every byte is right")


def test_nothing_but_data_reaches_a_pipe(run: Run, imp: str) -> None:
    finished = run("verify", "--json")
    assert finished.document == {"ok": True, "findings": []}
    assert finished.err == ""


def test_verbose_says_what_is_going_on_where_no_bar_can_move(run: Run, imp: str) -> None:
    finished = run("verify", "--verbose")
    assert finished.out == "the store: every byte is right\n"
    assert finished.err == "reading\n"


def test_a_reader_that_leaves_early_is_no_error(run: Run, imp: str) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    finished = subprocess.run(
        [sys.executable, "-m", "conceptry", "list"], stdout=writer, stderr=subprocess.PIPE, check=False
    )
    os.close(writer)
    assert finished.stderr == b""


@pytest.mark.parametrize(
    ("text", "visible"),
    [
        ("plain", "plain"),
        ("größer 漢字 ✓", "größer 漢字 ✓"),
        ("a\tb\nc", r"a\x09b\x0ac"),
        ("\u2066x\u2069", r"\u2066x\u2069"),
        ("\U000e0041", r"\U000e0041"),
    ],
)
def test_only_what_a_terminal_obeys_or_hides_is_escaped(text: str, visible: str) -> None:
    assert make_visible(text) == visible


def test_numbers_that_are_not_finite_are_null_in_json(capsys: pytest.CaptureFixture[str]) -> None:
    Output(mode="json").emit({"normalised": float("nan"), "interval": (0.5, float("inf"))}, [])
    assert json.loads(capsys.readouterr().out) == {"normalised": None, "interval": [0.5, None]}


def test_numbers_are_written_for_people() -> None:
    assert [format_bytes(size) for size in (0, 999, 1000, 35_600, 999_960, 24_000_000)] == [
        "0 bytes",
        "999 bytes",
        "1.0 kB",
        "35.6 kB",
        "1.0 MB",
        "24.0 MB",
    ]
    assert [format_seconds(seconds) for seconds in (3.21, 59.0, 245)] == ["3.2 s", "59.0 s", "4 min 05 s"]
    assert (count_things(1, "picture"), count_things(3, "picture")) == ("1 picture", "3 pictures")
