"""The kinds of concept, one frozen row each: what is stored, which paper, how closely the base must fit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

from conceptry.bases import Fit

KindId = Literal["embedding", "rank_one", "lora", "full", "hypernetwork", "composition"]
AlgorithmId = Literal[
    "lora",
    "locon",
    "dora",
    "loha",
    "doha",
    "lokr",
    "dokr",
    "full",
    "norm",
    "value",
    "ia3",
    "ia3_peft",
    "glora",
    "oft",
    "boft",
    "oft_peft",
    "boft_peft",
]
"""How a module of kind ``lora`` is stored: ids of the table in formats/algorithms.py."""

ActivationId = Literal[
    "linear",
    "relu",
    "leakyrelu",
    "elu",
    "swish",
    "tanh",
    "sigmoid",
    "hardswish",
    "hardsigmoid",
    "hardtanh",
    "hardshrink",
    "softshrink",
    "tanhshrink",
    "softplus",
    "softsign",
    "logsigmoid",
    "relu6",
    "rrelu",
    "selu",
    "celu",
    "gelu",
    "silu",
    "mish",
]
"""What stands between the layers of a hypernetwork, in the words of A1111; its "swish" is the hard one."""

ScaleRule = Literal["alpha/rank", "alpha/sqrt(rank)", "one", "none", "constraint"]
"""Where an effective scale came from: alpha by rank, or by its root (arXiv 2312.03732); nobody says anything, which all
programs read as 1; the algorithm has none; or alpha bounds a rotation instead."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """One way to store what was learned."""

    id: KindId
    title: str
    paper: str
    edits: str
    default_fit: Fit
    expands_placeholder: bool
    """The placeholder becomes new token ids while attached; otherwise it is plain text that the tokenizer splits."""

    single_token_superclass: bool
    """The superclass must be one token of the base's vocabulary."""

    names_others: bool = False
    """It holds no tensors: the concepts that it names stand in its place, and theirs are the words."""


KINDS: Final[tuple[Kind, ...]] = (
    Kind(
        id="embedding",
        title="textual inversion embedding",
        paper="arXiv 2208.01618; per layer: arXiv 2303.09522",
        edits="rows of the token embedding",
        default_fit=Fit.ARCHITECTURE,
        expands_placeholder=True,
        single_token_superclass=False,
    ),
    Kind(
        id="rank_one",
        title="key-locked rank-one edit",
        paper="arXiv 2305.01644",
        edits="cross-attention keys and values, gated",
        default_fit=Fit.LINEAGE,
        expands_placeholder=True,
        single_token_superclass=True,
    ),
    Kind(
        id="lora",
        title="low-rank adapter",
        paper="arXiv 2106.09685",
        edits="linear and convolution weights, by low-rank deltas",
        default_fit=Fit.ARCHITECTURE,
        expands_placeholder=False,
        single_token_superclass=False,
    ),
    Kind(
        id="full",
        title="full fine-tune",
        paper="arXiv 2208.12242",
        edits="all weights that differ from the base",
        default_fit=Fit.LINEAGE,
        expands_placeholder=False,
        single_token_superclass=False,
    ),
    Kind(
        id="hypernetwork",
        title="hypernetwork",
        paper="NovelAI, Improvements on Stable Diffusion (2022); as A1111 stores it",
        edits="what keys and values of attention read, by a small network for each width",
        default_fit=Fit.ARCHITECTURE,
        expands_placeholder=False,
        single_token_superclass=False,
    ),
    Kind(
        id="composition",
        title="composition of other concepts",
        paper="none: a list of concepts with strengths, schedules and regions",
        edits="what its concepts edit",
        default_fit=Fit.ARCHITECTURE,
        expands_placeholder=False,
        single_token_superclass=False,
        names_others=True,
    ),
)

KIND_BY_ID: Final[dict[str, Kind]] = {kind.id: kind for kind in KINDS}
