"""The Lyapunov scheduler against the optimum that a convex solver knows beforehand."""

from dataclasses import dataclass

import cvxpy as cp
import numpy as np
import pytest
from numpy.typing import NDArray

from flower_ext.scheduling import (
    AlphaFair,
    LogUtility,
    LyapunovScheduler,
    MeanVariance,
    Observation,
    Utility,
    WorkerLimits,
)

Floats = NDArray[np.float64]

VALUES = (2.0, 5.0, 15.0)


@dataclass(frozen=True)
class Instance:
    """A stationary edge: constant rates, offers and harvests constant or i.i.d.

    Batteries start empty; energies are such that they reach θ within some 20 V slots.
    """

    utility: Utility
    rates: Floats
    offered: Floats  # mean
    harvest: Floats  # mean
    transmit: Floats
    compute: Floats
    mains: NDArray[np.bool_]
    random: bool

    @property
    def peak(self) -> float:
        """How many times its mean an offer or harvest can be."""
        return 2.0 if self.random else 1.0


def instance(seed: int) -> Instance:
    rng = np.random.default_rng(seed)
    count = int(rng.integers(3, 7))
    kinds: tuple[Utility, ...] = (LogUtility(), AlphaFair(2.0), MeanVariance(0.5))
    transmit = rng.uniform(0.8, 1.5, count)
    compute = rng.uniform(0.3, 0.6, count)
    rates = rng.uniform(0.5, 2.0, count)
    return Instance(
        utility=kinds[seed % 3],
        rates=rates,
        offered=rng.uniform(0.2, 1.0, count),
        harvest=rng.uniform(0.2, 0.6, count) * (compute + transmit / rates),
        transmit=transmit,
        compute=compute,
        mains=rng.random(count) < (1.0 if seed % 4 == 0 else 0.5),
        random=seed % 2 == 1,
    )


def optimum(case: Instance) -> float:
    """Solve the static program that no scheduler can do better than on average."""
    y = cp.Variable(len(case.rates), nonneg=True)
    x = cp.Variable(len(case.rates), nonneg=True)
    utility = case.utility
    if isinstance(utility, MeanVariance):
        kept = cp.minimum(y, utility.ceiling)
        worth = cp.sum(kept) - cp.sum_squares(y) / (2 * utility.ceiling)
    elif isinstance(utility, AlphaFair):
        worth = cp.sum(1 - cp.inv_pos(1 + y))
    else:
        worth = cp.sum(cp.log1p(y))
    spent = cp.multiply(case.transmit, x) + cp.multiply(case.compute, y)
    within = [
        y <= cp.multiply(case.rates, x),
        cp.sum(x) <= 1,
        y <= case.offered,
        spent[~case.mains] <= case.harvest[~case.mains],
    ]
    problem = cp.Problem(cp.Maximize(worth), within)
    problem.solve(solver=cp.CLARABEL)
    return float(utility.value(np.maximum(y.value, 0)).sum())


def run(case: Instance, v: float, seed: int) -> tuple[float, float, float]:
    """Return the utility of what is served, the mean backlog, and B/V."""
    count = len(case.rates)
    scheduler = LyapunovScheduler(v, case.utility)
    most = case.peak * case.offered
    capacity = np.where(case.mains, np.inf, 1e6)
    battery = np.where(case.mains, np.inf, 0.0)
    scheduler.begin(
        WorkerLimits(case.rates, most, case.transmit, case.compute, capacity, battery)
    )
    rng = np.random.default_rng(seed)
    start, slots = int(20 * v), int(1000 * v)
    shape = (start + slots, count)
    factor = rng.uniform(0, 2, (2, *shape)) if case.random else np.ones((2, *shape))
    offers, harvests = factor[0] * case.offered, factor[1] * case.harvest
    served, backlog = np.zeros(count), np.zeros(count)
    waiting = scheduler.backlog
    for slot in range(start + slots):
        decision = scheduler.step(Observation(case.rates, offers[slot], harvests[slot]))
        if slot >= start:
            served += np.minimum(decision.service, waiting)
            backlog += waiting
        waiting = scheduler.backlog
    utility = float(case.utility.value(served / slots).sum())
    return (
        utility,
        float(backlog.sum()) / slots,
        scheduler.gap_bound(case.peak * case.harvest),
    )


@pytest.mark.parametrize("seed", range(20))
def test_the_gap_is_at_most_b_over_v_and_the_backlog_grows_like_v(seed: int) -> None:
    case = instance(seed)
    best = optimum(case)
    backlogs = []
    for v in VALUES:
        utility, backlog, bound = run(case, v, seed)
        assert best - utility <= bound
        backlogs.append(backlog)
    assert best - utility <= 0.02 * best  # at the largest V
    # Queues settle within some admissions of V times the constraints' multipliers;
    # the bound V + 2 A_max allows as much.
    some = 2 * case.peak * float(case.offered.sum())
    for v, backlog in zip(VALUES[1:], backlogs[1:], strict=True):
        assert backlog <= v / VALUES[0] * (backlogs[0] + some)


def test_larger_v_is_better_until_it_is_best() -> None:
    case = instance(12)
    best = optimum(case)
    gaps = [best - run(case, v, 0)[0] for v in (1.0, 2.0, 5.0, 20.0)]
    assert gaps == sorted(gaps, reverse=True)
    assert gaps[-1] < 0.2 * gaps[0]
