"""Importing a large file: neither it nor one of its tensors is ever held whole; `make bench` measures speed."""

from __future__ import annotations

import json
import threading
import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from conceptry.digests import Digest
from conceptry.errors import InvalidFileError, StoreError
from conceptry.formats.hashing import BackgroundHash, PendingDigest
from conceptry.formats.import_plans import ImportSettings, declare_base, plan_import
from conceptry.formats.importing import import_file
from conceptry.formats.tensors import RawTensor, digest_tensor_file, read_tensors, write_tensors
from conceptry.names import ConceptName, parse_placeholder, parse_version

SETTINGS = ImportSettings(
    name=ConceptName.parse("me/imp"), version=parse_version("1.0.0"), base=declare_base("sd1")
)
STEM = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_k"
RANK = 16_384


def write_large(path: Path, last: float = 0.5) -> Path:
    down, up = np.full((RANK, 768), 0.5, "<f2"), np.full((1280, RANK), 0.25, "<f2")
    entries = {
        f"{STEM}.lora_down.weight": {"dtype": "F16", "shape": down.shape, "data_offsets": [0, down.nbytes]},
        f"{STEM}.lora_up.weight": {
            "dtype": "F16",
            "shape": up.shape,
            "data_offsets": [down.nbytes, down.nbytes + up.nbytes],
        },
    }
    up[-1, -1] = last
    head = json.dumps(entries).encode()
    path.write_bytes(len(head).to_bytes(8, "little") + head + down.tobytes() + up.tobytes())
    return path


def test_import_never_holds_a_tensor_whole(tmp_path: Path) -> None:
    path = write_large(tmp_path / "file.safetensors")
    import_file(path, tmp_path / "first", SETTINGS)
    tracemalloc.start()
    manifest = import_file(path, tmp_path / "package", SETTINGS)
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert path.stat().st_size > 64 << 20
    assert peak_bytes < 25 << 20
    file = manifest.builds[0].parts[0].files[0]
    written = tmp_path / "package" / file.path
    assert (file.sha256, file.tensor_sha256) == (Digest.of_file(written), digest_tensor_file(written))
    assert manifest.builds[0].provenance.imported_from == Digest.of_file(path)
    kept = read_tensors(written)
    sent = read_tensors(path)
    assert {name: kept[name] for name in kept if "lora_A" in name}.popitem()[1] == sent[
        f"{STEM}.lora_down.weight"
    ]


def test_one_value_that_is_not_finite_in_a_large_file_is_found(tmp_path: Path) -> None:
    path = write_large(tmp_path / "file.safetensors", float("inf"))
    with pytest.raises(InvalidFileError, match="NaN or infinite"):
        import_file(path, tmp_path / "package", SETTINGS)
    assert list(tmp_path.iterdir()) == [path]


def test_plan_does_not_wait_for_the_digest_of_the_source(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file.safetensors"
    write_tensors(path, {"emb_params": RawTensor.from_numpy(np.ones((1, 768), np.float32))})
    released = threading.Event()
    of_file = Digest.of_file
    monkeypatch.setattr(Digest, "of_file", lambda path: (released.wait(60), of_file(path))[1])
    plan = plan_import(path, replace(SETTINGS, placeholder=parse_placeholder("<imp>")))
    released.set()
    assert plan.source == of_file(path)


def test_source_that_vanishes_while_it_is_hashed_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="No such file"):
        PendingDigest(lambda: Digest.of_file(tmp_path / "none")).result()


def test_digest_beside_other_work_is_that_of_the_bytes() -> None:
    chunks = [bytes([index]) * 70_000 for index in range(50)]
    with BackgroundHash() as found:
        for chunk in chunks:
            found.update(chunk)
    assert found.digest() == Digest.of_bytes(b"".join(chunks))


def test_block_that_fails_ends_the_thread() -> None:
    with pytest.raises(KeyError), BackgroundHash() as found:
        raise KeyError
    assert found.digest() == Digest.of_bytes(b"")
    assert not any(thread.name == "sha256" for thread in threading.enumerate())
