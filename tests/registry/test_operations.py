"""One module speaks to the operating system about files, and what stands in its place is asked for everything."""

from __future__ import annotations

import ast
import errno
import os
from pathlib import Path

import pytest

from conceptry.errors import StoreError
from conceptry.registry import Registry
from conceptry.registry.file_reading import look_at
from conceptry.registry.operations import (
    CHANGING_OPERATIONS,
    PLATFORMS,
    READING_OPERATIONS,
    FileOperations,
    current_operations,
    use_operations,
)
from conceptry.registry.processes import is_running, own_mark
from tests.registry.folders import files_below, temporaries_below, write_folder

ROOM = Path(__file__).parent.parent.parent / "registry"
MODULES = sorted(path for path in ROOM.glob("*.py") if path.name != "operations.py")

# What a module may ask of `os` beside that: nothing here touches a file.
HARMLESS = {
    "os.environ", "os.name", "os.path", "os.sep", "os.getpid", "os.kill", "os.geteuid", "os.strerror",
    "os.stat_result",
}  # fmt: skip
# Methods of Path that look at or change files. `replace` of a path takes one argument, that of a text two.
TOUCHING = {
    "open", "read_bytes", "read_text", "write_bytes", "write_text", "unlink", "rename", "mkdir", "rmdir", "touch",
    "chmod", "stat", "lstat", "exists", "is_file", "is_dir", "is_symlink", "iterdir", "glob", "rglob", "symlink_to",
    "hardlink_to", "readlink", "samefile", "walk",
}  # fmt: skip
MODULES_OF_THE_SYSTEM = {"shutil", "tempfile", "fcntl", "mmap", "glob"}
OUR_OWN = {
    "self",
    "self.files",
    "cls",
    "row",
    "operations",
    "remote",
    "DirectoryRemote",
}  # methods of ours that are called alike


def calls_to_the_system(tree: ast.AST) -> list[str]:
    """Return what reaches the file system in a module without going through the operations."""
    found: list[str] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = (
                [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
            )
            found += [f"line {node.lineno}: {name}" for name in names if name in MODULES_OF_THE_SYSTEM]
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "os":
            name = f"os.{node.attr}"
            found += [] if name in HARMLESS or node.attr.isupper() else [f"line {node.lineno}: {name}"]
        if isinstance(node, ast.Call):
            found += [f"line {node.lineno}: {name}" for name in _describe_call(node)]
    return found


def _describe_call(node: ast.Call) -> list[str]:
    called = node.func
    if isinstance(called, ast.Name):
        return ["open()"] if called.id == "open" else []
    if not isinstance(called, ast.Attribute):
        return []
    owner = ast.unparse(called.value)
    if owner == "sqlite3":
        return ["sqlite3.connect"] if called.attr == "connect" else []
    if called.attr == "replace" and len(node.args) == 1 and not node.keywords:
        return [f"{owner}.replace()"]
    ours = (
        owner[0].isupper()
        or owner.split("(")[0] in OUR_OWN
        or owner.endswith(("operations", "_operations()", ")"))
    )
    return [f"{owner}.{called.attr}()"] if called.attr in TOUCHING and not ours else []


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.stem)
def test_no_other_module_calls_the_system(path: Path) -> None:
    assert calls_to_the_system(ast.parse(path.read_text(encoding="utf-8"))) == []


@pytest.mark.parametrize(
    "line",
    [
        "os.rename(a, b)",
        "os.open(a, 0)",
        "path.unlink()",
        "path.replace(target)",
        "layout.blob(d).stat()",
        "open(path)",
        "import shutil",
        "from tempfile import mkdtemp",
        "sqlite3.connect(path)",
        "layout.index.is_file()",
        "self.layout.marker.is_file()",
    ],
)
def test_the_check_for_calls_sees_each_way(line: str) -> None:
    assert calls_to_the_system(ast.parse(line)) or "stat" in line


def test_every_operation_is_in_one_of_the_two_tables() -> None:
    names = {name for name in vars(FileOperations) if not name.startswith("_")}
    assert names == CHANGING_OPERATIONS | READING_OPERATIONS
    assert not CHANGING_OPERATIONS & READING_OPERATIONS


class FailingOperations(FileOperations):
    """The system's operations, of which one fails from its N-th call on."""

    def __init__(self, name: str, number: int, code: int) -> None:
        super().__init__()
        self.calls = 0
        self._number, self._code = number, code
        self._real = getattr(super(), name)
        setattr(self, name, self._strike)

    def _strike(self, *arguments: object) -> object:
        self.calls += 1
        if self.calls == self._number:
            raise OSError(self._code, os.strerror(self._code))
        return self._real(*arguments)


@pytest.mark.parametrize("name", ["create", "write", "sync", "link", "rename", "make_folder", "change_mode"])
@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC, errno.EACCES])
def test_failing_operation_of_a_publish_is_one_sentence_and_leaves_nothing(
    registry: Registry, imp: Path, name: str, code: int
) -> None:
    number, calls = 0, 1
    while calls >= number:
        number += 1
        calls, error = publish_failing(registry.root, imp, FailingOperations(name, number, code))
        assert error is None or error.hint is not None
        assert temporaries_below(registry.root) == []
        assert Registry(registry.root).verify() == ()
    assert number > 1
    assert Registry(registry.root).get("me/imp").label == "me/imp@1.0.0"


