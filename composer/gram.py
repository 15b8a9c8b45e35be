"""How much of each concept is removed and inserted at each position (arXiv 2305.01644, eq. 3 and appendix B)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from conceptry.names import Placeholder

# Relative, on the diagonal of I^T C^-1 I: two concepts with one target input must not divide by zero.
GRAM_RIDGE: Final = 1e-9


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RankOneEdit:
    """One concept's edit of all cross-attention layers.

    ``i_star`` and ``c_inv_i_star`` (C^-1 i*) are in the coordinates of the text encoding as the layers read it.
    ``o_v`` is by path of the attention module. The key target is ``o_k`` where given, else W_K times
    ``superclass_encoding``, else W_K times the encoding of ``superclass``.
    """

    i_star: Float[Tensor, " context"]
    c_inv_i_star: Float[Tensor, " context"]
    o_v: Mapping[str, Float[Tensor, " _"]]
    bias: float
    temperature: float
    placeholder: Placeholder | None = None
    """None: every sample is edited."""

    superclass: str | None = None
    key_lock: Literal["local", "global"] = "local"
    """Whether the keys of the word alone are locked, or those of the whole prompt; then it needs ``placeholder``."""

    superclass_encoding: Float[Tensor, " context"] | None = None
    o_k: Mapping[str, Float[Tensor, " _"]] | None = None
    strength: float = 1.0


@dataclass(frozen=True, slots=True, eq=False)
class Coefficients:
    """How much of each concept is removed and inserted at each position of the edited samples."""

    samples: Tensor
    concepts: tuple[int, ...]
    """Those that are active in any sample: the others leave no trace, not even in rounding."""

    remove: Float[Tensor, "edited positions concepts"]
    insert: Float[Tensor, "edited positions concepts"]


def solve_coefficients(
    context: Float[Tensor, "batch positions context"],
    edits: Sequence[RankOneEdit],
    active: Bool[Tensor, "batch concepts"],
) -> Coefficients:
    """Returns (I^T C^-1 I)^-1 I^T C^-1 e and the gates, both times strength, for the samples with an active concept.

    Concepts that are not active in a sample take no part in its system of equations.
    """
    samples = active.any(dim=1).nonzero().flatten()
    concepts = tuple(active.any(dim=0).nonzero().flatten().tolist())
    edits = [edits[number] for number in concepts]
    mask = active[samples][:, concepts].float()
    inverse, energies = _invert_gram(edits, mask.double().cpu())
    # What concepts have in common cancels, so that this is computed as precisely as the device can; once a prompt.
    precision = torch.float32 if context.device.type == "mps" else torch.float64
    duals = torch.stack([edit.c_inv_i_star.to(context.device, precision) for edit in edits])
    with torch.autocast(context.device.type, enabled=False):  # half precision would blur where a gate opens
        similar = context[samples].to(precision) @ duals.T
        remove = similar @ inverse.to(similar)
    strengths = mask * torch.tensor([edit.strength for edit in edits], device=context.device)
    bias = torch.tensor([edit.bias for edit in edits], device=context.device)
    temperature = torch.tensor([edit.temperature for edit in edits], device=context.device)
    gates = torch.sigmoid((similar / energies.to(similar) - bias) / temperature)
    return Coefficients(
        samples,
        concepts,
        remove=(remove * strengths[:, None]).float(),
        insert=(gates * strengths[:, None]).float(),
    )


@torch.no_grad()
def _invert_gram(
    edits: Sequence[RankOneEdit], mask: Float[Tensor, "edited concepts"]
) -> tuple[Float[Tensor, "edited concepts concepts"], Float[Tensor, " concepts"]]:
    """Returns the inverse of I^T C^-1 I over each sample's active concepts, and its diagonal, in float64."""
    inputs = torch.stack([edit.i_star.detach().double().cpu() for edit in edits])
    duals = torch.stack([edit.c_inv_i_star.detach().double().cpu() for edit in edits])
    gram = inputs @ duals.T
    gram = (gram + gram.T) / 2
    energies = gram.diagonal().clone()
    if len(edits) > 1:
        gram = gram + GRAM_RIDGE * energies.diag()
    both = mask[:, :, None] * mask[:, None, :]
    inverse = torch.linalg.inv(gram * both + torch.diag_embed(1 - mask))
    return inverse * both, energies
