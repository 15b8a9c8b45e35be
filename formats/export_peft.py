"""PEFT's settings for modules of one network: one row a method, which says what its file names the tensors."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from conceptry.errors import IncompatibleError
from conceptry.formats.deltas import find_block
from conceptry.formats.lora import LoraModule
from conceptry.formats.module_names import TEXT_LEVEL
from conceptry.kinds import AlgorithmId

MAGNITUDE: Final = "magnitude_out"
Modules = Mapping[str, LoraModule]


@dataclass(frozen=True, slots=True)
class PeftMethod:
    """One ``peft_type``: the algorithms that it holds, and the settings that give each module its meaning."""

    type: str
    algorithms: frozenset[AlgorithmId]
    settle: Callable[[Modules], dict[str, Any]]
    """Takes modules by path; raises IncompatibleError where one setting would have to hold two values."""


def make_config(component: str, modules: Modules) -> tuple[str, dict[str, Any]]:
    """Returns the ``peft_type`` and the settings for the modules of one network, by path.

    transformers 5 dropped the ``text_model.`` level, and patterns match the ends of paths: without it they fit both.

    Raises:
        IncompatibleError: if the modules are of several methods, or differ in a setting that PEFT has once for all.
    """
    paths = {path.removeprefix(TEXT_LEVEL): module for path, module in modules.items()}
    algorithms = {module.algorithm for module in modules.values()}
    method = next((row for row in PEFT_METHODS if algorithms <= row.algorithms), None)
    if method is None:
        raise IncompatibleError(
            f"its modules are {', '.join(sorted(algorithms))}, and PEFT takes one method for all of a network",
            where=component,
        )
    try:
        settings = method.settle(paths)
    except IncompatibleError as error:
        error.inside(component)
        raise
    return method.type, {**settings, "target_modules": sorted(paths)}


def find_commonest(values: Sequence[Any]) -> Any:
    """Returns the value that occurs most often, the greatest of several."""
    counts = Counter(values)
    return max(counts, key=lambda value: (counts[value], value))


def _list_exceptions(values: Mapping[str, Any], common: Any) -> dict[str, Any]:
    """Returns the values that differ, and those that a shorter one would catch; PEFT takes the first that fits.

    Longer paths stand first, so that the whole path of a module is found before the end of it.
    """
    different = {path for path, value in values.items() if value != common}
    caught = {path for path in values if any(path.endswith(f".{short}") for short in different)}
    return {path: values[path] for path in sorted(different | caught, key=lambda path: (-len(path), path))}


def _rank(modules: Modules, alpha_name: str) -> dict[str, Any]:
    ranks = {path: module.rank for path, module in modules.items()}
    alphas = {path: module.alpha for path, module in modules.items()}
    rank, alpha = find_commonest(list(ranks.values())), find_commonest(list(alphas.values()))
    return {
        "r": rank,
        alpha_name: alpha,
        "rank_pattern": _list_exceptions(ranks, rank),
        "alpha_pattern": _list_exceptions(alphas, alpha),
    }


def _agree(what: str, values: Sequence[Any]) -> Any:
    """Returns the one value that all modules have. Raises IncompatibleError."""
    if len(set(values)) > 1:
        raise IncompatibleError(f"its modules differ in {what}, which PEFT has once for all of a network")
    return values[0]


# --- methods -------------------------------------------------------------------------------------------------------


def _settle_lora(modules: Modules) -> dict[str, Any]:
    decomposed = [MAGNITUDE in module.parts for module in modules.values()]
    if any(decomposed) and not all(decomposed):
        raise IncompatibleError(
            f"{sum(decomposed)} of {len(decomposed)} modules are DoRA, and PEFT takes all of a network or none"
        )
    config = {**_rank(modules, "lora_alpha"), "use_dora": all(decomposed), "bias": "none"}
    # PEFT before 0.14 does not know the field.
    biased = any("bias" in module.parts for module in modules.values())
    return {**config, "lora_bias": True} if biased else config


def _settle_loha(modules: Modules) -> dict[str, Any]:
    cores = [module for module in modules.values() if "hada_t1" in module.parts]
    return {**_rank(modules, "alpha"), "use_effective_conv2d": bool(cores)}


def _settle_ia3(modules: Modules) -> dict[str, Any]:
    return {"feedforward_modules": sorted(path for path, one in modules.items() if one.numbers["on_input"])}


def _settle_oft(modules: Modules) -> dict[str, Any]:
    terms = int(_agree("terms", [module.numbers["neumann_terms"] for module in modules.values()]))
    tensors = [module.parts["oft_R"] for module in modules.values()]
    block = _agree("block size", [find_block(tensor.shape[1]) for tensor in tensors])
    shared = all(tensor.shape[0] == 1 for tensor in tensors)
    config = {"oft_block_size": block, "r": 0, "block_share": shared, "bias": "none"}
    series = {"use_cayley_neumann": True, "num_cayley_neumann_terms": terms}
    return {**config, **(series if terms else {"use_cayley_neumann": False})}


def _settle_boft(modules: Modules) -> dict[str, Any]:
    tensors = [module.parts["boft_R"] for module in modules.values()]
    stages = _agree("butterfly stages", [tensor.shape[0] for tensor in tensors])
    block = _agree("block size", [tensor.shape[2] for tensor in tensors])
    return {
        "boft_block_size": block,
        "boft_block_num": 0,
        "boft_n_butterfly_factor": stages,
        "bias": "none",
    }


PEFT_METHODS: Final[tuple[PeftMethod, ...]] = (
    PeftMethod("LORA", frozenset({"lora", "locon", "dora"}), _settle_lora),
    PeftMethod("LOHA", frozenset({"loha"}), _settle_loha),
    PeftMethod("IA3", frozenset({"ia3_peft"}), _settle_ia3),
    PeftMethod("OFT", frozenset({"oft_peft"}), _settle_oft),
    PeftMethod("BOFT", frozenset({"boft_peft"}), _settle_boft),
)
