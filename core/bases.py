"""Base models: their families, their fingerprints, and whether a concept fits one.

A fingerprint says which weights a component has without hashing gigabytes: ``layout`` is the digest of the sorted
tensor names and shapes and of the settings that change meaning; ``weights`` holds 64 values at fixed places of 32
tensors. Copies of one model in other precisions are one base.
"""

from __future__ import annotations

import hashlib
import importlib.util
import math
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from pathlib import Path
from typing import Any, Final, NewType

from conceptry.digests import Digest, canonical_json
from conceptry.errors import NotFoundError, suggest_nearest

FamilyId = NewType("FamilyId", str)
ComponentName = NewType("ComponentName", str)

PROBE_TENSORS: Final = 32
PROBES_PER_TENSOR: Final = 2


class Fit(IntEnum):
    """How well a concept fits a base; greater is closer."""

    REFUSED = 0
    ARCHITECTURE = 1
    LINEAGE = 2
    EXACT = 3

    @property
    def word(self) -> str:
        """The word that is shown and stored: exact, lineage, architecture or refused."""
        return self.name.lower()


@dataclass(frozen=True, slots=True, kw_only=True)
class BaseFamily:
    """Models of one architecture, whose adapters have the same names and shapes."""

    id: FamilyId
    title: str
    architecture: str
    """ModelSpec architecture id."""

    denoiser: ComponentName
    text_encoders: tuple[tuple[ComponentName, int], ...]
    """Each text encoder and its width."""

    context_width: int | None
    """Width of what cross-attention reads; None where there is no cross-attention."""

    prediction_type: str
    resolution_pixels: int


def _family(id: str, title: str, architecture: str, encoders: dict[str, int], /, **rest: Any) -> BaseFamily:
    return BaseFamily(
        id=FamilyId(id),
        title=title,
        architecture=architecture,
        denoiser=ComponentName(rest.get("denoiser", "unet")),
        text_encoders=tuple((ComponentName(name), width) for name, width in encoders.items()),
        context_width=rest.get("context"),
        prediction_type=rest.get("prediction", "epsilon"),
        resolution_pixels=rest["pixels"],
    )


_CLIPS: Final = {"text_encoder": 768, "text_encoder_2": 1280}
_DIT: Final[dict[str, Any]] = {"denoiser": "transformer", "prediction": "flow", "pixels": 1024}

FAMILIES: Final[tuple[BaseFamily, ...]] = (
    _family(
        "toybox",
        "Conceptry toybox",
        "conceptry-toybox-v1",
        {"text_encoder": 128},
        context=128,
        prediction="v_prediction",
        pixels=64,
    ),
    _family(
        "sd1", "Stable Diffusion 1.x", "stable-diffusion-v1", {"text_encoder": 768}, context=768, pixels=512
    ),
    _family(
        "sd2",
        "Stable Diffusion 2.x",
        "stable-diffusion-v2",
        {"text_encoder": 1024},
        context=1024,
        prediction="v_prediction",
        pixels=768,
    ),
    _family("sdxl", "Stable Diffusion XL", "stable-diffusion-xl-v1-base", _CLIPS, context=2048, pixels=1024),
    _family(
        "sdxl_refiner",
        "Stable Diffusion XL refiner",
        "stable-diffusion-xl-v1-refiner",
        {"text_encoder_2": 1280},
        context=1280,
        pixels=1024,
    ),
    _family("sd3", "Stable Diffusion 3", "stable-diffusion-v3", {**_CLIPS, "text_encoder_3": 4096}, **_DIT),
    _family("flux", "Flux.1", "flux-1-dev", {"text_encoder": 768, "text_encoder_2": 4096}, **_DIT),
    _family("qwen_image", "Qwen-Image", "qwen-image", {"text_encoder": 3584}, **_DIT),
    _family(
        "wan", "Wan", "wan-2", {"text_encoder": 4096}, denoiser="transformer", prediction="flow", pixels=832
    ),
    _family("z_image", "Z-Image", "z-image", {"text_encoder": 2560}, **_DIT),
    _family("flux2", "Flux.2", "flux-2-dev", {"text_encoder": 5120}, **_DIT),
    _family("krea2", "Krea 2", "krea-2", {}, **_DIT),
)
FAMILY_BY_ID: Final[dict[str, BaseFamily]] = {family.id: family for family in FAMILIES}


def find_family(id: str) -> BaseFamily:
    """Returns the family called ``id``. Raises NotFoundError with the nearest known id."""
    family = FAMILY_BY_ID.get(id)
    if family is None:
        known = ", ".join(FAMILY_BY_ID)
        raise NotFoundError(
            f"no base family is called {id!r}",
            hint=suggest_nearest(id, FAMILY_BY_ID) or f"known families: {known}",
        )
    return family


def locate_toybox() -> Path:
    """Returns the diffusers folder of the bundled base, without importing it. Raises NotFoundError."""
    spec = importlib.util.find_spec("conceptry.toybox")
    for location in (spec.submodule_search_locations or []) if spec else []:
        folder = Path(location) / "weights"
        if (folder / "model_index.json").is_file():
            return folder
    raise NotFoundError(
        "the bundled toybox base is not installed", hint="reinstall conceptry with its data files"
    )


# --- fingerprints ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Probe:
    """One place of one tensor: the flat index of an element."""

    tensor: str
    index: int


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """What a component is: its layout, and 64 of its values."""

    layout: Digest
    weights: tuple[float, ...]

    @property
    def digest(self) -> Digest:
        """The SHA-256 of layout and values."""
        return Digest.of_bytes(" ".join([str(self.layout), *map(float.hex, self.weights)]).encode("ascii"))

    def matches(self, other: Fingerprint) -> bool:
        """Returns whether ``other`` is the same component, perhaps rounded to fp16, bf16, or fp16 and then bf16."""
        if self.layout != other.layout or len(self.weights) != len(other.weights):
            return False
        return _same_values(self.weights, other.weights) or _same_values(other.weights, self.weights)


