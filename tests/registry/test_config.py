"""Remotes and bases by name, in one small file that can be shared."""

from __future__ import annotations

from pathlib import Path

import pytest

from conceptry.errors import ConflictError, InvalidNameError, NotFoundError, UsageError
from conceptry.names import RemoteName
from conceptry.registry import Registry

STUDIO = RemoteName("studio")


def test_remote_is_remembered_and_forgotten(registry: Registry) -> None:
    registry.add_remote(STUDIO, "file:///srv/concepts")
    assert dict(Registry(registry.root).remotes()) == {STUDIO: "file:///srv/concepts"}
    registry.add_remote(STUDIO, "file:///srv/concepts")
    registry.remove_remote(STUDIO)
    assert dict(registry.remotes()) == {}


def test_name_of_another_remote_is_a_conflict(registry: Registry) -> None:
    registry.add_remote(STUDIO, "file:///srv/concepts")
    with pytest.raises(ConflictError, match="file:///srv/concepts already"):
        registry.add_remote(STUDIO, "file:///elsewhere")
    assert registry.remotes()[STUDIO] == "file:///srv/concepts"


@pytest.mark.parametrize(
    "uri",
    [
        "file://user:secret@host/x",
        "file:///x?token=abc",
        "file:///x?X-Amz-Signature=abc",
        "file:///x?api_key=",
    ],
)
def test_credential_in_an_address_is_refused_and_not_repeated(registry: Registry, uri: str) -> None:
    with pytest.raises(UsageError, match="credential") as caught:
        registry.add_remote(STUDIO, uri)
    assert "secret" not in f"{caught.value} {caught.value.hint}"
    assert not registry.root.exists()


@pytest.mark.parametrize(
    ("name", "uri"), [("a/b", "file:///x"), ("UP", "file:///x"), ("a", "nothing"), ("a", "file:x")]
)
def test_name_or_address_that_is_none_is_refused(registry: Registry, name: str, uri: str) -> None:
    with pytest.raises(UsageError):
        registry.add_remote(RemoteName(name), uri)
    assert not registry.root.exists()


def test_what_a_person_wrote_beside_it_stays(registry: Registry) -> None:
    registry.add_remote(STUDIO, "file:///srv/concepts")
    path = registry.root / "config.toml"
    path.write_text("# our shared folder\n" + path.read_text(encoding="utf-8"), encoding="utf-8")
    registry.add_remote(RemoteName("other"), "file:///other")
    registry.remove_remote(STUDIO)
    assert path.read_text(encoding="utf-8").startswith("# our shared folder\n")
    assert dict(registry.remotes()) == {"other": "file:///other"}


def test_base_is_remembered_by_its_absolute_place(
    registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "model").mkdir()
    monkeypatch.chdir(tmp_path)
    registry.add_base("mine", Path("model"))
    assert dict(registry.bases()) == {"mine": tmp_path / "model"}
    registry.remove_base("mine")
    assert dict(registry.bases()) == {}


def test_base_cannot_take_the_name_of_a_family_or_lie_nowhere(registry: Registry, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="family"):
        registry.add_base("sdxl", tmp_path)
    with pytest.raises(NotFoundError):
        registry.add_base("mine", tmp_path / "nowhere")
    with pytest.raises(InvalidNameError):
        registry.add_base("../x", tmp_path)
    assert not registry.root.exists()


def test_unknown_name_suggests_the_nearest(registry: Registry) -> None:
    registry.add_remote(STUDIO, "file:///srv/concepts")
    with pytest.raises(NotFoundError) as caught:
        registry.remove_remote(RemoteName("studoi"))
    assert caught.value.hint == "did you mean 'studio'?"


@pytest.mark.parametrize(
    "text",
    [
        "remotes = [",
        "[remotes.studio]\nurl = 'x'",
        "[remotes]\nstudio = 3",
        "[remotes.studio]\nuri = 3",
        "[remotes.UP]\nuri='x'",
    ],
)
def test_malformed_file_is_named(registry: Registry, text: str) -> None:
    registry.root.mkdir(mode=0o700)
    (registry.root / "config.toml").write_text(text, encoding="utf-8")
    with pytest.raises(UsageError, match=r"config\.toml"):
        registry.remotes()


def test_configuration_is_for_its_owner_only(registry: Registry) -> None:
    registry.add_remote(STUDIO, "file:///srv/concepts")
    assert (registry.root / "config.toml").stat().st_mode & 0o777 == 0o600
