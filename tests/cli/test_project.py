"""The commands of a project, as a person types them."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
from pathlib import Path

import pytest

from conceptry.registry import Registry
from tests.cli.conftest import Run
from tests.cli.packages import write_package
from tests.cli.test_json_page import documented, flatten


@pytest.fixture
def studio(run: Run, tmp_path: Path) -> str:
    """Give a remote that has an imp and the hat that it requires, and whose name is known."""
    return make_studio(run, tmp_path)


def make_studio(run: Run, tmp_path: Path) -> str:
    uri = (tmp_path / "studio").as_uri()
    for name, requires in {"hat": (), "imp": ("me/hat@^1",)}.items():
        run("publish", str(write_package(tmp_path / name, f"me/{name}", requires=requires)))
        run("push", f"me/{name}", uri)
    run("remote", "add", "studio", uri)
    return uri


def forget_store(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CONCEPTRY_HOME", str(tmp_path / "other-home"))


def test_whole_loop_ends_offline_in_a_new_store_with_the_remote_gone(
    run: Run, studio: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    added = run("add", "studio::me/imp", "--strength", "0.7", "--json").document
    assert [move["name"] for move in added["moves"]] == ["me/hat", "me/imp"]
    text = Path("concepts.toml").read_text()
    assert '"me/imp" = {version = "^1.0", remote = "studio", strength = 0.7}' in text
    assert f'studio = "{studio}"' in text
    forget_store(monkeypatch, tmp_path)
    assert run("sync", "--frozen", "--json").document["installed"] == ["me/hat@1.0.0", "me/imp@1.0.0"]
    shutil.rmtree(tmp_path / "studio")
    assert run("sync", "--frozen", "--offline", "--json").document["installed"] == []
    assert run("list", "--quiet").out.split() == ["me/hat@1.0.0", "me/imp@1.0.0"]


def test_sync_locks_by_itself_where_the_lock_is_stale(run: Run, studio: str) -> None:
    run("add", "studio::me/hat")
    path = Path("concepts.toml")
    path.write_text(path.read_text().replace("me/hat", "me/imp"))
    stale = run("sync", "--frozen", code=7)
    assert "concepts.lock is stale: me/imp is required and not locked" in stale.err
    assert "me/imp" in run("sync").err
    run("lock", "--check")


def test_dropped_concept_leaves_the_project_and_stays_in_the_store(run: Run, studio: str) -> None:
    run("add", "studio::me/imp")
    run("drop", "me/imp")
    assert run("tree", "--json").document == {"concepts": []}
    assert run("show", "me/imp", "--json").document["reference"] == "me/imp@1.0.0"


def test_file_is_added_from_a_folder_below(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run("init", "--base", "sd1")
    shutil.copytree(write_package(tmp_path / "made"), "files")
    monkeypatch.chdir("files")
    run("add", "./lora.safetensors", "--name", "me/hat", "--placeholder", "<hat>", "--license", "CC0-1.0")
    assert 'path = "files/lora.safetensors"' in Path("../concepts.toml").read_text()
    run("sync", "--frozen")
    assert run("push", "me/hat", (tmp_path / "studio").as_uri(), code=2).err.startswith(
        "error: me/hat@0.0.0+"
    )


def test_bundle_brings_a_project_to_an_empty_folder(
    run: Run, studio: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run("add", "studio::me/imp")
    bundled = run("bundle", str(tmp_path / "b.tar"), "--json").document
    assert set(bundled) == documented("bundle")
    lock = Path("concepts.lock").read_bytes()
    forget_store(monkeypatch, tmp_path)
    island = tmp_path / "island"
    island.mkdir()
    monkeypatch.chdir(island)
    assert len(run("sync", "--from", str(tmp_path / "b.tar"), "--json").document["installed"]) == 2
    assert (island / "concepts.lock").read_bytes() == lock


def test_keys_of_project_commands_are_the_documented_ones(run: Run, studio: str) -> None:
    assert flatten(run("init", "--json").document) == documented("init")
    for command, words in {
        "add": ["add", "studio::me/imp"],
        "lock": ["lock"],
        "sync": ["sync"],
        "tree": ["tree"],
        "why": ["why", "me/hat"],
        "audit": ["audit"],
        "drop": ["drop", "me/imp"],
    }.items():
        assert flatten(run(*words, "--json").document) <= documented(command), command
    assert run("sync", "--json").document.keys() == documented("sync")


def test_outdated_exits_with_1_only_when_asked(run: Run, studio: str, tmp_path: Path) -> None:
    run("add", "studio::me/hat")
    assert run("outdated", "--json").document == {"concepts": []}
    run("publish", str(write_package(tmp_path / "hat2", "me/hat", "2.0.0")))
    run("push", "me/hat@2.0.0", "studio")
    found = run("outdated", "--exit-code", "--json", code=1).document
    assert found["concepts"] == [
        {
            "name": "me/hat",
            "locked": "1.0.0",
            "compatible": None,
            "newest": "2.0.0",
            "only_metrics": False,
            "fault": None,
            "message": None,
        }
    ]
    assert flatten(found) == documented("outdated")


ASKED: dict[str, tuple[list[str], int, str]] = {
    "no project": (["lock"], 3, "hint: concepts init makes one; concepts add does too\n"),
    "no project to sync": (["sync"], 3, "hint: concepts init makes one; concepts add does too\n"),
    "a concept that nobody has": (
        ["add", "studio::me/inp"],
        3,
        "error: concepts.toml needs me/inp, which studio has not\nhint: did you mean 'me/imp'?\n",
    ),
    "a remote that is not known": (
        ["add", "studo::me/imp"],
        3,
        "error: no remote is called 'studo'\nhint: did you mean 'studio'?\n",
    ),
    "a range that nothing satisfies": (
        ["add", "studio::me/imp@^3"],
        3,
        "error: no version of me/imp will do: concepts.toml needs me/imp ^3; me/imp exists as 1.0.0\n"
        "hint: concepts add me/imp@^1.0\n",
    ),
    "a file without a name": (
        ["add", "./x.safetensors"],
        2,
        "error: a file needs a name\nhint: add --name me/hat\n",
    ),
    "a file that is not there": (
        ["add", "./x.safetensors", "--name", "me/x"],
        3,
        "hint: paths are relative to the folder of concepts.toml\n",
    ),
    "an address without its digest": (
        ["add", "https://host/x.safetensors", "--name", "me/x"],
        2,
        "error: not an address with its digest: 'https://host/x.safetensors'\n"
        "hint: write https://host/file.safetensors#sha256= and 64 hexadecimal digits, without credentials\n",
    ),
    "a strength that is none": (
        ["add", "me/imp", "--strength", "50"],
        2,
        "error: --strength: not a strength: '50.0'\nhint: write a number between -10 and 10\n",
    ),
    "a bundle that is not there": (
        ["sync", "--from", "b.tar"],
        3,
        "error: no file 'b.tar'\nhint: concepts bundle writes one\n",
    ),
}


@pytest.mark.parametrize(("words", "code", "said"), ASKED.values(), ids=ASKED.keys())
def test_bad_input_gets_a_sentence_and_leaves_nothing(
    run: Run, studio: str, words: list[str], code: int, said: str
) -> None:
    ended = run(*words, code=code)
    assert ended.err.endswith(said)
    assert (ended.out, list(Path().iterdir())) == ("", [])
    failure = json.loads(run(*words, "--json", code=code).err)["error"]
    assert failure["exit_code"] == code


def test_remote_is_written_into_the_project_where_one_is_and_else_into_the_settings(
    run: Run, tmp_path: Path
) -> None:
    home = Registry().root
    uri, project = (tmp_path / "studio").as_uri(), Path("concepts.toml").absolute()
    assert run("remote", "add", "mine", uri, "--json").document["path"] == str(home / "config.toml")
    assert "no concepts.toml" in run("remote", "add", "ours", uri, "--project", code=3).err
    assert not project.exists()
    run("init")
    below = Path("below")
    below.mkdir()
    with contextlib.chdir(below):
        assert run("remote", "add", "ours", uri, "--json").document["path"] == str(project)
    assert run("remote", "add", "also", uri, "--user", "--json").document["path"] == str(home / "config.toml")
    assert 'ours = "file:' in project.read_text()
    assert "mine" not in project.read_text()
    run("remote", "remove", "ours")
    run("remote", "remove", "mine")
    assert "ours" not in project.read_text()
    assert [row["name"] for row in run("remote", "list", "--json").document["remotes"]] == ["also"]
    assert run("remote", "remove", "ours", "--project", code=3).err.startswith(
        "error: concepts.toml has no remote called 'ours'"
    )


def test_project_remote_is_known_to_other_commands_in_the_project(run: Run, studio: str) -> None:
    run("remote", "remove", "studio")
    run("init")
    run("remote", "add", "studio", studio)
    assert re.search(r'studio = "file:', Path("concepts.toml").read_text())
    assert run("pull", "studio::me/imp", "--json").document["created"] is False
    assert [row["name"] for row in run("remote", "list", "--json").document["remotes"]] == ["studio"]


def test_a_concept_that_was_required_as_a_file_can_be_required_as_published(
    run: Run, studio: str, tmp_path: Path
) -> None:
    shutil.copytree(tmp_path / "imp", "files")
    words = ("--name", "me/imp", "--placeholder", "<imp>", "--license", "CC0-1.0")
    run("add", "./files/lora.safetensors", *words, "--base", "sd1", "--strength", "0.5")
    assert 'path = "files/lora.safetensors"' in Path("concepts.toml").read_text()
    run("add", "studio::me/imp")
    text = Path("concepts.toml").read_text()
    assert '"me/imp" = {strength = 0.5, version = "^1.0", remote = "studio"}' in text
    assert run("tree", "--json").document["concepts"][0]["version"] == "1.0.0"
    run("add", "./files/lora.safetensors", *words, "--base", "sd1")
    assert '"me/imp" = {path = "files/lora.safetensors"' in Path("concepts.toml").read_text()


@pytest.mark.parametrize(
    ("name", "hint"), [("me/inp", "hint: did you mean 'me/imp'?"), ("you/something", "concepts tree shows")]
)
def test_upgrading_what_is_not_required_is_refused_with_the_nearest_name(
    run: Run, studio: str, name: str, hint: str
) -> None:
    run("add", "studio::me/imp")
    before = Path("concepts.lock").read_bytes()
    finished = run("lock", "--upgrade-package", name, code=3)
    assert f"the project does not require {name}, and nothing in it does" in finished.err
    assert hint in finished.err
    assert Path("concepts.lock").read_bytes() == before
    run("lock", "--upgrade-package", "me/hat", "--upgrade-package", "me/imp")
