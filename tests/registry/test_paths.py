"""Only one module turns values into paths below a store, and its values cannot carry text of others."""

from __future__ import annotations

import ast
from pathlib import Path
from urllib.parse import quote

import pytest

from conceptry.digests import Digest
from conceptry.errors import InvalidNameError, UsageError
from conceptry.names import ConceptName, Tag, parse_version
from conceptry.registry.paths import Layout, choose_home, name_version_file, read_version_file_name
from conceptry.registry.places import locate_file_uri

ROOM = Path(__file__).parent.parent.parent / "registry"
OTHER_MODULES = sorted(path for path in ROOM.glob("*.py") if path.name not in ("paths.py", "places.py"))
JOINING = {"joinpath", "with_name", "with_suffix", "with_stem", "join"}
IMP = ConceptName("me", "imp")


def path_building(tree: ast.AST) -> list[str]:
    """Return what builds a path in a module: ``a / b``, ``Path(...)``, ``joinpath`` and their like."""
    found: list[str] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.BinOp | ast.AugAssign) and isinstance(node.op, ast.Div):
            found.append(f"line {node.lineno}: /")
        if isinstance(node, ast.Call):
            called = node.func
            if isinstance(called, ast.Name) and called.id in {"Path", "PurePath", "PosixPath", "mkdtemp"}:
                found.append(f"line {node.lineno}: {called.id}()")
            if isinstance(called, ast.Attribute) and called.attr in JOINING:
                of_text = isinstance(called.value, ast.Constant)
                found += [] if of_text else [f"line {node.lineno}: .{called.attr}()"]
    return found


@pytest.mark.parametrize("path", OTHER_MODULES, ids=lambda path: path.stem)
def test_no_other_module_builds_a_path(path: Path) -> None:
    assert path_building(ast.parse(path.read_text(encoding="utf-8"))) == []


def test_the_check_for_path_building_sees_each_way() -> None:
    program = "a / b\na /= b\nPath(x)\na.joinpath(b)\nos.path.join(a, b)\n', '.join(c)"
    assert len(path_building(ast.parse(program))) == 5


def test_paths_as_text_are_those_paths(tmp_path: Path) -> None:
    layout, digest, version = Layout(tmp_path), Digest("0" * 64), parse_version("1.0.0-RC.1+Build")
    assert layout.manifest_text(digest) == str(layout.manifest(digest))
    assert layout.versions_text(IMP) == str(layout.versions(IMP))
    assert layout.version_text(IMP, version) == str(layout.version(IMP, version))
    assert layout.yanks_text(IMP) == str(layout.yanks(IMP))


def test_every_path_lies_below_the_root(tmp_path: Path) -> None:
    layout, digest, version = Layout(tmp_path), Digest("0" * 64), parse_version("1.0.0-RC.1+Build")
    paths = [
        layout.marker,
        layout.config,
        layout.index,
        layout.generation,
        layout.refs_lock,
        layout.blob(digest),
        layout.manifest(digest),
        layout.record(digest),
        layout.partial(digest),
        layout.temporary(),
        layout.version(IMP, version),
        layout.tag_move(IMP, Tag("stable"), 7),
        layout.trashed_version(IMP, version, 7),
        layout.quarantined(digest),
        layout.checks,
        layout.lease(),
        layout.change_mark(),
    ]
    assert all(path.resolve().is_relative_to(tmp_path.resolve()) for path in paths)
    assert len(set(paths)) == len(paths)


def test_temporary_names_are_drawn_anew(tmp_path: Path) -> None:
    assert len({Layout(tmp_path).temporary() for _ in range(100)}) == 100


def test_tag_that_was_never_parsed_makes_no_path(tmp_path: Path) -> None:
    with pytest.raises(InvalidNameError):
        Layout(tmp_path).tag(IMP, Tag("../../x"))


@pytest.mark.parametrize(
    "text", ["1.0.0", "0.0.1", "1.0.0-alpha.1", "1.0.0-RC.1+ABC", "1.0.0-aB-Cd", "1.0.0+0aA"]
)
def test_version_is_read_back_from_its_file_name(text: str) -> None:
    name = name_version_file(parse_version(text))
    assert name == name.lower()
    assert str(read_version_file_name(name)) == text


@pytest.mark.parametrize(
    "name", ["", "1.0", "1.0.0-RC", "1.0.0-_1", "1.0.0_", "..", ".DS_Store", "1.0.0-_", "1.0.0~"]
)
def test_file_that_we_did_not_name_is_no_version(name: str) -> None:
    with pytest.raises(InvalidNameError):
        read_version_file_name(name)


def test_home_is_where_the_variable_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CONCEPTRY_HOME", str(tmp_path / "chosen"))
    assert choose_home() == tmp_path / "chosen"


def test_home_is_below_the_users_data_without_the_variable(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("CONCEPTRY_HOME")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    assert choose_home() == tmp_path / "conceptry"


def test_file_address_with_blanks_and_umlauts_is_that_folder(tmp_path: Path) -> None:
    folder = tmp_path / "größe und mehr"
    assert locate_file_uri(folder.as_uri()) == folder
    assert locate_file_uri(f"file://{quote(str(folder))}") == folder


@pytest.mark.parametrize(
    "uri", ["file://other-host/x", "file:relative", "http://x/y", "/plain/path", "file://", ""]
)
def test_address_that_is_no_folder_is_refused(uri: str) -> None:
    with pytest.raises(UsageError) as caught:
        locate_file_uri(uri)
    assert caught.value.exit_code == 2
