"""Augmentation: a classifier gains from pictures of the rare class and loses by pictures of another, seed for seed."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from conceptry.errors import NotFoundError, UsageError
from conceptry.evaluation.augmentation import ARMS, ArmScore, Plan, augment, compare_arms, vary_prompts
from conceptry.evaluation.class_pictures import FolderClasses, Sizes, ToyboxClasses
from conceptry.evaluation.classifiers import fit, measure_recalls, prepare
from conceptry.evaluation.examination import Drawing
from conceptry.evaluation.protocols import PROTOCOL
from conceptry.evaluation.scores import mean_interval
from conceptry.evaluation.use_context import Artist
from conceptry.toybox.vocabulary import BACKGROUNDS, CLASSES

SIZES = Sizes(real=2, common=30, test=10)
PLAN = Plan(pictures=4, seeds=2, steps=20, first_seed=5)


def paint(kind: str, count: int, seed: int) -> list[Image.Image]:
    """Returns pictures of a class: stripes that lie, stripes that stand, or noise."""
    rng = np.random.default_rng((seed, len(kind)))
    pictures = []
    for _ in range(count):
        noise = rng.integers(0, 90, (16, 16, 3))
        stripes = (np.arange(16) // 2 % 2 * rng.integers(60, 160)).astype(int)
        across = {"lying": stripes[:, None, None], "standing": stripes[None, :, None]}
        pictures.append(Image.fromarray((noise + across.get(kind, np.zeros(1, int))).astype(np.uint8)))
    return pictures


def save(folder: Path, **counts: int) -> Path:
    for kind, count in counts.items():
        (folder / kind).mkdir(parents=True)
        for number, picture in enumerate(paint(kind, count, 1)):
            picture.save(folder / kind / f"{number:03d}.png")
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp("classes"), lying=40, standing=14, none=40)


def score(classes: FolderClasses, drawn: Sequence[Image.Image]) -> dict[str, ArmScore]:
    found = compare_arms(classes, {"base": paint("lying", 20, 2), "concept": drawn}, PLAN, str)
    return {one.arm.id: one for one in found}


def test_pictures_of_the_rare_class_help_and_those_of_another_class_harm(folder: Path) -> None:
    classes = FolderClasses(folder, sizes=SIZES)
    assert classes.rare == "standing"
    scores = score(classes, paint("standing", 20, 2))
    assert set(scores) == {arm.id for arm in ARMS}
    means = {name: float(np.mean(one.accuracies)) for name, one in scores.items()}
    assert means["concept"] > means["real"] + 0.1
    assert means["concept"] > means["base"]
    assert np.mean(scores["concept"].rare_recalls) > np.mean(scores["real"].rare_recalls)


def test_a_classifier_is_the_same_for_a_seed_and_another_for_another() -> None:
    pictures = prepare([*paint("lying", 6, 1), *paint("standing", 2, 1)])
    labels = torch.tensor([0] * 6 + [1] * 2)
    state = torch.random.get_rng_state()
    nets = [fit(pictures, labels, 2, seed=seed, steps=3) for seed in (1, 1, 2)]
    assert torch.equal(state, torch.random.get_rng_state())
    answers = [net(pictures) for net in nets]
    assert torch.equal(answers[0], answers[1])
    assert not torch.equal(answers[0], answers[2])
    recalls = measure_recalls(nets[0], pictures, labels, 2)
    told = nets[0](pictures).argmax(1) == labels
    assert recalls.tolist() == [float(told[:6].float().mean()), float(told[6:].float().mean())]


def test_no_picture_is_learned_and_tested(folder: Path) -> None:
    classes = FolderClasses(folder, "none", SIZES)
    one, other = classes.split(1), classes.split(2)
    for split in (one, other):
        seen = {row.numpy().tobytes() for row in split.training}
        assert not seen & {row.numpy().tobytes() for row in split.test}
        assert len(split.test) + len(split.training) == 94
    assert not torch.equal(one.training, other.training)
    rare = classes.classes.index("none")
    assert torch.equal(
        one.training[one.training_labels == rare], other.training[other.training_labels == rare]
    )
    world = ToyboxClasses("cup", Sizes(real=3, common=2, test=1))
    split = world.split(1)
    assert torch.bincount(split.training_labels).tolist() == [3 if cls == "cup" else 2 for cls in CLASSES]
    assert torch.equal(split.test, world.split(1).test)


def test_folders_that_will_not_do_are_named(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="there is no folder"):
        FolderClasses(tmp_path / "x")
    with pytest.raises(UsageError, match="holds 0 folders of pictures"):
        FolderClasses(tmp_path)
    with pytest.raises(UsageError) as caught:
        FolderClasses(folder, "standin")
    assert caught.value.hint == "did you mean 'standing'?"
    with pytest.raises(UsageError, match="at least 24 are needed") as caught:
        FolderClasses(folder, sizes=Sizes(real=20))
    assert "--real 10" in str(caught.value.hint)
    save(tmp_path / "few", lying=5, standing=5)
    with pytest.raises(UsageError, match="at least 8 are needed"):
        FolderClasses(tmp_path / "few", sizes=Sizes(real=1))
    (folder / "lying" / "zzz.png").write_bytes(b"no picture")
    try:
        with pytest.raises(UsageError, match=r"zzz\.png' cannot be read"):
            FolderClasses(folder, sizes=SIZES)
    finally:
        (folder / "lying" / "zzz.png").unlink()


class Printer:
    """Draws stripes that stand where the concept's word is asked for, and noise elsewhere."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def __call__(self, *, prompt: list[str], generator: list[torch.Generator], **settings: object) -> object:
        self.asked += prompt
        pictures = [
            paint("standing" if "<stripes>" in text else "none", 1, source.initial_seed())[0]
            for text, source in zip(prompt, generator, strict=True)
        ]
        return type("Drawn", (), {"images": pictures})


