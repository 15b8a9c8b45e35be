"""Low-rank adapters as other programs read them, every scale where they look for it."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Final

from conceptry.errors import IncompatibleError
from conceptry.formats.export_contract import OutputFile, WriteRequest, Written
from conceptry.formats.export_names import make_speller
from conceptry.formats.lora import LoraContents, LoraModule
from conceptry.formats.module_names import TEXT_LEVEL
from conceptry.formats.tensors import RawTensor

DIFFUSERS_NAME: Final = "pytorch_lora_weights.safetensors"
PEFT_WEIGHTS: Final = "adapter_model.safetensors"
PEFT_CONFIG: Final = "adapter_config.json"
ADAPTER_METADATA: Final = "lora_adapter_metadata"
# transformers 5 dropped ``text_model.`` from CLIPTextModel; the one with a projection, which SD3 has first, kept it.
_FIRST_ENCODER: Final = "text_encoder"
_PROJECTING: Final = frozenset({"sd3"})
_DOWN_UP: Final = (".lora_down.weight", ".lora_up.weight")
_A_B: Final = (".lora_A.weight", ".lora_B.weight")


def write_with_alphas(request: WriteRequest, *, spelling: str) -> Written:
    """Returns one file with an alpha for each module beside its factors: kohya, A1111 and ComfyUI read this."""
    contents = _take(request)
    speller = make_speller(spelling, request.family, contents.modules)
    tensors: dict[str, RawTensor] = {}
    for name, module in contents.modules.items():
        stem = speller.spell(name)
        tensors |= _spell_factors(stem, module, _DOWN_UP)
        tensors[f"{stem}.alpha"] = make_scalar(_choose_alpha(module))
    metadata = {**request.metadata, **_describe_network(contents)}
    file = OutputFile(name=f"{request.stem}.safetensors", tensors=tensors, metadata=metadata)
    return Written(files=(file,), warnings=_warn_zero(contents))


def write_diffusers(request: WriteRequest) -> Written:
    """Returns one file whose ranks and alphas are in its metadata, as diffusers 0.35 and later save and read it."""
    contents = _take(request)
    speller = make_speller("diffusers", request.family, contents.modules)
    tensors: dict[str, RawTensor] = {}
    for name, module in contents.modules.items():
        tensors |= _spell_factors(speller.spell(name), module, _A_B)
    settings: dict[str, Any] = {}
    for component, modules in _group(contents).items():
        settings |= {f"{component}.{key}": value for key, value in _make_config(modules).items()}
    metadata = {**request.metadata, "format": "pt", ADAPTER_METADATA: json.dumps(settings, sort_keys=True)}
    warnings = _warn_zero(contents)
    if any(module.scale != 1 for module in contents.modules.values()):
        warnings = (*warnings, "diffusers before 0.35 does not read the scales in the metadata and uses 1")
    name = f"{request.stem}.safetensors" if request.named else DIFFUSERS_NAME
    file = OutputFile(name=name, tensors=tensors, metadata=metadata)
    return Written(files=(file,), warnings=warnings)


def write_peft(request: WriteRequest) -> Written:
    """Returns PEFT's two files, in a folder for each network where there are several."""
    contents = _take(request)
    speller = make_speller("peft", request.family, contents.modules)
    groups = _group(contents)
    files: list[OutputFile] = []
    warnings: list[str] = []
    for component, modules in groups.items():
        folder = f"{component}/" if len(groups) > 1 else ""
        tensors: dict[str, RawTensor] = {}
        flat = component == _FIRST_ENCODER and request.family not in _PROJECTING
        for path, module in modules.items():
            stem = speller.spell(f"{component}.{path}")
            tensors |= _spell_factors(stem.replace(TEXT_LEVEL, "", 1) if flat else stem, module, _A_B)
        if flat:
            warnings.append(
                "names inside text_encoder are those of transformers 5; version 4 finds none of them"
            )
        config = {"peft_type": "LORA", "task_type": None, "inference_mode": True, "bias": "none"}
        config |= {"base_model_name_or_path": None, **_make_config(modules)}
        text = json.dumps(config, indent=2, sort_keys=True) + "\n"
        metadata = {**request.metadata, "format": "pt"}
        files.append(OutputFile(name=f"{folder}{PEFT_WEIGHTS}", tensors=tensors, metadata=metadata))
        files.append(OutputFile(name=f"{folder}{PEFT_CONFIG}", data=text.encode()))
    return Written(files=tuple(files), warnings=(*warnings, *_warn_zero(contents)))


