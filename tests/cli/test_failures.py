"""What a user reads when something is wrong: one sentence, a hint, an exit code, on stderr, and nothing on stdout."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import click
import pytest

from conceptry.cli.failures import explain
from conceptry.cli.groups import ConceptsCommand, ConceptsRoot
from conceptry.errors import InvalidFileError
from tests.cli.conftest import Run

ASKED: dict[str, tuple[list[str], int, str]] = {
    "a command that does not exist": (
        ["lst"],
        2,
        "error: concepts has no command 'lst'\nhint: did you mean 'list'?\n",
    ),
    "a command of a group that does not exist": (
        ["remote", "frobnicate"],
        2,
        "error: concepts remote has no command 'frobnicate'\nhint: concepts remote --help lists the commands\n",
    ),
    "an option that does not exist": (
        ["list", "--famly", "sd1"],
        2,
        "error: no such option '--famly'\nhint: did you mean --family?\n",
    ),
    "an argument that is missing": (
        ["show"],
        2,
        "error: missing argument 'REF'\nhint: concepts show --help shows what it takes\n",
    ),
    "a reference that does not parse": (
        ["show", "Me/Imp"],
        2,
        "error: not a reference: 'Me/Imp' (not a namespace: 'Me')\n"
        "hint: a reference is written namespace/name, namespace/name:tag or namespace/name@1.2.3\n",
    ),
    "a reference without its version": (
        ["show", "me/imp@"],
        2,
        "error: not a reference: 'me/imp@' (no version after @)\n"
        "hint: a reference is written namespace/name, namespace/name:tag or namespace/name@1.2.3\n",
    ),
    "a digest that is too short": (
        ["show", "me/imp@sha256:abc"],
        4,
        "error: not a SHA-256 digest: 'sha256:abc'\n"
        "hint: a digest is written sha256: and 64 lower-case hexadecimal digits\n",
    ),
    "a strength that is no number": (
        ["check", "me/imp*strong"],
        2,
        "error: not a strength: 'strong'\nhint: write me/imp*0.7, between -10 and 10\n",
    ),
    "a concept that is not here": (
        ["show", "me/dragon"],
        3,
        "error: no concept is called 'me/dragon'\nhint: concepts list shows what is here\n",
    ),
    "a concept with one letter wrong": (
        ["show", "me/inp"],
        3,
        "error: no concept is called 'me/inp'\nhint: did you mean 'me/imp'?\n",
    ),
    "a version that is not here": (
        ["show", "me/imp@3.0.0"],
        3,
        "error: me/imp has no version 3.0.0\nhint: its versions: 1.0.0\n",
    ),
    "a base that is not known": (
        ["base", "show", "toybx"],
        3,
        "error: no base is called or lies at 'toybx'\nhint: did you mean 'toybox'?\n",
    ),
    "a kind that is not known": (
        ["list", "--kind", "lorra"],
        3,
        "error: no kind is called 'lorra'\nhint: did you mean 'lora'?\n",
    ),
    "a remote that is not known": (
        ["push", "me/imp", "studio"],
        3,
        "error: no remote is called 'studio'\nhint: concepts remote add studio file:///path\n",
    ),
    "an address of no known kind": (
        ["remote", "add", "studio", "ftp://example.org"],
        2,
        "error: no remote has addresses like 'ftp://example.org'\n"
        "hint: addresses are written file:///srv/concepts, hf://namespace, https://example.org/concepts, "
        "http://studio.local/concepts, oci://ghcr.io/me/concepts, oci+http://localhost:5000/concepts, "
        "s3://bucket/concepts\n",
    ),
    "a pull from nowhere": (
        ["pull", "me/imp"],
        2,
        "error: me/imp:latest names no remote\n"
        "hint: concepts pull REMOTE::me/imp:latest; concepts remote list shows them\n",
    ),
    "a file that is not there": (["identify", "nothing.safetensors"], 3, "error: no file 'nothing.safetensors'\n"),
    "a folder without a manifest": (
        ["publish", "."],
        3,
        "error: no concept.json in '.'\nhint: name a folder that holds one\n",
    ),
    "a training method that is not known": (
        ["train", "lorra"],
        2,
        "error: method: no training method is called 'lorra'\nhint: did you mean 'lora'?\n",
    ),
    "a training without its words": (
        ["train", "lora", "--images", ".", "--name", "me/x"],
        2,
        "error: concepts train needs --placeholder and --superclass\nhint: concepts train --help has examples\n",
    ),
    "a training under a version that exists": (
        ["train", "lora", "--images", ".", "--name", "me/imp", "--version", "1.0.0", "--placeholder", "<x>",
         "--superclass", "cat"],
        8,
        "error: me/imp@1.0.0 exists already, and a published version never changes\n"
        "hint: give --version 1.1.0, or concepts remove me/imp@1.0.0\n",
    ),
    "a training on a base that is not known": (
        ["train", "lora", "--images", ".", "--name", "me/x", "--placeholder", "<x>", "--superclass", "cat",
         "--base", "dreamshaper"],
        3,
        "error: no base is called or lies at 'dreamshaper'\n"
        "hint: concepts base list shows the names; a diffusers folder or a .safetensors checkpoint works too\n",
    ),
    "a setting that is none": (
        ["train", "lora", "--set", "rank"],
        2,
        "error: not a setting: 'rank'\nhint: write --set name=value, such as --set rank=16\n",
    ),
    "pictures with a concept for another base than the toybox": (
        ["generate", "--with", "me/imp", "--prompt", "an imp", "--out", "pictures"],
        2,
        "error: me/imp@1.0.0 was made for sd1, and no base is named\n"
        "hint: add --base with a folder, a checkpoint or a name; concepts base list shows the names\n",
    ),
    "a base that is declared and not there": (
        ["generate", "--with", "me/imp", "--prompt", "an imp", "--out", "pictures", "--base", "sd1"],
        2,
        "error: Stable Diffusion 1.x is declared without weights, so it cannot be opened\n"
        "hint: name a diffusers folder or a checkpoint, or --base toybox\n",
    ),
    "a class that the toy world does not have": (
        ["toybox", "render", "--class", "dragon", "--instance", "3", "--out", "dragon"],
        3,
        "error: the toy world has no class 'dragon'\n"
        "hint: known classes: creature, house, flower, cup, ball, star, fish, car\n",
    ),
    "a composition of nothing": (
        ["compose"],
        2,
        "error: no concept is named\nhint: name one, such as me/imp or me/imp*0.7\n",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("words", "code", "said"), ASKED.values(), ids=ASKED.keys())
def test_bad_input_gets_a_sentence_and_leaves_nothing(
    run: Run, imp: str, words: list[str], code: int, said: str
) -> None:
    finished = run(*words, code=code)
    assert finished.err == said
    assert finished.out == ""
    assert [path for path in Path().rglob("*") if path.is_file()] == []
    assert run("list", "-q", "--all").out == f"{imp}\n"


def test_with_json_the_failure_is_one_line_of_json(run: Run) -> None:
    finished = run("show", "me/imp", "--json", code=3)
    assert finished.out == ""
    assert json.loads(finished.err) == {
        "error": {
            "message": "no concept is called 'me/imp'",
            "hint": "concepts list shows what is here",
            "where": None,
            "code": "not_found",
            "exit_code": 3,
        }
    }


def test_a_line_that_does_not_parse_fails_in_json_too(run: Run) -> None:
    assert json.loads(run("show", "--json", code=2).err)["error"]["code"] == "usage"


FOREIGN: dict[str, tuple[BaseException, int, str, str | None]] = {
    "Ctrl-C": (
        KeyboardInterrupt(),
        130,
        "interrupted",
        "nothing is half done; the same command can be run again",
    ),
    "no at a question": (
        click.Abort(),
        130,
        "interrupted",
        "nothing is half done; the same command can be run again",
    ),
    "a full disk": (
        OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/store/blob"),
        1,
        "'/store/blob': no space left on device",
        "free some space and run the same command again",
    ),
    "a read-only disk": (
        OSError(errno.EROFS, os.strerror(errno.EROFS), "out"),
        1,
        "'out': read-only file system",
        "the disk is read-only: name a place that can be written",
    ),
    "a folder of somebody else": (
        PermissionError(errno.EACCES, os.strerror(errno.EACCES), "out"),
        1,
        "'out': permission denied",
        "check who may read and write there",
    ),
    "the extra that is not installed": (
        ModuleNotFoundError("No module named 'torch'", name="torch.nn"),
        2,
        "concepts train needs torch, which is not installed",
        "pip install 'conceptry[torch]'",
    ),
    "an error with a place": (
        InvalidFileError("'x' has 3 bytes, not 4", where="files[2].size"),
        4,
        "'x' has 3 bytes, not 4",
        None,
    ),
    "a fault of ours": (
        ZeroDivisionError("division by zero"),
        1,
        "unexpected ZeroDivisionError: division by zero",
        "this is a fault of conceptry: please report it with what the same command prints with --verbose",
    ),
}


@pytest.mark.parametrize(("error", "code", "message", "hint"), FOREIGN.values(), ids=FOREIGN.keys())
def test_every_end_has_a_sentence_and_a_code(
    error: BaseException, code: int, message: str, hint: str | None
) -> None:
    failure = explain(error, "concepts train")
    assert (failure.exit_code, failure.message, failure.hint) == (code, message, hint)


@pytest.mark.parametrize(("words", "shown"), [([], False), (["--verbose"], True)])
def test_tracebacks_of_faults_are_shown_with_verbose_only(
    words: list[str], shown: bool, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> None:
        raise ZeroDivisionError("division by zero")

    root = ConceptsRoot(name="concepts")
    faulty = ConceptsCommand("faulty", callback=fail)
    monkeypatch.setattr(root, "get_command", lambda context, name: faulty)
    with pytest.raises(SystemExit) as ended:
        root.main(["faulty", *words], prog_name="concepts")
    said = capsys.readouterr().err
    assert ended.value.code == 1
    assert ("Traceback" in said) is shown
    assert "error: unexpected ZeroDivisionError: division by zero" in said
