"""Adapters of the LoRA family as other programs read them, every scale where they look for it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final

from conceptry.errors import IncompatibleError
from conceptry.formats.algorithms import ALGORITHM_BY_ID
from conceptry.formats.data_files import load_table
from conceptry.formats.export_contract import OutputFile, WriteRequest, Written
from conceptry.formats.export_modules import Prepared, prepare_modules
from conceptry.formats.export_names import make_speller
from conceptry.formats.export_peft import MAGNITUDE, find_commonest, make_config
from conceptry.formats.lora import LoraContents, LoraModule
from conceptry.formats.module_names import TEXT_LEVEL
from conceptry.formats.original_names import spell_as_diffusers
from conceptry.formats.tensors import RawTensor

DIFFUSERS_NAME: Final = "pytorch_lora_weights.safetensors"
PEFT_WEIGHTS: Final = "adapter_model.safetensors"
PEFT_CONFIG: Final = "adapter_config.json"
ADAPTER_METADATA: Final = "lora_adapter_metadata"
_PLAIN: Final = frozenset({"lora", "locon"})
_AUTHORS_NAMES: Final = "transformer original"
# transformers 5 dropped ``text_model.`` from CLIPTextModel; the one with a projection, which SD3 has first, kept it.
_FIRST_ENCODER: Final = "text_encoder"
_PROJECTING: Final = frozenset({"sd3"})


def write_with_alphas(request: WriteRequest, *, spelling: str) -> Written:
    """Returns one file with the numbers of each module beside its tensors: LyCORIS, A1111 and ComfyUI read this."""
    prepared = _prepare(request, spelling)
    if prepared.losses and not request.lossy:
        return Written(files=(), losses=prepared.losses)
    speller = make_speller(spelling, request.family, prepared.modules)
    suffixes = load_table("written_suffixes")["lycoris"]
    tensors: dict[str, RawTensor] = {}
    for name, module in prepared.modules.items():
        stem = speller.spell(name)
        tensors |= {stem + suffixes[part]: _lengthen(part, module) for part in module.parts}
        tensors |= {
            stem + suffixes[number]: _make_number(number, value) for number, value in module.numbers.items()
        }
    metadata = {**request.metadata, **_describe_network(prepared.modules)}
    file = OutputFile(name=f"{request.stem}.safetensors", tensors=tensors, metadata=metadata)
    warnings = prepared.notes
    beyond = {module.algorithm for module in prepared.modules.values()} - _PLAIN
    if beyond:
        titles = ", ".join(sorted(ALGORITHM_BY_ID[id].title for id in beyond))
        warnings = (*warnings, f"diffusers refuses {titles} in this file, or drops a part of it in silence")
    return Written(files=(file,), warnings=warnings, losses=prepared.losses)


def write_diffusers(request: WriteRequest) -> Written:
    """Returns one file whose ranks and alphas are in its metadata, as diffusers 0.35 and later save and read it."""
    prepared = _prepare(request, "diffusers")
    if prepared.losses and not request.lossy:
        return Written(files=(), losses=prepared.losses)
    speller = make_speller("diffusers", request.family, prepared.modules)
    tensors: dict[str, RawTensor] = {}
    settings: dict[str, Any] = {}
    for component, modules in _group(prepared.modules).items():
        _, config = make_config(component, modules)
        settings |= {f"{component}.{key}": value for key, value in config.items()}
        for path, module in modules.items():
            tensors |= _spell_peft(speller.spell(f"{component}.{path}"), module)
    metadata = {**request.metadata, "format": "pt", ADAPTER_METADATA: json.dumps(settings, sort_keys=True)}
    warnings = list(prepared.notes)
    if any(module.scale != 1 for module in prepared.modules.values()):
        warnings.append("diffusers before 0.35 does not read the scales in the metadata and uses 1")
    name = f"{request.stem}.safetensors" if request.named else DIFFUSERS_NAME
    file = OutputFile(name=name, tensors=tensors, metadata=metadata)
    return Written(files=(file,), warnings=tuple(warnings), losses=prepared.losses)


def write_peft(request: WriteRequest) -> Written:
    """Returns PEFT's two files, in a folder for each network where there are several."""
    prepared = _prepare(request, "peft")
    if prepared.losses and not request.lossy:
        return Written(files=(), losses=prepared.losses)
    speller = make_speller("peft", request.family, prepared.modules)
    groups = _group(prepared.modules)
    files: list[OutputFile] = []
    warnings = list(prepared.notes)
    for component, modules in groups.items():
        folder = f"{component}/" if len(groups) > 1 else ""
        flat = component == _FIRST_ENCODER and request.family not in _PROJECTING
        tensors: dict[str, RawTensor] = {}
        for path, module in modules.items():
            stem = speller.spell(f"{component}.{path}")
            tensors |= _spell_peft(stem.replace(TEXT_LEVEL, "", 1) if flat else stem, module)
        if flat:
            warnings.append(
                "names inside text_encoder are those of transformers 5; version 4 finds none of them"
            )
        type, settings = make_config(component, modules)
        config = {"peft_type": type, "task_type": None, "inference_mode": True, **settings}
        config["base_model_name_or_path"] = None
        text = json.dumps(config, indent=2, sort_keys=True) + "\n"
        metadata = {**request.metadata, "format": "pt"}
        files.append(OutputFile(name=f"{folder}{PEFT_WEIGHTS}", tensors=tensors, metadata=metadata))
        files.append(OutputFile(name=f"{folder}{PEFT_CONFIG}", data=text.encode()))
    return Written(files=tuple(files), warnings=tuple(warnings), losses=prepared.losses)


