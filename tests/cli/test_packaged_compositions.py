"""Compositions that are concepts: published, shared, locked and used by their names like any other."""

from __future__ import annotations

import json
import shutil
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from conceptry.digests import Digest
from conceptry.registry import Registry
from tests.cli.conftest import Run
from tests.cli.packages import write_package
from tests.cli.test_pictures import read_facts, read_pixels

pytestmark = pytest.mark.filterwarnings(
    "ignore"
)  # other libraries' remarks; the command line keeps them quiet

USED = (
    "--schedule",
    "me/look:..0.9",
    "--part",
    "me/look:text_encoder=0.5",
    "--way",
    "switch",
    "--period",
    "1",
)


@pytest.fixture
def both(run: Run, imp: str, look: str) -> str:
    """Give a published composition of two concepts, used by turns."""
    run("compose", "me/imp*2", "me/look*0.5", *USED, "--publish", "me/both", "--title", "Two")
    return "me/both@0.1.0"


@pytest.fixture
def studio(run: Run, tmp_path: Path) -> str:
    """Give the address of an empty remote that is known by its name."""
    uri = (tmp_path / "studio").as_uri()
    run("remote", "add", "studio", uri)
    return uri


def move_to_an_empty_store(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str = "elsewhere") -> None:
    monkeypatch.setenv("CONCEPTRY_HOME", str(tmp_path / name))


def read_manifest(reference: str) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(Registry().manifest(reference).to_bytes())
    return document


def write_composition(
    folder: Path, name: str, members: list[tuple[str, str, str]], *, way: str = "sum", base: str = ""
) -> Path:
    """Returns a folder with a composition as anybody could write it by hand."""
    folder.mkdir()
    said = "".join(
        f'[[concepts]]\nreference = "{concept}@{digest}"\nstrength = 1.0\n' for concept, _, digest in members
    )
    plan = f'schema = 1\n{base}way = "{way}"\n{said}'
    (folder / "composition.toml").write_text(plan, encoding="utf-8")
    data = plan.encode()
    file = {
        "path": "composition.toml",
        "role": "document",
        "media_type": "application/toml",
        "size": len(data),
        "sha256": str(Digest.of_bytes(data)),
    }
    named = [{"concept": one, "version": version, "digest": digest} for one, version, digest in members]
    method = {"kind": "composition", "members": named}
    made_for = {"family": "sd1", "architecture": "stable-diffusion-v1", "prediction_type": "epsilon"}
    manifest = {
        "schema": 1,
        "name": name,
        "version": "1.0.0",
        "requires": [f"{one}@{version}" for one, version, _ in members],
        "builds": [
            {
                "id": "c",
                "base": made_for,
                "parts": [{"kind": "composition", "method": method, "files": [file]}],
            }
        ],
    }
    (folder / "concept.json").write_text(json.dumps(manifest), encoding="utf-8")
    return folder


# --- what is published ---------------------------------------------------------------------------------------------


def test_a_composition_names_its_concepts_by_digest_and_holds_no_path(run: Run, both: str) -> None:
    manifest = read_manifest(both)
    digests = {name: run("show", name, "--json").document["digest"] for name in ("me/imp", "me/look")}
    (part,) = manifest["builds"][0]["parts"]
    assert (part["kind"], manifest["title"]) == ("composition", "Two")
    assert part["method"]["members"] == [
        {"concept": "me/imp", "version": "1.0.0", "digest": digests["me/imp"]},
        {"concept": "me/look", "version": "2.0.0", "digest": digests["me/look"]},
    ]
    assert manifest["requires"] == ["me/imp@1.0.0", "me/look@2.0.0"]
    assert [token["placeholder"] for token in manifest["tokens"]] == ["<imp>", "<look>"]
    concept = Registry().get(both)
    (file,) = concept.manifest.iter_files()
    plan = tomllib.loads(concept.locate(file).read_text(encoding="utf-8"))
    assert plan == {
        "schema": 1,
        "way": "switch",
        "period": 1,
        "concepts": [
            {"reference": f"me/imp@{digests['me/imp']}", "strength": 2.0},
            {
                "reference": f"me/look@{digests['me/look']}",
                "strength": 0.5,
                "parts": {"text_encoder": 0.5},
                "schedule": {"start": 0.0, "stop": 0.9, "ramp": 0.0},
            },
        ],
    }
    assert list(Path().iterdir()) == []


