"""The registry half works where torch and its relatives are absent, and loads little."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

# Behaves as an environment without these packages, and leaves a trace that no `except ImportError` hides.
WITHOUT_TORCH = """
import sys

class Refusal:
    absent = {"torch", "diffusers", "transformers", "peft", "accelerate", "jaxtyping", "PIL"}

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in self.absent:
            print(f"refused import: {name}", file=sys.stderr)
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Refusal())
from conceptry.cli.main import main
sys.argv[0] = "concepts"
main()
"""

Command = Callable[..., str]


@pytest.fixture
def concepts(tmp_path: Path) -> Command:
    """Give the command line as a function that runs it without torch and returns its output."""

    def run(*arguments: str, home: str = "first") -> str:
        finished = subprocess.run(
            [sys.executable, "-c", WITHOUT_TORCH, *arguments],
            cwd=tmp_path,
            env={**os.environ, "CONCEPTRY_HOME": str(tmp_path / home)},
            check=False,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert "refused import" not in finished.stderr
        assert finished.returncode == 0, finished.stderr
        return finished.stdout

    return run


def write_lora(path: Path) -> Path:
    """Return ``path`` after a rank-4 adapter in kohya's layout was written there."""
    block = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k"
    save_file(
        {
            f"{block}.lora_down.weight": np.ones((4, 768), np.float16),
            f"{block}.lora_up.weight": np.ones((320, 4), np.float16),
            f"{block}.alpha": np.array(4, np.float16),
        },
        path,
    )
    return path


def test_registry_commands_work_without_torch(concepts: Command, tmp_path: Path) -> None:
    file = str(write_lora(tmp_path / "imp.safetensors"))
    assert json.loads(concepts("identify", file, "--json"))["kind"] == "lora"
    concepts(
        *("import", file, "--name", "me/imp", "--version", "1.0.0", "--placeholder", "<imp>"),
        *("--base", "sd1", "--license", "CC0-1.0", "--yes"),
    )
    assert "me/imp" in concepts("list", "--json")
    digest = json.loads(concepts("show", "me/imp", "--json"))["digest"]
    concepts("remote", "add", "studio", (tmp_path / "studio").as_uri())
    concepts("push", "me/imp", "studio")
    concepts("remote", "add", "studio", (tmp_path / "studio").as_uri(), home="second")
    concepts("pull", "studio::me/imp@1.0.0", home="second")
    assert json.loads(concepts("show", "me/imp", "--json", home="second"))["digest"] == digest
    concepts("verify", home="second")


def test_help_works_without_torch(concepts: Command) -> None:
    assert "train" in concepts("--help")


def test_importing_the_package_loads_no_pydantic() -> None:
    program = "import conceptry, sys; print('pydantic' in sys.modules)"
    finished = subprocess.run(
        [sys.executable, "-c", program], check=True, capture_output=True, text=True, timeout=60
    )
    assert finished.stdout.strip() == "False"