def test_the_table_has_a_row_for_each_way_with_paired_gains(folder: Path) -> None:
    printer = Printer()
    artist = Artist(
        pipeline=printer,
        drawing=Drawing(steps=1, guidance=1.0),
        word="<stripes>",
        superclass="pattern",
        attach=nullcontext,
    )
    classes, plan = FolderClasses(folder, sizes=SIZES), replace(PLAN, steps=3)
    result = augment(classes, artist, plan, str)
    assert [row[0] for row in result.rows] == [arm.title for arm in ARMS]
    assert [row[1] for row in result.rows] == [2, 2, 6, 6]
    first = result.list_documents()[0]
    assert (first["gain"], first["gain_interval"]) == (None, None)
    for row in result.rows[1:]:
        accuracy, gain, span = row[2], row[5], row[6]
        assert isinstance(accuracy, float)
        assert isinstance(gain, float)
        assert isinstance(span, tuple)
        assert span[0] <= gain <= span[1]
        assert isinstance(result.rows[0][2], float)
        assert gain == pytest.approx(accuracy - result.rows[0][2], abs=2e-4)
    assert len(result.strips) == 3
    assert sum("<stripes>" in text for text in printer.asked) == PLAN.pictures
    assert sum("a pattern" in text for text in printer.asked) == PLAN.pictures
    assert augment(classes, artist, plan, str).rows == result.rows


def test_prompts_vary_in_place_and_surroundings() -> None:
    texts = [prompt.text for prompt in vary_prompts(PROTOCOL, 80)]
    assert len(set(texts)) == 80
    assert all(any(ground in text for ground in BACKGROUNDS.values()) for text in texts)
    assert len({prompt.text for prompt in vary_prompts("clip-dino", 10)}) == 10


def test_the_interval_of_a_few_values_covers_their_mean_as_often_as_it_says() -> None:
    rng = np.random.default_rng(3)
    draws = rng.normal(0.7, 0.05, (2000, 5))
    spans = [mean_interval(values) for values in draws]
    covered = np.mean([low <= 0.7 <= high for low, high in spans])
    assert 0.935 <= covered <= 0.965
    assert all(np.isnan(mean_interval([0.5])))