def test_the_same_composition_has_the_same_digest_wherever_its_base_lies(
    run: Run, imp: str, look: str, base: Path
) -> None:
    first = run("compose", imp, look, "--publish", "me/both", "--json").document["published"]
    again = run("compose", imp, look, "--publish", "me/both", "--base", str(base), "--json").document[
        "published"
    ]
    assert (again["digest"], again["created"]) == (first["digest"], False)
    other = run("compose", imp, f"{look}*0.5", "--publish", "me/both", code=8)
    assert "me/both@0.1.0" in other.err


def test_the_licence_is_what_all_of_them_permit(run: Run, imp: str, tmp_path: Path) -> None:
    deed = {"spdx": "CC-BY-NC-4.0"}
    run("publish", str(write_package(tmp_path / "far", "me/far", license=deed, authors=["ann"])))
    run("compose", "me/imp", "me/far", "--publish", "me/both")
    manifest = read_manifest("me/both")
    assert manifest["license"]["permissions"]["commercial"] == "no"
    assert manifest["license"]["permissions"]["credit_required"] == "yes"
    assert manifest["license"]["name"] == "several: CC0-1.0 (me/imp@1.0.0), CC-BY-NC-4.0 (me/far@1.0.0)"
    assert manifest["authors"] == ["ann"]


def test_a_composition_in_a_composition_is_its_concepts_times_its_strength(
    run: Run, both: str, tmp_path: Path
) -> None:
    token = {"placeholder": "<far>"}
    run(
        "publish",
        str(write_package(tmp_path / "far", "me/far", modules=("unet.mid_block.x",), tokens=[token])),
    )
    document = run("compose", f"{both}*0.5", "me/far", "--publish", "me/three", "--json").document
    assert [(row["reference"], row["strength"]) for row in document["concepts"]] == [
        ("me/imp@1.0.0", 1.0),
        ("me/look@2.0.0", 0.25),
        ("me/far@1.0.0", 1.0),
    ]
    assert document["way"] == "switch"
    assert read_manifest("me/three")["requires"] == ["me/imp@1.0.0", "me/look@2.0.0", "me/far@1.0.0"]


# --- how it is shared ----------------------------------------------------------------------------------------------


