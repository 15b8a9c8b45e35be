"""The ``parameters`` text that A1111 writes into pictures, and that galleries and other programs read."""

from __future__ import annotations

import json
from collections.abc import Iterator

from conceptry.formats.picture_records import PictureRecord


def format_parameters(record: PictureRecord, *, sampler: str) -> str:
    """Returns a record as A1111 writes its own: prompt, negative prompt, and one line of settings."""
    settings = ", ".join(f"{name}: {_quote(value)}" for name, value in _iter_settings(record, sampler))
    negative = [f"Negative prompt: {record.negative}"] if record.negative else []
    return "\n".join([record.prompt, *negative, settings])


def _iter_settings(record: PictureRecord, sampler: str) -> Iterator[tuple[str, str]]:
    yield "Steps", str(record.steps)
    yield "Sampler", sampler
    yield "CFG scale", f"{record.guidance:g}"
    yield "Seed", str(record.seed)
    yield "Size", f"{record.width}x{record.height}"
    yield "Model", record.base.name or record.base.family
    if record.source is not None:
        yield "Denoising strength", f"{record.source.strength:g}"
    if record.batch.size > 1:
        yield "Batch size", str(record.batch.size)
        yield "Batch pos", str(record.batch.index)
    members = record.composition.concepts if record.composition else ()
    if members:
        concepts = (f"{one.reference}*{one.strength:g} {one.digest.short}" for one in members)
        yield "Concepts", ", ".join(concepts)
    yield "Version", f"conceptry {record.machine.libraries.get('conceptry', '')}".strip()


def _quote(value: str) -> str:
    return json.dumps(value, ensure_ascii=False) if set(value) & set(',:\n"') else value
