"""What small functions say at their edges: found missing by mutants (docs/mutants.md)."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from conceptry.digests import Digest
from conceptry.errors import (
    ConceptryError,
    IntegrityError,
    InvalidNameError,
    InvalidProjectError,
    NotFoundError,
    RemoteError,
    UsageError,
)
from conceptry.names import ConceptName, Reference, RemoteName, Tag, Version, parse_version
from conceptry.registry import Filter, Registry
from conceptry.registry.answers import check_address, explain_status, read_strong_etag
from conceptry.registry.attempts import Patience, Retry
from conceptry.registry.catalogs import derive_version_list, parse_catalog
from conceptry.registry.choosing import choose_version
from conceptry.registry.collection import delete_trash
from conceptry.registry.credentials import redact
from conceptry.registry.events import Progress
from conceptry.registry.files import remove_file
from conceptry.registry.foreign import fetch_source
from conceptry.registry.http import Transport
from conceptry.registry.hub_layout import HubAddress, name_member
from conceptry.registry.lockfile import write_lock
from conceptry.registry.oci_layout import CONCEPT_TYPE, read_document
from conceptry.registry.paths import Layout
from conceptry.registry.project import parse_project
from conceptry.registry.protocol import RemoteEntry
from conceptry.registry.refs import parse_version_line
from conceptry.registry.rows import CELL_BREAK
from conceptry.registry.tags import TagMove
from conceptry.registry.wire import Limits, Watch
from conceptry.sources import parse_hub_source, parse_source
from tests.registry.folders import write_folder
from tests.simulators.http_faults import FAULTS
from tests.simulators.http_server import FaultServer

IMP = ConceptName("me", "imp")
UNKNOWN = Digest("0" * 64)
KNOWN = Digest("1" * 64)


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


def test_catalog_tells_of_a_concept_what_its_latest_push_said(pushed: Registry, tmp_path: Path) -> None:
    for version, title in (("1.1.0", "Blue imp"), ("1.2.0", "Bluer imp")):
        pushed.publish(write_folder(tmp_path / version, version=version, file=version.encode(), title=title))
        pushed.push(f"me/imp@{version}", "studio")
        (row,) = parse_catalog(Layout(tmp_path / "studio").catalog.read_bytes())
        assert row.title == title


class OneVersion:
    """What a remote with one version says of a concept."""

    entries = (RemoteEntry(version=parse_version("1.0.0")),)

    def read_digest(self, version: Version) -> Digest | None:
        """Returns the digest of any version."""
        return KNOWN

    def read_tag(self, tag: Tag) -> TagMove | None:
        """Returns nothing: it has none."""

    def list_tags(self) -> tuple[Tag, ...]:
        """Returns none."""
        return ()


def test_digest_is_chosen_among_those_that_a_list_names() -> None:
    assert str(choose_version(Reference(IMP, KNOWN), OneVersion(), uri="x:").reference) == "me/imp@1.0.0"
    with pytest.raises(NotFoundError, match="me/imp has no version sha256:0"):
        choose_version(Reference(IMP, UNKNOWN), OneVersion(), uri="x:")


def test_next_attempt_waits_as_long_as_was_asked() -> None:
    patience = Patience(Limits(backoff_seconds=0.0), deadline_seconds=60)
    begun = time.monotonic()
    patience.wait(Retry(RemoteError("busy"), wait_seconds=0.1))
    assert time.monotonic() - begun >= 0.1


def test_document_that_fills_its_limit_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE")
    (tmp_path / "list.json").write_bytes(b"x" * 100)
    with FaultServer(tmp_path) as server:
        url = f"{server.uri}/list.json"
        assert Transport(server.uri).read(url, limit_bytes=100).body == b"x" * 100
        with pytest.raises(ConceptryError, match="more than the 99 bytes"):
            Transport(server.uri).read(url, limit_bytes=99)


def test_doctor_asks_the_next_remote_where_one_has_nothing_or_fails(pushed: Registry, tmp_path: Path) -> None:
    pushed.add_remote(RemoteName("a-broken"), "http://127.0.0.1:9/nobody")
    other = Registry(tmp_path / "other")
    other.publish(write_folder(tmp_path / "else", "carol/cup"))
    other.push("carol/cup", (tmp_path / "b").as_uri())
    pushed.add_remote(RemoteName("b-empty"), (tmp_path / "b").as_uri())
    pushed.remove_remote(RemoteName("studio"))
    pushed.add_remote(RemoteName("studio"), (tmp_path / "studio").as_uri())
    assert list(pushed.remotes()) == ["a-broken", "b-empty", "studio"]
    (blob,) = Layout(pushed.root).blobs.iterdir()
    blob.unlink()
    assert [row.state for row in pushed.examine()] == ["repaired"]
    assert pushed.get("me/imp").label == "me/imp@1.0.0"


def test_lines_are_those_that_were_asked_for(pushed: Registry) -> None:
    assert len(pushed.lines(Filter(namespace="me"))) == 1
    assert pushed.lines(Filter(namespace="bob")) == ()


def test_licence_without_an_identifier_is_told_by_its_name(pushed: Registry, tmp_path: Path) -> None:
    own = {"name": "Ours", "url": "https://example.org/licence"}
    pushed.publish(write_folder(tmp_path / "next", version="1.1.0", file=b"more", license=own))
    pushed.push("me/imp@1.1.0", "studio")
    assert [row.license for row in pushed.search_remote("studio")] == ["Ours"]


def test_progress_of_every_step_begins_with_nothing(pushed: Registry, tmp_path: Path) -> None:
    seen: list[Progress] = []
    pushed.push("me/imp", (tmp_path / "anew").as_uri(), on_event=seen.append)
    first = {event.step: event.done_bytes for event in reversed(seen)}
    assert first["check"] == first["manifest"] == 0


def test_removing_what_is_not_there_says_no(tmp_path: Path) -> None:
    (tmp_path / "there").write_bytes(b"")
    assert [remove_file(tmp_path / name) for name in ("there", "there")] == [True, False]


def test_waits_grow_from_the_first_one(monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[float] = []
    monkeypatch.setattr(time, "sleep", waited.append)
    patience = Patience(Limits(backoff_seconds=1.0, attempts=4), deadline_seconds=60)
    for _ in range(3):
        patience.wait(Retry(RemoteError("busy")))
    assert [0.5 * 2**n <= wait <= 1.5 * 2**n for n, wait in enumerate(waited)] == [True] * 3


@pytest.mark.parametrize(("status", "word"), [(499, "answered with status"), (500, "fails"), (503, "fails")])
def test_only_a_server_that_fails_is_said_to_fail(status: int, word: str) -> None:
    assert word in explain_status("https://example.org/x", status).message


@pytest.mark.parametrize("uri", ["https://me:secret@host/x", "https://", "https://h:x/", "nonsense"])
def test_address_of_a_site_that_cannot_be_one_is_refused(uri: str) -> None:
    with pytest.raises(UsageError) as caught:
        check_address(uri)
    assert "secret" not in str(caught.value)
    assert check_address("https://example.org/x/") == "https://example.org/x"


def test_text_of_others_is_told_without_its_secrets() -> None:
    said = redact("Authorization: Bearer abcdef123 at https://h/x?Signature=abc&id=1 with hf_abcdefgh")
    assert said == "Authorization: Bearer *** at https://h/x?***&id=1 with ***"


def test_nothing_is_collected_where_there_is_no_store(registry: Registry) -> None:
    collected = registry.collect_garbage()
    assert (collected.items, collected.leftovers, collected.leftover_bytes) == ((), 0, 0)
    assert delete_trash(registry.store) == (0, 0)


def test_listing_with_a_limit_counts_all(pushed: Registry, tmp_path: Path) -> None:
    pushed.publish(write_folder(tmp_path / "cup", "me/cup", file=b"cup"))
    found = pushed.survey(Filter(limit=1))
    assert (len(found.rows), found.count) == (1, 2)
    assert pushed.survey().count == 2


def test_listing_shows_the_latest_version_that_was_not_yanked(pushed: Registry, tmp_path: Path) -> None:
    pushed.publish(write_folder(tmp_path / "next", version="1.1.0", file=b"more"))
    pushed.yank("me/imp@1.1.0", "the wrong pictures")
    (pushed.root / "index.sqlite").unlink()
    assert [row.text for row in pushed.list()] == ["me/imp@1.0.0"]


def test_file_of_a_concept_with_a_name_that_the_hub_needs_is_moved_aside() -> None:
    assert name_member("lora.safetensors") == "lora.safetensors"
    moved = name_member("README.md")
    assert moved.endswith("/README.md")
    assert name_member(moved) != moved


@pytest.mark.parametrize("name", ["a--b", "a.git"])
def test_name_that_the_hub_takes_for_none_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match="cannot be the name of a repository"):
        HubAddress.parse("hf://alice").name_repository(ConceptName("alice", name))


def test_document_of_something_else_in_a_registry_is_no_version() -> None:
    config = {"mediaType": "application/vnd.oci.image.config.v1+json", "size": 1, "digest": str(KNOWN)}
    document = {"schemaVersion": 2, "config": config, "annotations": {}, "layers": []}
    with pytest.raises(RemoteError, match="its config is"):
        read_document(json.dumps(document).encode(), "there")
    assert config["mediaType"] != CONCEPT_TYPE


@pytest.mark.parametrize("line", [b"", b"damaged", b"sha256:0 published\n"])
def test_damaged_line_of_a_version_is_said(line: bytes) -> None:
    with pytest.raises(IntegrityError, match="is damaged"):
        parse_version_line(line, IMP, parse_version("1.0.0"))


@pytest.mark.parametrize(
    ("text", "where"),
    [
        ('[remotes]\nstudio = "ftp://host/x"\n', "remotes.studio"),
        ('[concepts]\n"me/x" = { placeholder = "<x>" }\n', 'concepts."me/x"'),
    ],
)
def test_project_that_names_no_place_is_refused(text: str, where: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidProjectError) as caught:
        parse_project(text.encode(), tmp_path)
    assert caught.value.where == where


def test_folder_that_is_not_there_is_not_adopted(registry: Registry, tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="no folder"):
        registry.adopt(tmp_path / "missing")


def test_answers_that_are_no_toml_are_named(registry: Registry, tmp_path: Path) -> None:
    (tmp_path / "adopt.toml").write_text("[[file]\n", encoding="utf-8")
    with pytest.raises(UsageError, match=r"cannot read .*adopt\.toml"):
        registry.adopt(tmp_path)


def test_answer_with_an_unknown_word_is_told_the_nearest_or_all(registry: Registry, tmp_path: Path) -> None:
    for key, hint in (("plaecholder", "did you mean 'placeholder'?"), ("colour", "known: ")):
        (tmp_path / "adopt.toml").write_text(f'[[file]]\npath = "x"\n{key} = "x"\n', encoding="utf-8")
        with pytest.raises(UsageError) as caught:
            registry.adopt(tmp_path)
        assert hint in (caught.value.hint or "")
