"""What every row of FORMATS keeps, whoever adds it: names made from a row's own data are explained by that row."""

from __future__ import annotations

import gc
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from conceptry.errors import NotFoundError
from conceptry.formats import lora_keys
from conceptry.formats.catalog import FORMATS
from conceptry.formats.contract import Format
from conceptry.formats.data_files import load_table
from conceptry.formats.header import Header, TensorInfo
from conceptry.formats.identify import identify
from conceptry.formats.lora_keys import list_dialects
from conceptry.kinds import KIND_BY_ID
from tests.formats.corpus import draw_cases

ROOT = Path(__file__).resolve().parents[2]
Shape = tuple[int, ...]
MODULES = {
    "denoiser": ("down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k", 320, 768),
    "unet": ("down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k", 320, 768),
    "any": ("down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k", 320, 768),
    "t5": ("encoder.block.0.layer.0.SelfAttention.q", 4096, 4096),
    "text_encoder": ("text_model.encoder.layers.0.mlp.fc1", 3072, 768),
    "text_encoder_2": ("text_model.encoder.layers.0.mlp.fc1", 5120, 1280),
    "text_encoder_3": ("encoder.block.0.layer.0.SelfAttention.q", 4096, 4096),
}
ENDS = (
    (".lora_A.weight", ".lora_B.weight"),
    (".lora_down.weight", ".lora_up.weight"),
    (".lora.down.weight", ".lora.up.weight"),
)


def header_of(shapes: dict[str, Shape], metadata: dict[str, str] | None = None) -> Header:
    return Header(
        {name: TensorInfo("F16", shape, 0, 0) for name, shape in shapes.items()}, metadata or {}, 0, 0
    )


def spell_prefixes(dialect: lora_keys.Dialect) -> Iterator[dict[str, Shape]]:
    """Return, for each prefix of a dialect, the two factors of one module under it."""
    for prefix, component in dialect.prefixes:
        path, outputs, inputs = MODULES[component]
        stem = prefix + (path.replace(".", "_") if dialect.flat else path)
        for down, up in ENDS:
            if dialect.ends is None or dialect.ends.search(stem + down):
                yield {stem + down: (4, inputs), stem + up: (outputs, 4)}
                break


@pytest.mark.parametrize("row", FORMATS, ids=lambda row: row.id)
def test_row_says_what_it_is_and_whether_it_can_be_read(row: Format) -> None:
    assert re.fullmatch(r"[a-z0-9_]+", row.id)
    assert sum(other.id == row.id for other in FORMATS) == 1
    assert row.title
    assert (row.read is None) == (row.stored_kind is None)
    assert row.stored_kind is None or (row.kind == row.stored_kind and row.kind in KIND_BY_ID)


@pytest.mark.parametrize("row", FORMATS, ids=lambda row: row.id)
@settings(max_examples=15, deadline=None)
@given(
    shapes=st.dictionaries(
        st.text("abnklora_.up<>012:", min_size=1, max_size=24),
        st.lists(st.integers(0, 2048), max_size=4).map(tuple),
        max_size=4,
    )
)
def test_row_answers_for_any_names_and_explains_only_what_is_there(
    row: Format, shapes: dict[str, Shape]
) -> None:
    found = row.detect(header_of(shapes))
    if found is not None:
        assert found.roles.keys() <= shapes.keys()
        assert 0 <= found.confidence <= 1
        assert all(found.roles.values())
        assert found.reasons


@pytest.mark.parametrize("dialect", list_dialects().values(), ids=lambda dialect: dialect.id)
@settings(max_examples=3, deadline=None)
@given(data=st.data())
def test_dialect_explains_a_module_under_each_of_its_prefixes(dialect: lora_keys.Dialect, data: Any) -> None:
    row = next(row for row in FORMATS if row.id == f"lora_{dialect.id}")
    spelled = list(spell_prefixes(dialect))
    assert spelled
    for shapes in spelled:
        # What sets a dialect apart may be a tensor or a metadata key: here it is a key.
        mark = (
            data.draw(st.one_of([st.from_regex(mark) for mark in dialect.marks]))
            if dialect.marks
            else "format"
        )
        found = row.detect(header_of(shapes, {mark: ""}))
        assert found is not None, shapes
        assert found.roles.keys() == shapes.keys()


