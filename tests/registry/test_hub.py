"""The Hub, through its own client: complete or not at all, one commit for a pull, and no token for strangers."""

from __future__ import annotations

import json
import time
from email.utils import formatdate
from pathlib import Path

import pytest
import yaml  # comes with the Hub's client

from conceptry.digests import Digest
from conceptry.errors import (
    ConceptryError,
    ConflictError,
    IdentityChangedError,
    IntegrityError,
    NotFoundError,
    RemoteError,
    UsageError,
)
from conceptry.manifest import parse_manifest
from conceptry.names import ConceptName, Reference, RemoteName, Tag
from conceptry.registry import Registry
from conceptry.registry.hub_card import make_card
from conceptry.registry.hub_files import fetch_hub_file
from conceptry.registry.hub_layout import HubAddress
from conceptry.registry.pulling import PullOptions
from tests.registry.folders import CONTENTS, make_document, temporaries_below, write_folder
from tests.simulators.hub.faults import Fault
from tests.simulators.hub.repositories import Entry, Repository
from tests.simulators.hub.server import Hub
from tests.simulators.hub.use import ADDRESS, USER, point_client

HUB = RemoteName("hub")
BLOB = Digest.of_bytes(CONTENTS)
REPOSITORY = "alice/me.imp"


@pytest.fixture
def second(tmp_path: Path, pushed: Registry) -> Registry:
    """Give an empty registry that knows the same Hub."""
    other = Registry(tmp_path / "second")
    other.add_remote(HUB, ADDRESS)
    return other


def publish_next(registry: Registry, folder: Path, version: str, file: bytes = b"later") -> None:
    """Publish and push one more version."""
    registry.publish(write_folder(folder / version, version=version, file=file))
    registry.push(f"me/imp@{version}", HUB)


def repository(hub: Hub) -> Repository:
    found = hub.repositories.get(REPOSITORY)
    assert found is not None
    return found


# --- the whole loop ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lfs", [True, False], ids=["lfs", "regular"])
def test_pulled_version_has_the_same_identity_and_bytes(
    registry: Registry, imp: Path, hub: Hub, tmp_path: Path, lfs: bool
) -> None:
    hub.repositories.lfs_by_rule = lfs
    registry.publish(imp)
    assert registry.push("me/imp", ADDRESS).created
    assert repository(hub).head.files["lora.safetensors"].lfs is lfs
    other = Registry(tmp_path / "second")
    other.add_remote(HUB, ADDRESS)
    pulled = other.pull("hub::me/imp")
    assert pulled.digest == registry.resolve("me/imp").digest
    assert pulled.commit == repository(hub).tags["v1.0.0"]
    assert other.get("me/imp").blobs[BLOB].read_bytes() == CONTENTS
    assert other.verify() == ()


def test_large_file_goes_up_in_parts(registry: Registry, hub: Hub, tmp_path: Path) -> None:
    hub.multipart_bytes = 1000
    registry.add_remote(HUB, ADDRESS)
    registry.publish(write_folder(tmp_path / "imp"))
    registry.push("me/imp", HUB)
    assert len(hub.requests("PUT", "part=")) == 3
    other = Registry(tmp_path / "second")
    other.add_remote(HUB, ADDRESS)
    assert other.pull("hub::me/imp").received_bytes == len(CONTENTS)


def test_push_pull_push_sends_and_changes_nothing_more(pushed: Registry, second: Registry, hub: Hub) -> None:
    before = dict(repository(hub).branches), dict(repository(hub).tags), len(repository(hub).commits)
    assert second.pull("hub::me/imp").created
    again = second.pull("hub::me/imp")
    assert (again.created, again.received_bytes) == (False, 0)
    hub.log.clear()
    for one in (pushed, second):
        repeated = one.push("me/imp", HUB)
        assert (repeated.created, repeated.sent_bytes) == (False, 0)
    assert hub.requests("PUT") == hub.requests("POST", "/commit/") == hub.requests("POST", "/tag/") == []
    assert (
        dict(repository(hub).branches),
        dict(repository(hub).tags),
        len(repository(hub).commits),
    ) == before


