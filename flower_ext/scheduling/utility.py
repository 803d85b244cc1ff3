"""Utilities of a long-run rate: what "better" means to a scheduler.

A utility φ is concave and non-decreasing with φ(0) = 0. Drift-plus-penalty (Neely,
*Stochastic Network Optimization*, 2010, chapter 5) asks two things of it: its slope
at zero, which bounds every queue, and the auxiliary rate argmax vφ(γ) − hγ, which has
a closed form for each utility here.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from flower_ext.errors import InvalidInputError

__all__ = ["AlphaFair", "LogUtility", "MeanVariance", "Utility"]

Floats = NDArray[np.float64]


@runtime_checkable
class Utility(Protocol):
    """A concave, non-decreasing function φ of a rate in units per slot, φ(0) = 0."""

    @property
    def slope(self) -> float:
        """φ′(0), the steepest slope; positive and finite."""
        ...

    def value(self, rate: Floats) -> Floats:
        """Return φ(x) entry by entry, for rates of at least 0."""
        ...

    def auxiliary(self, v: float, queue: Floats, limit: Floats) -> Floats:
        """Return argmax over 0 ≤ γ ≤ limit of vφ(γ) − queue·γ, entry by entry.

        Parameters
        ----------
        v : float
            Weight of the utility, positive.
        queue : ndarray
            What one unit of γ costs, at least 0.
        limit : ndarray
            The largest γ, positive.
        """
        ...


@dataclass(frozen=True)
class AlphaFair:
    """α-fairness, shifted to be finite at zero: φ(x) = ((1+x)^(1−α) − 1)/(1−α).

    Mo and Walrand 2000. α = 0 is throughput, α = 1 is log(1+x) (proportional
    fairness), and α → ∞ tends to max-min fairness.

    Parameters
    ----------
    alpha : float
        α, at least 0 and finite.

    Raises
    ------
    InvalidInputError
        If `alpha` is out of range.

    Examples
    --------
    >>> AlphaFair(2.0).value(np.array([0.0, 1.0, 3.0])).tolist()
    [0.0, 0.5, 0.75]
    >>> AlphaFair(2.0).auxiliary(9.0, np.array([1.0, 9.0]), np.array([5.0, 5.0]))
    array([2., 0.])
    """

    alpha: float

    def __post_init__(self) -> None:
        """Check the parameter."""
        if not (math.isfinite(self.alpha) and self.alpha >= 0):
            raise InvalidInputError(
                f"alpha must be finite and at least 0, got {self.alpha}; 0 is "
                f"throughput, 1 proportional fairness."
            )

    @property
    def slope(self) -> float:
        """φ′(0) = 1."""
        return 1.0

    def value(self, rate: Floats) -> Floats:
        """Return φ(x)."""
        logarithm: Floats = np.log1p(rate)
        if self.alpha == 1:
            return logarithm
        result: Floats = np.expm1((1 - self.alpha) * logarithm) / (1 - self.alpha)
        return result

    def auxiliary(self, v: float, queue: Floats, limit: Floats) -> Floats:
        """Return the γ with φ′(γ) = (1+γ)^(−α) = queue/v, within [0, limit]."""
        if self.alpha == 0:
            return np.where(queue < v, limit, 0.0)
        least: Floats = (1.0 + limit) ** -self.alpha
        price = np.minimum(np.maximum(queue / v, least), 1.0)
        return np.minimum(price ** (-1 / self.alpha) - 1.0, limit)


@dataclass(frozen=True)
class LogUtility:
    """Proportional fairness, finite at zero: φ(x) = log(1 + x).

    Examples
    --------
    >>> LogUtility().auxiliary(6.0, np.array([0.0, 2.0, 6.0]), np.full(3, 4.0))
    array([4., 2., 0.])
    """

    @property
    def slope(self) -> float:
        """φ′(0) = 1."""
        return 1.0

    def value(self, rate: Floats) -> Floats:
        """Return φ(x)."""
        result: Floats = np.log1p(rate)
        return result

    def auxiliary(self, v: float, queue: Floats, limit: Floats) -> Floats:
        """Return v/queue − 1 within [0, limit]."""
        return np.minimum(
            v / np.minimum(np.maximum(queue, v / (1.0 + limit)), v) - 1.0, limit
        )


@dataclass(frozen=True)
class MeanVariance:
    """Throughput against Jain's index: φ(x) = x − x²/(2·ceiling), flat from there on.

    Over rates y in a convex region that holds every smaller vector too, a maximiser of
    Σφ(y) has the least Σy² among those of its sum S, hence the largest Jain's index
    S²/(nΣy²) at that throughput. Nor has any z more throughput at the same index: z
    scaled down to the sum S has the same index, so it would be a maximiser too and,
    φ being strictly concave, equal y; but along the ray from y to z Σφ still grows
    (S > Σy²/ceiling unless every rate is 0 or the ceiling). Conversely least Σy² is
    a convex function of S, so each point of the frontier of throughput against Jain's
    index is touched by a line, and 1/(2·ceiling) is its slope. So the optima, as the
    ceiling goes from small to large, are exactly that frontier, from perfect fairness
    to the greatest throughput.

    Parameters
    ----------
    ceiling : float
        The rate beyond which more is worth nothing, units per slot; positive, finite.

    Raises
    ------
    InvalidInputError
        If `ceiling` is out of range.

    Examples
    --------
    >>> MeanVariance(2.0).value(np.array([0.0, 1.0, 2.0, 9.0])).tolist()
    [0.0, 0.75, 1.0, 1.0]
    >>> MeanVariance(2.0).auxiliary(8.0, np.array([0.0, 4.0, 9.0]), np.full(3, 1.5))
    array([1.5, 1. , 0. ])
    """

    ceiling: float

    def __post_init__(self) -> None:
        """Check the parameter."""
        if not (math.isfinite(self.ceiling) and self.ceiling > 0):
            raise InvalidInputError(
                f"ceiling must be positive and finite, got {self.ceiling}; give a "
                f"rate in units per slot."
            )

    @property
    def slope(self) -> float:
        """φ′(0) = 1."""
        return 1.0

    def value(self, rate: Floats) -> Floats:
        """Return φ(x)."""
        x = np.minimum(rate, self.ceiling)
        result: Floats = x - x * x / (2 * self.ceiling)
        return result

    def auxiliary(self, v: float, queue: Floats, limit: Floats) -> Floats:
        """Return ceiling·(1 − queue/v) within [0, limit]."""
        return np.minimum(np.maximum(self.ceiling * (1.0 - queue / v), 0.0), limit)
