"""Fitting a combination of rows to the all-ones vector within bounds.

Minimising |c - 1|^2 under linear inequalities is a least distance problem, which one
non-negative least squares fit solves exactly (Lawson and Hanson 1974, "Solving Least
Squares Problems", chapter 23, sections 4 and 5).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import nnls

from flower_ext.coding.blocks import RANK_TOLERANCE, Block

__all__ = ["fit_within_bounds"]

Floats = NDArray[np.float64]

_ROUNDING = 1e-10  # how far an unbounded fit may leave [0, 1] by float64 rounding alone


def fit_within_bounds(block: Block) -> Floats:
    """Return the weights w that bring c = w^T B nearest to 1^T within 0 <= c <= 1.

    Parameters
    ----------
    block : Block
        The rows B of one block.

    Returns
    -------
    ndarray of shape (block rows,)
        The least-norm weights that give the best c.
    """
    # A column that m partitions share counts m times, so it is scaled by the root of m.
    # In an orthonormal basis Q of what the rows can reach, the fit is the point y
    # nearest to Q^T 1 with 0 <= Q y <= 1, both scaled.
    ones = np.sqrt(block.counts)
    basis, strengths, row_basis = np.linalg.svd(
        (block.matrix * ones).T, full_matrices=False
    )
    kept = strengths > RANK_TOLERANCE * strengths[0]
    basis = basis[:, kept]
    unbounded = ones @ basis
    reached = basis @ unbounded
    if (reached < -_ROUNDING).any() or (reached > ones + _ROUNDING).any():
        bounds = np.concatenate([np.zeros_like(ones), -ones])
        normals = np.concatenate([basis, -basis])
        fitted = unbounded + _nearest_to_origin(normals, bounds - normals @ unbounded)
    else:
        fitted = unbounded
    weights: Floats = (fitted / strengths[kept]) @ row_basis[kept]
    return weights


def _nearest_to_origin(normals: Floats, bounds: Floats) -> Floats:
    """Return the shortest x with normals @ x >= bounds (Lawson and Hanson, LDP).

    The constraints here always have a solution, c = 0, so the last entry of the
    residual, by which the method divides, is never zero.
    """
    system = np.concatenate([normals.T, bounds[None, :]])
    target = np.zeros(len(system))
    target[-1] = 1.0
    multipliers, _ = nnls(system, target, maxiter=30 * system.shape[1])
    residual = system @ multipliers - target
    nearest: Floats = -residual[:-1] / residual[-1]
    return nearest