def test_version_keeps_its_commit_and_bytes_when_main_goes_on(
    pushed: Registry, second: Registry, hub: Hub, tmp_path: Path
) -> None:
    commit = repository(hub).tags["v1.0.0"]
    publish_next(pushed, tmp_path, "1.1.0")
    assert repository(hub).tags["v1.0.0"] == commit
    assert repository(hub).branches["main"] == repository(hub).tags["v1.1.0"] != commit
    assert second.pull("hub::me/imp@1.0.0").commit == commit
    assert second.pull("hub::me/imp").reference.version is not None
    assert second.resolve("me/imp").reference == pushed.resolve("me/imp@1.1.0").reference
    assert second.verify() == ()


def test_main_shows_the_files_of_the_newest_version_and_keeps_what_people_added(
    registry: Registry, hub: Hub, tmp_path: Path
) -> None:
    def publish(version: str, path: str) -> None:
        folder = write_folder(tmp_path / version, version=version)
        document = json.loads((folder / "concept.json").read_bytes())
        document["builds"][0]["parts"][0]["files"][0]["path"] = path
        (folder / "lora.safetensors").rename(folder / path)
        (folder / "concept.json").write_text(json.dumps(document))
        registry.publish(folder)
        registry.push(f"me/imp@{version}", ADDRESS)

    publish("1.0.0", "old.safetensors")
    added = {"notes.txt": hub.repositories.add_bytes(b"mine")}
    hub.repositories.commit(repository(hub), "a person", added, ())
    publish("1.1.0", "README.md")
    files = set(repository(hub).head.files)
    assert files == {
        ".gitattributes",
        "README.md",
        "concept.json",
        "conceptry.json",
        "members/README.md",
        "notes.txt",
    }
    other = Registry(tmp_path / "second")
    other.add_remote(HUB, ADDRESS)
    other.pull("hub::me/imp@1.0.0")
    assert other.pull("hub::me/imp@1.1.0").received_bytes == 0


def test_tag_moves_with_a_push_and_is_followed_by_a_pull(
    pushed: Registry, second: Registry, tmp_path: Path
) -> None:
    publish_next(pushed, tmp_path, "1.1.0")
    pushed.tag("me/imp@1.0.0", Tag("stable"))
    pushed.push("me/imp:stable", HUB)
    assert second.pull("hub::me/imp:stable").digest == pushed.resolve("me/imp@1.0.0").digest
    assert second.resolve("me/imp:stable").digest == pushed.resolve("me/imp@1.0.0").digest
    pushed.tag("me/imp@1.1.0", Tag("stable"))
    pushed.push("me/imp:stable", HUB)
    assert second.pull("hub::me/imp:stable").digest == pushed.resolve("me/imp@1.1.0").digest


