"""The limits of reliability.md R01 to R15, as far as the store has them; those of documents are in tests/core."""

from __future__ import annotations

import inspect
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from conceptry.errors import ConceptryError, InvalidFileError, InvalidNameError
from conceptry.names import ConceptName, Tag, parse_version
from conceptry.registry import Filter, Registry, collection, removal, trash
from conceptry.registry.publish import MAX_RECORD_BYTES
from conceptry.registry.rows import make_sort_key
from conceptry.registry.yanks import MAX_REASON_CHARS
from tests.registry.folders import CONTENTS, files_below, write_folder

ROOT = Path(__file__).parent.parent.parent
LONG = "a" * 64
LONG_VERSION = "1.0.0-" + "A" * 58
MAX_FILE_NAME_BYTES = 255


def test_longest_names_and_versions_make_file_names_that_every_disk_takes(
    registry: Registry, tmp_path: Path
) -> None:
    registry.publish(write_folder(tmp_path / "long", f"{LONG}/{LONG}", LONG_VERSION))
    registry.tag(f"{LONG}/{LONG}@{LONG_VERSION}", Tag("t" * 64))
    registry.remove(f"{LONG}/{LONG}@{LONG_VERSION}")
    registry.restore(f"{LONG}/{LONG}@{LONG_VERSION}")
    assert registry.get(f"{LONG}/{LONG}@{LONG_VERSION}").label == f"{LONG}/{LONG}@{LONG_VERSION}"
    parts = {part for name in files_below(registry.root) for part in name.split("/")}
    assert max(len(part) for part in parts) <= MAX_FILE_NAME_BYTES
    assert registry.verify() == ()


@pytest.mark.parametrize(
    "name", [f"{LONG}a/imp", f"me/{LONG}a", "Me/imp", "me/Imp", "me/con", "me/im..p", "me/imp."]
)
def test_name_beyond_the_limits_reaches_no_file(registry: Registry, name: str) -> None:
    with pytest.raises(InvalidNameError):
        registry.get(name)
    with pytest.raises(InvalidNameError):
        ConceptName.parse(name)
    assert not registry.root.exists()


def test_every_stored_name_is_lower_case_so_no_disk_merges_two(registry: Registry, tmp_path: Path) -> None:
    registry.publish(write_folder(tmp_path / "a", version="1.0.0-RC"))
    registry.publish(write_folder(tmp_path / "b", version="1.0.0-rc", file=b"other"))
    registry.tag("me/imp@1.0.0-RC", Tag("stable"))
    registry.yank("me/imp@1.0.0-rc", "Wrong")
    registry.remove("me/imp@1.0.0-rc")
    names = files_below(registry.root)
    assert names == [name.lower() for name in names]


def test_folder_that_differs_by_case_alone_was_not_made_by_us_and_is_not_listed(
    registry: Registry, imp: Path
) -> None:
    registry.publish(imp)
    planted = registry.root / "refs" / "Me" / "imp" / "versions"
    planted.mkdir(parents=True)
    (planted / "1.0.0").write_bytes(
        (registry.root / "refs" / "me" / "imp" / "versions" / "1.0.0").read_bytes()
    )
    registry.verify()
    assert [row.text for row in registry.list(Filter(all_versions=True))] == ["me/imp@1.0.0"]


def test_training_record_beyond_its_limit_is_refused_and_never_cut(registry: Registry, imp: Path) -> None:
    (imp / "train.json").write_bytes(b" " * (MAX_RECORD_BYTES + 1))
    with pytest.raises(InvalidFileError, match=r"train\.json"):
        registry.publish(imp)
    assert registry.list() == ()
    (imp / "train.json").write_bytes(b" " * MAX_RECORD_BYTES)
    registry.publish(imp)
    record = registry.show("me/imp").record
    assert record is not None
    assert record.stat().st_size == MAX_RECORD_BYTES


def test_longest_reason_of_a_yank_comes_back_whole(registry: Registry, imp: Path) -> None:
    registry.publish(imp)
    reason = "\N{SNOWMAN}" * MAX_REASON_CHARS
    registry.yank("me/imp@1.0.0", reason)
    assert registry.show("me/imp@1.0.0").yanked == reason


