"""Who lied is found out, though the replies that were needed anyway do not tell."""

import heapq
import itertools
from collections.abc import Collection, Mapping, Sequence
from typing import Any

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
    monkeypatch.setattr(VerifiedTwoStagePlan, "_question", lambda *_: [])
    assert incomplete()


def test_a_judge_that_says_nothing_does_not_hold_the_round() -> None:
    """Of suspects that judge each other one may be gone: another one is asked."""
    for seed in (3, 47):
        rounds: Any = Rounds(seed, 0.05, 2, again=False)
        plan, silent = rounds.plan, list[Dispatch]()
        question, push = plan._question, rounds.push

        def watched(*args: Any, question: Any = question, silent: Any = silent) -> Any:
            asked = question(*args)
            silent.extend([] if silent else asked)
            return asked

        def lossy(
            sent: list[Dispatch], at: float, push: Any = push, silent: Any = silent
        ) -> None:
            push([dispatch for dispatch in sent if dispatch not in silent], at)

        plan._question, rounds.push = watched, lossy
        rounds.run()
        assert silent, seed
        assert plan.complete, seed


def test_what_others_have_computed_needs_no_judge() -> None:
    copies = [Dispatch(0, 0, 1, (0, 1), (1.0, 1.0)), Dispatch(1, 1, 1, (0, 1), (1, 1))]
    parts = [Dispatch(2, 2, 2, (0,), (1.0,)), Dispatch(3, 3, 2, (1,), (1.0,))]
    assert telling_rows(copies, {0, 1}, {0, 1}) == [[0], [1]]
    assert telling_rows([*copies, *parts], {0, 1}, {0, 1}) == []
    assert telling_rows([*copies, parts[0]], {0, 1}, {0, 1}) == [[0], [1]]


def ended(
    answers: Sequence[tuple[int, tuple[int, ...]]],
    idle: Mapping[int, Collection[int]],
    may_lie: int = 1,
    limits: dict[int, int] | None = None,
) -> VerifiedTwoStagePlan:
    """Return a plan in which 0 and 1 contradict each other; others are idle."""
    held = {worker: range(4) for worker in (0, 1)} | dict(idle)
    plan = VerifiedTwoStagePlan(
        range(4), held, CompletionHistory(), 1, np.random.default_rng(0), limits=limits
    )
    plan.verify(may_lie)
    for worker, row in answers:
        sent = plan._dispatch(worker, 1, row, [1.0] * len(row), 0.0)
        plan._idle[worker] = range(4)
        plan.outstanding.pop(sent.key)
        plan._answered.append(sent.key)
    plan._suspects = plan.doubted = frozenset({0, 1})
    plan.spare = may_lie - 1
    plan._idle = dict(idle)
    return plan


SAME = [(0, (0, 1)), (1, (0, 1))]


def test_nobody_is_asked_beyond_its_limit_or_what_it_holds() -> None:
    idle = {2: range(1), 3: range(2)}
    asked = ended(SAME, idle).settle(1.0)
    assert [(d.worker, d.partitions) for d in asked] == [(3, (0, 1))]
    assert not ended(SAME, idle, limits={0: 4, 1: 4, 2: 4, 3: 1}).settle(1.0)


def test_the_suspect_is_asked_about_whose_rows_others_can_compute() -> None:
    halves = [(0, (0, 1, 2, 3)), (1, (0, 1)), (1, (2, 3))]
    asked = ended(halves, {2: {0, 1}, 3: {2, 3}}).settle(1.0)
    assert [(d.worker, d.partitions) for d in asked] == [(2, (0, 1)), (3, (2, 3))]


def test_where_two_may_lie_an_honest_judge_is_among_those_asked() -> None:
    asked = ended(SAME, dict.fromkeys((2, 3, 4), range(4)), may_lie=2).settle(1.0)
    assert [d.partitions for d in asked] == [(0, 1)] * 2
    assert len({d.worker for d in asked}) == 2
    # With theirs there are four: then the one that differs is named.
    found = check([[1.0, 1.0]] * 4, [[3.0], [1.0], [1.0], [1.0]], limit=2)
    assert found.liars == (0,)


def test_what_is_on_its_way_is_not_asked_for_and_what_fails_is_not_replaced() -> None:
    plan = ended(SAME, {2: range(4), 3: range(4)})
    plan._dispatch(2, 1, (0, 1), (1.0, 1.0), 0.5)
    assert not plan.settle(1.0)

    plan = ended(SAME, {2: range(4), 3: range(4)})
    (asked,) = plan.settle(1.0)
    assert plan.failure(asked.key, 2.0) == []
