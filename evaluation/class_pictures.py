"""Pictures of classes, one of them rare: rendered from the toy world, or a person's own folders."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from conceptry.errors import NotFoundError, UsageError, suggest_nearest
from conceptry.evaluation.classifiers import prepare
from conceptry.evaluation.references import list_pictures, read_picture
from conceptry.toybox.render import render
from conceptry.toybox.sampling import HELD_OUT_SEEDS, make_instance, show_instance
from conceptry.toybox.vocabulary import CLASSES

MIN_TEST: Final = 4
MOST_PICTURES: Final = 400
TOYBOX_RARE: Final = "fish"
_RARE_STREAM, _SPLIT_STREAM = 21, 22


@dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    """Pictures to train on and pictures to test on, with the class of each; no picture is in both."""

    training: Tensor
    training_labels: Tensor
    test: Tensor
    test_labels: Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """How many pictures each class gives."""

    real: int = 10
    """Of the rare class, to train on: all that there are."""

    common: int = 120
    """Of each other class, to train on."""

    test: int = 40
    """Of every class."""


class ClassPictures(Protocol):
    """Classes with pictures; those of the rare class that are trained on are the same in every split."""

    classes: tuple[str, ...]
    rare: str
    rare_pictures: Sequence[Image.Image]

    def split(self, seed: int) -> Split:
        """Gives other pictures of the common classes, and other test pictures, for each seed."""


class ToyboxClasses:
    """Every class of the toy world in pictures of ever other things, which no training of the base has seen."""

    classes: tuple[str, ...] = CLASSES

    def __init__(self, rare: str = TOYBOX_RARE, sizes: Sizes | None = None, *, seed: int = 0) -> None:
        """Takes the rare class. Raises UsageError if the toy world has none that is called so."""
        self.rare, self.sizes = find_class(rare, CLASSES), sizes or Sizes()
        drawn = _render(self.rare, self.sizes.real, np.random.default_rng((_RARE_STREAM, seed)))
        self.rare_pictures: Sequence[Image.Image] = [Image.fromarray(picture) for picture in drawn]

    def split(self, seed: int) -> Split:
        """Returns freshly rendered pictures."""
        rng = np.random.default_rng((_SPLIT_STREAM, seed))
        common = {cls: _render(cls, self.sizes.common, rng) for cls in CLASSES if cls != self.rare}
        test = {cls: _render(cls, self.sizes.test, rng) for cls in CLASSES}
        parts = {cls: prepare(pictures) for cls, pictures in common.items()}
        parts[self.rare] = prepare(self.rare_pictures)
        return _join(self.classes, parts, {cls: prepare(pictures) for cls, pictures in test.items()})


def _render(cls: str, count: int, rng: np.random.Generator) -> NDArray[np.uint8]:
    seeds = rng.integers(HELD_OUT_SEEDS.start, HELD_OUT_SEEDS.stop, count)
    return render([show_instance(make_instance(cls, int(seed)), rng) for seed in seeds])


class FolderClasses:
    """Folders with pictures, one for each class: half of a common class is trained on, the rest is the test."""

    def __init__(
        self, folder: Path, rare: str | None = None, sizes: Sizes | None = None, *, seed: int = 0
    ) -> None:
        """Reads the folders; the rare class is the one with the fewest pictures if it is not named.

        Raises:
            NotFoundError: if there is no such folder.
            UsageError: if there are fewer than two classes, too few pictures, or one that cannot be read.
        """
        self.sizes = sizes or Sizes()
        paths = _list_folders(folder)
        self.classes = tuple(paths)
        fewest = min(self.classes, key=lambda cls: len(paths[cls]))
        self.rare = fewest if rare is None else find_class(rare, self.classes)
        for cls, found in paths.items():
            self._check(folder / cls, len(found))
        rng = np.random.default_rng((_RARE_STREAM, seed))
        order = rng.permutation(len(paths[self.rare]))
        chosen, rest = order[: self.sizes.real], order[self.sizes.real :][:MOST_PICTURES]
        self.rare_pictures: Sequence[Image.Image] = [read_picture(paths[self.rare][row]) for row in chosen]
        self._rare_test = prepare([read_picture(paths[self.rare][row]) for row in rest])
        self._common = {
            cls: prepare([read_picture(path) for path in found[:MOST_PICTURES]])
            for cls, found in paths.items()
            if cls != self.rare
        }

    def _check(self, folder: Path, count: int) -> None:
        is_rare = folder.name == self.rare
        least = self.sizes.real + MIN_TEST if is_rare else 2 * MIN_TEST
        if count < least:
            fewer = (
                f", or teach from fewer: --real {count - MIN_TEST}" if is_rare and count > MIN_TEST else ""
            )
            raise UsageError(
                f"{count} pictures in {str(folder)!r}, at least {least} are needed: some to teach, some to test",
                hint=f"add pictures of {folder.name}{fewer}",
            )

    def split(self, seed: int) -> Split:
        """Returns the pictures of the common classes divided anew, and the rare ones as they are divided."""
        rng = np.random.default_rng((_SPLIT_STREAM, seed))
        training, test = {self.rare: prepare(self.rare_pictures)}, {self.rare: self._rare_test}
        for cls, pictures in self._common.items():
            order = torch.from_numpy(rng.permutation(len(pictures)))
            half = min(len(pictures) // 2, self.sizes.common)
            training[cls], test[cls] = pictures[order[:half]], pictures[order[half:]]
        return _join(self.classes, training, test)


def find_class(name: str, classes: Sequence[str]) -> str:
    """Returns ``name`` if it is one of ``classes``. Raises UsageError with the nearest."""
    if name not in classes:
        raise UsageError(
            f"there is no class {name[:80]!r}",
            hint=suggest_nearest(name, classes) or f"classes: {', '.join(classes)}",
        )
    return name


def _list_folders(folder: Path) -> dict[str, list[Path]]:
    if not folder.is_dir():
        raise NotFoundError(
            f"there is no folder {str(folder)!r}", hint="name one with a folder for each class"
        )
    paths = {
        one.name: list_pictures(one)
        for one in sorted(folder.iterdir())
        if one.is_dir() and not one.name.startswith(".")
    }
    if len(paths) < 2:
        raise UsageError(
            f"{str(folder)!r} holds {len(paths)} folders of pictures, a classifier needs two or more",
            hint="lay the pictures out as DIR/CLASS/*.png",
        )
    return paths


def _join(classes: Sequence[str], training: dict[str, Tensor], test: dict[str, Tensor]) -> Split:
    def label(parts: dict[str, Tensor]) -> Tensor:
        return torch.cat([torch.full((len(parts[cls]),), place) for place, cls in enumerate(classes)])

    return Split(
        training=torch.cat([training[cls] for cls in classes]),
        training_labels=label(training),
        test=torch.cat([test[cls] for cls in classes]),
        test_labels=label(test),
    )