def test_link_in_the_place_of_a_blob_is_replaced_and_not_followed(registry: Registry, imp: Path) -> None:
    registry.publish(imp)
    (blob,) = (registry.root / "blobs" / "sha256").iterdir()
    victim = registry.root.parent / "victim"
    victim.write_bytes(CONTENTS)
    blob.unlink()
    blob.symlink_to(victim)
    assert [finding.fault for finding in registry.verify()] != []
    registry.publish(imp)
    assert not blob.is_symlink()
    assert victim.read_bytes() == CONTENTS
    assert registry.verify() == ()


@pytest.mark.parametrize("place", ["tmp", "blobs", "blobs/sha256", "manifests", "locks"])
def test_link_to_nowhere_in_the_place_of_a_folder_is_one_sentence(
    registry: Registry, imp: Path, place: str
) -> None:
    path = registry.root / place
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to(registry.root.parent / "nowhere")
    with pytest.raises(Exception, match="cannot") as caught:
        registry.publish(imp)
    assert type(caught.value).__name__ == "StoreError"
    assert not (registry.root.parent / "nowhere").exists()


def test_no_field_of_a_manifest_opens_a_file_or_a_connection(registry: Registry, tmp_path: Path) -> None:
    """R14, on what Python itself announces: addresses and paths in a manifest are text."""
    planted = tmp_path / "planted"
    planted.write_bytes(b"secret")
    texts = [str(planted), planted.as_uri(), "http://127.0.0.1:9/x", "hf://me/imp", "os.system", "__import__"]
    license = {"name": "x", "url": texts[2], "source": texts[1]}
    folder = write_folder(
        tmp_path / "imp",
        title=texts[0],
        description="\n".join(texts),
        license=license,
        extensions={"x": texts},
    )
    program = (
        "import sys\nfrom pathlib import Path\nfrom conceptry.registry import Registry\nseen = []\n"
        "sys.addaudithook(lambda event, arguments: seen.append((event, str(arguments))) "
        "if event in ('open', 'socket.connect', 'socket.getaddrinfo', 'subprocess.Popen', 'os.system') else None)\n"
        "registry = Registry(Path(sys.argv[1]))\nregistry.publish(Path(sys.argv[2]))\n"
        "registry.get('me/imp')\nregistry.show('me/imp')\nregistry.list()\nregistry.search('x')\nregistry.verify()\n"
        "print([row for row in seen if 'planted' in row[1] or not row[0] == 'open'])"
    )
    words = [sys.executable, "-c", program, str(registry.root), str(folder)]
    finished = subprocess.run(
        words, check=True, capture_output=True, text=True, timeout=60, env=dict(os.environ)
    )
    assert finished.stdout == "[]\n"


VERSIONS = [
    "0.0.1",
    "0.9.0",
    "0.10.0",
    "1.0.0-0",
    "1.0.0-2",
    "1.0.0-11",
    "1.0.0-alpha",
    "1.0.0-alpha.1",
    "1.0.0-alpha.beta",
    "1.0.0-beta.2",
    "1.0.0-beta.11",
    "1.0.0-rc.1",
    "1.0.0",
    "1.0.1",
    "2.0.0",
    "10.0.0",
    "99999999999999999999.0.0",
]


def test_sort_key_orders_versions_as_semantic_versioning_does() -> None:
    backwards = VERSIONS[::-1]
    assert sorted(backwards, key=lambda text: make_sort_key(parse_version(text))) == VERSIONS


