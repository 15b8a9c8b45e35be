"""Large stores for benchmarks: the files that publishing would have left, written without waiting for the disk."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

WORDS: Final = """
    amber blue carved clay cloud copper creature cup dawn door dragon dusk fern fox garden glass glow gold hare imp
    ink ivory jade kite knight lamp lantern linen lion mask meadow moon moss mug night oak owl paper pearl plum raven
    river robot rose salt silver sketch snow spiral star stone storm swan teapot tiger tower velvet violet wave wolf
"""


def iter_documents(count: int, seed: int = 0) -> Iterator[dict[str, Any]]:
    """Yields the manifests of ``count`` concepts, one version each, as a person would fill them in."""
    rng, known = random.Random(seed), WORDS.split()
    base = {
        "family": "sd1",
        "architecture": "stable-diffusion-v1",
        "repo": "org/base",
        "prediction_type": "epsilon",
    }
    for number in range(count):
        words = rng.choices(known, k=12)
        file = {
            "path": "lora.safetensors",
            "size": rng.randrange(1 << 20, 1 << 27),
            "sha256": f"sha256:{rng.getrandbits(256):064x}",
            "tensor_sha256": f"sha256:{rng.getrandbits(256):064x}",
        }
        method = {"kind": "lora", "rank": 16, "modules": 192, "scale": 1.0}
        yield {
            "schema": 1,
            "name": f"user{number % 997:03}/{words[0]}-{number:07}",
            "version": f"1.{number % 7}.0",
            "title": f"{words[0]} {words[1]} {words[2]}".capitalize(),
            "description": " ".join(words[3:]),
            "tags": sorted(set(words[1:4])),
            "license": {"spdx": "CC-BY-4.0"},
            "tokens": [{"placeholder": f"<{words[0]}-{words[1]}>", "superclass": words[2]}],
            "builds": [
                {"id": "lora", "base": base, "parts": [{"kind": "lora", "method": method, "files": [file]}]}
            ],
        }


def fill_store(root: Path, count: int) -> None:
    """Writes manifests and references of ``count`` concepts into a new store; there are no blobs and no index."""
    from conceptry.digests import Digest
    from conceptry.manifest import Manifest
    from conceptry.names import ConceptName, parse_version
    from conceptry.registry.generations import begin_generation
    from conceptry.registry.store import open_store

    store = open_store(root)
    store.prepare_for_writing()
    layout = store.layout
    layout.manifests.mkdir(parents=True)
    for document in iter_documents(count):
        data = Manifest.model_validate(document).to_bytes()
        digest = Digest.of_bytes(data)
        layout.manifest(digest).write_bytes(data)
        reference = layout.version(ConceptName.parse(document["name"]), parse_version(document["version"]))
        reference.parent.mkdir(parents=True)
        reference.write_text(f"{digest} published\n", encoding="ascii")
    begin_generation(layout)