def _prepare(request: WriteRequest, program: str) -> Prepared:
    contents = request.contents
    if not isinstance(contents, LoraContents):
        raise IncompatibleError(f"{type(contents).__name__} is no adapter")
    modules = contents.modules
    if _AUTHORS_NAMES not in load_table("spellings")[program]["prefixes"]:
        modules = spell_as_diffusers(modules, request.family)
    # Names first: what has none is refused before anything is computed.
    speller = make_speller(program, request.family, modules)
    for name in modules:
        speller.spell(name)
    return prepare_modules(program, modules, request.family, lossy=request.lossy)


def _group(modules: Mapping[str, LoraModule]) -> dict[str, dict[str, LoraModule]]:
    groups: dict[str, dict[str, LoraModule]] = {}
    for name, module in modules.items():
        component, _, path = name.partition(".")
        groups.setdefault(component, {})[path] = module
    return groups


# --- tensors -------------------------------------------------------------------------------------------------------


def _lengthen(part: str, module: LoraModule) -> RawTensor:
    """Returns a part; a magnitude of one dimension gets those of the weight, so that its axis can be told."""
    tensor = module.parts[part]
    if part != MAGNITUDE or len(tensor.shape) != 1:
        return tensor
    sizes = len(module.parts["down"].shape) if "down" in module.parts else 2
    return tensor.reshape((*tensor.shape, *(1 for _ in range(sizes - 1))))


def _spell_peft(stem: str, module: LoraModule) -> dict[str, RawTensor]:
    suffixes = load_table("written_suffixes")["peft"]
    tensors = {stem + suffixes[part]: tensor for part, tensor in module.parts.items()}
    if MAGNITUDE in module.parts:
        magnitude = module.parts[MAGNITUDE]
        sizes = len(module.down.shape)
        shape = (
            (magnitude.elements,) if sizes == 2 else (1, magnitude.elements, *(1 for _ in range(sizes - 2)))
        )
        tensors[stem + suffixes[MAGNITUDE]] = magnitude.reshape(shape)
    return tensors


def _make_number(name: str, value: float) -> RawTensor:
    import numpy as np

    return RawTensor.from_numpy(np.array(bool(value)) if name == "on_input" else np.array(value, np.float32))


def _describe_network(modules: Mapping[str, LoraModule]) -> dict[str, str]:
    algorithms = sorted({module.algorithm for module in modules.values()})
    plain = set(algorithms) <= _PLAIN and not any("core" in module.parts for module in modules.values())
    return {
        "ss_network_module": "networks.lora" if plain else "lycoris.kohya",
        "ss_network_dim": str(find_commonest([module.rank for module in modules.values()])),
        "ss_network_alpha": str(find_commonest([module.alpha for module in modules.values()])),
        "ss_network_args": json.dumps({} if plain else {"algo": ", ".join(algorithms)}),
    }
