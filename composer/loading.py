"""A base on this machine, opened as a diffusers pipeline: safetensors only, no network, no code of others."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import SafetensorError

from conceptry.base_locations import MODEL_INDEX, BaseLocation, read_config, resolve_base
from conceptry.bases import FAMILY_BY_ID
from conceptry.errors import IncompatibleError, InvalidFileError, NotFoundError, UsageError
from conceptry.formats.header import read_header

# Pipelines that are opened here, by the name in model_index.json; variants share the components of the first.
_PIPELINES: Final[Mapping[str, str]] = {
    "StableDiffusionPipeline": "StableDiffusionPipeline",
    "StableDiffusionImg2ImgPipeline": "StableDiffusionPipeline",
    "StableDiffusionXLPipeline": "StableDiffusionXLPipeline",
    "StableDiffusionXLImg2ImgPipeline": "StableDiffusionXLPipeline",
    "StableDiffusion3Pipeline": "StableDiffusion3Pipeline",
    "StableDiffusion3Img2ImgPipeline": "StableDiffusion3Pipeline",
    "FluxPipeline": "FluxPipeline",
    "FluxImg2ImgPipeline": "FluxPipeline",
    "QwenImagePipeline": "QwenImagePipeline",
    "ZImagePipeline": "ZImagePipeline",
}
# Parts that a folder may leave out, and that diffusers then has to be told of.
_SPARE_PARTS: Final[Mapping[str, tuple[str, ...]]] = {
    "StableDiffusion3Pipeline": ("text_encoder_3", "tokenizer_3"),
}
_ORIGIN: Final = "_conceptry_origin"
_LIBRARIES: Final = frozenset({"diffusers", "transformers", "stable_diffusion"})

# A single-file checkpoint holds weights only: a tensor that tells its family, and whose configuration goes with it.
_CHECKPOINTS: Final = (
    (
        "conditioner.embedders.1.model.ln_final.weight",
        "StableDiffusionXLPipeline",
        "stabilityai/stable-diffusion-xl-base-1.0",
    ),
    ("cond_stage_model.model.ln_final.weight", "StableDiffusionPipeline", "stabilityai/stable-diffusion-2-1"),
    (
        "cond_stage_model.transformer.text_model.final_layer_norm.weight",
        "StableDiffusionPipeline",
        "stable-diffusion-v1-5/stable-diffusion-v1-5",
    ),
)


def load_pipeline(
    location: BaseLocation, *, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> Any:
    """Returns the pipeline at ``location``, on ``device`` and in ``dtype``, without a progress bar.

    Raises:
        UsageError: for a family id, which names no weights.
        NotFoundError: if a part, or the configuration of a single-file checkpoint, is not on this machine.
        IncompatibleError: for a pipeline that is not opened here, or that asks for code of its own.
        InvalidFileError: if the weights cannot be read.
    """
    if location.path is None:
        title = FAMILY_BY_ID[location.family].title if location.family else "a family"
        raise UsageError(
            f"{title} is declared without weights, so it cannot be opened",
            hint="name a diffusers folder or a checkpoint, or --base toybox",
        )
    opened = (
        _open_file(location.path, dtype) if location.kind == "file" else _open_folder(location.path, dtype)
    )
    opened.set_progress_bar_config(disable=True)
    opened.__dict__[_ORIGIN] = location.path
    opened.to(device)
    if torch.device(device).type == "cpu" and isinstance(getattr(opened, "unet", None), torch.nn.Module):
        # The same values; oneDNN then need not turn what every convolution reads around.
        opened.unet.to(memory_format=torch.channels_last)
    return opened


def find_origin(pipeline: Any, component: Any) -> Path | None:
    """Returns the folder or file that a pipeline was opened from; None where it does not say, or it is gone."""
    noted = pipeline.__dict__.get(_ORIGIN)
    if isinstance(noted, Path):
        return noted if noted.exists() else None
    config: Any = getattr(component, "config", {})
    said = (
        config.get("_name_or_path") if isinstance(config, Mapping) else getattr(config, "_name_or_path", None)
    )
    folder = Path(said) if isinstance(said, str) and said else None
    return folder.parent if folder is not None and folder.is_dir() else None


def _open_folder(folder: Path, dtype: torch.dtype) -> Any:
    index = read_config(folder / MODEL_INDEX)
    name = _check_index(index, folder)
    options: dict[str, Any] = {}
    if "safety_checker" in index and not (folder / "safety_checker" / "config.json").is_file():
        options = {"safety_checker": None, "requires_safety_checker": False}
    options |= {part: None for part in _SPARE_PARTS.get(name, ()) if (index.get(part) or [None])[0] is None}
    return _call(
        _get_class(name).from_pretrained,
        folder,
        use_safetensors=True,
        local_files_only=True,
        torch_dtype=dtype,
        **options,
    )


def _check_index(index: Mapping[str, Any], folder: Path) -> str:
    """Returns the pipeline class to open; whatever would import code of the folder is refused."""
    found = index.get("_class_name")
    if not isinstance(found, str) or found not in _PIPELINES:
        raise IncompatibleError(
            f"{str(folder)!r} is a {str(found)[:80]!r}, which is not opened here",
            hint=f"known: {', '.join(_PIPELINES)}",
        )
    for part, entry in index.items():
        is_component = isinstance(entry, list) and len(entry) == 2 and not part.startswith("_")
        if is_component and entry[0] is not None and entry[0] not in _LIBRARIES:
            raise IncompatibleError(
                f"the part {part!r} of {str(folder)!r} comes from {str(entry[0])[:80]!r}, not from a known library"
            )
    return _PIPELINES[found]


def _open_file(path: Path, dtype: torch.dtype) -> Any:
    names = read_header(path).tensors
    row = next((row for row in _CHECKPOINTS if row[0] in names), None)
    if row is None:
        raise IncompatibleError(
            f"{path.name!r} is no Stable Diffusion checkpoint that is known here",
            hint="a LoRA or an embedding is no base; convert other checkpoints to a diffusers folder",
        )
    _, class_name, repo = row
    return _call(
        _get_class(class_name).from_single_file,
        path,
        config=str(_find_configuration(repo, path)),
        local_files_only=True,
        torch_dtype=dtype,
    )


def _find_configuration(repo: str, path: Path) -> Path:
    try:
        found = resolve_base(f"hf://{repo}", {}).path
    except NotFoundError as error:
        raise NotFoundError(
            f"the tokenizer and the configuration that {path.name!r} needs ({repo}) are not in the local cache",
            hint=f"hf download {repo} --include '*.json' --include '*.txt'",
        ) from error
    if found is None:
        raise NotFoundError(f"{repo} has no folder in the local cache")
    return found


def _get_class(name: str) -> Any:
    import diffusers

    return getattr(diffusers, name)


def _call(open_: Any, path: Path, **options: Any) -> Any:
    try:
        with _without_progress(), warnings.catch_warnings():
            # `torch_dtype` is what all versions from 0.38 on understand; 0.42 would rather have `dtype`.
            warnings.simplefilter("ignore", FutureWarning)
            return open_(str(path), **options)
    except FileNotFoundError as error:
        raise NotFoundError(f"a part of the base {str(path)!r} is missing: {_first_line(error)}") from error
    except (OSError, ValueError, TypeError, RuntimeError, KeyError, SafetensorError) as error:
        # Everything that a broken file or a broken configuration makes the loaders raise.
        raise InvalidFileError(f"the base {str(path)!r} cannot be opened: {_first_line(error)}") from error


@contextmanager
def _without_progress() -> Iterator[None]:
    """Keeps the libraries' own bars off the terminal; ours are drawn by the command line."""
    from diffusers.utils import logging as of_diffusers
    from transformers.utils import logging as of_transformers

    enabled = [library for library in (of_diffusers, of_transformers) if library.is_progress_bar_enabled()]
    for library in enabled:
        library.disable_progress_bar()
    try:
        yield
    finally:
        for library in enabled:
            library.enable_progress_bar()


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