Fingerprints = Mapping[ComponentName, Fingerprint]


def choose_probes(shapes: Mapping[str, Sequence[int]]) -> tuple[Probe, ...]:
    """Returns the places to read: two in each of the 32 tensors whose names hash lowest.

    The choice depends on names and shapes only, so every copy of a model is read at the same places.
    """
    hashed = sorted(
        (hashlib.sha256(name.encode()).digest(), name) for name in shapes if math.prod(shapes[name])
    )
    probes = []
    for key, name in hashed[:PROBE_TENSORS]:
        for part in range(PROBES_PER_TENSOR):
            number = int.from_bytes(key[8 * part : 8 * part + 8], "big")
            probes.append(Probe(name, number % math.prod(shapes[name])))
    return tuple(probes)


def digest_layout(shapes: Mapping[str, Sequence[int]], settings: Mapping[str, Any]) -> Digest:
    """Returns the digest of the sorted (tensor name, shape) pairs and the settings that change meaning."""
    tensors = [[name, list(shapes[name])] for name in sorted(shapes)]
    return Digest.of_bytes(canonical_json({"settings": dict(settings), "tensors": tensors}))


def _to_fp16(value: float) -> float:
    try:
        return float(struct.unpack("<e", struct.pack("<e", value))[0])
    except OverflowError:
        return float("inf") if value > 0 else float("-inf")


def _to_bf16(value: float) -> float:
    (bits,) = struct.unpack("<I", struct.pack("<f", value))
    bits += 0x7FFF + ((bits >> 16) & 1)
    return float(struct.unpack("<f", struct.pack("<I", bits & 0xFFFF0000))[0])


_ROUNDINGS: Final[tuple[Callable[[float], float], ...]] = (
    lambda value: value,
    _to_fp16,
    _to_bf16,
    lambda value: _to_bf16(_to_fp16(value)),
)


def _same_values(published: Sequence[float], seen: Sequence[float]) -> bool:
    return any(all(rounding(a) == b for a, b in zip(published, seen, strict=True)) for rounding in _ROUNDINGS)


# --- does it fit? ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class BaseIdentity:
    """What is known of a base: declared in a manifest, or read from an open pipeline or a folder."""

    family: FamilyId
    prediction_type: str
    fingerprints: Fingerprints = field(default_factory=dict)
    parents: tuple[Fingerprints, ...] | None = None
    """Fingerprints of the models that this one declares as its ancestors; None when unknown."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """The answer to "does it fit this base?" and the reasons in words."""

    fit: Fit
    reasons: tuple[str, ...]
    warnings: tuple[str, ...] = ()


def judge_fit(declared: BaseIdentity, offered: BaseIdentity) -> Verdict:
    """Returns how well a concept made for ``declared`` fits ``offered``.

    Only components that ``declared`` fingerprints are compared. Where one side has none (an imported file, a family
    without weights), only the families can be compared.
    """
    warnings = _compare_prediction(declared, offered)
    if not declared.fingerprints or not offered.fingerprints:
        return _judge_by_family(declared, offered, warnings)
    missing = [name for name in declared.fingerprints if name not in offered.fingerprints]
    if missing:
        return Verdict(Fit.REFUSED, (f"the base has no component {missing[0]!r}",), warnings)
    other_layouts = [
        name
        for name, mine in declared.fingerprints.items()
        if mine.layout != offered.fingerprints[name].layout
    ]
    if other_layouts:
        names = ", ".join(sorted(other_layouts))
        return Verdict(Fit.REFUSED, (f"tensor names, shapes or settings differ in {names}",), warnings)
    return _judge_weights(declared, offered, warnings)


def _compare_prediction(declared: BaseIdentity, offered: BaseIdentity) -> tuple[str, ...]:
    if declared.prediction_type == offered.prediction_type:
        return ()
    return (
        f"the concept was made for {declared.prediction_type}, the base predicts {offered.prediction_type}",
    )


def _judge_by_family(declared: BaseIdentity, offered: BaseIdentity, warnings: tuple[str, ...]) -> Verdict:
    if declared.family != offered.family:
        return Verdict(Fit.REFUSED, (f"made for {declared.family}, the base is {offered.family}",), warnings)
    unknown = "the base is declared without weights"
    if not declared.fingerprints:
        unknown = "the concept carries no fingerprint of its base"
    reason = f"same family; {unknown}"
    return Verdict(Fit.ARCHITECTURE, (reason,), (*warnings, reason))


def _judge_weights(declared: BaseIdentity, offered: BaseIdentity, warnings: tuple[str, ...]) -> Verdict:
    differing = _find_differing(declared.fingerprints, offered.fingerprints)
    if not differing:
        fit = Fit.EXACT if not warnings else Fit.ARCHITECTURE
        return Verdict(fit, ("all fingerprints are equal",), warnings)
    for parent in offered.parents or ():
        if all(name in parent for name in declared.fingerprints) and not _find_differing(
            declared.fingerprints, parent
        ):
            return Verdict(Fit.LINEAGE, ("the base declares the concept's base among its parents",), warnings)
    lineage = (
        "its lineage is unknown" if offered.parents is None else "it does not descend from the concept's base"
    )
    reason = f"same shapes, other weights in {', '.join(differing)}; {lineage}"
    return Verdict(Fit.ARCHITECTURE, (reason,), (*warnings, reason))


def _find_differing(declared: Fingerprints, offered: Fingerprints) -> list[str]:
    return sorted(name for name, mine in declared.items() if not mine.matches(offered[name]))
