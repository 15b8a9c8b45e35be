"""What ``--base TEXT`` names, found without a network and without torch.

One resolver for the bundled toybox, a family id, a diffusers folder, a single-file checkpoint, a snapshot in the local
Hugging Face cache and the names of ``concepts base add``.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from conceptry.bases import FAMILIES, FAMILY_BY_ID, FamilyId, locate_toybox
from conceptry.errors import InvalidNameError, NotFoundError, suggest_nearest

LocationKind = Literal["toybox", "family", "folder", "file"]

MODEL_INDEX: Final = "model_index.json"
MAX_CONFIG_BYTES: Final = 1 << 20
_HUB: Final = re.compile(r"hf://([\w.-]+)/([\w.-]+)(?:@([\w./-]+))?", re.ASCII)
_COMMIT: Final = re.compile(r"[0-9a-f]{40}")
_HINT: Final = "concepts base list shows the names; a diffusers folder or a .safetensors checkpoint works too"


@dataclass(frozen=True, slots=True, kw_only=True)
class BaseLocation:
    """Where a base lies on this machine; a family alone is declared, not loaded, and has no path."""

    kind: LocationKind
    path: Path | None = None
    family: FamilyId | None = None
    """None where nothing tells before the weights are read (a single-file checkpoint)."""

    repo: str | None = None
    revision: str | None = None
    """Repository and revision, where the text named them."""


def resolve_base(text: str, named: Mapping[str, Path]) -> BaseLocation:
    """Returns what ``text`` names; ``named`` are the user's own names for folders and files.

    A name that the user gave wins over a file of that name; ``toybox`` and the family ids cannot be given.

    Raises:
        NotFoundError: if nothing is called so or lies there, with the nearest known name.
        InvalidNameError: for ``hf://`` text that does not parse.
    """
    if text == "toybox":
        return BaseLocation(kind="toybox", path=locate_toybox(), family=FamilyId("toybox"))
    if text in FAMILY_BY_ID:
        return BaseLocation(kind="family", family=FAMILY_BY_ID[text].id)
    if text.startswith("hf://"):
        return _resolve_hub(text)
    if text in named:
        return _resolve_path(named[text], text)
    path = Path(text).expanduser()
    if path.exists():
        return _resolve_path(path, text)
    known = [*FAMILY_BY_ID, *named]
    raise NotFoundError(
        f"no base is called or lies at {text[:200]!r}", hint=suggest_nearest(text, known) or _HINT
    )


def _resolve_path(path: Path, text: str) -> BaseLocation:
    if path.is_dir():
        if not (path / MODEL_INDEX).is_file():
            raise NotFoundError(
                f"{text[:200]!r} is a folder without {MODEL_INDEX}",
                hint="name a folder in the diffusers layout, as save_pretrained writes it",
            )
        return BaseLocation(kind="folder", path=path.resolve(), family=detect_folder_family(path))
    if not path.is_file():
        raise NotFoundError(f"the base {text[:200]!r} no longer lies at {str(path)!r}", hint=_HINT)
    if path.suffix != ".safetensors":
        raise NotFoundError(
            f"{text[:200]!r} is no .safetensors checkpoint",
            hint="other checkpoint formats can run code when they are opened; convert the file first",
        )
    return BaseLocation(kind="file", path=path.resolve())


# --- the local Hugging Face cache ----------------------------------------------------------------------------------


def _resolve_hub(text: str) -> BaseLocation:
    match = _HUB.fullmatch(text)
    if match is None or ".." in text:
        raise InvalidNameError(f"not a repository: {text[:200]!r}", hint="write hf://namespace/repo@revision")
    namespace, repo, revision = match.group(1), match.group(2), match.group(3) or "main"
    folder = find_hub_cache() / f"models--{namespace}--{repo}"
    commit = revision if _COMMIT.fullmatch(revision) else _read_ref(folder / "refs" / revision)
    snapshot = folder / "snapshots" / (commit or revision)
    if not (snapshot / MODEL_INDEX).is_file():
        raise NotFoundError(
            f"{namespace}/{repo} at {revision!r} is not in the local cache {str(folder.parent)!r}",
            hint=f"hf download {namespace}/{repo} --revision {revision}",
        )
    return BaseLocation(
        kind="folder",
        path=snapshot.resolve(),
        family=detect_folder_family(snapshot),
        repo=f"{namespace}/{repo}",
        revision=commit or revision,
    )


def find_hub_cache() -> Path:
    """Returns the folder of the Hugging Face cache, from the same variables that its own client reads."""
    for variable, below in (("HF_HUB_CACHE", ""), ("HUGGINGFACE_HUB_CACHE", ""), ("HF_HOME", "hub")):
        value = os.environ.get(variable)
        if value:
            return Path(value).expanduser() / below
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(cache).expanduser() / "huggingface" / "hub"


def _read_ref(path: Path) -> str | None:
    try:
        commit = path.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError):
        return None
    return commit if _COMMIT.fullmatch(commit) else None


# --- which family --------------------------------------------------------------------------------------------------


def detect_folder_family(folder: Path) -> FamilyId | None:
    """Returns the family of a diffusers folder, from its configuration files; None where they do not tell."""
    widths = {name: _read_width(config) for name, config in _iter_encoder_configs(folder)}
    for denoiser in ("unet", "transformer"):
        config = read_config(folder / denoiser / "config.json")
        if config:
            return detect_family(config, {name: width for name, width in widths.items() if width is not None})
    return None


def _iter_encoder_configs(folder: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for name in ("text_encoder", "text_encoder_2", "text_encoder_3"):
        config = read_config(folder / name / "config.json")
        if config:
            yield name, config


def _read_width(config: Mapping[str, Any]) -> int | None:
    width = config.get("hidden_size", config.get("d_model"))
    return width if isinstance(width, int) else None


_FAMILY_BY_TRANSFORMER: Final = {
    "SD3Transformer2DModel": FamilyId("sd3"),
    "FluxTransformer2DModel": FamilyId("flux"),
    "QwenImageTransformer2DModel": FamilyId("qwen_image"),
    "WanTransformer3DModel": FamilyId("wan"),
    "ZImageTransformer2DModel": FamilyId("z_image"),
}
"""For pipelines of other widths, or without one of their text encoders."""


def detect_family(denoiser: Mapping[str, Any], encoder_widths: Mapping[str, int]) -> FamilyId | None:
    """Returns the family whose text encoders and cross-attention have these widths.

    A UNet of no known width (a small one for tests, a distilled one) is told by its structure: SDXL has two text
    encoders and extra time embeddings, its refiner reads the second encoder alone, SD2 projects with linear layers, SD1
    does neither.
    """
    context = denoiser.get("cross_attention_dim")
    is_unet = "UNet" in str(denoiser.get("_class_name", "UNet"))
    for family in FAMILIES:
        same = dict(family.text_encoders) == dict(encoder_widths)
        if same and (family.denoiser == "unet") == is_unet and context == family.context_width:
            return family.id
    if not is_unet:
        return _FAMILY_BY_TRANSFORMER.get(str(denoiser.get("_class_name")))
    if dict(encoder_widths) == {"text_encoder_2": context}:
        return FamilyId("sdxl_refiner")
    if "text_encoder_2" in encoder_widths or denoiser.get("addition_embed_type") == "text_time":
        return FamilyId("sdxl")
    return FamilyId("sd2" if denoiser.get("use_linear_projection") else "sd1")


def read_config(path: Path) -> Mapping[str, Any]:
    """Returns the JSON object at ``path``; an empty one where there is none that can be read."""
    try:
        if path.stat().st_size > MAX_CONFIG_BYTES:
            return {}
        value = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}