def _take(request: WriteRequest) -> LoraContents:
    if not isinstance(request.contents, LoraContents):
        raise IncompatibleError(f"{type(request.contents).__name__} is no low-rank adapter")
    return request.contents


def _group(contents: LoraContents) -> dict[str, dict[str, LoraModule]]:
    groups: dict[str, dict[str, LoraModule]] = {}
    for name, module in contents.modules.items():
        component, _, path = name.partition(".")
        groups.setdefault(component, {})[path] = module
    return groups


def _spell_factors(stem: str, module: LoraModule, suffixes: tuple[str, str]) -> dict[str, RawTensor]:
    up = module.up if module.alpha else _clear(module.up)
    return {stem + suffixes[0]: module.down, stem + suffixes[1]: up}


def _choose_alpha(module: LoraModule) -> float:
    return module.alpha or float(module.rank)


def _clear(tensor: RawTensor) -> RawTensor:
    return RawTensor(tensor.dtype, tensor.shape, bytes(tensor.size_bytes))


def _warn_zero(contents: LoraContents) -> tuple[str, ...]:
    zero = sum(not module.alpha for module in contents.modules.values())
    if not zero:
        return ()
    return (
        f"{zero} modules have alpha 0, which other programs read as 'not said'; their factor is 0 instead",
    )


def make_scalar(value: float) -> RawTensor:
    """Returns one float32 number as a tensor without dimensions."""
    import numpy as np

    return RawTensor.from_numpy(np.array(value, np.float32))


# --- settings ------------------------------------------------------------------------------------------------------


def _make_config(modules: Mapping[str, LoraModule]) -> dict[str, Any]:
    """Returns the fields of peft's LoraConfig that give each module its rank and alpha.

    transformers 5 dropped the ``text_model.`` level, and patterns match the ends of paths: without it they fit both.
    """
    paths = {path.removeprefix(TEXT_LEVEL): module for path, module in modules.items()}
    ranks = {path: module.rank for path, module in paths.items()}
    alphas = {path: _choose_alpha(module) for path, module in paths.items()}
    rank, alpha = _find_commonest(list(ranks.values())), _find_commonest(list(alphas.values()))
    return {
        "r": rank,
        "lora_alpha": alpha,
        "rank_pattern": _list_exceptions(ranks, rank),
        "alpha_pattern": _list_exceptions(alphas, alpha),
        "target_modules": sorted(paths),
    }


def _find_commonest(values: Sequence[Any]) -> Any:
    counts = Counter(values)
    return max(counts, key=lambda value: (counts[value], value))


def _list_exceptions(values: Mapping[str, Any], common: Any) -> dict[str, Any]:
    """Returns the values that differ, and those that a shorter one would catch; PEFT takes the first that fits.

    Longer paths stand first, so that the whole path of a module is found before the end of it.
    """
    different = {path for path, value in values.items() if value != common}
    caught = {path for path in values if any(path.endswith(f".{short}") for short in different)}
    return {path: values[path] for path in sorted(different | caught, key=lambda path: (-len(path), path))}


def _describe_network(contents: LoraContents) -> dict[str, str]:
    ranks = [module.rank for module in contents.modules.values()]
    alphas = [_choose_alpha(module) for module in contents.modules.values()]
    return {
        "ss_network_module": "networks.lora",
        "ss_network_dim": str(_find_commonest(ranks)),
        "ss_network_alpha": str(_find_commonest(alphas)),
    }
