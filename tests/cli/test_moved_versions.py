"""What a project is told when a locked version is not on its remote as it was: replaced, gone, or yanked."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.cli.conftest import Run
from tests.cli.packages import write_package
from tests.cli.test_project import forget_store, make_studio

BOTH = {"me/hat", "me/imp"}


@pytest.fixture
def studio(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Give a remote with an imp and its hat; asking it is not forbidden."""
    monkeypatch.delenv("HF_HUB_OFFLINE")
    return make_studio(run, tmp_path)


@pytest.fixture
def locked(run: Run, studio: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Give the remote's address; the project has a lock, and the store is new."""
    run("add", "studio::me/imp")
    forget_store(monkeypatch, tmp_path)
    return studio


def replace_remote(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, uri: str, *names: str) -> None:
    """Put other bytes under the versions that were locked, as somebody who took over the folder would."""
    shutil.rmtree(tmp_path / "studio")
    with monkeypatch.context() as patched:
        patched.setenv("CONCEPTRY_HOME", str(tmp_path / "evil-home"))
        for name in names:
            made = write_package(tmp_path / f"evil-{name}", f"me/{name}", title="Not the same")
            run("publish", str(made))
            run("push", f"me/{name}", uri)


def faults(rows: list[dict[str, str]]) -> set[tuple[str, str]]:
    said = {(row.get("reference", row.get("name", "")), row["fault"]) for row in rows if row["fault"]}
    return {(name, fault) for name, fault in said if fault not in ("license_missing", "rights_unknown")}


def test_sync_refuses_a_version_that_was_replaced_under_its_name(
    run: Run, locked: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace_remote(run, tmp_path, monkeypatch, locked, "hat", "imp")
    for words in (("sync",), ("sync", "--frozen")):
        finished = run(*words, code=9)
        assert "me/hat@1.0.0 on studio is sha256:" in finished.err
        assert "was locked\nhint: ask who keeps that remote" in finished.err
    assert run("list", "--quiet").out == ""


def test_audit_and_outdated_name_a_version_that_was_replaced(
    run: Run, locked: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace_remote(run, tmp_path, monkeypatch, locked, "hat", "imp")
    found = faults(run("audit", "--exit-code", "--json", code=1).document["findings"])
    assert found == {(f"{name}@1.0.0", "moved") for name in BOTH}
    rows = run("outdated", "--json").document["concepts"]
    assert faults(rows) == {(name, "moved") for name in BOTH}
    said = run("outdated", "--exit-code", code=1)
    assert "has other contents there than were locked" in said.out
    offline = faults(run("audit", "--offline", "--json").document["findings"])
    assert offline == {(f"{name}@1.0.0", "unread") for name in BOTH}


def test_replaced_version_is_named_where_the_store_has_the_right_one(
    run: Run, studio: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run("add", "studio::me/imp")
    replace_remote(run, tmp_path, monkeypatch, studio, "hat", "imp")
    assert faults(run("outdated", "--json").document["concepts"]) == {(name, "moved") for name in BOTH}
    assert ("me/imp@1.0.0", "moved") in faults(run("audit", "--json").document["findings"])
    run("sync", "--frozen")


def test_a_version_that_is_gone_is_named_with_a_way_on(
    run: Run, locked: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace_remote(run, tmp_path, monkeypatch, locked, "hat")
    shutil.rmtree(tmp_path / "studio" / "refs" / "me")
    finished = run("sync", "--frozen", code=3)
    assert "me/hat@1.0.0 is not on studio any more" in finished.err
    assert "hint: ask who keeps that remote" in finished.err
    assert faults(run("outdated", "--json").document["concepts"]) == {(name, "gone") for name in BOTH}
    assert ("me/imp@1.0.0", "gone") in faults(run("audit", "--json").document["findings"])


def test_a_yanked_version_is_said_when_it_is_fetched_and_where_one_asks(
    run: Run, locked: str, tmp_path: Path
) -> None:
    run("yank", "studio::me/imp@1.0.0", "--reason", "wrong pictures")
    rows = run("outdated", "--json").document["concepts"]
    assert [(row["name"], row["fault"], row["message"]) for row in rows] == [
        ("me/imp", "yanked", "was yanked: wrong pictures")
    ]
    assert "wrong pictures" in run("outdated", "--exit-code", code=1).out
    assert "me/imp@1.0.0 was yanked: wrong pictures" in run("sync", "--frozen").err
    assert "yanked" not in run("sync", "--frozen").err
    assert faults(run("audit", "--json").document["findings"]) == {("me/imp@1.0.0", "yanked")}


def test_a_yanked_version_with_a_newer_one_shows_both(run: Run, locked: str, tmp_path: Path) -> None:
    run("publish", str(write_package(tmp_path / "next", "me/imp", "1.1.0", requires=("me/hat@^1",))))
    run("push", "me/imp", locked)
    run("yank", "studio::me/imp@1.0.0", "--reason", "wrong pictures")
    (row,) = run("outdated", "--json").document["concepts"]
    assert (row["fault"], row["compatible"], row["newest"]) == ("yanked", "1.1.0", "1.1.0")


def test_what_is_as_it_was_locked_is_at_its_newest_version(run: Run, locked: str) -> None:
    assert run("outdated").err.strip() == "everything is at its newest version"
    assert "yanked" not in run("sync").err
