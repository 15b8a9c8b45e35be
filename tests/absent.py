"""A plugin for pytest that hides packages and parts of the system: what the tests find where these are absent.

``ABSENT=windows python -m pytest -p tests.absent tests/registry tests/formats tests/core``
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Final

EXTRAS: Final = (
    *(
        "torch",
        "diffusers",
        "transformers",
        "peft",
        "accelerate",
        "tokenizers",
        "PIL",
        "bitsandbytes",
        "prodigyopt",
    ),
    *(
        "matplotlib",
        "moto",
        "oras",
        "ray",
        "s3fs",
        "tensorboard",
        "model_signing",
        "lycoris",
        "perfusion_pytorch",
    ),
    *("einops", "opt_einsum", "toml", "flask"),
)
"""What the extras bring, and what `make install` adds for tests: workflows on other systems install none of it."""

POSIX_MODULES: Final = ("fcntl", "grp", "pwd", "resource", "termios")
POSIX_NAMES: Final = ((os, ("fork", "geteuid", "mkfifo")), (signal, ("SIGKILL",)))
SYSTEMS: Final = ("macos", "windows")


class Absent(MetaPathFinder):
    """Finds nothing of what is not there."""

    def __init__(self, names: Sequence[str]) -> None:
        self._names = frozenset(names)

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname.partition(".")[0] in self._names:
            raise ModuleNotFoundError(f"No module named {fullname!r}", name=fullname)
        return None


def hide(system: str) -> None:
    """From now on modules are missing that a workflow on that system has not."""
    names = (*EXTRAS, *(POSIX_MODULES if system == "windows" else ()))
    for name in [name for name in sys.modules if name.partition(".")[0] in names]:
        del sys.modules[name]
    sys.meta_path.insert(0, Absent(names))
    for module, hidden in POSIX_NAMES if system == "windows" else ():
        for name in hidden:
            delattr(module, name)


if "ABSENT" in os.environ:
    hide(os.environ["ABSENT"])
