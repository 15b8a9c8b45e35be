from __future__ import annotations

from pathlib import Path
from typing import Literal

import pytest
import torch

from conceptry.composer.fingerprints import identify_pipeline
from conceptry.composer.pipelines import encode_prompts
from conceptry.errors import UsageError
from conceptry.trainer.covariance import Covariance, compute_second_moment, load_covariance, read_captions
from tests.fakes.pipelines import make_pipeline
from tests.trainer.runs import CAPTIONS

Shape = Literal["sd1", "sd2", "sdxl"]


def load(shape: Shape, folder: Path, lines: list[str] | None = None, *, seed: int = 0) -> Covariance:
    pipeline = make_pipeline(shape, seed=seed)
    (folder / "lines.txt").write_text("\n".join(lines or CAPTIONS), encoding="utf-8")
    identity = identify_pipeline(pipeline)
    return load_covariance(pipeline, identity, captions=folder / "lines.txt", cache_folder=folder / "cache")


@pytest.mark.parametrize("shape", ["sd1", "sd2", "sdxl"])
def test_the_second_moment_counts_every_token_but_the_start_and_the_padding(shape: Shape) -> None:
    pipeline = make_pipeline(shape)
    lines = CAPTIONS[:5]
    rows = []
    for line, encoded in zip(lines, encode_prompts(pipeline, lines), strict=True):
        words = len(pipeline.tokenizer(line)["input_ids"])
        rows.append(
            encoded[1:words].detach().double()
        )  # words and end token, as the pipeline itself encodes them
    kept = torch.cat(rows)
    expected = kept.T @ kept / len(kept)
    error = compute_second_moment(pipeline, lines) - expected
    assert float(error.abs().max()) < 1e-4 * float(expected.diagonal().mean())


def test_solving_gives_the_inverse_of_c_with_its_ridge(tmp_path: Path) -> None:
    found = load("sd1", tmp_path)
    C = compute_second_moment(make_pipeline("sd1"), CAPTIONS)
    ridged = C + 1e-4 * C.trace() / len(C) * torch.eye(len(C), dtype=torch.float64)
    vector = torch.randn(len(C), generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(found.solve(vector), torch.linalg.solve(ridged, vector.double()))


def test_the_blocks_of_two_encoders_are_brought_to_one_size(tmp_path: Path) -> None:
    found = load("sdxl", tmp_path)
    C = compute_second_moment(make_pipeline("sdxl"), CAPTIONS)
    first, second = C.diagonal()[:24].mean(), C.diagonal()[24:].mean()
    ridge = torch.cat([first.expand(24), second.expand(40)]) * 1e-4
    vector = torch.randn(64, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(found.solve(vector), torch.linalg.solve(C + ridge.diag(), vector.double()))


def test_the_id_names_encoders_captions_and_pooling(tmp_path: Path) -> None:
    ids = [
        load("sd1", tmp_path).id,
        load("sd1", tmp_path, seed=1).id,
        load("sd1", tmp_path, CAPTIONS[:20]).id,
    ]
    assert len(set(ids)) == 3
    assert load("sd1", tmp_path).id == ids[0]


def test_it_is_computed_once_for_a_base_and_then_read(tmp_path: Path) -> None:
    first = load("sd1", tmp_path)
    (path,) = (tmp_path / "cache" / "covariance").iterdir()
    before = path.stat().st_mtime_ns
    assert torch.equal(load("sd1", tmp_path).factor, first.factor)
    assert path.stat().st_mtime_ns == before
    path.write_bytes(b"damaged")
    assert torch.equal(load("sd1", tmp_path).factor, first.factor)
    assert path.read_bytes() != b"damaged"


@pytest.mark.parametrize("family", ["sd1", "sdxl", "toybox"])
def test_ten_thousand_captions_are_shipped(family: str) -> None:
    assert len(read_captions(family, None)) >= 10_000


def test_the_shipped_lists_are_what_their_grammars_write() -> None:
    from conceptry.trainer.caption_grammar import write_captions
    from docs.toybox_captions import write_lines

    assert list(read_captions("sd1", None)) == write_captions()
    assert list(read_captions("toybox", None)) == write_lines()


def test_an_unreadable_or_empty_caption_list_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty.txt").write_text("\n \n", encoding="utf-8")
    (tmp_path / "binary.txt").write_bytes(b"\xff\xfe\x00")
    for name in ("empty.txt", "binary.txt", "missing.txt"):
        with pytest.raises(UsageError) as caught:
            read_captions("sd1", tmp_path / name)
        assert caught.value.where == "captions"