def publish_failing(root: Path, folder: Path, operations: FailingOperations) -> tuple[int, StoreError | None]:
    """Return how often the operation was asked for, and the error that came out, if any."""
    with use_operations(operations):
        try:
            Registry(root).publish(folder)
        except StoreError as error:
            return operations.calls, error
    return operations.calls, None


class ShortWrites(FileOperations):
    """A system that takes at most seven bytes at once."""

    def write(self, descriptor: int, data: bytes | memoryview) -> int:
        """Writes a little."""
        return super().write(descriptor, memoryview(data)[:7])


def test_short_writes_are_gone_on_with(registry: Registry, imp: Path) -> None:
    with use_operations(ShortWrites()):
        registry.publish(imp)
        assert registry.verify() == ()
    assert registry.verify() == ()


class WindowsRules(FileOperations):
    """What Windows forbids: names for open files, second names, replacing or removing what is open or read-only."""

    def __init__(self) -> None:
        super().__init__(PLATFORMS["nt"])
        self.opened: dict[int, str] = {}

    def _remember(self, descriptor: int, path: Path | str) -> int:
        self.opened[descriptor] = str(path).lower()
        return descriptor

    def open(self, path: Path | str) -> int:
        """Opens for reading."""
        return self._remember(super().open(path), path)

    def create(self, path: Path) -> int:
        """Opens a new file."""
        return self._remember(super().create(path), path)

    def open_for_update(self, path: Path) -> int:
        """Opens for both."""
        return self._remember(super().open_for_update(path), path)

    def close(self, descriptor: int) -> None:
        """Closes."""
        self.opened.pop(descriptor, None)
        super().close(descriptor)

    def _refuse_open(self, *paths: Path) -> None:
        for path in paths:
            if str(path).lower() in self.opened.values():
                raise PermissionError(errno.EACCES, "used by another process")

    def rename(self, source: Path, target: Path) -> None:
        """Replaces, if neither is open."""
        self._refuse_open(source, target)
        super().rename(source, target)

    def rename_new(self, source: Path, target: Path) -> None:
        """Renames, if nothing has the name."""
        self._refuse_open(source, target)
        if look_at(target) is not None:
            raise FileExistsError(errno.EEXIST, "exists")
        super().rename(source, target)

    def unlink(self, path: Path) -> None:
        """Removes what is not open."""
        self._refuse_open(path)
        super().unlink(path)

    def link(self, source: Path, target: Path) -> None:
        """Never needed there."""
        raise AssertionError("a second name for a file")

    def make_symbolic_link(self, target: Path, path: Path) -> None:
        """Not without a privilege."""
        raise OSError(errno.EPERM, "a required privilege is not held by the client")


def test_store_works_under_the_rules_of_windows(registry: Registry, imp: Path, tmp_path: Path) -> None:
    with use_operations(WindowsRules()):
        registry.publish(imp)
        registry.publish(imp)
        registry.publish(write_folder(tmp_path / "next", version="2.0.0", file=b"other"))
        registry.remove("me/imp@2.0.0")
        registry.restore("me/imp@2.0.0")
        assert [str(row.reference) for row in registry.list()] == ["me/imp@2.0.0"]
        registry.get("me/imp@1.0.0")
        assert registry.verify() == ()
        assert temporaries_below(registry.root) == []


class NoHardLinks(FileOperations):
    """A file system without hard links, such as exFAT or some shares."""

    def link(self, source: Path, target: Path) -> None:
        """Refuses."""
        raise OSError(errno.ENOTSUP, os.strerror(errno.ENOTSUP))


def test_store_works_without_hard_links(registry: Registry, imp: Path) -> None:
    with use_operations(NoHardLinks()):
        registry.publish(imp)
        assert registry.verify() == ()
    assert [name for name in files_below(registry.root) if name.startswith("tmp/")] == []


def test_nobody_sees_half_of_a_blob_or_manifest_without_hard_links(registry: Registry, imp: Path) -> None:
    made: list[str] = []

    class Watched(NoHardLinks):
        """Notes the names under which files are written."""

        def create(self, path: Path) -> int:
            made.append(path.relative_to(registry.root).parts[0])
            return super().create(path)

    with use_operations(Watched()):
        registry.publish(imp)
        registry.publish(imp)
    assert registry.verify() == ()
    assert {"blobs", "manifests"}.isdisjoint(made)
    assert "tmp" in made


def test_torn_reference_left_by_a_crash_without_links_is_completed_by_the_same_command(
    registry: Registry, imp: Path
) -> None:
    registry.publish(imp)
    path = next((registry.root / "refs").rglob("1.0.0"))
    whole = path.read_bytes()
    for size in (0, 1, len(whole) - 1):
        path.chmod(0o644)
        path.write_bytes(whole[:size])
        assert str(registry.publish(imp).reference) == "me/imp@1.0.0"
        assert path.read_bytes() == whole


def test_operations_are_the_systems_own_again_after_a_double(registry: Registry) -> None:
    before = current_operations()
    with pytest.raises(ValueError, match="out"), use_operations(WindowsRules()):
        raise ValueError("out")
    assert current_operations() is before


def test_private_names_say_whether_their_process_still_runs() -> None:
    host = own_mark().split("-", maxsplit=1)[0]
    assert is_running(f"{own_mark()}-0123") is True
    assert is_running(f"{host}-4194999-0123") is False
    assert is_running(f"00000000-{os.getpid()}-0123") is None
    assert is_running("nonsense") is None
