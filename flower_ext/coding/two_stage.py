"""The two-stage coded round of TSDCFL (arXiv:2205.07939, sections III and IV).

Stage one shares the partitions uncoded among the workers that the history predicts to
be fastest. It ends at a time T₁, after which whatever has not come back is spread,
coded, over the workers that are idle by then; stage-one replies that arrive later still
count. The paper fixes T₁ and the redundancy beforehand; here the loads, T₁ and the
redundancy s₂ are the ones that minimise the expected time to decode over resampled
completion times, and T₁ is revised whenever enough replies have come to know better.
Should stage two itself be late, what is still missing is spread again. What a failed
worker leaves behind is given to others at once, in either stage.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from flower_ext.coding.allocation import allocate, balance
from flower_ext.coding.contention import Airtime
from flower_ext.coding.forecast import completion_if_stopped
from flower_ext.coding.incremental import IncrementalDecoder
from flower_ext.coding.plan import LEAST_DEADLINE, Dispatch, RoundPlan
from flower_ext.coding.spread import Spread, spread_missing
from flower_ext.errors import InvalidInputError
from flower_ext.scheduling.history import CompletionHistory

__all__ = ["TwoStageOptions", "TwoStagePlan"]

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

_STOPS = (0.05, 0.2, 0.35, 0.5, 0.65, 0.75, 0.83, 0.9, 0.95, 0.98)
_MOST_SCENARIOS, _FEWEST_SCENARIOS = 128, 16
_REVISE = 0.8  # T₁ is revised when jobs have shrunk, or workers grown, by this factor
_DUE = 0.8  # by this quantile of its time, a worker that is no straggler is done
_PATIENCE = 1.5  # stage two is looked after this much later than it should be back
_TICK = 1e-3  # seconds; the plan is never woken twice within less
_SILENT_WAKES = 1  # T₁ is not put off more often than this without a reply
_COLD_PATIENCE = 3.0  # without history, act this many times later than the last reply


@dataclass(frozen=True)
class TwoStageOptions:
    """Parameters of the two-stage plan.

    Parameters
    ----------
    redundancy_price : float (default: 0.2)
        How much longer, relative to its length, a round may take to save computing
        every partition once more. 0 buys any speed with any work; sane up to 2.
    max_stage_two_redundancy : int (default: 2)
        The largest s₂ considered, 0 to 8.
    draws : int (default: 20000)
        Delays resampled per decision, over all workers; more is slower and steadier.
        At least 1000.

    Raises
    ------
    InvalidInputError
        If a parameter is out of range.
    """

    redundancy_price: float = 0.2
    max_stage_two_redundancy: int = 2
    draws: int = 20_000

    def __post_init__(self) -> None:
        """Check every field."""
        if not 0 <= self.redundancy_price < math.inf:
            raise InvalidInputError(
                f"redundancy_price must be at least 0, got {self.redundancy_price}."
            )
        if not 0 <= self.max_stage_two_redundancy <= 8:
            raise InvalidInputError(
                "max_stage_two_redundancy must lie in 0..8, "
                f"got {self.max_stage_two_redundancy}."
            )
        if self.draws < 1000:
            raise InvalidInputError(f"draws must be at least 1000, got {self.draws}.")


class TwoStagePlan(RoundPlan):
    """One two-stage round.

    Parameters
    ----------
    partitions, idle, history, server_round, deadline, limits, ceilings
        As in :class:`~flower_ext.coding.plan.RoundPlan`. Where the admitted workers
        could not complete the round within their limits, the limits give way; the
        ceilings do not.
    rng : numpy.random.Generator
        Source of the resampling.
    options : TwoStageOptions, optional
        Parameters of the plan.
    airtime : Airtime, optional
        What replies need of a carrier that all share, for the admitted workers. Where
        it is known, only as many workers compute as shorten the round, and uploads are
        expected to take what it says.

    Examples
    --------
    Two equal workers, of which one does not come back. The other takes over:

    >>> history = CompletionHistory()
    >>> for worker in (0, 1):
    ...     history.completed(worker, 1, load=1, compute_seconds=1.0, elapsed=1.0)
    >>> held = {0: range(2), 1: range(2)}
    >>> plan = TwoStagePlan([0, 1], held, history, 2, np.random.default_rng(0))
    >>> [(d.worker, d.partitions) for d in plan.start()]
    [(0, (0,)), (1, (1,))]
    >>> plan.reply(0, at=1.0, compute_seconds=1.0)
    []
    >>> 1.0 < plan.wake_at < 3.0
    True
    >>> sent = plan.wake(2.9)
    >>> [(d.worker, d.stage, d.partitions) for d in sent]
    [(0, 2, (1,))]
    >>> plan.reply(sent[0].key, at=3.9, compute_seconds=1.0)
    []
    >>> plan.decodable
    True
    """

    def __init__(
        self,
        partitions: Sequence[int],
        idle: Mapping[int, Collection[int]],
        history: CompletionHistory,
        server_round: int,
        rng: np.random.Generator,
        deadline: float | None = None,
        options: TwoStageOptions | None = None,
        limits: Mapping[int, int] | None = None,
        airtime: Airtime | None = None,
        ceilings: Mapping[int, int] | None = None,
    ) -> None:
        super().__init__(
            partitions, idle, history, server_round, deadline, limits, ceilings
        )
        self._airtime = airtime
        self._expected: dict[int, float] = {}  # upload seconds told to the history
        self.options = options or TwoStageOptions()
        self._rng = rng
        self._cold = len(history) == 0
        self._wake_at = math.inf
        self._timed = False  # whether the deadline has been derived
        self._look_again = math.inf  # when a cold round acts without half the replies
        self._silent_wakes = 0  # how often T₁ came, and was put off, without a reply
        self._revise_below = 0  # outstanding jobs at which T₁ is revised next
        self._revise_from = math.inf  # workers from which on T₁ is revised
        self._on_time = 0  # dispatches from this key on are expected back
        self._reinforce_from = math.inf  # workers from which on stage two is revised
        self._waiting: set[int] = set()  # partitions that no idle worker could take

    @property
    def wake_at(self) -> float:
        """When T₁, or the time to look after stage two, comes."""
        return self._wake_at

    def start(self) -> list[Dispatch]:
        """Share the partitions uncoded among the fastest workers."""
        return self._stage_one(0.0)

    def wake(self, at: float) -> list[Dispatch]:
        """T₁ has come, or stage two is late: spread what is missing."""
        self._wake_at = math.inf
        if self.decodable or not self.outstanding:
            return []
        if self.stage_two_at is not None:
            return self._stage_two(at)
        self._silent_wakes += 1
        return self._revise(at)

    def _freed(self, at: float) -> list[Dispatch]:
        if not self.dispatches:
            return self._stage_one(at)
        self._silent_wakes = 0
        freed = next(reversed(self._idle.values()), ())
        sent = [] if self._waiting.isdisjoint(freed) else self._give_out(at)
        if not self.outstanding:
            self._wake_at = math.inf
        elif self.stage_two_at is None and (
            self._cold
            or len(self.outstanding) <= self._revise_below
            or len(self._holdings) >= self._revise_from
        ):
            sent += self._revise(at)
        elif (
            self.stage_two_at is not None
            and len(self._holdings) >= self._reinforce_from
        ):
            sent += self._reinforce(at)
        return sent

    def _failed(self, at: float) -> list[Dispatch]:
        sent = self._give_out(at)
        if not self.outstanding:
            self._wake_at = math.inf
        return sent

    # -- stage one --------------------------------------------------------------------

    def _stage_one(self, at: float) -> list[Dispatch]:
        """Choose who takes part and the loads, and plan T₁."""
        sent = self._share(list(self.partitions), at)
        if sent and not self._cold:
            return sent + self._revise(at)
        return sent

    def _share(self, partitions: list[int], at: float) -> list[Dispatch]:
        """Share partitions uncoded among the idle workers."""
        workers = list(self._idle)
        seconds, overhead = self.history.typical(workers, self.server_round)
        seconds = np.maximum(seconds, 1e-9)
        limits = self._room(workers, partitions)
        if self._airtime and partitions and self._all_hold(workers, partitions):
            room = len(partitions) if limits is None else int(limits.sum())
            loads, uploads = self._airtime.share_out(
                workers, min(len(partitions), room), seconds, limits
            )
            ends = np.cumsum(loads)
            jobs = [
                partitions[end - load : end]
                for end, load in zip(ends, loads, strict=True)
            ]
            self._expect(dict(zip(workers, uploads.tolist(), strict=True)))
        else:
            holdings = [self._idle[w] for w in workers]
            jobs = allocate(partitions, holdings, seconds, overhead, limits)
        self._wait_for_workers(set(partitions).difference(*jobs))
        return [
            self._dispatch(worker, 1, job, [1.0] * len(job), at)
            for worker, job in zip(workers, jobs, strict=True)
            if job
        ]

    def _give_out(self, at: float) -> list[Dispatch]:
        """Give partitions that nobody is expected to bring any more to idle workers."""
        lost = self._lost()
        if self.stage_two_at is None:
            return self._share(lost, at)
        return self._spread(lost, at)

    def _all_hold(self, workers: list[int], wanted: Collection[int]) -> bool:
        """Return whether there are workers, and each holds all of the partitions."""
        distinct = {id(held): held for held in (self._idle[w] for w in workers)}
        return bool(workers) and all(set(wanted) <= set(h) for h in distinct.values())

    def _expect(self, uploads: Mapping[int, float]) -> None:
        """Tell the history what uploads should take."""
        self._expected |= {w: s for w, s in uploads.items() if s > 0}
        self.history.announce(self.server_round, self._expected)

    def _chosen(self, workers: list[int], wanted: list[int]) -> list[int]:
        """Return who of the idle should share a carrier to compute the partitions."""
        if self._airtime is None or not wanted or not self._all_hold(workers, wanted):
            return workers
        seconds, _ = self.history.typical(workers, self.server_round)
        redundancy = min(self.options.max_stage_two_redundancy, len(workers) - 1)
        chosen = self._airtime.crew(
            workers,
            len(wanted),
            np.maximum(seconds, 1e-9),
            redundancy,
            self._room(workers, wanted),
        )
        return [workers[i] for i in chosen]

    def _uploads(self, workers: list[int]) -> Floats:
        """Return what replies take if all begin now, beside those under way."""
        assert self._airtime is not None
        sending = {self.dispatches[k].worker for k in self.outstanding}
        taken = self._airtime.upload_seconds(sorted(sending.union(workers)))
        return np.array([taken[w] for w in workers])

    def _room(self, workers: list[int], wanted: list[int]) -> Ints | None:
        """Return how many partitions idle workers may be given, so that all fit in."""
        if self._left is None or not workers:
            return None
        held = [self._idle[w] for w in workers]
        limits = np.array([self._left[w] for w in workers], dtype=np.int64)
        most = [max(self._ceilings.get(w, len(wanted)), 0) for w in workers]
        limits = np.minimum(limits, most)
        one, none = np.ones(len(workers)), np.zeros(len(workers))
        reach = set(wanted).intersection(
            itertools.chain.from_iterable({id(h): h for h in held}.values())
        )
        while limits.min() < len(reach):
            jobs = allocate(wanted, held, one, none, limits)
            wider = np.minimum(np.maximum(2 * limits, 1), most)
            if sum(map(len, jobs)) == len(reach) or np.array_equal(wider, limits):
                break
            limits = wider
        return limits

    def _wait_for_workers(self, partitions: set[int]) -> None:
        """Keep partitions for the next worker that holds any of them."""
        self._waiting = partitions
        self.hungry = bool(partitions)

    # -- T₁ ---------------------------------------------------------------------------

    def _revise(self, at: float) -> list[Dispatch]:
        """Choose T₁ anew from what is known; if it is now, begin stage two."""
        if self._cold and not self._warmed(at):
            return []
        self._revise_below = int(_REVISE * len(self.outstanding))
        self._revise_from = math.ceil(len(self._holdings) / _REVISE)
        keys = list(self.outstanding)
        wanted = {p for k in keys for p in self.dispatches[k].partitions}
        able = self._chosen(self._able(wanted), sorted(wanted))
        workers = [*able, *(self.dispatches[k].worker for k in keys)]
        size = self._scenarios(len(workers))
        arrivals = self._arrivals(keys, at, size)
        loads = np.array([len(self.dispatches[k].partitions) for k in keys])
        pending = np.maximum(np.arange(len(workers)) - len(able), -1)
        seconds, overhead = self.history.sample_again(
            workers, self.server_round, size, self._rng
        )
        if self._airtime is not None and able:
            _, usual = self.history.typical(able, self.server_round)
            foreseen = self._uploads(able)
            ratio = overhead[:, : len(able)] / np.where(usual > 0, usual, 1.0)
            overhead[:, : len(able)] = np.where(usual > 0, ratio, 1.0) * foreseen
        grid = np.quantile(arrivals, _STOPS)
        grid = grid[grid > 1.01 * at]
        stops = [*([at] if able else []), *grid.tolist(), math.inf]
        times, redone = completion_if_stopped(
            stops, arrivals, loads, pending, seconds, overhead
        )
        costs = [
            self._cost(time, float(work.mean()))
            for time, work in zip(times, redone, strict=True)
        ]
        choice = int(np.argmin(costs))
        if not self._timed:  # later, the silence itself would put the deadline off
            self._timed = True
            late = 2.0 * float(np.quantile(arrivals, 0.99))
            self._allow(max(10.0 * float(times[choice].mean()), late))
        # Silence does not bear out the forecast that it would end soon.
        if stops[choice] == at or (able and self._silent_wakes > _SILENT_WAKES):
            return self._stage_two(at)
        # To wait for ever is to look again when all should have come, and in time to
        # begin stage two before the deadline, whatever the silence makes one expect.
        beyond = float(grid[-1]) if len(grid) else _PATIENCE * at
        beyond = min(beyond, (at + self.deadline) / 2.0)
        self._wake_at = max(min(stops[choice], beyond), at + _TICK)
        return []

    def _scenarios(self, workers: int) -> int:
        wanted = self.options.draws // max(workers, 1)
        return min(max(wanted, _FEWEST_SCENARIOS), _MOST_SCENARIOS)

    def _arrivals(self, keys: Sequence[int], at: float, size: int) -> Floats:
        """Draw when outstanding jobs arrive, shape (size, len(keys))."""
        if not keys:
            return np.empty((size, 0))
        jobs = [self.dispatches[k] for k in keys]
        elapsed = np.array([at - self.outstanding[k] for k in keys])
        taken = self.history.sample_unfinished(
            [j.worker for j in jobs],
            self.server_round,
            [len(j.partitions) for j in jobs],
            elapsed,
            size,
            self._rng,
        )
        return taken + (at - elapsed)

    def _cost(self, completion: Floats, again: float) -> float:
        """Return the expected time to decode, marked up by the work done twice."""
        price = self.options.redundancy_price * again / len(self.partitions)
        return float(np.mean(completion) * (1.0 + price))

    def _warmed(self, at: float) -> bool:
        """Without history, wait for half of the replies, or far beyond the last."""
        if (
            2 * len(self.received) >= len(self.dispatches)
            or at >= self._look_again
            or not self.outstanding
        ):
            self._cold = False
            return True
        if self.received:
            self._look_again = self._wake_at = max(_COLD_PATIENCE * at, at + _TICK)
            self._allow(20.0 * at)
        return False

    def _allow(self, until: float) -> None:
        """Let the round last until then, if it may not last longer already."""
        known = 0.0 if math.isinf(self._deadline) else self._deadline
        self._deadline = max(known, LEAST_DEADLINE, until)

    # -- stage two --------------------------------------------------------------------

    def _stage_two(self, at: float) -> list[Dispatch]:
        """Spread what is missing; whatever is not back by now counts as late."""
        if self.stage_two_at is None:
            self.stage_two_at = at
        self._on_time = len(self.dispatches)
        self._wake_at = math.inf
        return self._spread(self._lost(), at)

    def _late_by(self, done: Floats) -> float:
        """Return by when stage two should be back; `done` is scenarios x rows."""
        if self._airtime is None:
            return float(np.quantile(done.max(axis=1), 0.9))
        # Uploads are foreseen: who is not back at the time of its own is a straggler,
        # and a straggler among few workers may not put off the look at the others.
        return float(np.quantile(done, _DUE, axis=0).max())

    def _reinforce(self, at: float) -> list[Dispatch]:
        """Spread anew if the workers that came since would be done before stage two.

        Stage two may have begun when most workers were still busy with an earlier
        round, and so have been left to a few.
        """
        self._reinforce_from = math.ceil(len(self._holdings) / _REVISE)
        missing = set(self._missing(self.received))
        workers = self._able(missing)
        if not workers:
            return []
        keys = [k for k in self.outstanding if k >= self._on_time]
        arrivals = self._arrivals(keys, at, _FEWEST_SCENARIOS)
        known: dict[tuple[int, ...], Floats] = {}
        for column, key in enumerate(keys):
            row = self.dispatches[key].partitions
            if not missing.isdisjoint(row):
                earlier = known.get(row, arrivals[:, column])
                known[row] = np.minimum(earlier, arrivals[:, column])
        if not known:
            return []
        seconds, overhead = self.history.typical(workers, self.server_round)
        seconds = np.maximum(seconds, 1e-9)
        limits = self._room(workers, sorted(missing))
        loads = balance(len(missing), seconds, overhead, limits)
        done = at + float(np.max(np.where(loads > 0, overhead + seconds * loads, 0.0)))
        waiting = np.median(np.max(list(known.values()), axis=0), keepdims=True)
        if self._cost(np.array([done]), len(missing)) < self._cost(waiting, 0.0):
            return self._stage_two(at)
        return []

    def _missing(self, keys: Iterable[int]) -> list[int]:
        """Return the partitions that no choice of disjoint uncoded rows brings.

        What such a choice brings is exact whatever else comes: any rows that decode the
        rest decode the round with it.
        """
        have: set[int] = set()
        rows = [self.dispatches[k] for k in keys]
        for row in sorted(rows, key=lambda r: -len(r.partitions)):
            if _uncoded(row) and have.isdisjoint(row.partitions):
                have.update(row.partitions)
        return [p for p in self.partitions if p not in have]

    def _lost(self) -> list[int]:
        """Return the partitions that neither replies nor rows on time will bring."""
        on_time = (k for k in self.outstanding if k >= self._on_time)
        trusted = (k for k in on_time if self.dispatches[k].worker not in self.doubted)
        keys = [*self.received, *trusted]
        missing = self._missing(keys)
        rows = [self.dispatches[k] for k in keys]
        if missing and not all(map(_uncoded, rows)):
            decoder = IncrementalDecoder(len(self.partitions))
            for row in rows:
                columns = [self._column[p] for p in row.partitions]
                decoder.add(row.coefficients, columns)
            if decoder.decodable:
                return []
        return missing

    def _able(self, wanted: set[int]) -> list[int]:
        """Return the idle workers that hold any of the partitions."""
        distinct = {id(h): h for h in self._idle.values()}
        useful = {key: not wanted.isdisjoint(h) for key, h in distinct.items()}
        return [w for w, held in self._idle.items() if useful[id(held)]]

    def _spread(self, lost: list[int], at: float) -> list[Dispatch]:
        """Spread partitions, coded, over the idle workers."""
        able = self._able(set(lost))
        reach = set(lost).intersection(
            itertools.chain.from_iterable(
                {id(h): h for h in (self._idle[w] for w in able)}.values()
            )
        )
        self._wait_for_workers(set(lost) - reach)
        missing = [p for p in lost if p in reach]
        if not missing:
            return []
        workers = self._chosen(able, missing)
        if self._airtime is not None:
            uploads = self._uploads(workers).tolist()
            self._expect(dict(zip(workers, uploads, strict=True)))
        held = [self._idle[w] for w in workers]
        limits = self._room(workers, missing)
        if limits is not None:
            one, none = np.ones(len(workers)), np.zeros(len(workers))
            placed = set().union(*allocate(missing, held, one, none, limits))
            self._wait_for_workers(set(lost) - placed)
            missing = [p for p in missing if p in placed]
            if not missing:
                return []
        size = self._scenarios(len(workers))
        proven = np.array([w in self._replied for w in workers])
        first = self.history.sample(workers, self.server_round, size, self._rng)
        again = self.history.sample_again(workers, self.server_round, size, self._rng)
        seconds = np.maximum(np.where(proven, again[0], first[0]), 1e-9)
        overhead = np.where(proven, again[1], first[1])
        late = [k for k in self.outstanding if k < self._on_time]
        overlaps = {k: reach.intersection(self.dispatches[k].partitions) for k in late}
        keys = [k for k, partitions in overlaps.items() if partitions]
        jobs = [sorted(overlaps[k]) for k in keys]
        arrivals = self._arrivals(keys, at, size)
        best: Spread | None = None
        best_cost, best_late = math.inf, at
        for redundancy in range(self.options.max_stage_two_redundancy + 1):
            spread = spread_missing(
                missing,
                held,
                np.median(seconds, 0),
                np.median(overhead, 0),
                redundancy,
                limits,
            )
            if spread is None:
                break
            load = np.array([len(row) for row, _ in spread.rows])
            done = np.where(load > 0, at + overhead + seconds * load, math.inf)
            time = spread.completion(done, arrivals, jobs)
            cost = self._cost(time, float(load.sum()))
            if best is None or cost < best_cost:
                best, best_cost = spread, cost
                best_late = self._late_by(done[:, load > 0])
        assert best is not None  # redundancy 0 always spreads what is within reach
        self._reinforce_from = math.ceil(len(self._holdings) / _REVISE)
        look = at + max(_PATIENCE * (best_late - at), _TICK)
        self._wake_at = look if math.isinf(self._wake_at) else max(look, self._wake_at)
        self._allow(at + 10.0 * (best_late - at))
        return [
            self._dispatch(worker, 2, row, coefficients, at)
            for worker, (row, coefficients) in zip(workers, best.rows, strict=True)
            if row
        ]


def _uncoded(row: Dispatch) -> bool:
    """Return whether a reply to this row is a plain sum."""
    return row.coefficients.count(1.0) == len(row.coefficients)
