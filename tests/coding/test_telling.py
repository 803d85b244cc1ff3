"""Who lied is found out, though the replies that were needed anyway do not tell."""

import heapq
import itertools

import numpy as np
import pytest

from flower_ext.coding.parity import ParityReport, check
from flower_ext.coding.plan import Dispatch
from flower_ext.coding.spares import telling_rows
from flower_ext.coding.verified_two_stage import VerifiedTwoStagePlan
from flower_ext.scheduling.history import CompletionHistory

WORKERS, PARTITIONS = 4, 8


class Rounds:
    """A verified round of four workers who take about two seconds for anything.

    The worker who sends the reply number `lie_at` lies in that one only, or in all from
    there on.
    """

    def __init__(self, seed: int, spread: float, lie_at: int, again: bool) -> None:
        self.rng = np.random.default_rng(seed)
        self.spread, self.lie_at, self.again = spread, lie_at, again
        self.liar: int | None = None
        history = CompletionHistory()
        for server_round in range(1, 5):
            for worker in range(WORKERS):
                history.completed(worker, server_round, 2, 0.01, self.seconds())
        held = {worker: range(PARTITIONS) for worker in range(WORKERS)}
        rng = np.random.default_rng(seed)
        self.plan = VerifiedTwoStagePlan(range(PARTITIONS), held, history, 5, rng)
        self.plan.verify(1)
        self.changes = self.rng.normal(size=(PARTITIONS, 6))
        self.way: list[tuple[float, int, Dispatch]] = []
        self.replies: dict[int, np.ndarray] = {}
        self.sent = itertools.count()
        self.report: ParityReport | None = None

    def seconds(self) -> float:
        return 2.0 * float(np.exp(self.spread * self.rng.normal()))

    def push(self, dispatches: list[Dispatch], at: float) -> None:
        for dispatch in dispatches:
            due = at + self.seconds()
            heapq.heappush(self.way, (due, next(self.sent), dispatch))

    def row(self, key: int) -> np.ndarray:
        dispatch = self.plan.dispatches[key]
        row = np.zeros(PARTITIONS)
        row[list(dispatch.partitions)] = dispatch.coefficients
        return row

    def receive(self) -> tuple[float, Dispatch]:
        at, _, dispatch = heapq.heappop(self.way)
        reply = self.row(dispatch.key) @ self.changes
        if len(self.replies) == self.lie_at:
            self.liar = dispatch.worker
        if dispatch.worker == self.liar and (
            self.again or len(self.replies) == self.lie_at
        ):
            reply = reply + 7.0 * (1.0 + np.abs(reply))
        self.replies[dispatch.key] = reply
        return at, dispatch

    def judged(self) -> ParityReport:
        return check(
            [self.row(key) for key in self.replies],
            list(self.replies.values()),
            workers=[self.plan.dispatches[key].worker for key in self.replies],
            limit=1,
        )

    def run(self) -> None:
        plan, at = self.plan, 0.0
        self.push(plan.start(), at)
        while not plan.finished(at):
            if not self.way or plan.wake_at < self.way[0][0]:
                at = plan.wake_at
                self.push(plan.wake(at), at)
                continue
            at, dispatch = self.receive()
            self.push(plan.reply(dispatch.key, at, 0.01), at)
            report = self.judged()
            if self.report is not None or not report.consistent:
                self.report = report
                liars = [int(str(w)) for w in report.liars]
                suspects = [int(str(w)) for w in report.suspects]
                self.push(plan.doubt(liars, suspects, report.least, at), at)
        self.push(plan.settle(at), at)

    def named_late(self) -> tuple[object, ...]:
        """Return who is named when all that is under way has come."""
        while self.way:
            self.receive()
        return self.judged().liars


@pytest.mark.parametrize("again", [False, True])
@pytest.mark.parametrize("spread", [0.05, 0.6])
@pytest.mark.parametrize("lie_at", [0, 1, 2])
def test_a_verified_round_ends_whole_and_the_liar_is_known(
    lie_at: int, spread: float, again: bool
) -> None:
    for seed in range(50):
        rounds = Rounds(seed, spread, lie_at, again)
        rounds.run()
        assert rounds.plan.complete, seed
        exact = rounds.changes.sum(axis=0)
        weights = rounds.plan.outcome().weights
        update = sum(weight * rounds.replies[key] for key, weight in weights.items())
        np.testing.assert_allclose(update, exact, rtol=1e-9, atol=1e-9)
        named = rounds.named_late()
        assert named == (() if rounds.liar is None else (rounds.liar,)), seed


def test_suspects_judge_each_other_where_nobody_else_is_left(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Coded rows of all four contradict each other: without a judge, it ends there."""

    def incomplete() -> set[int]:
        found = set()
        for seed in range(100):
            rounds = Rounds(seed, 0.05, 2, again=False)
            rounds.run()
            if not rounds.plan.complete:
                found.add(seed)
        return found

    assert not incomplete()
    monkeypatch.setattr(VerifiedTwoStagePlan, "_cross_examine", lambda *_: [])
    assert incomplete()


def test_what_others_have_computed_needs_no_judge() -> None:
    copies = [Dispatch(0, 0, 1, (0, 1), (1.0, 1.0)), Dispatch(1, 1, 1, (0, 1), (1, 1))]
    parts = [Dispatch(2, 2, 2, (0,), (1.0,)), Dispatch(3, 3, 2, (1,), (1.0,))]
    assert telling_rows(copies, {0, 1}, {0, 1}) == [0]
    assert telling_rows([*copies, *parts], {0, 1}, {0, 1}) == []
    assert telling_rows([*copies, parts[0]], {0, 1}, {0, 1}) == [0]


def test_nobody_is_asked_beyond_its_limit_or_what_it_holds() -> None:
    held = {0: range(2), 1: range(2), 2: range(1), 3: range(2)}
    for limits, judge in ((None, 3), ({0: 2, 1: 2, 2: 2, 3: 0}, None)):
        plan = VerifiedTwoStagePlan(
            range(2), held, CompletionHistory(), 1, np.random.default_rng(0), None
        )
        plan._left = limits
        plan._idle = {0: range(2), 1: range(2)}
        for worker in (0, 1):
            sent = plan._dispatch(worker, 1, (0, 1), (1.0, 1.0), 0.0)
            plan.outstanding.pop(sent.key)
            plan._answered.append(sent.key)
        plan._idle = {2: range(1), 3: range(2)}
        plan._suspects = plan.doubted = frozenset({0, 1})
        asked = [(d.worker, d.partitions) for d in plan.settle(1.0)]
        assert asked == ([] if judge is None else [(judge, (0, 1))])
