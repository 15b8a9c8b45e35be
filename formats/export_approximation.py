"""Low-rank factors that come nearest to a delta, and how far they are from it (Eckart and Young, 1936)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    import numpy as np

    Matrix = np.ndarray[Any, Any]

TOLERANCE: Final = 0.01
"""Relative error (Frobenius) at which a smaller rank is enough."""

MOST_RANK: Final = 128


@dataclass(frozen=True, slots=True)
class Approximation:
    """``up`` [out, rank] times ``down`` [rank, in], and the relative error of their product (Frobenius)."""

    up: Matrix
    down: Matrix
    relative_error: float


def approximate(delta: Matrix, *, most_rank: int = MOST_RANK, tolerance: float = TOLERANCE) -> Approximation:
    """Returns the nearest factors of the smallest rank whose relative error is at most ``tolerance``.

    ``delta`` is [out, in]; where ``most_rank`` is reached first, the error is that of ``most_rank``. Of all matrices of
    a rank, the truncated singular value decomposition has the smallest error.
    """
    import numpy as np

    matrix = delta.astype(np.float64)
    left, values, right = np.linalg.svd(matrix, full_matrices=False)
    up, down = _truncate(left, values, right, most_rank, tolerance)
    return Approximation(up, down, measure_error(matrix, up, down))


def approximate_product(
    up: Matrix, down: Matrix, *, most_rank: int = MOST_RANK, tolerance: float = TOLERANCE
) -> Approximation:
    """Returns the same for the delta ``up @ down``, which is never formed: its small core is decomposed."""
    import numpy as np

    left_basis, left_core = np.linalg.qr(up.astype(np.float64))
    right_basis, right_core = np.linalg.qr(down.astype(np.float64).T)
    core = left_core @ right_core.T
    left, values, right = np.linalg.svd(core)
    low_up, low_down = _truncate(left_basis @ left, values, right @ right_basis.T, most_rank, tolerance)
    # In the bases of the factors the error is that of the core, beside what float32 rounds.
    seen = (left_basis.T @ low_up.astype(np.float64)) @ (low_down.astype(np.float64) @ right_basis)
    norm = float(np.linalg.norm(core))
    return Approximation(low_up, low_down, float(np.linalg.norm(core - seen)) / norm if norm else 0.0)


def _truncate(
    left: Matrix, values: Matrix, right: Matrix, most_rank: int, tolerance: float
) -> tuple[Matrix, Matrix]:
    import numpy as np

    total = float(np.sum(values**2))
    # tails[k]: the energy that is lost when k values are kept.
    tails = np.append(np.cumsum(values[::-1] ** 2)[::-1], 0.0)
    enough = int(np.argmax(tails <= tolerance**2 * total))
    rank = max(1, min(enough, most_rank, len(values)))
    root = np.sqrt(values[:rank])
    up = (left[:, :rank] * root).astype(np.float32)
    down = (root[:, None] * right[:rank]).astype(np.float32)
    return up, down


def measure_error(delta: Matrix, up: Matrix, down: Matrix) -> float:
    """Returns the error of ``up @ down`` relative to ``delta`` (Frobenius), as stored; 0 where ``delta`` is 0."""
    import numpy as np

    exact = delta.astype(np.float64)
    norm = float(np.linalg.norm(exact))
    difference = exact - up.astype(np.float64) @ down.astype(np.float64)
    return float(np.linalg.norm(difference)) / norm if norm else 0.0
