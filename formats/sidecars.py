"""Files beside a model file that other programs keep their notes in: one form for all of them, one row each.

A1111 keeps ``NAME.json``, Civitai Helper ``NAME.civitai.info`` (an answer of Civitai's interface), ComfyUI's
Lora Manager ``NAME.metadata.json``; all show ``NAME.preview.png``. InvokeAI reads A1111's notes and ``NAME.png`` when
it installs a LoRA, and nothing beside other files (invokeai/backend/model_manager/util/lora_metadata_extractor.py).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Final

from conceptry.bases import FamilyId
from conceptry.digests import Digest
from conceptry.kinds import KindId
from conceptry.manifest import Build, Manifest

# family -> what A1111 and what Civitai call it
_A1111_VERSIONS: Final = {"sd1": "SD1", "sd2": "SD2", "sdxl": "SDXL"}
_CIVITAI_BASES: Final = {
    "sd1": "SD 1.5",
    "sd2": "SD 2.1",
    "sdxl": "SDXL 1.0",
    "sd3": "SD 3",
    "flux": "Flux.1 D",
    "qwen_image": "Qwen",
    "wan": "Wan Video",
    "z_image": "ZImageTurbo",
}
_CIVITAI_TYPES: Final[dict[KindId, str]] = {"lora": "LORA", "embedding": "TextualInversion"}
PREVIEW_SUFFIX: Final = ".preview.png"


@dataclass(frozen=True, slots=True, kw_only=True)
class Sidecar:
    """What is said beside a model file, whichever program says it."""

    title: str
    triggers: tuple[str, ...] = ()
    strength: float | None = None
    negative: str = ""
    description: str = ""
    notes: str = ""
    tags: tuple[str, ...] = ()
    family: FamilyId | None = None
    kind: KindId | None = None
    version: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFile:
    """The file that a sidecar lies beside, as it was written."""

    stem: str
    suffix: str
    size_bytes: int
    sha256: Digest
    data_sha256: str
    """Digest of the bytes after the header, in hexadecimal: what A1111 and Civitai (AutoV3) know a file by."""

    has_preview: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class SidecarFormat:
    """One program's notes: what their files are called after the stem, and how they are written."""

    id: str
    title: str
    suffix: str
    format: Callable[[Sidecar, ModelFile], dict[str, Any]]
    picture_suffix: str = PREVIEW_SUFFIX

    def to_bytes(self, said: Sidecar, file: ModelFile) -> bytes:
        """Returns the file's bytes: JSON, with nothing of the clock or the machine in it."""
        return (json.dumps(self.format(said, file), ensure_ascii=False, indent=2) + "\n").encode()


def describe_sidecar(manifest: Manifest, build: Build, kind: KindId | None = None) -> Sidecar:
    """Returns what a concept's manifest says, as the programs beside whose files it will lie can show it.

    ``kind`` is that of the part they lie beside, else of the build's first.
    """
    license = manifest.license.spdx or manifest.license.name
    return Sidecar(
        title=manifest.title or str(manifest.name),
        triggers=tuple(token.placeholder for token in manifest.tokens if token.role != "negative"),
        strength=manifest.usage.strength,
        negative=manifest.usage.negative,
        description=manifest.description,
        notes=f"{manifest.name}@{manifest.version}" + (f", {license}" if license else ""),
        tags=manifest.tags,
        family=FamilyId(build.base.family),
        kind=kind or build.parts[0].kind,
        version=str(manifest.version),
    )


def _format_a1111(said: Sidecar, file: ModelFile) -> dict[str, Any]:
    return {
        "description": said.description,
        "sd version": _A1111_VERSIONS.get(said.family or "", "Unknown"),
        "activation text": ", ".join(said.triggers),
        # 0 means there "the default of the program".
        "preferred weight": said.strength or 0,
        "negative text": said.negative,
        "notes": said.notes,
    }


def _format_civitai(said: Sidecar, file: ModelFile) -> dict[str, Any]:
    model = {
        "name": said.title,
        "type": _CIVITAI_TYPES.get(said.kind, "Other") if said.kind else "Other",
        "description": said.description,
        "tags": list(said.tags),
        "nsfw": False,
        "poi": False,
    }
    listed = {
        "name": file.stem + file.suffix,
        "type": "Model",
        "primary": True,
        "sizeKB": file.size_bytes / 1024,
        "hashes": {
            "SHA256": file.sha256.hex.upper(),
            "AutoV2": file.sha256.hex[:10].upper(),
            "AutoV3": file.data_sha256[:12].upper(),
        },
    }
    return {
        "name": said.version,
        "baseModel": _CIVITAI_BASES.get(said.family or "", "Other"),
        "trainedWords": list(said.triggers),
        "description": said.notes,
        "model": model,
        "files": [listed],
        "images": [],
    }


def _format_lora_manager(said: Sidecar, file: ModelFile) -> dict[str, Any]:
    # The manager puts in the places and times of its own machine when it finds the file.
    return {
        "file_name": file.stem,
        "model_name": said.title,
        "file_path": file.stem + file.suffix,
        "size": file.size_bytes,
        "modified": 0,
        "sha256": file.sha256.hex,
        "base_model": _CIVITAI_BASES.get(said.family or "", "Unknown"),
        "preview_url": f"{file.stem}{PREVIEW_SUFFIX}" if file.has_preview else "",
        "preview_nsfw_level": 0,
        "notes": said.notes,
        "from_civitai": False,
        "civitai": {"trainedWords": list(said.triggers)},
        "tags": list(said.tags),
        "modelDescription": said.description,
        "usage_tips": json.dumps({"strength": said.strength} if said.strength is not None else {}),
    }


SIDECARS: Final[tuple[SidecarFormat, ...]] = (
    SidecarFormat(id="a1111", title="AUTOMATIC1111's user metadata", suffix=".json", format=_format_a1111),
    SidecarFormat(
        id="civitai_helper", title="Civitai Helper's info", suffix=".civitai.info", format=_format_civitai
    ),
    SidecarFormat(
        id="lora_manager",
        title="ComfyUI Lora Manager's metadata",
        suffix=".metadata.json",
        format=_format_lora_manager,
    ),
    SidecarFormat(
        id="invokeai",
        title="A1111's notes as InvokeAI reads them",
        suffix=".json",
        format=_format_a1111,
        picture_suffix=".png",
    ),
)
SIDECAR_BY_ID: Final[dict[str, SidecarFormat]] = {row.id: row for row in SIDECARS}


def name_notes(ids: Iterable[str], stem: str) -> dict[str, SidecarFormat]:
    """Returns the names of the notes beside the model file called ``stem``, and which form each has."""
    return {stem + row.suffix: row for row in map(SIDECAR_BY_ID.__getitem__, ids)}


def name_pictures(ids: Iterable[str], stem: str) -> list[str]:
    """Returns what the picture beside the model file called ``stem`` is called there: for most programs the same."""
    return list(dict.fromkeys(stem + SIDECAR_BY_ID[id].picture_suffix for id in ids))