def test_row_that_says_it_cannot_explain_all_of_a_file_never_does() -> None:
    unlikely = 0
    for case in draw_cases(24):
        header = header_of(dict(case.shapes), dict(case.metadata))
        for row in FORMATS:
            if not row.can_explain_all(header):
                unlikely += 1
                found = row.detect(header)
                assert found is None or len(found.roles) < len(case.shapes), (row.id, case.kind)
    assert unlikely


def test_identifying_leaves_the_collector_as_it_was(tmp_path: Path) -> None:
    for is_on in (False, True):
        (gc.enable if is_on else gc.disable)()
        with pytest.raises(NotFoundError):
            identify(tmp_path / "missing.safetensors")
        assert gc.isenabled() is is_on


@pytest.mark.parametrize("id", load_table("recognised"))
@settings(max_examples=10, deadline=None)
@given(data=st.data())
def test_recognised_kind_is_named_by_its_marks_and_never_read(id: str, data: Any) -> None:
    table = load_table("recognised")[id]
    row = next(row for row in FORMATS if row.id == id)
    mark = data.draw(st.sampled_from(table["marks"]))
    names = {data.draw(st.from_regex(re.compile(mark, re.ASCII)))}
    if "needs" in table:
        names.add(data.draw(st.from_regex(re.compile(table["needs"], re.ASCII))))
    found = row.detect(header_of(dict.fromkeys(names, (8, 8))))
    assert found is not None
    assert row.read is None


def copy_package(folder: Path) -> Path:
    """Return a folder to import from: ``formats`` is a copy that may be changed, the rest is as it lies here."""
    package = folder / "conceptry"
    package.mkdir()
    for path in (*(ROOT / "core").iterdir(), *(ROOT / room for room in ("registry", "cli"))):
        (package / path.name).symlink_to(path)
    shutil.copytree(ROOT / "formats", package / "formats")
    return folder


def test_the_worked_example_of_contributing_is_a_dialect(tmp_path: Path) -> None:
    """Done as the page says: the table into the data file, no line of code, and the tests above as they stand."""
    page = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    example = re.search(r"```toml\n(\[imaginary\].*?)```", page, re.DOTALL)
    assert example is not None
    stem = "imaginary/unet/mid_block.attentions.0.transformer_blocks.0.attn2.to_k"
    file = tmp_path / "imp.safetensors"
    save_file({f"{stem}.low": np.ones((4, 768)), f"{stem}.high": np.ones((1280, 4))}, file)
    assert identify(file).kind == "unknown"
    folder = copy_package(tmp_path)
    with (folder / "conceptry" / "formats" / "data" / "dialects.toml").open("a") as table:
        table.write(example.group(1))

    def run(*words: str) -> str:
        code = [sys.executable, "-m", *words]
        environment = {**os.environ, "PYTHONPATH": str(folder), "CONCEPTRY_HOME": str(folder / "home")}
        done = subprocess.run(code, check=False, cwd=ROOT, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    found = json.loads(run("conceptry", "identify", str(file), "--json"))
    assert (found["kind"], found["dialect"], found["family"]) == ("lora", "imaginary", "sd1")
    tested = run("pytest", "-q", "-p", "no:cacheprovider", "-k", "imaginary", __file__)
    assert "3 passed" in tested
    name = ["--name", "me/imp", "--placeholder", "<imp>", "--license", "CC0-1.0", "--yes", "--json"]
    assert json.loads(run("conceptry", "import", str(file), *name))["created"]
