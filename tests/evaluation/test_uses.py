"""Uses of concepts: skew before and after, pictures drawn over, and results as files."""

from __future__ import annotations

import json
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from conceptry.errors import InvalidFileError, NotFoundError, UsageError
from conceptry.evaluation.bias import (
    VALUES,
    bound_skew,
    expect_by_chance,
    measure_bias,
    measure_skew,
    render_skewed,
)
from conceptry.evaluation.clip_dino import ClipDinoJudge, load_models
from conceptry.evaluation.drawing_over import draw_over, measure_change, transfer_style, vary_pictures
from conceptry.evaluation.examination import Drawing
from conceptry.evaluation.judges import ToyboxJudge
from conceptry.evaluation.pages import Figure
from conceptry.evaluation.protocols import load_plain_prompt
from conceptry.evaluation.references import References, render_references
from conceptry.evaluation.use_context import Artist, Teaching, UseContext, find_artist, teach_artist
from conceptry.evaluation.use_page import make_use_page
from conceptry.evaluation.use_results import UseResult, read_uses, write_use
from conceptry.evaluation.uses import USES, find_use
from conceptry.toybox.examples import held_out_instance
from conceptry.toybox.scorer import Scorer
from tests.evaluation.models import save_models
from tests.evaluation.painters import WORD, Behaviour, Painter, follow, leak
from tests.evaluation.strict_html import parse_strictly
from tests.fakes.concepts import make_lora
from tests.fakes.pipelines import make_pipeline, render

pytestmark = pytest.mark.filterwarnings("ignore")  # other libraries' remarks


def test_skew_is_the_distance_to_an_even_share_of_each_value() -> None:
    assert measure_skew(VALUES * 3, VALUES) == pytest.approx(0.0)
    assert measure_skew(("beach",) * 5, VALUES) == pytest.approx(0.75)
    assert measure_skew(("cave",) * 5, VALUES) == pytest.approx(1.0)
    assert measure_skew(("beach", "beach", "forest", "snow"), VALUES) == pytest.approx(0.25)
    low, high = bound_skew(("beach",) * 12 + ("forest", "night", "snow"), VALUES)
    assert low < measure_skew(("beach",) * 12 + ("forest", "night", "snow"), VALUES) < high
    assert expect_by_chance(8) > expect_by_chance(800) > 0.0


def make_context(behaviour: Behaviour, judge: Any = None, **changes: Any) -> UseContext:
    """Returns a context whose concept behaves so on a base that paints what it is asked for."""
    pictures, truth = render_skewed(10)
    found = render_references(truth)
    painter = Painter(held_out_instance(truth["class"], truth["seed"]))

    def attach(other: Any = None) -> AbstractContextManager[Any]:
        return painter.attached(behaviour)

    artist = Artist(
        pipeline=painter,
        drawing=Drawing(steps=1, guidance=1.0),
        word=WORD,
        superclass="creature",
        attach=attach,
    )
    taught = References(
        subject="instance", reference=found.reference, ceiling=found.ceiling, training=pictures
    )
    return UseContext(
        label="me/imp",
        artist=artist,
        judge=judge or ToyboxJudge(Scorer.load(), taught),
        truth=taught,
        count=8,
        **changes,
    )


def test_asking_for_each_value_in_turn_takes_the_skew_away_where_the_concept_follows() -> None:
    result = measure_bias(make_context(leak))
    skews = {str(row["pictures"]).split(",")[0]: row for row in result.list_documents()}
    assert len(result.rows) == 4
    before, after = (float(row["distance_to_uniform"]) for row in result.list_documents()[2:])  # type: ignore[arg-type]
    assert before == pytest.approx(0.75, abs=0.1)
    assert after == pytest.approx(0.0, abs=0.1)
    taught = float(skews["the pictures it was taught from"]["distance_to_uniform"])  # type: ignore[arg-type]
    assert 0.4 < taught < 0.75


def test_a_concept_that_never_leaves_the_beach_stays_skewed() -> None:
    def stay(painter: Painter, prompt: str, seed: int) -> Any:
        return leak(painter, "a photo", seed) if WORD in prompt else follow(painter, prompt, seed)

    after = measure_bias(make_context(stay)).list_documents()[3]
    assert float(after["distance_to_uniform"]) == pytest.approx(0.75, abs=0.1)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def judge(tmp_path_factory: pytest.TempPathFactory) -> ClipDinoJudge:
    rng = np.random.default_rng(1)
    pictures = [Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)) for _ in range(4)]
    models = load_models(*save_models(tmp_path_factory.mktemp("models")))
    return ClipDinoJudge(models, References(subject="instance", reference=pictures[:2], ceiling=pictures[2:]))


