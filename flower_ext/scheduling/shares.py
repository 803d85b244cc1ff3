"""How a slot of a shared carrier is split between workers.

All functions are pure; arrays have one entry per worker.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = ["in_order", "ofdma", "time_shared"]

Floats = NDArray[np.float64]


def in_order(order: NDArray[np.int64], backlog: Floats, rates: Floats) -> Floats:
    """Return shares of the slot for workers that send one after the other.

    Everyone sends until its backlog is empty or the slot is over.

    Parameters
    ----------
    order : ndarray of int
        Who sends, first to last; each with a positive rate, nobody twice.
    backlog : ndarray of shape (workers,)
        Units that wait, at least 0.
    rates : ndarray of shape (workers,)
        Units that a worker sends in a whole slot.

    Examples
    --------
    >>> in_order(np.array([2, 0]), np.array([9.0, 9.0, 1.0]), np.array([3.0, 4.0, 4.0]))
    array([0.75, 0.  , 0.25])
    """
    shares = np.zeros(len(rates))
    need = backlog[order] / rates[order]
    before = need.cumsum() - need
    shares[order] = np.maximum(np.minimum(1.0 - before, need), 0.0)
    return shares


def time_shared(weight: Floats, backlog: Floats, rates: Floats) -> Floats:
    """Return the shares x that maximise Σ weight·x over Σx ≤ 1, 0 ≤ x ≤ backlog/rate.

    Workers send by falling weight, each until its backlog is empty: the fractional
    knapsack, whose greedy solution is optimal. A weight of 0 or less is not worth a
    share; a positive one must come with a positive rate. Ties go to the lower index.

    Examples
    --------
    >>> time_shared(np.array([1.0, 3.0, -1.0]), np.full(3, 2.0), np.array([4.0, 8, 8]))
    array([0.5 , 0.25, 0.  ])
    """
    best = int(weight.argmax())
    if weight[best] > 0 and backlog[best] >= rates[best]:
        shares = np.zeros(len(rates))
        shares[best] = 1.0
        return shares
    worth = (weight > 0).nonzero()[0]
    order = worth[(-weight[worth]).argsort(kind="stable")]
    return in_order(order, backlog, rates)


def ofdma(
    weight: Floats, backlog: Floats, rates: Floats, snr: Floats, cost: Floats
) -> tuple[Floats, Floats, Floats]:
    """Split the band and set the powers of workers that all send at once.

    Maximises Σ weight·min(R, backlog) − cost·q over band shares x ≥ 0, Σx ≤ 1, and
    powers 0 ≤ q ≤ 1, where R(x, q) = rates · x·log(1 + snr·q/x) / log(1 + snr): a
    convex problem, as R is jointly concave.

    Written with t = log(1 + snr·q/x), the nats that a band carries, the value V(x) of
    a band to one worker under its best power is concave, with slopes that fall through
    four stages (κ = weight·rates/log(1 + snr), h(t) = t − 1 + e^−t):

    - water level: t = t* = log(κ·snr/cost), slope κ·h(t*), until the power is 1;
    - full power: q = 1, x = snr/(e^t − 1), slope κ·h(t), until the backlog is sent;
    - a gap in the slopes, from κ·h(t) to what saving power is worth;
    - backlog sent: x = λ/t with λ = backlog·log(1 + snr)/rates, and slope
      κ·e^(t − t*)·h(t): more band saves power.

    So the band that a worker wants at a price μ is explicit up to the inverses of h(t)
    and e^t·h(t), and what remains is the price at which the bands sum to 1. It is
    bracketed, and searched for by regula falsi on logarithms and by trying the prices
    at which somebody joins in with a whole band at once. Whoever is undecided at the
    last price gets what is left. The value is within 1e-7 of the best, relatively.

    Parameters
    ----------
    weight : ndarray of shape (workers,)
        What a unit sent is worth, at least 0.
    backlog : ndarray of shape (workers,)
        Units that wait, at least 0.
    rates : ndarray of shape (workers,)
        Units that a worker sends with the whole band at power 1.
    snr : ndarray of shape (workers,)
        Signal-to-noise ratio over the whole band at power 1, positive.
    cost : ndarray of shape (workers,)
        What power 1 costs, at least 0.

    Returns
    -------
    shares, powers, service : ndarrays of shape (workers,)
        x, q and R.

    Examples
    --------
    Alone, at no cost: the whole band at full power. Equal twins: half the band each,
    and with the noise of half a band only, more than half the units.

    >>> one = np.ones(1)
    >>> [a.round(9) for a in ofdma(one, 9 * one, 2 * one, 3 * one, 0 * one)]
    [array([1.]), array([1.]), array([2.])]
    >>> two = np.ones(2)
    >>> x, q, units = ofdma(two, 9 * two, 2 * two, 3 * two, 0 * two)
    >>> [np.round(a, 6).tolist() for a in (x, q)], np.round(units, 3).tolist()
    ([[0.5, 0.5], [1.0, 1.0]], [1.404, 1.404])
    """
    shares, powers, service = np.zeros((3, len(rates)))
    with np.errstate(divide="ignore", over="ignore", invalid="ignore", under="ignore"):
        water = np.log(weight) + np.log(rates) + np.log(snr)
        water -= np.log(np.log1p(snr)) + np.log(cost)
        some = ((water > 0) & (backlog > 0)).nonzero()[0]
        if len(some):
            band = _Band(
                weight[some], backlog[some], rates[some], snr[some], water[some]
            )
            x = band.clear().x
            x /= max(float(x.sum()), 1.0)
            shares[some] = x
            powers[some], service[some] = band.send(x)
    return shares, powers, service


class _Band:
    """What a band is worth to workers that would use some; notation of :func:`ofdma`.

    Every array is positive; `water` is t*, inf where power costs nothing.
    """

    def __init__(
        self,
        weight: Floats,
        backlog: Floats,
        rates: Floats,
        snr: Floats,
        water: Floats,
    ) -> None:
        self.given = (weight, backlog, rates, snr, water)
        log_snr = np.log1p(snr)
        self.snr, self.water, self.backlog = snr, water, backlog
        self.nat = rates / log_snr  # units per nat
        self.worth = weight * self.nat  # κ
        self.nats = backlog / self.nat  # λ
        # t where the backlog is sent: on the water level, or else at full power. A
        # backlog beyond the rate is never sent: t = 0.
        sent = np.zeros(len(snr))
        short = (backlog < rates).nonzero()[0]
        sent[short] = _emptied(snr[short] / self.nats[short])
        self.sent = np.minimum(sent, water)
        self.enough = np.where(sent > 0, self.nats / self.sent, np.inf)
        # Prices below which a worker joins, stops growing, and grows again.
        self.joins = self.worth * _h(water)
        self.stops = self.worth * _h(self.sent)
        self.saves = self.stops * np.exp(self.sent - water)

    def send(self, x: Floats) -> tuple[Floats, Floats]:
        """Return the best powers and the units sent for given bands."""
        t = np.minimum(np.log1p(self.snr / x), self.water)
        t = np.where(self.nat * x * t > self.backlog, self.nats / x, t)
        t = np.where(x > 0, t, 0.0)
        powers = np.minimum(x * np.expm1(t) / self.snr, 1.0)
        return powers, np.minimum(self.nat * x * t, self.backlog)

    def slope(self, x: float) -> Floats:
        """Return V′(x) for the same band for everyone."""
        t = np.minimum(np.log1p(self.snr / x), self.water)
        less = np.minimum(self.nats / x, self.sent)
        saving = self.worth * _h(less) * np.exp(less - self.water)
        return np.where(x > self.enough, saving, self.worth * _h(t))

    def wanted(self, price: float) -> _Demand:
        """Return the bands wanted at a price; who is indifferent wants nothing."""
        active = self.joins > price
        x = np.where(active, self.enough, 0.0)
        i = (active & (self.stops <= price)).nonzero()[0]
        if len(i):
            t = np.minimum(_inverse_h(price / self.worth[i]), self.water[i])
            x[i] = np.minimum(self.snr[i] / np.expm1(t), self.enough[i])
        i = (active & (self.saves > price)).nonzero()[0]
        if len(i):
            t = _inverse_log_eh(np.log(price / self.worth[i]) + self.water[i])
            x[i] = np.maximum(self.nats[i] / t, self.enough[i])
        return _Demand(price, x, float(x.sum()))

    def joined(self, demand: _Demand) -> _Demand:
        """Return the same, but with what the indifferent would take at most."""
        i = (self.joins == demand.price).nonzero()[0]
        x = demand.x.copy()
        x[i] = np.minimum(self.snr[i] / np.expm1(self.water[i]), self.enough[i])
        return _Demand(demand.price, x, float(x.sum()))

    def clear(self, goal: float = 1.0, accuracy: float = 1e-7) -> _Demand:
        """Return bands that sum to `goal`, at most 1; to less if nobody wants more.

        Their value falls short of the best by `accuracy` of it at most.
        """
        low, high = self._bracket(goal)
        if low.total <= goal:
            return low
        joins = self.joins[(self.joins > low.price) & (self.joins < high.price)]
        joins.sort()
        # Regula falsi on log(total/goal) over log(price), Anderson and Bjorck's: an end
        # that stays has its height reduced, so that both ends close in.
        left, right = _height(low, goal), _height(high, goal)
        slow, stays = 0, 0  # steps in a row that gained little
        for _ in range(200):
            # The value is at least price·goal: this bounds what remains to be gained.
            excess = (low.total - high.total) / goal
            if (1 - low.price / high.price) * excess <= accuracy:
                break
            ratio = math.log(high.price / low.price)
            part = 0.5 if slow > 1 else left / (left - right)
            price = low.price * math.exp(min(max(part, 1e-4), 1 - 1e-4) * ratio)
            tie = len(joins) > 0 and (slow > 0 or len(joins) < 4)
            if tie:
                i = len(joins) // 2 if slow > 1 else int(joins.searchsorted(price))
                price = float(joins[min(i, len(joins) - 1)])
            elif not low.price < price < high.price:
                break
            tried = self.wanted(price)
            if tie and tried.total <= goal:
                without, tried = tried, self.joined(tried)
                if tried.total >= goal:
                    low, high = tried, without
                    break
            height = _height(tried, goal)
            if tried.total > goal:
                if stays > 0:
                    right *= max(1 - height / left, 0.1)
                low, left, stays = tried, height, 1
            else:
                if stays < 0:
                    left *= max(1 - height / right, 0.1)
                high, right, stays = tried, height, -1
            first, last = joins.searchsorted([low.price, high.price])
            first += int(first < len(joins) and joins[first] == low.price)
            joins = joins[first:last]
            little = math.log(high.price / low.price) > 0.7 * ratio
            slow = slow + 1 if little else 0
        spread = low.total - high.total
        part = (goal - high.total) / spread if spread > 0 else 1.0
        return _Demand(high.price, high.x + part * (low.x - high.x), goal)

    def _bracket(self, goal: float) -> tuple[_Demand, _Demand]:
        """Return a price at which at least `goal` is wanted, and one with at most that.

        The first may want less if nobody wants more at any price.
        """
        count = len(self.snr)
        if count <= 2 * _SAMPLE:
            # With every band at most goal/count, or one of at least goal.
            high = float(self.slope(goal / count).max())
            low = max(float(self.slope(goal).max()), high * _NOTHING)
            return self.joined(self.wanted(low)), self.wanted(high)
        # A sample's price is near; then step away from it, ever faster.
        each = slice(None, None, count // _SAMPLE)
        sample = _Band(*(array[each] for array in self.given))
        price = sample.clear(goal * len(sample.snr) / count, 1e-2).price
        tried = self.wanted(price)
        up = tried.total > goal
        # About far enough if the bands halve where the price doubles.
        ratio = 1.01 * math.exp(min(1.25 * abs(_height(tried, goal)), 1.0))
        floor = price * _NOTHING
        while True:
            before = tried
            price = before.price * ratio if up else before.price / ratio
            tried = self.wanted(max(price, floor))
            if up and tried.total <= goal:
                return before, tried
            if not up and (tried.total >= goal or tried.price == floor):
                return tried, before
            ratio **= 3


class _Demand(NamedTuple):
    """The bands that are wanted at a price."""

    price: float
    x: Floats
    total: float


_SAMPLE = 512
_NOTHING = 1e-13  # of a price: as good as no price


def _height(demand: _Demand, goal: float) -> float:
    return math.log(max(demand.total, 1e-9 * goal) / goal)


def _h(t: Floats) -> Floats:
    """Return t − 1 + e^−t without cancellation, for t ≥ 0."""
    series = t * t * (0.5 - t * (1 / 6 - t * (1 / 24 - t * (1 / 120 - t / 720))))
    return np.where(t < 1e-2, series, t + np.expm1(-t))


def _inverse_h(value: Floats) -> Floats:
    """Return the t > 0 with t − 1 + e^−t = value, by Halley's method."""
    t = value + np.sqrt(-np.expm1(-2 * value))
    for _ in range(2):
        slope = -np.expm1(-t)
        error = t - slope - value
        t -= 2 * error * slope / (2 * slope * slope - error * (1 - slope))
    return t


def _inverse_log_eh(value: Floats) -> Floats:
    """Return the t > 0 with t + log(t − 1 + e^−t) = value, by Halley's method."""
    # t − 1 is Lambert's W: its series at the branch point, and for large values.
    root = np.exp(0.5 * np.minimum(value, 1.0) + 0.5 * math.log(2))
    big = np.log1p(np.exp(np.maximum(value, 1.0) - 1) - math.exp(-1))
    big = np.where(value > 700, value - 1, big)
    big = 1 + big * (1 - np.log1p(big) / (2 + big))
    t = np.where(value < 1, root / (1 + root / 3), big)
    for _ in range(2):
        rest = -np.expm1(-t)
        height = t - rest
        error = t + np.log(height) - value
        slope = 1 + rest / height
        bend = (1 - rest) / height - (rest / height) ** 2
        t -= 2 * error * slope / (2 * slope * slope - error * bend)
    return t


def _emptied(value: Floats) -> Floats:
    """Return the t > 0 with (e^t − 1)/t = value > 1, by Newton's method."""
    goal = np.log(value)
    t = 2 * goal
    for _ in range(5):
        rest = -np.expm1(-t)
        t -= (t + np.log(rest / t) - goal) / (1 / rest - 1 / t)
    return t
