"""Weights turned by orthogonal blocks (OFT, arXiv 2306.07280) and by butterfly stages of them (BOFT, arXiv 2311.06243).

LyCORIS and sd-scripts turn the outputs, R = (1 + Q)(1 - Q)^-1 with Q = B - B^T; PEFT turns the inputs, R = (1 - Q)
(1 + Q)^-1, with Q given by its upper triangle (OFT) or as (B - B^T) / 2 (BOFT).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, np.dtype[Any]]


def rotate_outputs(blocks: Array, weight: Array, constraint: float) -> Array:
    """Returns the block-diagonal R^T times ``weight``, for blocks [k, b, b] and a weight [k b, inputs].

    Args:
        blocks: unconstrained; each gives one rotation.
        weight: of the base.
        constraint: bound of |Q| divided by the number of outputs; 0 for none.
    """
    turns = _turn_skew(_constrain(blocks - blocks.swapaxes(-1, -2), constraint, weight.shape[0]))
    count, size, _ = blocks.shape
    rows = weight.reshape(count, size, -1)
    turned: Array = turns.swapaxes(-1, -2) @ rows
    return turned.reshape(weight.shape)


def rotate_butterfly(blocks: Array, weight: Array, constraint: float) -> Array:
    """Returns the product of the butterfly stages times ``weight``, for blocks [m, k, b, b], stage 0 first."""
    turns = _turn_skew(_constrain(blocks - blocks.swapaxes(-1, -2), constraint, weight.shape[0]))
    stages, _, size, _ = blocks.shape
    turned = weight
    for stage in range(stages):
        stride = 2**stage * (size // 2)
        shuffled = turned.reshape(-1, 2, stride, turned.shape[1]).swapaxes(1, 2)
        mixed = turns[stage] @ shuffled.reshape(-1, size, turned.shape[1])
        turned = mixed.reshape(-1, stride, 2, turned.shape[1]).swapaxes(1, 2).reshape(weight.shape)
    return turned


def _constrain(skew: Array, constraint: float, outputs: int) -> Array:
    """Returns ``skew`` with its norm, over all blocks together, brought down to ``constraint`` times ``outputs``."""
    import numpy as np

    bound = constraint * outputs
    norm = float(np.sqrt((skew * skew).sum()))
    return skew * (bound / norm) if 0 < bound < norm else skew


def _turn_skew(skew: Array) -> Array:
    """Returns the Cayley transform (1 + Q)(1 - Q)^-1 of each block."""
    import numpy as np

    one = np.eye(skew.shape[-1], dtype=skew.dtype)
    turns: Array = (one + skew) @ np.linalg.inv(one - skew)
    return turns


# --- inputs, as PEFT does it ---------------------------------------------------------------------------------------


def rotate_inputs(triangles: Array, size: int, weight: Array, terms: int) -> Array:
    """Returns ``weight`` times the block-diagonal R^T; one block for all inputs is repeated.

    Args:
        triangles: [k, size (size - 1) / 2], the upper triangles of Q.
        size: of a block.
        weight: [outputs, inputs].
        terms: of the Neumann series that PEFT uses instead of an inverse; 0 for the exact transform.
    """
    import numpy as np

    rows, columns = np.triu_indices(size, 1)
    skew = np.zeros((len(triangles), size, size), triangles.dtype)
    skew[:, rows, columns] = triangles
    skew -= skew.swapaxes(-1, -2).copy()
    turns = _turn_skew(-skew) if terms == 0 else _sum_series(skew, terms)
    blocks = weight.reshape(weight.shape[0], -1, size).swapaxes(0, 1)
    turned = (blocks @ turns.swapaxes(-1, -2)).swapaxes(0, 1)
    return turned.reshape(weight.shape)


def _sum_series(skew: Array, terms: int) -> Array:
    """Returns 1 + 2 Q + 2 Q^2 + ... + Q^(terms - 1), which has its last power once; PEFT takes 3 terms as 4."""
    import numpy as np

    total = np.broadcast_to(np.eye(skew.shape[-1], dtype=skew.dtype), skew.shape).copy()
    if terms < 2:
        return total
    total += 2 * skew
    if terms == 2:
        return total
    last = max(terms - 1, 3)
    power = skew
    for number in range(2, last + 1):
        power = power @ skew
        total += power if number == last else 2 * power
    return total


def rotate_inputs_butterfly(blocks: Array, weight: Array) -> Array:
    """Returns ``weight`` times the transposed product of the butterfly stages, for blocks [m, k, b, b]."""
    import numpy as np

    stages, count, size, _ = blocks.shape
    turns = _turn_skew((blocks.swapaxes(-1, -2) - blocks) / 2)
    turned = weight.T
    for stage in range(stages):
        order = (
            _order_butterfly(count * size, count >> stage, size // 2)
            if stages > 1
            else np.arange(count * size)
        )
        sorted_back = np.empty_like(turned)
        sorted_back[order] = turned
        turned = (turns[stage] @ sorted_back.reshape(count, size, -1)).reshape(weight.T.shape)[order]
    return turned.T


def _order_butterfly(total: int, groups: int, half: int) -> Array:
    """Returns the permutation that brings halves together: in each group, the even half-blocks and then the odd."""
    import numpy as np

    span = total // groups
    halves = np.arange(span).reshape(-1, half)
    one = np.concatenate([halves[0::2], halves[1::2]]).reshape(-1)
    order: Array = np.arange(groups)[:, None] * span + one[None, :]
    return order.reshape(-1)
