"""Rows of results with scores that a test chooses."""

from __future__ import annotations

from typing import Any

from conceptry.evaluation.bench_results import BaseModelId, ResultFile, ResultRow


def make_row(method: str, subject: str, identity: float, prompt: float, **fields: Any) -> ResultRow:
    """Returns a row with these normalised scores."""
    score = {"floor": 0.0, "ceiling": 1.0, "interval": [0.0, 1.0]}
    return ResultRow.model_validate(
        {
            "method": method,
            "title": method,
            "settings": "sha256:0",
            "subject": subject,
            "kind": "instance",
            "superclass": "cat",
            "seed": 1,
            "sample_passes": 8,
            "size_bytes": 10,
            "training_seconds": 1.0,
            "drawing_seconds": 1.0,
            "identity": {**score, "score": identity, "normalised": identity},
            "prompt": {**score, "score": prompt, "normalised": prompt},
            **fields,
        }
    )


def gather(*rows: ResultRow) -> ResultFile:
    """Returns a file of results with these rows."""
    return ResultFile(
        suite="toybench-1",
        suite_digest="sha256:0",
        protocol="toybox-1",
        base=BaseModelId(family="toybox", digest="sha256:" + "1" * 64),
        sample_passes=8,
        commit="abc",
        machine={"cores": 2},
        rows=rows,
    )