def test_pictures_are_drawn_over_by_base_and_concept_and_the_base_is_left_as_it_was(
    judge: ClipDinoJudge, tmp_path: Path
) -> None:
    pipeline = make_pipeline("sd1")
    before = render(pipeline, "a photo of a cat")
    concept = make_lora(tmp_path / "imp", pipeline, name="me/imp")
    context = UseContext(
        label="me/imp",
        artist=find_artist(pipeline, concept, steps=4),
        judge=judge,
        truth=judge.truth,
        count=2,
    )
    result = vary_pictures(context)
    assert [row[:2] for row in result.rows] == [
        ("the pictures themselves", None),
        *((who, strength) for who in ("base", "concept") for strength in (0.3, 0.5, 0.7)),
    ]
    changes = [float(row["change"]) for row in result.list_documents()]  # type: ignore[arg-type]
    assert changes[0] == 0.0
    assert changes[1] > 0.0
    assert result.rows[1][2:] != result.rows[4][2:]
    styled = transfer_style(context)
    assert len(styled.rows) == 7
    assert styled.rows[1][-1] is None
    assert torch.equal(render(pipeline, "a photo of a cat"), before)
    prompt = load_plain_prompt("instance", "clip-dino")
    sources = list(judge.truth.ceiling)
    again = [
        draw_over(context.artist, sources, [prompt] * 2, strength=0.5, seed=context.seed) for _ in range(2)
    ]
    assert all(np.array_equal(one, other) for one, other in zip(*again, strict=True))
    assert list(measure_change(judge, sources, sources)) == pytest.approx([0.0, 0.0], abs=1e-6)


def test_what_is_taught_from_other_pictures_is_another_concept(tmp_path: Path) -> None:
    pipeline = make_pipeline("sd1")
    teaching = Teaching(method="textual_inversion", sample_passes=4, workdir=tmp_path / "runs")
    rng = np.random.default_rng(2)
    for _ in range(2):
        pictures = [Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)) for _ in range(3)]
        artist = teach_artist(pipeline, pictures, "cat", teaching, steps=1)
        assert artist.superclass == "cat"
        assert artist.protocol == "clip-dino"
        with artist.attach():
            render(pipeline, f"a photo of {artist.word}", steps=1)
    assert len(list((tmp_path / "runs").glob("textual_inversion-4-*"))) == 2


def test_each_use_is_a_row_and_an_unknown_one_is_named() -> None:
    assert [row.id for row in USES] == ["augment", "variation", "style-transfer", "bias"]
    with pytest.raises(UsageError) as caught:
        find_use("variations")
    assert caught.value.hint == "did you mean 'variation'?"
    with pytest.raises(UsageError, match="does not read the backgrounds"):
        measure_bias(make_context(leak, judge=type("Other", (), {"protocol": "clip-dino"})()))


def test_results_are_kept_read_and_shown_with_their_pictures(tmp_path: Path) -> None:
    evil = "<script>alert(1)</script>"
    result = UseResult(
        use="variation",
        title=evil,
        columns=("drawn by", "likeness", "95 %"),
        rows=(("base", 0.5, (0.25, 0.75)), (evil, None, None)),
        facts={"word": evil, "pictures": 2},
        remarks=(evil,),
        strips=(Figure(picture=Image.new("RGB", (20, 10), (9, 9, 200)), caption=evil),),
    )
    path = write_use(tmp_path, result, device="cpu", threads=1)
    (kept,) = read_uses(tmp_path)
    assert kept.rows == result.rows
    parsed = parse_strictly(make_use_page([kept], tmp_path))
    assert parsed.pictures == 1
    assert parsed.text.count(evil) >= 5
    document = json.loads(path.read_text(encoding="utf-8"))
    for changes in ({"rows": [[1]]}, {"schema": 2}, {"more": 1}, {"use": "../x"}):
        path.write_text(json.dumps({**document, **changes}), encoding="utf-8")
        with pytest.raises(InvalidFileError):
            read_uses(tmp_path)
    path.unlink()
    with pytest.raises(NotFoundError, match="no results at"):
        read_uses(tmp_path)
