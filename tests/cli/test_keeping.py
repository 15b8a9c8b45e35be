"""Publishing, removing, verifying, and sharing through a folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli.conftest import Run
from tests.cli.packages import write_package


def blob_of(home: Path) -> Path:
    return next((home / "blobs" / "sha256").iterdir())


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give the folder of the store."""
    monkeypatch.setenv("CONCEPTRY_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def test_publishing_again_changes_nothing(run: Run, imp: str, tmp_path: Path) -> None:
    again = run("publish", str(tmp_path / "imp"), "--json").document
    assert again == {"reference": imp, "digest": again["digest"], "created": False, "same_tensors": []}


def test_a_removed_version_can_be_restored(run: Run, imp: str) -> None:
    assert run("remove", imp, "--yes").out == "removed me/imp@1.0.0\n"
    assert run("list", "-q").out == ""
    assert run("remove", imp, "--restore").out == "restored me/imp@1.0.0\n"
    assert run("list", "-q").out == f"{imp}\n"


def test_dry_run_removes_nothing(run: Run, imp: str) -> None:
    assert run("remove", imp, "--dry-run", "--json").document["removed"] is False
    assert run("list", "-q").out == f"{imp}\n"


def test_removing_without_a_person_needs_yes(run: Run, imp: str) -> None:
    finished = run("remove", imp, code=2)
    assert finished.err == (
        "error: Remove me/imp@1.0.0 from the store? Nobody is here to answer\n"
        "hint: add --yes to agree beforehand\n"
    )
    assert run("list", "-q").out == f"{imp}\n"


def test_what_is_pushed_can_be_pulled_into_another_store(
    run: Run, imp: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest = run("show", imp, "--json").document["digest"]
    run("remote", "add", "studio", (tmp_path / "studio").as_uri())
    assert run("push", imp, "studio", "--json").document["created"] is True
    assert "was there already" in run("push", imp, "studio").out
    monkeypatch.setenv("CONCEPTRY_HOME", str(tmp_path / "second"))
    run("remote", "add", "studio", (tmp_path / "studio").as_uri())
    pulled = run("pull", "studio::me/imp", "--json").document
    assert (pulled["reference"], pulled["digest"], pulled["created"]) == (imp, digest, True)
    assert run("verify").out == "the store: every byte is right\n"


def test_remotes_are_listed_and_forgotten(run: Run, tmp_path: Path) -> None:
    uri = (tmp_path / "studio").as_uri()
    run("remote", "add", "studio", uri)
    assert run("remote", "list", "--json").document == {"remotes": [{"name": "studio", "uri": uri}]}
    run("remote", "remove", "studio")
    assert run("remote", "list").err == "no remote yet: concepts remote add NAME file:///path\n"


def test_verify_names_a_changed_byte_and_exits_4(home: Path, run: Run, imp: str) -> None:
    blob = blob_of(home)
    blob.chmod(0o644)
    blob.write_bytes(blob.read_bytes()[:-1] + b"\x7f")
    finished = run("verify", "--json", code=4)
    findings = finished.document["findings"]
    assert [finding["file"] for finding in findings] == ["lora.safetensors"]
    assert finished.document["ok"] is False
    assert run("verify", code=4).err == (
        "error: builds[0].parts[0].files[0]: me/imp@1.0.0: the file 'lora.safetensors' has other bytes than when "
        "it was published\nhint: publish or pull it again, which puts the right bytes back\n"
    )


def test_a_damaged_concept_is_never_pushed(home: Path, run: Run, imp: str, tmp_path: Path) -> None:
    blob = blob_of(home)
    blob.chmod(0o644)
    blob.write_bytes(b"\x00" * blob.stat().st_size)
    finished = run("push", imp, (tmp_path / "studio").as_uri(), code=4)
    assert finished.err.startswith(
        "error: builds[0].parts[0].files[0].sha256: me/imp@1.0.0: the bytes of the file 'lora.safetensors' are not "
    )
    assert not (tmp_path / "studio" / "refs").exists()


def test_bases_get_names_and_lose_them(run: Run, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    (folder / "unet").mkdir(parents=True)
    (folder / "model_index.json").write_text("{}", encoding="utf-8")
    (folder / "unet" / "config.json").write_text('{"cross_attention_dim": 768}', encoding="utf-8")
    run("base", "add", "mine", str(folder))
    shown = run("base", "show", "mine", "--json").document
    assert (shown["kind"], shown["family"], shown["path"]) == ("folder", "sd1", str(folder))
    assert "mine" in run("base", "list").out
    run("base", "remove", "mine")
    assert "mine" not in [row["name"] for row in run("base", "list", "--json").document["bases"]]


def test_publishing_other_contents_under_a_version_is_a_conflict(run: Run, imp: str, tmp_path: Path) -> None:
    other = write_package(tmp_path / "other", title="Another imp")
    finished = run("publish", str(other), code=8)
    assert finished.err.startswith("error: me/imp@1.0.0 exists already with other contents (sha256:")
    assert finished.err.endswith(
        "hint: give the new contents a new version; a published version never changes\n"
    )