def test_own_namespace_needs_no_prefix_and_a_private_repository_is_nobody_elses(
    registry: Registry, hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry.publish(write_folder(tmp_path / "imp", name="alice/imp"))
    registry.push("alice/imp", f"{ADDRESS}?private=true")
    found = hub.repositories.get("alice/imp")
    assert found is not None
    assert found.private
    other = Registry(tmp_path / "second")
    other.add_remote(HUB, ADDRESS)
    assert other.pull("hub::alice/imp").created
    monkeypatch.setenv("HF_TOKEN", hub.add_token("mallory"))
    stranger = Registry(tmp_path / "third")
    stranger.add_remote(HUB, ADDRESS)
    with pytest.raises(NotFoundError, match=r"no concept is called 'alice/imp' on hf://alice"):
        stranger.pull("hub::alice/imp")
    assert stranger.search_remote(HUB) == ()


# --- what the Hub shows --------------------------------------------------------------------------------------------


def test_card_says_what_the_manifest_says() -> None:
    document = make_document(
        title="Blue imp",
        tags=["creature", "odd: tag"],
        license={"spdx": "CC-BY-4.0"},
        tokens=[{"placeholder": "<imp>", "vectors": 0, "superclass": "creature"}],
        usage={"prompts": ["a <imp> on a table"]},
    )
    build = document["builds"][0]
    build["base"]["repo"] = "stable-diffusion-v1-5/stable-diffusion-v1-5"
    picture = {"path": "preview.png", "role": "preview", "media_type": "image/png", "size": 3}
    build["parts"][0]["files"].append({**picture, "sha256": str(Digest.of_bytes(b"png"))})
    card = make_card(parse_manifest(json.dumps(document).encode())).decode()
    front = yaml.safe_load(card.split("---\n")[1])
    assert front["base_model"] == "stable-diffusion-v1-5/stable-diffusion-v1-5"
    assert front["base_model_relation"] == "adapter"
    assert front["instance_prompt"] == "<imp> creature"
    assert front["license"] == "cc-by-4.0"
    assert front["widget"] == [{"text": "a <imp> on a table", "output": {"url": "preview.png"}}]
    assert {"conceptry", "lora", "sd1", "template:sd-lora", "concept:me/imp", "creature", "odd:-tag"} <= set(
        front["tags"]
    )
    assert card == make_card(parse_manifest(json.dumps(document).encode())).decode()


@pytest.mark.parametrize(
    "title", ["---", "a\n---\nlicense: mit", "'\"", "\u2028\u0085\x7f", "\U0001f608", "x: [y", "# &a *b"]
)
def test_no_title_breaks_out_of_the_metadata(title: str) -> None:
    document = make_document(title=title, license={"name": title or "x", "url": "https://example.org"})
    card = make_card(parse_manifest(json.dumps(document).encode())).decode()
    front = yaml.safe_load(card[4:].partition("\n---\n")[0])
    assert front["conceptry"] == {"concept": "me/imp", "title": title}
    assert (front["license"], front["license_name"]) == ("other", title)


def test_search_finds_by_name_tag_and_kind(pushed: Registry, hub: Hub, tmp_path: Path) -> None:
    pushed.publish(write_folder(tmp_path / "fox", name="bob/fox", tags=["animal"], title="A fox"))
    pushed.push("bob/fox", HUB)
    hub.repositories.create("alice/something-else")
    assert [str(row.name) for row in pushed.search_remote(HUB)] == ["bob/fox", "me/imp"]
    (found,) = pushed.search_remote(HUB, "anim")
    assert (str(found.name), found.title, found.kinds, found.tags) == (
        "bob/fox",
        "A fox",
        ("lora",),
        ("animal",),
    )


# --- interrupted and spoilt pushes ---------------------------------------------------------------------------------

PUSH_STEPS = [
    "/create",
    "/preupload/",
    "objects/batch",
    "PUT /upload/",
    "/verify",
    "/validate-yaml",
    "/commit/",
    "/tag/",
]


@pytest.mark.parametrize("step", PUSH_STEPS)
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_push_that_fails_at_any_step_shows_no_version_and_can_be_run_again(
    registry: Registry, imp: Path, hub: Hub, tmp_path: Path, step: str, after: bool
) -> None:
    registry.add_remote(HUB, ADDRESS)
    registry.publish(imp)
    hub.faults.add(Fault(step, times=99, status=None if after else 400, after=after, drop=after))
    outcome = 0
    try:
        registry.push("me/imp", HUB)
    except ConceptryError as error:
        outcome = error.exit_code
    assert outcome in ((0, 5, 8) if after else (5, 8))
    hub.faults.clear()
    other = Registry(tmp_path / "second")
    other.add_remote(HUB, ADDRESS)
    done = hub.repositories.get(REPOSITORY)
    if done is None or "v1.0.0" not in done.tags:
        with pytest.raises(NotFoundError):
            other.pull("hub::me/imp")
        assert other.open_remote(HUB).list_versions(ConceptName("me", "imp")) == ()
    registry.push("me/imp", HUB)
    assert other.pull("hub::me/imp").digest == registry.resolve("me/imp").digest


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make pauses between attempts short, ours and the client's."""
    monkeypatch.setattr("conceptry.registry.hub_client._FIRST_PAUSE_SECONDS", 0.01)
    real = time.sleep
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: real(min(seconds, 0.01)))


@pytest.mark.parametrize(
    "step", ["/preupload/", "objects/batch", "PUT /upload/", "/commit/", "/tag/", "GET /api/models/"]
)
@pytest.mark.parametrize("status", [503, 429])
def test_push_goes_on_after_a_failure_that_passes(
    registry: Registry, imp: Path, hub: Hub, step: str, status: int
) -> None:
    registry.publish(imp)
    hub.faults.add(Fault(step, status=status, headers={"Retry-After": "0"}))
    assert registry.push("me/imp", ADDRESS).created
    assert registry.push("me/imp", ADDRESS).created is False


@pytest.mark.parametrize("step", ["/commit/", "/tag/"])
def test_answer_that_is_lost_on_its_way_back_changes_nothing(
    registry: Registry, imp: Path, hub: Hub, step: str
) -> None:
    registry.publish(imp)
    hub.faults.add(Fault(step, after=True, drop=True))
    assert registry.push("me/imp", ADDRESS).created
    assert list(repository(hub).tags) == ["v1.0.0"]


