"""The T₁ and s₂ of a two-stage round that are best by the laws of the delays.

Where :class:`~flower_ext.coding.two_stage.TwoStagePlan` learns from its history and
changes its mind as replies come, this is the best that a round can do whose T₁ and s₂
are fixed beforehand, as in TSDCFL (arXiv:2205.07939, section IV): what the plan is
to be measured by, and a first setting where delays are known but no round was run.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar

from flower_ext.coding.gradient_code import check_count
from flower_ext.coding.latency import RoundLatency, merged_times
from flower_ext.coding.latency_times import WorkerTimes
from flower_ext.coding.latency_two_stage import balanced_loads, two_stage
from flower_ext.errors import InvalidInputError

__all__ = ["TwoStageChoice", "best_for_deadline", "best_two_stage"]

_CANDIDATES = np.linspace(0.02, 0.98, 13)  # quantiles of the arrivals, for T₁
_SEARCH_SETS = 64  # sets of late workers while searching
_NEARBY = 1e-3  # relative precision of T₁


class TwoStageChoice(NamedTuple):
    """The parameters of a two-stage round and what to expect of them.

    Parameters
    ----------
    stop : float
        T₁, seconds since the round began; inf where no second stage is best.
    redundancy : int
        s₂; 0 where ``stop`` is inf.
    latency : RoundLatency
        What to expect.
    """

    stop: float
    redundancy: int
    latency: RoundLatency


def best_two_stage(
    workers: Sequence[WorkerTimes],
    partitions: int,
    budget: float = math.inf,
    loads: Sequence[int] | None = None,
    max_redundancy: int = 2,
) -> TwoStageChoice:
    """Choose T₁ and s₂ so that the expected round time is least.

    Parameters
    ----------
    workers, partitions, loads
        As in :func:`~flower_ext.coding.latency_two_stage.two_stage`.
    budget : float (default: inf)
        The most work that may be expected, in multiples of the partitions; at least 1.
    max_redundancy : int (default: 2)
        The largest s₂ considered, at least 0.

    Raises
    ------
    InvalidInputError
        If a value is out of range.

    Examples
    --------
    >>> from flower_ext.coding.latency_times import (
    ...     constant_duration,
    ...     shifted_exponential,
    ... )
    >>> worker = WorkerTimes(
    ...     lambda load: shifted_exponential(load, shift=0.1, mean=1.0),
    ...     constant_duration(0.0),
    ... )
    >>> choice = best_two_stage([worker] * 4, partitions=4, budget=1.4)
    >>> choice.latency.time.mean < 0.8 * (0.1 + 1 + 1 / 2 + 1 / 3 + 1 / 4)
    True
    >>> choice.latency.work <= 1.4
    True
    """
    return _best(
        workers,
        partitions,
        budget,
        loads,
        max_redundancy,
        lambda latency: latency.time.mean,
        math.inf,
    )


def best_for_deadline(
    workers: Sequence[WorkerTimes],
    partitions: int,
    deadline: float,
    budget: float = math.inf,
    loads: Sequence[int] | None = None,
    max_redundancy: int = 2,
) -> TwoStageChoice:
    """Choose T₁ and s₂ so that the most data is expected by a deadline.

    Parameters
    ----------
    workers, partitions, loads, budget, max_redundancy
        As in :func:`best_two_stage`.
    deadline : float
        Seconds since the round began, positive and finite.

    Raises
    ------
    InvalidInputError
        If a value is out of range.
    """
    if not 0 < deadline < math.inf:
        raise InvalidInputError(
            f"deadline must be a positive, finite number of seconds, got {deadline}."
        )
    return _best(
        workers,
        partitions,
        budget,
        loads,
        max_redundancy,
        lambda latency: -latency.known_by(deadline),
        deadline,
    )


def _best(
    workers: Sequence[WorkerTimes],
    partitions: int,
    budget: float,
    loads: Sequence[int] | None,
    max_redundancy: int,
    cost: Callable[[RoundLatency], float],
    latest: float,
) -> TwoStageChoice:
    """Minimise a cost over T₁ before `latest` and over s₂, within the budget."""
    if not budget >= 1:
        raise InvalidInputError(
            f"budget must be at least 1, every partition once, got {budget}."
        )
    check_count("max_redundancy", max_redundancy, low=0)
    never = two_stage(workers, partitions, math.inf, 0, loads)
    best, best_cost = TwoStageChoice(math.inf, 0, never), cost(never)
    jobs = balanced_loads(workers, partitions) if loads is None else np.array(loads)
    first = [w.arrival(int(n)) for w, n in zip(workers, jobs, strict=True) if n]
    times = merged_times(first)
    arrived = np.mean([a.by(times) for a in first], axis=0)
    candidates = np.interp(_CANDIDATES, arrived, times)
    candidates = np.unique(np.minimum(candidates, latest))

    found = []
    for redundancy in range(max_redundancy + 1):
        search = _Search(workers, partitions, redundancy, loads, budget, cost)
        found += [(*pair, redundancy) for pair in search.promising(candidates)]
    for value, stop, redundancy in sorted(found):
        if value >= best_cost:
            break
        latency = two_stage(workers, partitions, stop, redundancy, loads)
        # The search looks at fewer sets, and may be wrong by a little.
        if latency.work <= budget and cost(latency) < best_cost:
            return TwoStageChoice(stop, redundancy, latency)
    return best


class _Search:
    """The search for T₁ given s₂, over fewer sets of late workers."""

    def __init__(
        self,
        workers: Sequence[WorkerTimes],
        partitions: int,
        redundancy: int,
        loads: Sequence[int] | None,
        budget: float,
        cost: Callable[[RoundLatency], float],
    ) -> None:
        self._round = workers, partitions
        self._redundancy = redundancy
        self._loads = loads
        self._budget = budget
        self._cost = cost

    def promising(self, candidates: NDArray[np.float64]) -> list[tuple[float, float]]:
        """Return (cost, T₁) of every good candidate within the budget."""
        values = [self._value(stop) for stop in candidates.tolist()]
        found = list(zip(values, candidates.tolist(), strict=True))
        edge = self._edge(candidates, values)
        if edge is not None:
            found.append((self._value(edge), edge))
        i = int(np.argmin(values))
        low, high = candidates[max(i - 1, 0)], candidates[min(i + 1, len(values) - 1)]
        if edge is not None and low < edge < high:
            low = edge
        if math.isfinite(min(values)) and low < high:
            refined = minimize_scalar(
                self._value,
                bounds=(low, high),
                method="bounded",
                options={"xatol": _NEARBY * high},
            )
            found.append((float(refined.fun), float(refined.x)))
        return [pair for pair in found if math.isfinite(pair[0])]

    def _edge(
        self, candidates: NDArray[np.float64], values: list[float]
    ) -> float | None:
        """Bisect the least T₁ from which on the work stays within the budget."""
        outside = [i for i, value in enumerate(values) if math.isinf(value)]
        if not outside or outside[-1] + 1 == len(values):
            return None
        low, high = candidates[outside[-1]], candidates[outside[-1] + 1]
        while high - low > _NEARBY * high:
            middle = 0.5 * (low + high)
            inside = math.isfinite(self._value(middle))
            low, high = (low, middle) if inside else (middle, high)
        return float(high)

    def _value(self, stop: float) -> float:
        """Return the cost of a T₁, inf beyond the budget."""
        latency = two_stage(
            *self._round, stop, self._redundancy, self._loads, _SEARCH_SETS
        )
        return self._cost(latency) if latency.work <= self._budget else math.inf
