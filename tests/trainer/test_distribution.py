"""One job on several devices: real processes, as accelerate launches them, against one process with the whole batch."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from conceptry.bases import FamilyId
from conceptry.errors import UsageError
from conceptry.formats.tensors import read_tensors
from conceptry.trainer.distribution import Team, check_team
from conceptry.trainer.jobs import resolve
from conceptry.trainer.training import train
from tests.fakes.pipelines import make_pipeline
from tests.trainer.runs import write_job

SCRIPT = """
import sys
from pathlib import Path
from conceptry.trainer.training import train
from tests.trainer.runs import write_job
from tests.trainer.test_distribution import in_double_precision
folder = Path(sys.argv[1])
for method in sys.argv[2:]:
    job = write_job(method, folder, steps=4, settings={"batch_size": 5})
    with in_double_precision() as base:
        done = train(job, base=base, workdir=folder / f"together-{method}", cache_folder=folder / "cache")
    sys.stdout.write(f"{'leads' if done.leads else 'follows'} {done.concept.digest}\\n")  # at once: both share it
    sys.stdout.flush()
"""


@contextmanager
def in_double_precision() -> Iterator[Any]:
    """Gives a base in whose network of random numbers rounding does not grow to what is compared."""
    base = make_pipeline()
    for part in (base.unet, base.text_encoder, base.vae):
        part.double()
    torch.set_default_dtype(torch.float64)
    try:
        yield base
    finally:
        torch.set_default_dtype(torch.float32)


def test_a_batch_that_is_too_small_to_be_shared_is_told(tmp_path: Path) -> None:
    settings = resolve(write_job("lora", tmp_path, settings={"batch_size": 2}), FamilyId("sd1")).settings
    check_team(Team(rank=1, size=2), settings)
    with pytest.raises(UsageError, match="a batch of 2 cannot be shared by 3 processes") as caught:
        check_team(Team(rank=0, size=3), settings)
    assert "batch_size=3" in str(caught.value.hint)


@pytest.mark.slow
def test_two_processes_learn_what_one_does_with_the_whole_batch(tmp_path: Path) -> None:
    """Five samples: one process has three of them, the other two."""
    # Perfusion's edit is computed in float32 from C^-1 i*, which multiplies the last digit of i* by C's condition.
    tolerances = {"textual_inversion": 1e-5, "lora": 1e-5, "perfusion": 1e-3}
    methods = tuple(tolerances)
    (tmp_path / "launched.py").write_text(SCRIPT, encoding="utf-8")
    write_job(methods[0], tmp_path)
    # On processors accelerate leaves the launching to torch, and opens the group all the same.
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--standalone"]
    command += [str(tmp_path / "launched.py"), str(tmp_path), *methods]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, check=False, capture_output=True, text=True, timeout=900, env=environment, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr[-3000:]
    said = done.stdout.split()
    assert (said.count("leads"), said.count("follows")) == (3, 3), done.stdout
    for method in methods:
        job = write_job(method, tmp_path, steps=4, settings={"batch_size": 5})
        with in_double_precision() as base:
            alone = train(
                job, base=base, workdir=tmp_path / "alone" / method, cache_folder=tmp_path / "cache"
            )
        (path,) = alone.folder.glob("*.safetensors")
        expected = read_tensors(path)
        found = read_tensors(tmp_path / f"together-{method}" / "concept" / path.name)
        for name, value in expected.items():
            one, other = value.to_numpy(), found[name].to_numpy()
            assert np.abs(one - other).max() <= tolerances[method] * max(np.abs(one).max(), 1e-6), (
                method,
                name,
            )