def test_somebody_who_commits_in_between_is_not_overwritten(registry: Registry, imp: Path, hub: Hub) -> None:
    registry.publish(imp)
    hub.faults.add(Fault("POST .*/commit/", status=412, times=2))
    assert registry.push("me/imp", ADDRESS).created
    assert len(hub.requests("POST", "/commit/")) == 3


def test_repository_that_holds_something_else_is_left_as_it_is(
    registry: Registry, imp: Path, hub: Hub
) -> None:
    theirs = hub.repositories.create(REPOSITORY)
    hub.repositories.commit(theirs, "mine", {"README.md": hub.repositories.add_bytes(b"my model")}, ())
    before = dict(theirs.head.files)
    registry.publish(imp)
    with pytest.raises(ConflictError, match="holds something else"):
        registry.push("me/imp", ADDRESS)
    assert dict(theirs.head.files) == before
    assert theirs.tags == {}


def test_two_concepts_never_share_a_repository(registry: Registry, hub: Hub, tmp_path: Path) -> None:
    registry.publish(write_folder(tmp_path / "first", name="a.b/c"))
    registry.publish(write_folder(tmp_path / "second", name="a/b.c", version="2.0.0"))
    registry.push("a.b/c", ADDRESS)
    with pytest.raises(ConflictError, match=r"is of a\.b/c, not of a/b\.c"):
        registry.push("a/b.c", ADDRESS)


# --- downloads -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("at_bytes", [1, 1000, len(CONTENTS) - 1])
def test_cut_download_goes_on_where_it_ended(second: Registry, hub: Hub, at_bytes: int) -> None:
    hub.faults.add(Fault("GET /blob/", cut_after_bytes=at_bytes))
    assert second.pull("hub::me/imp").created
    assert [row.range for row in hub.requests("GET", "/blob/")] == [None, f"bytes={at_bytes}-"]
    assert second.verify() == ()


def test_download_that_was_given_up_goes_on_with_the_next_command(second: Registry, hub: Hub) -> None:
    hub.faults.add(Fault("GET /blob/", cut_after_bytes=1000))
    hub.faults.add(Fault("GET /blob/", status=403, times=1))
    with pytest.raises(RemoteError):
        second.pull("hub::me/imp")
    assert second.list() == ()
    hub.log.clear()
    assert second.pull("hub::me/imp").created
    assert [row.range for row in hub.requests("GET", "/blob/")] == ["bytes=1000-"]
    assert temporaries_below(second.root) == []


@pytest.mark.parametrize("form", ["seconds", "date"])
def test_busy_hub_is_asked_again_when_it_says(second: Registry, hub: Hub, form: str) -> None:
    when = "0" if form == "seconds" else formatdate(time.time(), usegmt=True)
    for step in ("GET /alice/.*concept.json", "GET /blob/", "GET /api/models/"):
        hub.faults.add(Fault(step, status=429, headers={"Retry-After": when}))
    assert second.pull("hub::me/imp").created


@pytest.mark.parametrize("bytes_", [b"X" * len(CONTENTS), CONTENTS + b"X", CONTENTS[:-1], b""], ids=len)
def test_wrong_bytes_are_never_listed(second: Registry, hub: Hub, bytes_: bytes) -> None:
    hub.faults.add(Fault("GET /blob/", times=99, replace_bytes=bytes_, ignore_range=True))
    with pytest.raises((IntegrityError, RemoteError)):
        second.pull("hub::me/imp")
    assert second.list() == ()


def test_pull_asks_for_one_commit_and_for_each_missing_file_once(second: Registry, hub: Hub) -> None:
    hub.log.clear()
    second.pull("hub::me/imp@1.0.0")
    commit = repository(hub).tags["v1.0.0"]
    files = hub.requests("GET", "/resolve/", "hub")
    assert [row.path.rpartition("/")[2] for row in files if commit in row.path] == [
        "concept.json",
        "lora.safetensors",
    ]
    assert len(hub.requests("GET", "/blob/")) == 1
    assert len(hub.log) == 5


