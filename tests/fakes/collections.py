"""Folders as people have them: models of all rows, with the notes and previews that other programs put beside them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.formats.corpus import draw_cases
from tests.formats.sparse import write_sparse

PREVIEW = b"\x89PNG\r\n\x1a\n" + b"\0" * 64


def write_notes(stem: Path, program: str, number: int, **said: Any) -> None:
    """Writes what one program keeps beside ``stem``."""
    words = said.get("words", [f"word{number}"])
    base = said.get("base", "")
    if program == "a1111":
        document = {
            "activation text": ", ".join(words),
            "sd version": base or "Unknown",
            "description": "ours",
        }
        write_json(stem, ".json", document)
    elif program == "civitai_helper":
        write_json(stem, ".civitai.info", describe_civitai(number, words, base))
    elif program == "lora_manager":
        nested = describe_civitai(number, words, base)
        document = {"model_name": f"Model {number}", "base_model": base or "Unknown", "civitai": nested}
        write_json(stem, ".metadata.json", document)


def describe_civitai(number: int, words: list[str], base: str) -> dict[str, Any]:
    """Returns what Civitai answers of a version."""
    return {
        "id": 1000 + number,
        "modelId": 100 + number,
        "baseModel": base or "Other",
        "trainedWords": words,
        "model": {"name": f"Model {number}", "description": "<p>Said on the <b>page</b>.</p>"},
        "files": [{"hashes": {"AutoV2": f"{number:010X}", "AutoV3": f"{number:012X}"}}],
        "downloadUrl": "https://example.invalid/never-fetched",
    }


def write_json(stem: Path, suffix: str, document: Any) -> None:
    """Writes one note."""
    stem.with_name(stem.name + suffix).write_text(json.dumps(document), encoding="utf-8")


def write_collection(folder: Path, count: int) -> list[Path]:
    """Returns the models of a collection that was written: three of four have notes and a preview."""
    programs = ("", "a1111", "civitai_helper", "lora_manager")
    paths = []
    for number, case in enumerate(draw_cases(count)):
        below = folder / f"group-{number % 7}"
        below.mkdir(parents=True, exist_ok=True)
        stem = below / f"Model {number} (v1.{number % 3})"
        paths.append(write_sparse(stem.with_name(stem.name + ".safetensors"), case.shapes, case.metadata))
        program = programs[number % len(programs)]
        if program:
            write_notes(stem, program, number)
            stem.with_name(stem.name + ".preview.png").write_bytes(PREVIEW)
    return paths
