"""Which files a path means: a file itself, the weights of a PEFT folder, or a whole diffusers folder."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Final

from conceptry.errors import NotFoundError, UsageError

MODEL_INDEX: Final = "model_index.json"
ADAPTER_CONFIG: Final = "adapter_config.json"
_ADAPTER_WEIGHTS: Final = ("adapter_model.safetensors", "adapter_model.bin")
_MAX_LISTED: Final = 5


def is_model_folder(path: Path) -> bool:
    """Returns whether ``path`` is a whole model in the layout of diffusers."""
    return (path / MODEL_INDEX).is_file()


def list_members(path: Path) -> tuple[Path, ...]:
    """Returns the files that ``path`` means: itself, or the adapters of a folder as PEFT writes them.

    Raises:
        NotFoundError: if there is nothing, or no adapter in the folder.
        UsageError: if the folder holds several files and nothing tells which is meant.
    """
    if not path.is_dir() or is_model_folder(path):
        return (path,)
    adapters = tuple(_iter_adapters(path))
    if adapters:
        return adapters
    files = sorted(path.glob("*.safetensors"))
    if len(files) == 1:
        return (files[0],)
    if not files:
        raise NotFoundError(f"{str(path)!r} is a folder without adapters", hint="name one file in it")
    names = ", ".join(file.name for file in files[:_MAX_LISTED])
    raise UsageError(f"{str(path)!r} holds {len(files)} files: {names}", hint="name the file that is meant")


def _iter_adapters(folder: Path) -> Iterator[Path]:
    for config in (folder / ADAPTER_CONFIG, *sorted(folder.glob(f"*/{ADAPTER_CONFIG}"))):
        if config.is_file():
            weights = next(
                (config.with_name(name) for name in _ADAPTER_WEIGHTS if config.with_name(name).is_file()),
                None,
            )
            if weights is None:
                raise NotFoundError(f"{str(config.parent)!r} has {ADAPTER_CONFIG} and no weights beside it")
            yield weights
