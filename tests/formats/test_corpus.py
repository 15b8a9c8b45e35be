"""A sample of generated files of all rows: none is taken for another kind or family.

benchmarks/identify.py has a thousand.
"""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from conceptry.formats.header import Header, TensorInfo
from conceptry.formats.identify import identify, identify_header
from tests.formats.corpus import Case, draw_cases, judge_family
from tests.formats.sparse import write_sparse

SAMPLE = list(draw_cases(48, seed=7))


@pytest.mark.parametrize("case", SAMPLE, ids=lambda case: f"{case.kind}-{case.dialects[0]}-{case.family}")
def test_generated_file_is_what_it_was_made_as(case: Case) -> None:
    tensors = {name: TensorInfo("F16", shape, 0, 0) for name, shape in case.shapes.items()}
    found = identify_header(Header(tensors, case.metadata, 0, 0))
    assert (found.kind, found.dialect in case.dialects) == (case.kind, True)
    assert found.coverage.complete == (case.kind != "unknown")
    assert judge_family(case, found.family, found.reasons, found.family_is_certain) != "wrong"


def test_file_of_gigabytes_is_identified_where_nothing_but_its_header_is_there(tmp_path: Path) -> None:
    case = max(SAMPLE, key=lambda case: sum(math.prod(shape) for shape in case.shapes.values()))
    path = write_sparse(tmp_path / "model.safetensors", case.shapes, case.metadata, dtype="F64")
    assert path.stat().st_size > 2 << 30
    assert path.stat().st_blocks * 512 < 4 << 20
    assert identify(path).kind == case.kind
