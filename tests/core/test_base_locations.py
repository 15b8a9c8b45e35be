"""What ``--base`` accepts, and what it says when nothing is meant by it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from conceptry.base_locations import BaseLocation, detect_family, resolve_base
from conceptry.errors import InvalidNameError, NotFoundError

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def write_folder(folder: Path, unet: dict[str, Any], **encoders: int) -> Path:
    for name, config in {
        "unet": {"_class_name": "UNet2DConditionModel", **unet},
        **{name: {"hidden_size": width} for name, width in encoders.items()},
    }.items():
        (folder / name).mkdir(parents=True)
        (folder / name / "config.json").write_text(json.dumps(config))
    (folder / "model_index.json").write_text("{}")
    return folder


@pytest.fixture
def sd1(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "base", {"cross_attention_dim": 768}, text_encoder=768)


def test_a_family_id_declares_a_base_and_names_no_path() -> None:
    assert resolve_base("sdxl", {}) == BaseLocation(kind="family", family="sdxl")  # type: ignore[arg-type]


def test_a_diffusers_folder_is_found_with_its_family(sd1: Path) -> None:
    found = resolve_base(str(sd1), {})
    assert (found.kind, found.path, found.family) == ("folder", sd1.resolve(), "sd1")


def test_a_name_that_the_user_gave_leads_to_its_folder(sd1: Path) -> None:
    assert resolve_base("work-model", {"work-model": sd1}).path == sd1.resolve()


def test_a_folder_without_a_model_index_is_refused_by_its_name(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match=r"without model_index.json"):
        resolve_base(str(tmp_path), {})


def test_a_single_file_checkpoint_is_a_base_of_a_family_that_only_its_weights_tell(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    file.write_bytes(b"")
    assert resolve_base(str(file), {}) == BaseLocation(kind="file", path=file.resolve())


def test_a_checkpoint_that_could_run_code_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "model.ckpt"
    file.write_bytes(b"")
    with pytest.raises(NotFoundError) as caught:
        resolve_base(str(file), {})
    assert caught.value.hint is not None
    assert "convert" in caught.value.hint


@pytest.mark.parametrize(
    ("text", "near"), [("toybx", "toybox"), ("sdx", "sdxl"), ("work-modl", "work-model")]
)
def test_an_unknown_base_is_answered_with_the_nearest_name(text: str, near: str, tmp_path: Path) -> None:
    with pytest.raises(NotFoundError) as caught:
        resolve_base(text, {"work-model": tmp_path})
    assert caught.value.exit_code == 3
    assert text in caught.value.message
    assert caught.value.hint == f"did you mean '{near}'?"


def test_a_name_whose_folder_is_gone_says_where_it_was(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="gone"):
        resolve_base("mine", {"mine": tmp_path / "gone"})


def make_cache(cache: Path, ref: str | None) -> Path:
    model = cache / "models--org--model"
    write_folder(model / "snapshots" / COMMIT, {"cross_attention_dim": 1024}, text_encoder=1024)
    if ref is not None:
        (model / "refs").mkdir()
        (model / "refs" / ref).write_text(COMMIT)
    return model


@pytest.mark.parametrize("text", ["hf://org/model", "hf://org/model@main", f"hf://org/model@{COMMIT}"])
def test_a_repository_is_found_in_the_local_cache(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    model = make_cache(tmp_path, "main")
    found = resolve_base(text, {})
    assert found.path == (model / "snapshots" / COMMIT).resolve()
    assert (found.family, found.repo, found.revision) == ("sd2", "org/model", COMMIT)


def test_a_repository_outside_the_cache_is_not_fetched_but_its_download_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(NotFoundError) as caught:
        resolve_base("hf://org/other@v1", {})
    assert caught.value.hint == "hf download org/other --revision v1"


@pytest.mark.parametrize(
    "text", ["hf://model", "hf://org/model@../../x", "hf://org/model@v1/unet.bin x", "hf://../x"]
)
def test_text_that_is_no_repository_is_refused(text: str) -> None:
    with pytest.raises(InvalidNameError):
        resolve_base(text, {})


@pytest.mark.parametrize(
    ("unet", "encoders", "family"),
    [
        ({"cross_attention_dim": 128}, {"text_encoder": 128}, "toybox"),
        ({"cross_attention_dim": 768}, {"text_encoder": 768}, "sd1"),
        ({"cross_attention_dim": 1024}, {"text_encoder": 1024}, "sd2"),
        ({"cross_attention_dim": 2048}, {"text_encoder": 768, "text_encoder_2": 1280}, "sdxl"),
        ({"cross_attention_dim": 24}, {"text_encoder": 24}, "sd1"),
        ({"cross_attention_dim": 24, "use_linear_projection": True}, {"text_encoder": 24}, "sd2"),
        ({"cross_attention_dim": 64}, {"text_encoder": 24, "text_encoder_2": 40}, "sdxl"),
        ({"_class_name": "SomeTransformer"}, {"text_encoder": 7}, None),
    ],
)
def test_widths_and_structure_tell_the_family(
    unet: dict[str, Any], encoders: dict[str, int], family: str | None
) -> None:
    assert detect_family(unet, encoders) == family


@pytest.mark.parametrize(
    ("variable", "below"), [(None, ".cache/huggingface/hub"), ("XDG_CACHE_HOME", "huggingface/hub")]
)
def test_a_cache_that_nobody_named_is_where_the_hub_client_keeps_it(
    variable: str | None, below: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(variable or "HOME", str(tmp_path))
    model = make_cache(tmp_path / below, "main")
    assert resolve_base("hf://org/model", {}).path == (model / "snapshots" / COMMIT).resolve()