def test_many_are_pulled_at_once_and_a_shared_file_comes_once(
    pushed: Registry, second: Registry, hub: Hub, tmp_path: Path
) -> None:
    names = [f"me/imp-{number}" for number in range(12)]
    for name in names:
        pushed.publish(write_folder(tmp_path / name, name=name))
        pushed.push(name, HUB)
    hub.log.clear()
    pulled = second.pull_many([f"hub::{name}" for name in names])
    assert [str(row.reference.concept) for row in pulled] == names
    assert len(hub.requests("GET", "/blob/")) == 1
    assert sum(row.received_bytes for row in pulled) == len(CONTENTS)
    assert second.verify() == ()


def test_when_one_of_many_is_missing_none_is_listed(second: Registry) -> None:
    with pytest.raises(NotFoundError, match="me/nobody"):
        second.pull_many(["hub::me/imp", "hub::me/nobody"])
    assert second.list() == ()


# --- who it is -----------------------------------------------------------------------------------------------------


def test_reborn_repository_is_refused_until_somebody_agrees(second: Registry, hub: Hub) -> None:
    second.pull("hub::me/imp")
    hub.reborn(REPOSITORY)
    with pytest.raises(IdentityChangedError, match="is another repository than before") as caught:
        second.pull("hub::me/imp")
    assert caught.value.exit_code == 9
    assert second.pull("hub::me/imp", options=PullOptions(accept_new_identity=True)).created is False
    assert second.pull("hub::me/imp").created is False


def test_moved_version_tag_is_refused(pushed: Registry, second: Registry, hub: Hub, tmp_path: Path) -> None:
    second.pull("hub::me/imp")
    registry = Registry(tmp_path / "other")
    registry.publish(write_folder(tmp_path / "evil", version="1.1.0", file=b"evil"))
    publish_next(pushed, tmp_path, "1.1.0")
    found = repository(hub)
    found.tags["v1.0.0"] = found.tags["v1.1.0"]
    with pytest.raises((IdentityChangedError, IntegrityError)) as caught:
        second.pull("hub::me/imp@1.0.0")
    assert caught.value.exit_code in (4, 9)
    assert [str(row.reference) for row in second.list()] == ["me/imp@1.0.0"]


def test_latest_that_goes_back_is_refused_until_somebody_agrees(
    pushed: Registry, second: Registry, hub: Hub, tmp_path: Path
) -> None:
    publish_next(pushed, tmp_path, "1.1.0")
    second.pull("hub::me/imp")
    found = repository(hub)
    del found.tags["v1.1.0"]
    found.branches["main"] = found.tags["v1.0.0"]
    with pytest.raises(IdentityChangedError, match=r"is 1\.0\.0, but 1\.1\.0 was there before"):
        second.pull("hub::me/imp")
    assert second.pull("hub::me/imp", options=PullOptions(allow_downgrade=True)).created


def test_repository_that_vanishes_between_two_requests_is_told_from_one_that_changed(
    second: Registry, hub: Hub
) -> None:
    remote = second.open_remote(HUB)
    version = remote.resolve(Reference.parse("me/imp@1.0.0"))
    (file,) = parse_manifest(remote.get_manifest(version)).iter_files()
    hub.reborn(REPOSITORY)
    with pytest.raises(IdentityChangedError), remote.get(version, file):
        pytest.fail("that commit is gone")
    del hub.repositories.by_name[REPOSITORY]
    with pytest.raises(NotFoundError), remote.get(version, file):
        pytest.fail("that repository is gone")


# --- credentials ---------------------------------------------------------------------------------------------------


def test_token_goes_to_the_hub_and_to_no_other_origin(second: Registry, hub: Hub) -> None:
    second.pull("hub::me/imp")
    assert {bool(row.authorization) for row in hub.log if row.origin == "cdn"} == {False}
    assert all(row.authorization for row in hub.requests("GET", "/resolve/", "hub"))
    assert hub.requests("PUT", origin="cdn")


def test_endpoint_of_somebody_else_gets_no_token(
    second: Registry, hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "https://hub.example")
    second.add_remote(RemoteName("elsewhere"), f"{ADDRESS}?endpoint={hub.endpoint}")
    hub.log.clear()
    second.pull("elsewhere::me/imp")
    assert {row.authorization for row in hub.log} == {None}


