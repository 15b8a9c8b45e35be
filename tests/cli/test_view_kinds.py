"""``concepts view`` of words, of words with an adapter and of fine-tunes; of several together; past planted links."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from conceptry.formats.header import read_header
from conceptry.formats.tensors import read_tensors
from tests.cli.conftest import Run
from tests.cli.packages import write_package
from tests.cli.test_view import files_in
from tests.cli.view_packages import PICTURE, add_picture, write_fine_tune, write_words

FOLDERS = {
    "comfyui": ("loras", "embeddings"),
    "a1111": ("Lora", "embeddings"),
    "invokeai": ("lora", "embedding"),
}


def weights_in(folder: Path) -> list[str]:
    return [name for name in files_in(folder) if name.endswith(".safetensors")]


@pytest.mark.parametrize("program", FOLDERS)
def test_words_and_their_adapter_go_where_the_program_looks_for_each(
    run: Run, tmp_path: Path, program: str
) -> None:
    run("publish", str(write_words(tmp_path / "p", "me/imp", "<s0>", "<s1>", with_lora=True)))
    run("view", "me/imp", "--for", program, "--to", "models")
    loras, embeddings = FOLDERS[program]
    assert weights_in(Path("models")) == sorted(
        [
            f"{embeddings}/me/imp-s0.safetensors",
            f"{embeddings}/me/imp-s1.safetensors",
            f"{loras}/me/imp.safetensors",
        ]
    )


def test_two_concepts_with_the_same_words_both_keep_theirs(run: Run, tmp_path: Path) -> None:
    for name in ("imp", "other"):
        run("publish", str(write_words(tmp_path / name, f"me/{name}", "<s0>", "<s1>", with_lora=True)))
    view = ("view", "--for", "comfyui", "--to", "models")
    said = run(*view, "me/imp", "me/other", "--json").document["written"]
    assert len(said) == len(set(said))
    assert len(weights_in(Path("models"))) == 6
    assert run(*view, "me/imp", "me/other", "--json").document["written"] == []
    removed = run(*view, "me/other", "--json").document["removed"]
    assert {name for name in removed if name.endswith(".safetensors")} == {
        "loras/me/imp.safetensors",
        "embeddings/me/imp-s0.safetensors",
        "embeddings/me/imp-s1.safetensors",
    }
    assert len(weights_in(Path("models"))) == 3


def test_a_word_is_called_by_what_the_warning_says(run: Run, tmp_path: Path) -> None:
    run("publish", str(write_words(tmp_path / "p", "me/imp", "<s0>", "<s1>", with_lora=True)))
    warned = run("view", "me/imp", "--for", "a1111", "--to", "models").err
    assert "<s0> is called by 'imp-s0'" in warned
    warned = run("view", "me/imp", "--for", "comfyui", "--to", "models2").err
    assert "<s0> is called by 'embedding:me/imp-s0'" in warned


@pytest.mark.parametrize("words", [("<imp>",), ("<imp>", "<ink>")])
def test_words_alone_keep_their_values_on_the_way(run: Run, tmp_path: Path, words: tuple[str, ...]) -> None:
    run("publish", str(write_words(tmp_path / "p", "me/imp", *words, seed=3.0)))
    run("view", "me/imp", "--for", "a1111", "--to", "models")
    placed = weights_in(Path("models"))
    assert len(placed) == len(words)
    for number, name in enumerate(placed):
        (row,) = read_tensors(Path("models") / name).values()
        assert float(row.to_numpy()[0, 0]) == 3.0 + number


@pytest.mark.parametrize("link", [None, "copy"])
def test_two_versions_that_would_be_one_file_are_refused_before_any_is_written(
    run: Run, imp: str, tmp_path: Path, link: str | None
) -> None:
    run("publish", str(write_package(tmp_path / "next", version="1.1.0", title="Larger imp")))
    how = () if link is None else ("--as-stored", link)
    view = ("view", imp, "me/imp@1.1.0", "--for", "comfyui", "--to", "models", *how)
    said = run(*view, code=8).err
    assert "me/imp@1.0.0 and me/imp@1.1.0 would both be 'loras/me/imp.safetensors'" in said
    assert not Path("models").exists()


def test_a_word_that_two_concepts_share_is_refused_and_not_lost(run: Run, tmp_path: Path) -> None:
    for name in ("imp", "Other"):
        word = "<x>" if name == "imp" else "<X>"
        run("publish", str(write_words(tmp_path / name, f"me/{name.lower()}", word)))
    said = run("view", "me/imp", "me/other", "--for", "a1111", "--to", "models", code=8).err
    assert "would both be 'embeddings/me/" in said
    assert not Path("models").exists()


def test_a_concept_that_is_named_twice_is_placed_once(run: Run, imp: str) -> None:
    said = run("view", imp, "me/imp", "--for", "comfyui", "--to", "models", "--json").document["written"]
    assert len(said) == len(set(said))


@pytest.mark.parametrize(
    ("program", "link"),
    [("comfyui", None), ("comfyui", "copy"), ("comfyui", "symbolic"), ("a1111", None), ("invokeai", "hard")],
)
def test_a_fine_tune_of_some_tensors_is_refused_as_exporting_it_is(
    run: Run, tmp_path: Path, link: str | None, program: str
) -> None:
    run("publish", str(write_fine_tune(tmp_path / "p", "me/full", changed=1, total=686)))
    how = () if link is None else ("--as-stored", link)
    view = ("view", "me/full", "--for", program, "--to", "models", *how)
    finished = run(*view, code=6)
    assert (
        f"{program} cannot hold a full fine-tune: me/full@1.0.0 has 1 of the base's 686 tensors"
        in finished.err
    )
    assert "hint: concepts compose me/full@1.0.0 --export full.safetensors --for checkpoint" in finished.err
    assert not Path("models").exists()
    run("export", "me/full", "--for", "comfyui", "--to", "out", code=6)


@pytest.mark.parametrize("planted", ["loras/me", "embeddings/me"])
def test_a_planted_link_below_the_folder_of_a_kind_is_never_followed(
    run: Run, tmp_path: Path, planted: str
) -> None:
    run("publish", str(write_words(tmp_path / "p", "me/imp", "<s0>", "<s1>", with_lora=True)))
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    place = Path("models") / planted
    place.parent.mkdir(parents=True)
    place.symlink_to(elsewhere)
    for how in ((), ("--as-stored", "copy"), ("--as-stored", "hard")):
        finished = run("view", "me/imp", "--for", "comfyui", "--to", "models", *how, code=8)
        assert f"{planted}' is a link, which a view does not follow" in finished.err
    assert list(elsewhere.iterdir()) == []
    assert [path.name for path in Path("models").iterdir()] == [planted.partition("/")[0]]


def test_what_lies_behind_a_link_that_took_a_folders_place_stays(run: Run, imp: str, tmp_path: Path) -> None:
    run("view", imp, "--for", "comfyui", "--to", "models")
    elsewhere = tmp_path / "elsewhere"
    os.rename("models/loras/me", elsewhere)
    Path("models/loras/me").symlink_to(elsewhere)
    before = files_in(elsewhere)
    finished = run("view", "--for", "comfyui", "--to", "models")
    assert "loras/me/imp.safetensors was changed by somebody else and stays" in finished.err
    assert files_in(elsewhere) == before


def test_the_folder_of_a_kind_may_be_a_link_to_another_disk(run: Run, imp: str, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    Path("models").mkdir()
    Path("models/loras").symlink_to(elsewhere)
    for how in ((), ("--as-stored", "copy"), ("--as-stored", "symbolic")):
        run("view", imp, "--for", "comfyui", "--to", "models", *how)
        assert (elsewhere / "me" / "imp.safetensors").exists()
    assert not [name for name in files_in(elsewhere) if name.rpartition("/")[2].startswith(".")]


def test_a_link_in_the_place_of_a_file_is_a_strangers(run: Run, imp: str, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_bytes(b"mine")
    place = Path("models/loras/me/imp.safetensors")
    place.parent.mkdir(parents=True)
    place.symlink_to(victim)
    for how in ((), ("--as-stored", "copy")):
        run("view", imp, "--for", "comfyui", "--to", "models", *how, code=8)
    assert victim.read_bytes() == b"mine"


@pytest.mark.parametrize(
    ("program", "beside"),
    [
        ("comfyui", ["imp.metadata.json"]),
        ("a1111", ["imp.civitai.info", "imp.json"]),
        ("invokeai", ["imp.json"]),
    ],
)
@pytest.mark.parametrize("link", [None, "symbolic"])
def test_a_lora_has_beside_it_what_its_program_reads(
    run: Run, imp: str, program: str, beside: list[str], link: str | None
) -> None:
    how = () if link is None else ("--as-stored", link)
    view = ("view", imp, "--for", program, "--to", "models", *how)
    run(*view)
    folder = Path("models") / FOLDERS[program][0] / "me"
    assert files_in(folder) == sorted([*beside, "imp.safetensors"])
    assert "<imp>" in (folder / beside[-1]).read_text(encoding="utf-8")
    assert run(*view, "--json").document["written"] == []
    run("view", "--for", program, "--to", "models")
    assert files_in(Path("models")) == [".conceptry-view.json"]


@pytest.mark.parametrize(
    ("program", "name", "link"), [("a1111", "imp.preview.png", None), ("invokeai", "imp.png", "hard")]
)
def test_the_picture_of_a_concept_is_called_as_its_program_looks_for_it(
    run: Run, tmp_path: Path, program: str, name: str, link: str | None
) -> None:
    folder = write_package(tmp_path / "imp")
    add_picture(folder)
    run("publish", str(folder))
    how = () if link is None else ("--as-stored", link)
    run("view", "me/imp", "--for", program, "--to", "models", *how)
    placed = Path("models") / FOLDERS[program][0] / "me" / name
    assert placed.read_bytes() == PICTURE
    assert read_header(placed.with_name("imp.safetensors")).tensors
