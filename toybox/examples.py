"""Folders of example pictures of one held-out instance or style, as a person's own pictures would lie there."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from conceptry.errors import NotFoundError, UsageError
from conceptry.toybox.render import render
from conceptry.toybox.sampling import (
    HELD_OUT_SEEDS,
    make_instance,
    make_style,
    show_instance,
    show_style,
)
from conceptry.toybox.scene import Instance, Scene, Style
from conceptry.toybox.vocabulary import BACKGROUNDS, CLASSES, DETAILS, POSITION_PHRASES


def check_seed(seed: int) -> int:
    """``seed``, if it is one that no training has seen. Raises UsageError."""
    if seed not in HELD_OUT_SEEDS:
        raise UsageError(
            f"{seed} is not a held-out seed", hint=f"give a seed from 0 to {HELD_OUT_SEEDS.stop - 1}"
        )
    return seed


def held_out_instance(kind: str, seed: int) -> Instance:
    """The held-out instance of class ``kind``. Raises NotFoundError, UsageError."""
    if kind not in CLASSES:
        raise NotFoundError(
            f"the toy world has no class {kind!r}", hint=f"known classes: {', '.join(CLASSES)}"
        )
    return make_instance(kind, check_seed(seed))


def held_out_style(seed: int) -> Style:
    """The held-out style of a seed. Raises UsageError."""
    return make_style(check_seed(seed))


def instance_scenes(instance: Instance, count: int, *, part: int = 0) -> list[Scene]:
    """``count`` scenes that show ``instance``; another ``part`` gives other scenes of the same instance."""
    rng = np.random.default_rng((7, CLASSES.index(instance.kind), instance.seed, part))
    return [show_instance(instance, rng) for _ in range(count)]


def style_scenes(style: Style, count: int, *, part: int = 0) -> list[Scene]:
    """``count`` scenes of held-out instances drawn in ``style``; another ``part`` gives other scenes."""
    rng = np.random.default_rng((8, style.seed or 0, part))
    return [show_style(style, rng) for _ in range(count)]


def scene_caption(scene: Scene) -> str:
    """The plain caption of a scene of one object: its class word, position and background, nothing of its own."""
    kind = scene.objects[0].instance.kind
    place = POSITION_PHRASES[scene.position or "center"]
    return f"a photo of a {kind} {place} {BACKGROUNDS[scene.background]}"


def describe_instance(instance: Instance) -> dict[str, Any]:
    """The true attributes of an instance, for ``instance.json``."""
    rows = zip(DETAILS[instance.kind], instance.details, strict=True)
    words = {row.name: row.choices[choice] or "none" for row, choice in rows}
    return {"kind": "instance", "class": instance.kind, "seed": instance.seed,
            "attributes": {**asdict(instance), "details": words}}  # fmt: skip


def _save_png(picture: NDArray[np.uint8], path: Path) -> None:
    from PIL import Image

    Image.fromarray(picture).save(path)


def _write(scenes: list[Scene], truth: dict[str, Any], folder: Path) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{index:03d}.png" for index in range(len(scenes))]
    for picture, path in zip(render(scenes), paths, strict=True):
        _save_png(picture, path)
    lines = [
        json.dumps({"file_name": path.name, "text": scene_caption(scene)})
        for path, scene in zip(paths, scenes, strict=True)
    ]
    (folder / "captions.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    truth = {**truth, "pictures": len(paths)}
    (folder / "instance.json").write_text(json.dumps(truth, indent=2) + "\n", encoding="utf-8")
    return paths


def _check_count(count: int) -> int:
    if not 1 <= count <= 10_000:
        raise UsageError(f"{count} pictures cannot be rendered", hint="give a number from 1 to 10000")
    return count


def render_instance(cls: str, seed: int, n: int, out_dir: Path) -> list[Path]:
    """PNG files of one held-out instance in varied scenes, with ``captions.jsonl`` and ``instance.json``."""
    instance = held_out_instance(cls, seed)
    return _write(instance_scenes(instance, _check_count(n)), describe_instance(instance), out_dir)


def render_style(seed: int, n: int, out_dir: Path) -> list[Path]:
    """PNG files of varied scenes in one held-out style, with ``captions.jsonl`` and ``instance.json``."""
    style = held_out_style(seed)
    truth = {"kind": "style", "seed": seed, "attributes": asdict(style)}
    return _write(style_scenes(style, _check_count(n)), truth, out_dir)
