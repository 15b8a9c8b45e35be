"""Claim: pictures come back byte for byte from what they carry, an empty store and a remote; elsewhere they come close.

``python benchmarks/reproducing.py [OUT.json]``: 100 pictures of the bundled base, with every kind of concept, words
that collide, kinds that are drawn each by itself, weights, tags, batches, samplers, pictures and masks to draw over,
are drawn by ``concepts generate`` with one and two threads, and drawn again by ``concepts reproduce`` in a process of
its own, with an empty store. Then some of them once more with the instructions of older processors, which is what
another machine does to sums: the largest and the mean difference are measured. ``STEPS=20`` takes the base's usual
number of steps.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, Final

from measuring import describe_machine

ROOT = Path(__file__).resolve().parents[1]
STEPS: Final = os.environ.get("STEPS", "3")
ELSEWHERE: Final = int(os.environ.get("ELSEWHERE", "20"))

# Words of concepts generate, and how many pictures: 100 together.
SERIES: Final[tuple[tuple[int, tuple[str, ...]], ...]] = (
    (5, ("--prompt", "a photo of a red cup")),
    (12, ("--with", "test/lora*0.7", "--prompt", "a photo of zork cat", "--batch", "4")),
    (10, ("--with", "test/one", "--with", "test/two", "--prompt", "<e> and <e-2>", "--batch", "3")),
    (10, ("--with", "test/rank-one", "--prompt", "a <r> on grass", "--negative", "blue")),
    (10, ("--with", "test/one", "--prompt", "a (<e>:1.3) [cat] on grass", "--sampler", "dpmpp_2m")),
    (8, ("--prompt", "zork cat <lora:test/lora:0.5>, embedding:two")),
    (5, ("--with", "test/full*0.5", "--prompt", "a zork cat", "--sampler", "euler")),
    (5, ("--with", "test/lora", "--with", "test/rank-one", "--prompt", "zork and (<r>:1.2)", "--batch", "2")),
    (
        5,
        (
            "--with",
            "test/rank-one*0.8",
            "--with",
            "test/one",
            "--prompt",
            "a <r> and <e>",
            "--image",
            "room.png",
            "--mask",
            "mask.png",
        ),
    ),
    (10, ("--with", "test/lora", "--prompt", "zork cat", "--sampler", "euler_a", "--batch", "5")),
    (10, ("--with", "test/lora", "--prompt", "zork cat", "--image", "room.png", "--strength", "0.7")),
    (
        10,
        (
            "--with",
            "test/one",
            "--prompt",
            "<e>",
            "--image",
            "room.png",
            "--mask",
            "mask.png",
            "--batch",
            "2",
        ),
    ),
)
OLDER: Final = {
    "AVX2 instead of AVX-512": {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2"},
    "SSE instead of AVX-512": {"ATEN_CPU_CAPABILITY": "default", "ONEDNN_MAX_CPU_ISA": "SSE41"},
}


def make_concepts(folder: Path) -> list[Path]:
    """Returns folders of packages of each kind for the bundled base, with random values."""
    sys.path.insert(0, str(ROOT))
    from conceptry.base_locations import resolve_base
    from conceptry.composer.loading import load_pipeline
    from tests.fakes.concepts import make_embedding, make_full, make_lora, make_rank_one

    pipeline = load_pipeline(resolve_base("toybox", {}))
    make_lora(folder / "lora", pipeline)
    make_full(folder / "full", pipeline)
    make_rank_one(folder / "rank-one", pipeline)
    make_embedding(folder / "one", pipeline, name="test/one")
    make_embedding(folder / "two", pipeline, name="test/two", seed=5)
    return sorted(folder.iterdir())


def paint(folder: Path) -> None:
    """Writes a picture and a mask to draw over."""
    from PIL import Image, ImageDraw

    room = Image.new("RGB", (96, 96), (120, 160, 90))
    ImageDraw.Draw(room).ellipse((20, 20, 70, 80), fill=(200, 60, 50))
    room.save(folder / "room.png")
    mask = Image.new("L", (96, 96), 0)
    ImageDraw.Draw(mask).rectangle((30, 30, 90, 90), fill=255)
    mask.save(folder / "mask.png")


def run(folder: Path, home: str, *words: str, **settings: str) -> Any:
    """Returns what ``concepts ... --json`` prints in a process of its own, whatever its exit code says of pictures."""
    environment = {**os.environ, "CONCEPTRY_HOME": str(folder / home), "HF_HUB_OFFLINE": "1", **settings}
    command = [sys.executable, "-m", "conceptry", *words, "--json"]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    if not done.stdout:
        raise SystemExit(f"{' '.join(words[:8])} ...\n{done.stderr}")
    return json.loads(done.stdout)


def draw(folder: Path) -> list[str]:
    """Returns the pictures of the series, drawn from the store ``here``; their concepts lie on a remote too."""
    import torch
    from click.testing import CliRunner

    from conceptry.cli.main import concepts

    def run_here(*words: str) -> Any:
        done = CliRunner(env={"CONCEPTRY_HOME": str(folder / "here")}).invoke(concepts, [*words, "--json"])
        if done.exit_code:
            raise SystemExit(f"{' '.join(words[:8])} ...\n{done.stderr}")
        return json.loads(done.stdout)

    os.chdir(folder)
    for package in make_concepts(folder / "packages"):
        run_here("publish", str(package))
        run_here("push", f"test/{package.name}", (folder / "remote").as_uri())
    found = []
    for number, (count, words) in enumerate(SERIES):
        torch.set_num_threads(1 + number % 2)
        settings = ("--base", "toybox", "--steps", STEPS, "--seed", str(1000 * number), "--out", f"{number}")
        for row in run_here("generate", *words, "-n", str(count), *settings)["pictures"]:
            name = f"{number}-{Path(row['path']).name}"
            Path(row["path"]).rename(name)
            found.append(name)
    return found


def sum_up(document: Any) -> dict[str, Any]:
    """Returns how many came out how, and how far apart they are."""
    rows = document["pictures"]
    outcomes = [row["outcome"] for row in rows]
    return {
        "pictures": len(rows),
        **{outcome: outcomes.count(outcome) for outcome in sorted(set(outcomes))},
        "max_levels": max(row["max_levels"] for row in rows),
        "mean_levels": round(max(row["mean_levels"] for row in rows), 4),
        "differences": sorted({text for row in rows for text in row["differences"]}),
    }


def main() -> None:
    """Draws, draws again, prints a table, and writes it as JSON where a path is given."""
    with tempfile.TemporaryDirectory() as text, contextlib.chdir(ROOT):
        folder = Path(text)
        paint(folder)
        pictures = draw(folder)
        run(folder, "there", "remote", "add", "theirs", (folder / "remote").as_uri())
        words = ("--image", "room.png", "--image", "mask.png")
        again = run(folder, "there", "reproduce", *pictures, *words, "--out", "again")
        same = sum(
            (folder / name).read_bytes() == (folder / "again" / name).read_bytes() for name in pictures
        )
        results: dict[str, Any] = {"here": {**sum_up(again), "equal_files": same}}
        some = pictures[:: max(1, len(pictures) // ELSEWHERE)]
        for title, settings in OLDER.items():
            results[title] = sum_up(run(folder, "there", "reproduce", *some, *words, **settings))
    print(f"{same} of {len(pictures)} pictures are the same files, byte for byte ({STEPS} steps)")
    for title, row in results.items():
        print(f"{title}: {json.dumps(row)}")
    if len(sys.argv) > 1:
        document = {"machine": describe_machine(), "steps": int(STEPS), "results": results}
        Path(sys.argv[1]).write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
