r"""Lyapunov scheduling of a federation's uplink: drift-plus-penalty with batteries.

Neely, *Stochastic Network Optimization* (2010), chapters 4 and 5, with the perturbed
energy queues of Huang and Neely (IEEE/ACM ToN 2013); it is what TSDCFL
(arXiv:2205.07939, section IV) schedules its uplink with. The aim is the greatest
Σφ(y_i) of the long-run served rates y_i, with stable backlogs and batteries that are
never overdrawn, knowing nothing but the present slot. A slot is a round, the unit of
data one reply.

**Queues.** Q: backlog. H: virtual queue of the auxiliary rate γ. E: battery. Y, the
price of a joule, is max(θ − E, 0), and 0 on mains. From zero (E from what it holds)::

    Q⁺ = max(Q − R, 0) + a      H⁺ = max(H + γ − a, 0)      E⁺ = E − s + h

with R what the share carries, s = e·q + c·a what is spent and h the harvest.

**The rule** minimises, slot by slot, the bound on drift minus V·utility::

    γ = argmax Vφ(γ) − Hγ on [0, A_max]
    a = A if H − Q − Yc > 0, else 0
    x, q maximise Σ Q·min(R(x, q), Q) − Y·e·q  over the carrier
    h = all that is available and fits the battery

Nobody is given more than its backlog can use; what that leaves goes to others.

**Queues are bounded.** γ > 0 only while H < Vφ′(0), so H ≤ Vφ′(0) + A_max. Data is
admitted only while Q < H, so Q ≤ Vφ′(0) + 2·A_max in every slot. (With Y = θ − E,
negative in a battery beyond θ, neither would hold: a full battery would be paid to
burn energy.)

**Batteries are never overdrawn, without a clamp.** Let ρ be the most units per joule
that transmitting can give. Transmitting is worth it only if Y < Q·ρ, which is at most
(Vφ′(0) + 2·A_max)·ρ; computing only if Y·c < H − Q, at most Vφ′(0) + A_max. With ::

    θ = e + c·A_max + max{(Vφ′(0) + 2·A_max)·ρ, (Vφ′(0) + A_max)/c}

either implies E > θ − max{…} = e + c·A_max, the most that a slot can take. Terms with
e = 0 or c = 0 vanish. A capacity of at least θ is needed, and is all that is needed.

**Harvesting everything is right.** Let g be what is available. Since capacity ≥ θ,
Y⁺ = max(θ − min(E − s + g, capacity), 0) ≤ max(Y + s − g, 0): Y is a virtual queue
with arrivals s and service g, even when part of g did not fit. So everything that the
drift bound can gain from a harvest is gained, and what lies above θ is a reserve; to
harvest only while E < θ would keep the bound and lose the reserve.

**The gap.** L = ½Σ(Q² + H² + Y²). Squaring the three updates::

    ΔL ≤ ½Σ(a² + R²) + ½Σ(γ − a)² + ½Σ(s − g)² + ΣQ(a − R) + ΣH(γ − a) + ΣY(s − g)

The rule minimises the last three sums minus VΣφ(γ), except that it caps R at Q.
Time-shared, let R* be the greatest rate, and let the worker of greatest weight be
capped at x = Q/r: the cap loses at most (Qr − Ye)(1 − x) ≤ r²x(1 − x), while
½ΣR² ≤ ½(r²x² + R*²(1 − x)²), and together they are at most ½R*²: the cap costs the
bound nothing. In OFDMA it loses at most ΣQ(R − Q)⁺ ≤ Σr²/4 and ½ΣR² ≤ ½Σr². So ::

    B = ½R*² (OFDMA: ¾Σr²) + ΣA_max² + ½Σ max(e + c·A_max, g_max)²

A stationary policy that knows all distributions reaches the optimum φ* with the three
sums at most −Vφ*, so summing ΔL over T slots gives Σφ(γ̄) ≥ φ* − B/V − L(0)/(VT), and
γ̄ exceeds what is served on average by at most (Q + H)/T: the long-run gap is at most
B/V, with backlogs that grow like V. Where an observation says how much of a backlog is
sendable, the choices of a slot are fewer, the bounds on Q and E stay, and φ* is the
optimum of policies that keep to it as well.

Q and E enter L side by side, so one joule weighs as much as one unit. Give energies in
multiples of something of the order of one transmission if they are far from it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from flower_ext.errors import InvalidInputError
from flower_ext.scheduling.queues import Plan, QueueScheduler
from flower_ext.scheduling.scheduler import WorkerLimits
from flower_ext.scheduling.shares import ofdma, time_shared
from flower_ext.scheduling.utility import LogUtility, Utility

__all__ = ["LyapunovScheduler"]

Floats = NDArray[np.float64]


class LyapunovScheduler(QueueScheduler):
    """Drift-plus-penalty scheduling.

    The rule, and the proofs of its bounds, are in the docstring of its module,
    :mod:`flower_ext.scheduling.lyapunov`. A_max is 1 reply in a federation's rounds.

    Parameters
    ----------
    v : float (default: 10.0)
        V, how much utility weighs against backlog, in units² per unit of utility;
        positive and finite. The utility is within B/V of the optimum, the backlog
        grows like V; 5 to 50 is sensible where A_max is about 1.
    utility : Utility (default: LogUtility())
        φ, what is maximised, summed over workers.
    carrier : str (default: "time-shared")
        "time-shared" (a worker uses the whole band for its share of the slot) or
        "ofdma" (all send at once, in bands of their own, each with a power of its own).

    Raises
    ------
    InvalidInputError
        If a parameter is out of range.

    Examples
    --------
    Two workers on mains share a carrier that either could fill with two units a slot.

    >>> import numpy as np
    >>> from flower_ext.scheduling import Observation, WorkerLimits
    >>> scheduler = LyapunovScheduler(v=10.0)
    >>> nothing, much = np.zeros(2), np.full(2, np.inf)
    >>> scheduler.begin(WorkerLimits(np.full(2, 2.0), np.ones(2), *[nothing] * 2,
    ...                              much, much))
    >>> served = np.zeros(2)
    >>> for _ in range(1000):
    ...     seen = Observation(np.full(2, 2.0), np.ones(2), nothing)
    ...     served += scheduler.step(seen).service
    >>> np.round(served / 1000, 1).tolist()
    [1.0, 1.0]
    >>> bool((scheduler.backlog <= scheduler.backlog_bound).all())
    True
    """

    def __init__(
        self,
        v: float = 10.0,
        utility: Utility | None = None,
        carrier: str = "time-shared",
    ) -> None:
        super().__init__(carrier)
        if not (math.isfinite(v) and v > 0):
            raise InvalidInputError(
                f"v must be positive and finite, got {v}; larger is closer to the "
                f"best utility, with longer backlogs."
            )
        self.v = float(v)
        self.utility: Utility = LogUtility() if utility is None else utility

    def __repr__(self) -> str:
        """Return how to make it."""
        return (
            f"LyapunovScheduler(v={self.v:g}, utility={self.utility!r}, "
            f"carrier={self.carrier!r})"
        )

    def begin(
        self, limits: WorkerLimits, keep: NDArray[np.int64] | None = None
    ) -> None:
        """Take on a fleet; see :meth:`Scheduler.begin`.

        Raises
        ------
        InvalidInputError
            If a battery's capacity is below θ: with the largest V that it allows.
        """
        theta = self._thresholds(limits)
        super().begin(limits, keep)
        self._theta = theta
        reach = self.v * self.utility.slope
        self._backlog_bound = reach + 2 * limits.max_admission
        # Queues kept from a fleet with wider limits: H may be cut, Q may not, but
        # counts as no more than its bound, which is all that θ provides for.
        self._virtual_bound = reach + limits.max_admission
        self._virtual = np.minimum(self._virtual, self._virtual_bound)

    def restore(self, state: Mapping[str, Floats]) -> None:
        """Continue from a :meth:`state`; see :meth:`Scheduler.restore`."""
        self._fleet()
        if "virtual" in state:
            most = self._virtual_bound * (1 + 1e-9)
            self._checked("virtual", state["virtual"], most)
        super().restore(state)

    @property
    def price(self) -> Floats:
        """Y: what a joule costs, units per joule; 0 on mains; shape (workers,)."""
        self._fleet()
        return np.maximum(self._theta - self._battery, 0.0)

    @property
    def theta(self) -> Floats:
        """θ: joules from which on a joule costs nothing; 0 on mains; (workers,)."""
        self._fleet()
        return self._theta.copy()

    @property
    def backlog_bound(self) -> Floats:
        """Vφ′(0) + 2·A_max: units that no backlog ever exceeds, shape (workers,).

        A backlog kept from a fleet with wider limits drains to it first.
        """
        self._fleet()
        return self._backlog_bound.copy()

    def gap_bound(self, max_harvest: Floats | None = None) -> float:
        """Return B/V: how far Σφ of the served rates may be from its optimum.

        Parameters
        ----------
        max_harvest : ndarray of shape (workers,), optional
            g_max: joules available to a worker in one slot at most. By default no
            more than one slot can take, e + c·A_max.
        """
        limits = self._fleet()
        spent = self._transmit + self._compute * limits.max_admission
        if max_harvest is not None:
            high = np.finfo(np.float64).max
            harvest = self._checked("max_harvest", max_harvest, np.array(high))
            spent = np.maximum(spent, np.where(self._mains, 0.0, harvest))
        squares = limits.max_rate**2
        sent = 0.75 * squares.sum() if self.carrier == "ofdma" else 0.5 * squares.max()
        admitted = np.square(limits.max_admission).sum()
        return float((sent + admitted + 0.5 * np.square(spent).sum()) / self.v)

    def _decide(
        self, rates: Floats, offered: Floats, waiting: Floats, snr: Floats
    ) -> Plan:
        """Apply the rule to one slot."""
        limits = self._fleet()
        price = np.maximum(self._theta - self._battery, 0.0)
        auxiliary = self.utility.auxiliary(self.v, self._virtual, limits.max_admission)
        worth = self._virtual - self._backlog - price * self._compute > 0
        admitted = np.where(worth, offered, 0.0)
        pressure = np.minimum(self._backlog, self._backlog_bound)
        cost = price * self._transmit
        if self.carrier == "ofdma":
            sent = ofdma(pressure, waiting, rates, snr, cost)
            return Plan(admitted, auxiliary, *sent)
        shares = time_shared(pressure * rates - cost, waiting, rates)
        return Plan(admitted, auxiliary, shares, shares, rates * shares)

    def _thresholds(self, limits: WorkerLimits) -> Floats:
        """Return θ, or refuse a capacity below it."""
        transmit, compute = limits.transmit_energy, limits.compute_energy
        admission = limits.max_admission
        mains = np.isinf(limits.capacity)
        per_joule = np.zeros(len(limits))  # ρ
        np.divide(limits.max_rate, transmit, out=per_joule, where=transmit > 0)
        if self.carrier == "ofdma" and limits.max_snr is not None:
            # The slope of R in the power at power zero.
            per_joule *= limits.max_snr / np.log1p(limits.max_snr)
        per_unit = np.zeros(len(limits))  # 1/c
        np.divide(1.0, compute, out=per_unit, where=compute > 0)
        slot = transmit + compute * admission
        slope = self.utility.slope
        reach = self.v * slope
        theta = slot + np.maximum(
            (reach + 2 * admission) * per_joule, (reach + admission) * per_unit
        )
        theta[mains] = 0.0
        short = np.flatnonzero(limits.capacity < theta)
        if len(short):
            i = int(short[0])
            spare = float(limits.capacity[i] - slot[i])
            allowed = math.inf
            if per_joule[i] > 0:
                allowed = spare / per_joule[i] - 2 * admission[i]
            if per_unit[i] > 0:
                allowed = min(allowed, spare / per_unit[i] - admission[i])
            least = slot[i] + admission[i] * max(2 * per_joule[i], per_unit[i])
            fix = (
                f"the largest v that its capacity allows is {allowed / slope:.6g}"
                if allowed > 0
                else "its capacity is below one transmission and computing "
                f"({slot[i]:.6g} J) and the reserve that the smallest v needs "
                f"({least:.6g} J in all)"
            )
            raise InvalidInputError(
                f"The battery of worker {i} holds {limits.capacity[i]:.6g} J, less "
                f"than the {theta[i]:.6g} J that v = {self.v:g} needs; {fix}."
            )
        return theta
