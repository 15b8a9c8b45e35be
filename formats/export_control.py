"""Control adapters of Flux (depth, canny) in the names of Black Forest Labs, which diffusers and ComfyUI read.

No other spelling holds them: diffusers tells them by the scales of their norms, ComfyUI by those and by ``img_in``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from conceptry.errors import IncompatibleError
from conceptry.formats.data_files import load_table
from conceptry.formats.export_contract import OutputFile, WriteRequest, Written
from conceptry.formats.export_modules import prepare_modules
from conceptry.formats.export_names import make_speller
from conceptry.formats.lora import LoraContents, LoraModule
from conceptry.formats.tensors import RawTensor

_SPELLING: Final = "bfl"
_MARK: Final = "transformer.single_blocks.0.norm.key_norm"
_INPUT: Final = "transformer.img_in"
# 19 double blocks of 14 modules, 38 single ones of 5, and eight before and behind them.
_MODULES: Final = 19 * 14 + 38 * 5 + 8
_OPTIONAL: Final = "transformer.guidance_in."
_LAST: Final = "final_layer.adaLN_modulation.1"
_TURNED: Final = (
    f"diffusers (0.42 still) exchanges the halves of both factors of {_LAST}: another delta there"
)


def write_control_or(request: WriteRequest, *, plain: Callable[[WriteRequest], Written]) -> Written:
    """Returns a control adapter of Flux in its own names, and what ``plain`` writes of any other adapter.

    Raises:
        IncompatibleError: as ``plain``, and for a module that has no form in these names.
    """
    contents = request.contents
    if not isinstance(contents, LoraContents) or not is_control(contents):
        return plain(request)
    speller = make_speller(_SPELLING, request.family, contents.modules)
    prepared = prepare_modules(_SPELLING, contents.modules, request.family, lossy=request.lossy)
    suffixes = load_table("written_suffixes")[_SPELLING]
    tensors: dict[str, RawTensor] = {}
    for name, module in prepared.modules.items():
        if module.scale != 1:
            raise IncompatibleError(
                f"its scale is {module.scale:g}, and these names have no place for one", where=name
            )
        tensors |= {speller.spell(name) + suffixes[part]: tensor for part, tensor in module.parts.items()}
    file = OutputFile(name=f"{request.stem}.safetensors", tensors=tensors, metadata=request.metadata)
    warnings = (*prepared.notes, *_list_warnings(prepared.modules))
    return Written(files=(file,), warnings=warnings, losses=prepared.losses)


def is_control(contents: LoraContents) -> bool:
    """Returns whether it has what both programs know a control adapter of Flux by."""
    return _INPUT in contents.modules and "value" in getattr(contents.modules.get(_MARK), "parts", ())


def _list_warnings(modules: Mapping[str, LoraModule]) -> tuple[str, ...]:
    wider = "diffusers widens the input of its transformer when it reads this file: load it into a FluxControlPipeline"
    warnings = [wider, _TURNED] if f"transformer.{_LAST}" in modules else [wider]
    missing = _MODULES - sum(not name.startswith(_OPTIONAL) for name in modules)
    if missing > 0:
        warnings.append(
            f"diffusers reads such a file only when it is whole, and {missing} modules are not in it"
        )
    return tuple(warnings)