def test_pulling_brings_what_it_names_and_pictures_are_those_of_its_concepts(
    run: Run, both: str, studio: str, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawing = ("--prompt", "a photo of <imp> and <look>", "--steps", "3", "--base", str(base), "-q")
    run("generate", "--with", "me/imp*2", "--with", "me/look*0.5", *USED, *drawing, "--out", "direct")
    sent = run("push", both, "studio", "--json").document
    assert [row["reference"] for row in sent["members"]] == ["me/imp@1.0.0", "me/look@2.0.0"]
    assert run("push", both, "studio", "--json").document["members"] == []
    move_to_an_empty_store(monkeypatch, tmp_path)
    assert "studio" in run("pull", "studio::me/both", code=3).err
    run("remote", "add", "studio", studio)
    rows = run("pull", "studio::me/both", "--json").document["concepts"]
    assert [row["reference"] for row in rows] == [both, "me/imp@1.0.0", "me/look@2.0.0"]
    run("generate", "--with", "me/both", *drawing, "--out", "named")
    direct, named = (Path(out, "000.png") for out in ("direct", "named"))
    assert named.read_bytes() == direct.read_bytes()
    assert read_facts(named)["composition"]["way"] == "switch"
    run("generate", "--with", "me/both*0.1", *drawing, "--out", "weak")
    assert not np.array_equal(read_pixels(Path("weak/000.png")), read_pixels(named))
    assert run("reproduce", str(named), "--base", str(base), "-q").out == "same_bytes\n"
    assert run("verify", "--json").document["ok"]


def test_a_mask_of_a_region_travels_in_the_package(
    run: Run, imp: str, studio: str, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = np.zeros((64, 64), np.uint8)
    values[:, :32] = 255
    mask = tmp_path / "left.png"
    Image.fromarray(values).save(mask)
    drawing = ("--prompt", "a photo of <imp> creature", "--steps", "2", "--base", str(base), "-q")
    run("generate", "--with", f"{imp}*9", "--region", f"me/imp:{mask}", *drawing, "--out", "direct")
    run("compose", f"{imp}*9", "--region", f"me/imp:{mask}", "--publish", "me/left")
    run("push", "me/left", studio)
    move_to_an_empty_store(monkeypatch, tmp_path)
    mask.unlink()
    run("remote", "add", "studio", studio)
    run("pull", "studio::me/left")
    run("generate", "--with", "me/left", *drawing, "--out", "named")
    assert Path("named/000.png").read_bytes() == Path("direct/000.png").read_bytes()


def test_a_composition_is_locked_with_what_it_names(
    run: Run, both: str, studio: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run("push", both, "studio")
    run("add", "studio::me/both")
    assert run("tree").out == "me/both 0.1.0 (^0.1)\n  me/imp 1.0.0 (1.0.0)\n  me/look 2.0.0 (2.0.0)\n"
    move_to_an_empty_store(monkeypatch, tmp_path)
    installed = run("sync", "--frozen", "--json").document["installed"]
    assert sorted(installed) == [both, "me/imp@1.0.0", "me/look@2.0.0"]
    assert len(run("check", "me/both", "--json").document["concepts"]) == 2


def test_what_it_names_may_lie_on_another_remote(
    run: Run, both: str, studio: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    second = (tmp_path / "second").as_uri()
    run("push", both, "studio", "--alone")
    for name in ("me/imp", "me/look"):
        run("push", name, second)
    move_to_an_empty_store(monkeypatch, tmp_path)
    run("remote", "add", "studio", studio)
    missing = run("pull", "studio::me/both", code=3)
    assert "me/both@0.1.0 names me/imp@1.0.0 with the digest" in missing.err
    assert "which is not on file://" in missing.err
    assert run("list", "-q").out == ""
    run("remote", "add", "second", second)
    rows = run("pull", "studio::me/both", "--json").document["concepts"]
    assert {row["remote"] for row in rows[1:]} == {second}


# --- what is refused -----------------------------------------------------------------------------------------------


def test_a_concept_that_is_gone_is_named(run: Run, both: str) -> None:
    run("remove", "me/look", "--yes")
    for words in (("check", "me/both"), ("compose", "me/both", "--out", "two.toml")):
        said = run(*words, code=3)
        assert "me/both@0.1.0 names me/look@2.0.0 with the digest" in said.err
        assert "hint: concepts pull REMOTE::me/both@0.1.0 brings what it names" in said.err
    assert list(Path().iterdir()) == []


def test_a_yanked_concept_goes_into_no_new_composition_and_no_new_lock(
    run: Run, both: str, studio: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run("push", both, "studio")
    run("yank", "studio::me/look@2.0.0", "--reason", "it shows somebody")
    move_to_an_empty_store(monkeypatch, tmp_path)
    run("remote", "add", "studio", studio)
    refused = run("add", "studio::me/both", code=6)
    assert "needs me/look 2.0.0" in refused.err
    assert "(yanked: it shows somebody)" in refused.err
    assert not Path("concepts.lock").exists()
    told = run("pull", "studio::me/both")
    assert "warning: me/look@2.0.0 was yanked: it shows somebody" in told.err
    run("yank", "me/look@2.0.0", "--reason", "it shows somebody")
    new = run("compose", "me/imp", "me/look@2.0.0", "--publish", "me/new", code=6)
    assert "me/look@2.0.0 was yanked: it shows somebody" in new.err
    assert "me/new" not in run("list", "-q").out


def test_a_circle_is_refused_wherever_it_is_met(
    run: Run, imp: str, studio: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    false = str(Digest.of_bytes(b"nobody can know it"))
    run("publish", str(write_composition(tmp_path / "b", "me/b", [("me/a", "1.0.0", false)])))
    digest = run("show", "me/b", "--json").document["digest"]
    run("publish", str(write_composition(tmp_path / "a", "me/a", [("me/b", "1.0.0", digest)])))
    for words in (("check", "me/a"), ("compose", "me/a", "--publish", "me/c")):
        assert "me/a@1.0.0 names me/b@1.0.0, which is a composition itself" in run(*words, code=6).err
    for name in ("me/b", "me/a"):
        run("push", name, "studio", "--alone")
    run("add", "studio::me/a", code=6)
    assert not Path("concepts.lock").exists()
    move_to_an_empty_store(monkeypatch, tmp_path)
    run("remote", "add", "studio", studio)
    assert "which is a composition itself" in run("pull", "studio::me/a", code=6).err
    assert run("list", "-q").out == ""
    itself = write_composition(tmp_path / "own", "me/own", [("me/own", "1.0.0", false)])
    assert "the composition me/own names itself" in run("publish", str(itself), code=4).err
    assert "me/imp is one of the concepts" in run_compose_named_as_its_own(run, tmp_path)


def test_a_lock_takes_no_other_concept_than_the_one_that_is_named(
    run: Run, imp: str, studio: str, tmp_path: Path
) -> None:
    false = str(Digest.of_bytes(b"another imp"))
    run("publish", str(write_composition(tmp_path / "odd", "me/odd", [("me/imp", "1.0.0", false)])))
    run("push", imp, "studio")
    conflict = run("push", "me/odd", "studio", code=8)
    assert "me/odd@1.0.0 names me/imp@1.0.0 with the digest" in conflict.err
    run("push", "me/odd", "studio", "--alone")
    refused = run("add", "studio::me/odd", code=9)
    assert "me/odd@1.0.0 names me/imp@1.0.0 with the digest" in refused.err
    assert not Path("concepts.lock").exists()
    assert "which is not on file://" in run("pull", "studio::me/odd", code=3).err


def test_what_nobody_may_pass_on_is_not_pushed_along(run: Run, imp: str, studio: str, tmp_path: Path) -> None:
    closed = {"name": "mine", "permissions": {"redistribution": "no"}}
    run("publish", str(write_package(tmp_path / "own", "me/own", license=closed)))
    run("compose", imp, "me/own", "--publish", "me/both")
    refused = run("push", "me/both", "studio", code=6)
    assert "its licence lets nobody pass it on" in refused.err
    assert not (tmp_path / "studio" / "refs").exists()
    assert run("push", "me/both", "studio", "--alone", "--json").document["members"] == []


def test_a_file_that_nobody_published_is_not_pushed_along(
    run: Run, imp: str, studio: str, tmp_path: Path
) -> None:
    run("init", "--base", "sd1")
    shutil.copytree(tmp_path / "imp", "files")
    run(
        "add",
        "./files/lora.safetensors",
        "--name",
        "me/hat",
        "--placeholder",
        "<hat>",
        "--license",
        "CC0-1.0",
    )
    run("sync")
    run("compose", imp, "me/hat", "--publish", "me/both")
    refused = run("push", "me/both", "studio", code=2)
    assert "which was made of somebody's file on this machine" in refused.err
    assert not (tmp_path / "studio" / "refs").exists()


def run_compose_named_as_its_own(run: Run, tmp_path: Path) -> str:
    shutil.rmtree(tmp_path / "imp")
    run("publish", str(write_package(tmp_path / "imp")))
    return run("compose", "me/imp", "--publish", "me/imp", code=2).err


def test_a_base_that_does_not_fit_is_refused_by_the_name_of_the_concept(
    run: Run, both: str, studio: str
) -> None:
    wrong = run("check", "me/both", "--base", "sdxl", code=6)
    assert "me/imp@1.0.0 does not fit this base" in wrong.err
    run("push", both, "studio")
    run("init", "--base", "sdxl")
    before = Path("concepts.toml").read_bytes()
    assert "has no build for sdxl, only for sd1" in run("add", "studio::me/both", code=6).err
    assert Path("concepts.toml").read_bytes() == before
    made = ("compose", "me/both", "--base", "sdxl", "--publish", "me/xl")
    assert "does not fit this base" in run(*made, code=6).err
    assert "me/xl" not in run("list", "-q").out


@pytest.mark.parametrize(
    ("members", "options", "said"),
    [
        (("me/both", "me/imp"), (), "me/imp is named twice: in me/both@0.1.0 and by itself"),
        (("me/both", "me/other"), (), "in different ways: me/both@0.1.0 by switch, me/other@1.0.0 by focus"),
        (("me/both*9",), (), "less than or equal to 10"),
        (("me/both",), ("--schedule", "me/both:..0.5"), "'me/both', which is not in the composition"),
        (("me/both",), ("--version", "1.0.0"), "--version is of --publish"),
    ],
)
def test_what_compositions_cannot_do_together_is_refused(
    run: Run, both: str, tmp_path: Path, members: tuple[str, ...], options: tuple[str, ...], said: str
) -> None:
    run("publish", str(write_package(tmp_path / "far", "me/far", tokens=[{"placeholder": "<far>"}])))
    far = run("show", "me/far", "--json").document["digest"]
    named = [("me/far", "1.0.0", far)]
    run("publish", str(write_composition(tmp_path / "other", "me/other", named, way="focus")))
    assert said in run("compose", *members, *options, "--out", "x.toml", code=2).err
    assert list(Path().iterdir()) == []
    if "me/other" in members:
        document = run("compose", *members, "--way", "sum", "--out", "x.toml", "--json").document
        assert (document["way"], len(document["concepts"])) == ("sum", 3)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"base": 'base = "/home/me/model"\n'}, "names a base or a remote, which no package does"),
        ({"way": "sideways"}, "Input should be 'sum'"),
    ],
)
def test_a_plan_that_is_malformed_is_refused(
    run: Run, imp: str, tmp_path: Path, change: dict[str, str], said: str
) -> None:
    digest = run("show", imp, "--json").document["digest"]
    folder = write_composition(tmp_path / "odd", "me/odd", [("me/imp", "1.0.0", digest)], **change)
    run("publish", str(folder))
    refused = run("check", "me/odd", code=4)
    assert said in refused.err
    assert "me/odd@1.0.0" in refused.err


def test_a_plan_that_names_others_than_its_manifest_is_refused(run: Run, both: str, tmp_path: Path) -> None:
    digest = run("show", "me/imp", "--json").document["digest"]
    folder = write_composition(tmp_path / "odd", "me/odd", [("me/imp", "1.0.0", digest)])
    manifest = json.loads((folder / "concept.json").read_text())
    manifest["builds"][0]["parts"][0]["method"]["members"][0]["concept"] = "me/look"
    manifest["requires"] = ["me/look@1.0.0"]
    (folder / "concept.json").write_text(json.dumps(manifest))
    run("publish", str(folder))
    assert "names other concepts than its manifest" in run("check", "me/odd", code=4).err
    manifest["requires"] = []
    (folder / "concept.json").write_text(json.dumps(manifest))
    assert "which requires does not" in run("publish", str(folder), code=4).err


def test_no_other_program_reads_it_and_the_command_that_writes_it_is_named(run: Run, both: str) -> None:
    refused = run("export", "me/both", "--for", "kohya", "--to", "x.safetensors", code=6)
    assert "concepts compose REF --export writes them added up" in refused.err