REQUIREMENTS: dict[str, tuple[str, ...]] = {
    "R01": (
        "tests/core/test_digests.py::test_there_are_enough_bad_digests",
        "tests/core/test_digests.py::test_text_that_is_no_digest_is_refused_in_a_short_message",
        "tests/core/test_digests.py::test_only_64_lower_case_digits_ever_become_a_digest",
        "tests/registry/test_transfer.py::test_hostile_digest_on_a_remote_touches_no_file",
    ),
    "R02": ("tests/registry/test_paths.py::test_no_other_module_builds_a_path",),
    "R03": ("tests/registry/test_paths.py::test_temporary_names_are_drawn_anew",),
    "R04": (
        "tests/core/test_manifest.py::test_file_name_that_some_platform_reads_otherwise_is_refused",
        "tests/core/test_manifest.py::test_longest_and_deepest_file_name_is_allowed_and_one_more_is_not",
        "tests/registry/test_publish.py::test_manifest_with_an_escaping_file_name_writes_nothing",
    ),
    "R05": (
        "tests/core/test_names.py::test_every_name_has_the_same_alphabet",
        "tests/core/test_manifest.py::test_document_outside_the_schema_is_refused_at_its_place",
        "tests/registry/test_limits.py::test_name_beyond_the_limits_reaches_no_file",
        "tests/registry/test_limits.py::test_every_stored_name_is_lower_case_so_no_disk_merges_two",
    ),
    "R06": (
        "tests/cli/test_view_kinds.py::test_a_planted_link_below_the_folder_of_a_kind_is_never_followed",
        "tests/cli/test_view_kinds.py::test_a_link_in_the_place_of_a_file_is_a_strangers",
        "tests/registry/test_bundles.py::test_a_base_that_is_taken_out_replaces_no_file_and_follows_no_link",
        "tests/registry/test_publish.py::test_link_to_a_folder_on_the_way_to_a_file_is_not_followed",
        "tests/registry/test_limits.py::test_link_in_the_place_of_a_blob_is_replaced_and_not_followed",
    ),
    "R07": (
        "tests/registry/test_limits.py::test_what_deletes_takes_references_and_digests_and_no_path",
        "tests/registry/test_limits.py::test_path_in_the_place_of_a_reference_deletes_nothing",
    ),
    "R10": (
        "tests/core/test_manifest.py::test_bytes_that_are_no_document_are_refused",
        "tests/core/test_manifest.py::test_limits_are_themselves_allowed",
        "tests/core/test_manifest.py::test_greatest_counts_of_files_and_parents_are_allowed",
        "tests/core/test_manifest.py::test_document_of_a_mebibyte_is_read_and_one_byte_more_is_not",
    ),
    "R11": (
        "tests/core/test_manifest.py::test_document_outside_the_schema_is_refused_at_its_place",
        "tests/core/test_manifest.py::test_extensions_are_kept_and_never_interpreted",
    ),
    "R12": ("tests/core/test_manifest.py::test_identity_is_of_the_bytes_and_not_of_their_meaning",),
    "R13": (
        "tests/registry/test_publish.py::test_file_that_is_not_what_the_manifest_says_is_named",
        "tests/registry/test_transfer.py::test_damaged_remote_is_named_and_nothing_is_listed",
        "tests/registry/test_transfer.py::test_partial_with_wrong_bytes_is_fetched_anew",
    ),
    "R14": ("tests/registry/test_limits.py::test_no_field_of_a_manifest_opens_a_file_or_a_connection",),
    "R15": (
        "tests/cli/test_output.py::test_text_of_packages_is_made_visible",
        "tests/cli/test_output.py::test_markup_of_packages_means_nothing_at_a_terminal",
        "tests/cli/test_output.py::test_only_what_a_terminal_obeys_or_hides_is_escaped",
    ),
}
"""Requirement of reliability.md -> the tests that hold it."""


@pytest.mark.parametrize("requirement", REQUIREMENTS)
def test_requirement_names_tests_that_exist(requirement: str) -> None:
    for named in REQUIREMENTS[requirement]:
        file, _, test = named.partition("::")
        assert f"\ndef {test}(" in (ROOT / file).read_text(encoding="utf-8"), named


@pytest.mark.parametrize("module", [collection, removal, trash], ids=lambda module: str(module.__name__))
def test_what_deletes_takes_references_and_digests_and_no_path(module: ModuleType) -> None:
    own = [
        function
        for name, function in inspect.getmembers(module, inspect.isfunction)
        if function.__module__ == module.__name__ and not name.startswith("_")
    ]
    assert own
    for function in own:
        taken = {str(one.annotation) for one in inspect.signature(function).parameters.values()}
        assert not [text for text in taken if "Path" in text or text == "str"], function.__name__


@pytest.mark.parametrize("text", ["/etc/passwd", "../victim", "./victim", "victim/../../x", "~/victim"])
def test_path_in_the_place_of_a_reference_deletes_nothing(
    registry: Registry, imp: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    registry.publish(imp)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "victim").write_bytes(b"mine")
    with pytest.raises(ConceptryError):
        registry.remove(text)
    assert (tmp_path / "victim").read_bytes() == b"mine"
    assert registry.verify() == ()