@pytest.mark.parametrize(
    "uri",
    [
        "hf://",
        "hf://alice/imp",
        "hf://alice?token=x",
        "hf://alice?endpoint=ftp://x",
        "hf://alice?endpoint=http://hub.example",
        "hf://-alice",
        "hf://a--b",
        "hf://alice?private=maybe",
        "hf://alice#x",
        "hf://alice@evil",
    ],
)
def test_address_that_is_none_is_refused_before_anything_is_asked(uri: str) -> None:
    with pytest.raises(UsageError):
        HubAddress.parse(uri)


FAILURES: dict[str, tuple[Fault, type[ConceptryError], str]] = {
    "a page": (
        Fault("", times=99, status=200, body=b"<html>sign in</html>"),
        RemoteError,
        "cannot read|web page|commit",
    ),
    "no rights": (Fault("POST ", times=99, status=403), RemoteError, "may not do that"),
    "not logged in": (Fault("POST ", times=99, status=401), RemoteError, "does not accept your login"),
    "full": (Fault("POST .*commit", times=99, status=507), RemoteError, "has no room"),
    "down": (Fault("", times=99, status=503), RemoteError, "fails"),
    "closes": (Fault("", times=99, drop=True), RemoteError, "cannot be reached"),
}


@pytest.mark.parametrize("failure", FAILURES)
def test_hub_that_fails_is_told_in_a_sentence_without_the_token(
    registry: Registry, imp: Path, hub: Hub, failure: str
) -> None:
    fault, kind, words = FAILURES[failure]
    registry.publish(imp)
    hub.faults.add(fault)
    with pytest.raises(kind, match=words) as caught:
        registry.push("me/imp", ADDRESS)
    assert caught.value.exit_code == 5
    assert caught.value.hint
    (token,) = hub.tokens
    assert token not in f"{caught.value} {caught.value.hint} {caught.value!r}"


def test_revoked_token_is_told(second: Registry, hub: Hub) -> None:
    hub.tokens.clear()
    with pytest.raises(RemoteError, match=r"401|login"):
        second.pull("hub::me/imp")


def test_offline_asks_nothing(second: Registry, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    hub.log.clear()
    with pytest.raises(RemoteError, match="network is forbidden") as caught:
        second.pull("hub::me/imp")
    assert caught.value.exit_code == 5
    with pytest.raises(RemoteError, match="network is forbidden"):
        second.search_remote(HUB)
    assert hub.log == []


def test_hub_that_is_not_there_is_told(
    registry: Registry, imp: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.endpoint = "http://127.0.0.1:9"
    point_client(monkeypatch, hub)
    registry.publish(imp)
    with pytest.raises(RemoteError, match="cannot be reached"):
        registry.push("me/imp", ADDRESS)
    assert USER in ADDRESS


# --- single files of other repositories ----------------------------------------------------------------------------


@pytest.fixture
def theirs(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Give a repository with a file that is no concept, and the client an empty cache."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    hub.redirect_to_cdn = False  # client 1.33 takes another port of this machine for the Hub itself
    found = hub.repositories.create("bob/loras")
    hub.repositories.path(BLOB.hex).write_bytes(CONTENTS)
    hub.repositories.commit(found, "files", {"imp.safetensors": Entry(BLOB.hex, len(CONTENTS), lfs=True)}, ())
    return "bob/loras"


def test_file_of_a_repository_is_fetched_and_found_again_without_a_network(
    theirs: str, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert fetch_hub_file(theirs, "main", "imp.safetensors").read_bytes() == CONTENTS
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    hub.log.clear()
    assert fetch_hub_file(theirs, "main", "imp.safetensors").read_bytes() == CONTENTS
    with pytest.raises(RemoteError, match="not in the Hub's cache"):
        fetch_hub_file(theirs, "main", "other.safetensors")
    assert hub.log == []


def test_changed_byte_in_the_hubs_cache_is_found(theirs: str) -> None:
    path = fetch_hub_file(theirs, "main", "imp.safetensors").resolve()
    path.chmod(0o644)
    path.write_bytes(b"X" + CONTENTS[1:])
    with pytest.raises(IntegrityError, match="the bytes in the Hub's cache"):
        fetch_hub_file(theirs, "main", "imp.safetensors")


@pytest.mark.parametrize("name", ["bob/nothing", "bob/loras/x"])
def test_file_that_is_not_there_is_told(theirs: str, name: str) -> None:
    with pytest.raises((NotFoundError, RemoteError)):
        fetch_hub_file(name, "main", "imp.safetensors")
