"""What small functions say at their edges: found missing by mutants (docs/mutants.md)."""

from __future__ import annotations

from pathlib import Path

import pytest

from conceptry.digests import Digest
from conceptry.errors import InvalidNameError, NotFoundError, RemoteError, UsageError
from conceptry.names import ConceptName, Reference, RemoteName, Tag
from conceptry.registry import Filter, Registry
from conceptry.registry.answers import read_strong_etag
from conceptry.registry.catalogs import derive_version_list
from conceptry.registry.foreign import fetch_source
from conceptry.registry.hub_layout import HubAddress
from conceptry.registry.lockfile import write_lock
from conceptry.registry.paths import Layout
from conceptry.registry.rows import CELL_BREAK
from conceptry.registry.wire import Limits, Watch
from conceptry.sources import parse_hub_source, parse_source
from tests.registry.folders import write_folder
from tests.simulators.http_faults import FAULTS
from tests.simulators.http_server import FaultServer

IMP = ConceptName("me", "imp")
UNKNOWN = Digest("0" * 64)


@pytest.fixture
def pushed(registry: Registry, imp: Path, tmp_path: Path) -> Registry:
    """Give a registry whose imp is on a remote too, called ``studio``."""
    registry.publish(imp)
    registry.add_remote(RemoteName("studio"), (tmp_path / "studio").as_uri())
    registry.push("me/imp@1.0.0", "studio")
    return registry


@pytest.mark.parametrize(
    ("text", "tag"),
    [('"a1"', '"a1"'), (' "a1" ', '"a1"'), ('W/"a1"', None), ("a1", None), ('"a"b"', None), ("", None)],
)
def test_only_a_strong_entity_tag_promises_equal_bytes(text: str, tag: str | None) -> None:
    assert read_strong_etag({"etag": text}) == tag


def test_file_on_the_web_without_a_length_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE")
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "imp.safetensors").write_bytes(b"")
    digest = str(Digest.of_bytes(b"")).replace(":", "=")
    (fault,) = [one for one in FAULTS if one.name == "length in words"]
    (tmp_path / "mine").mkdir()
    with FaultServer(tmp_path / "theirs") as server:
        source = parse_source(f"{server.uri}/imp.safetensors#{digest}")
        server.set_fault(fault, "imp.safetensors", cut=0)
        assert source is not None
        with pytest.raises(RemoteError, match="how many bytes"):
            fetch_source(source, tmp_path, tmp_path / "mine")


def test_address_of_a_file_on_the_hub_may_be_so_long_and_no_longer() -> None:
    address = "hf://ns/repo@main/"
    longest = address + "a" * (2000 - len(address))
    assert str(parse_hub_source(longest)) == longest
    with pytest.raises(InvalidNameError):
        parse_hub_source(longest + "a")


def test_digest_that_a_remote_does_not_have_is_not_found(pushed: Registry) -> None:
    with pytest.raises(NotFoundError, match="studio"):
        pushed.pull(f"studio::me/imp@{UNKNOWN}")


def test_yank_on_a_remote_says_what_was_yanked(pushed: Registry) -> None:
    wanted = Reference.parse("studio::me/imp@1.0.0")
    assert pushed.yank(wanted, "the wrong pictures") == wanted
    assert pushed.yank("me/imp@1.0.0", "here too") == Reference.parse("me/imp@1.0.0")


def test_equal_lock_is_not_written_again(tmp_path: Path) -> None:
    place = tmp_path / "concepts.lock"
    assert [write_lock(place, data) for data in (b"a", b"a", b"b")] == [True, False, True]


def test_damaged_tag_hides_no_other_tag(pushed: Registry, tmp_path: Path) -> None:
    layout = Layout(tmp_path / "studio")
    for tag in ("beta", "stable"):
        pushed.tag("me/imp@1.0.0", Tag(tag))
        pushed.push(f"me/imp:{tag}", "studio")
    (move,) = layout.tag(IMP, Tag("beta")).iterdir()
    move.chmod(0o644)
    move.write_bytes(b"damaged")
    assert list(derive_version_list(layout, IMP).moves) == [Tag("stable")]


def test_address_on_the_hub_answers_private_with_yes_or_no() -> None:
    assert HubAddress.parse("hf://alice?private=true").private
    for address in ("hf://alice?private=", "hf://alice?private=perhaps", "hf://alice?other="):
        with pytest.raises(UsageError):
            HubAddress.parse(address)


def test_lines_are_those_of_the_listing_without_being_asked_for_any_in_particular(pushed: Registry) -> None:
    assert [line.split(CELL_BREAK)[0] for line in pushed.lines()] == ["me/imp@1.0.0"]
    assert pushed.lines(Filter(kind="embedding")) == ()


def test_what_a_remote_says_of_a_concept_is_that_of_its_latest_version(
    pushed: Registry, tmp_path: Path
) -> None:
    pushed.publish(
        write_folder(
            tmp_path / "next", version="1.1.0", file=b"more", title="Blue imp", license={"spdx": "CC0-1.0"}
        )
    )
    assert [row.title for row in pushed.search_remote("studio")] == [""]
    pushed.push("me/imp@1.1.0", "studio")
    (row,) = pushed.search_remote("studio")
    assert (row.title, row.license) == ("Blue imp", "CC0-1.0")


def test_answer_that_has_begun_is_measured_by_its_pace_and_no_longer_by_its_beginning() -> None:
    limits = Limits(answer_seconds=-1.0, pace_seconds=60.0)
    watch = Watch(limits, body_bytes=10, hosts=frozenset())
    with pytest.raises(TimeoutError, match="no complete answer"):
        watch.count(1)
    watch.begin_body()
    watch.count(1)
