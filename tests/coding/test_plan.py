"""What every plan of a round has in common, with a plan that plans nothing."""

import math
from collections.abc import Sequence
from typing import Any

import pytest

from flower_ext.coding.plan import Dispatch, RoundPlan
from flower_ext.errors import InvalidInputError
from flower_ext.scheduling.history import CompletionHistory

EVERYTHING = frozenset(range(3))


class ByHand(RoundPlan):
    """Dispatches what the test says and notes when it is called."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.calls: list[tuple[str, float]] = []
        self.alarm = math.inf

    def start(self) -> list[Dispatch]:
        return []

    def give(
        self,
        worker: int,
        partitions: Sequence[int],
        coefficients: Sequence[float] | None = None,
        at: float = 0.0,
    ) -> Dispatch:
        ones = [1.0] * len(partitions)
        return self._dispatch(worker, 1, partitions, coefficients or ones, at)

    def wake(self, at: float) -> list[Dispatch]:
        return []

    @property
    def wake_at(self) -> float:
        return self.alarm

    @property
    def deadline(self) -> float:
        return self._given_deadline or math.inf

    @property
    def available(self) -> list[int]:
        return sorted(self._idle)

    def _freed(self, at: float) -> list[Dispatch]:
        self.calls.append(("freed", at))
        return []

    def _failed(self, at: float) -> list[Dispatch]:
        self.calls.append(("failed", at))
        return []


def by_hand(workers: int = 2, deadline: float | None = None) -> ByHand:
    held = dict.fromkeys(range(workers), EVERYTHING)
    return ByHand(sorted(EVERYTHING), held, CompletionHistory(), 1, deadline)


def decodes(plan: RoundPlan) -> bool:
    """Return whether a plan decodes by now; mypy takes the property for constant."""
    return plan.decodable


def test_a_reply_decodes_frees_its_worker_and_enters_the_history() -> None:
    plan = by_hand()
    first, second = plan.give(0, [0, 1]), plan.give(1, [2], at=1.0)
    assert plan.available == []
    assert plan.work == 3
    assert plan.outstanding == {0: 0.0, 1: 1.0}
    plan.reply(first.key, at=4.0, compute_seconds=3.0)
    assert plan.available == [0]
    assert not decodes(plan)
    assert plan.calls == [("freed", 4.0)]
    seconds, overhead = plan.history.typical([0], 2)
    assert (seconds[0], overhead[0]) == (1.5, 1.0)
    plan.reply(second.key, at=5.0, compute_seconds=1.0)
    assert decodes(plan)
    assert plan.finished(5.0)
    assert plan.calls == [("freed", 4.0)]  # nothing is planned once it decodes
    outcome = plan.outcome()
    assert outcome.weights == {0: pytest.approx(1.0), 1: pytest.approx(1.0)}
    assert outcome.combination == {0: 1.0, 1: 1.0, 2: 1.0}
    assert outcome.exact
    assert outcome.residual == 0.0


def test_a_partial_outcome_stays_within_zero_and_one() -> None:
    plan = by_hand()
    plan.reply(plan.give(0, [0, 1], [1.0, 0.5]).key, 1.0, 1.0)
    outcome = plan.outcome()
    # w (1, 1/2) is nearest to (1, 1) at w = 1.2, but no partition may exceed 1.
    assert outcome.weights == {0: pytest.approx(1.0)}
    assert outcome.combination == {0: pytest.approx(1.0), 1: pytest.approx(0.5), 2: 0.0}
    assert outcome.residual == pytest.approx(math.sqrt(1.25))
    assert not outcome.exact


def test_an_outcome_without_replies() -> None:
    outcome = by_hand().outcome()
    assert outcome == ({}, {0: 0.0, 1: 0.0, 2: 0.0}, False, math.sqrt(3))


def test_a_failed_worker_is_given_nothing_more() -> None:
    plan = by_hand()
    plan.failure(plan.give(0, [0]).key, at=2.0)
    assert plan.calls == [("failed", 2.0)]
    plan.idle(0, EVERYTHING, 3.0)
    plan.leave(0)
    plan.idle(0, EVERYTHING, 4.0)
    assert plan.available == [1]


def test_a_worker_that_left_is_used_again_when_it_comes_back() -> None:
    plan = by_hand()
    plan.leave(1)
    assert plan.available == [0]
    plan.idle(1, {2}, 1.0)
    assert plan.available == [0, 1]
    plan.idle(1, EVERYTHING, 2.0)  # known already
    assert plan.calls == [("freed", 1.0)]


def test_a_worker_that_left_while_busy() -> None:
    plan = by_hand()
    dispatch = plan.give(0, [0])
    plan.leave(0)
    plan.reply(dispatch.key, 2.0, 1.0)
    assert plan.received == [dispatch.key]
    assert plan.available == [1]


def test_a_worker_that_left_while_busy_and_came_back_is_still_busy() -> None:
    plan = by_hand()
    dispatch = plan.give(0, [0])
    plan.leave(0)
    plan.idle(0, EVERYTHING, 1.0)
    assert plan.available == [1]
    plan.reply(dispatch.key, 2.0, 1.0)
    assert plan.available == [0, 1]


def test_finished() -> None:
    plan = by_hand(deadline=9.0)
    assert not plan.finished(0.0)  # workers may still come
    dispatch = plan.give(0, [0])
    assert not plan.finished(8.9)
    assert plan.finished(9.0)
    plan.failure(dispatch.key, 3.0)
    assert plan.finished(3.0)
    plan.alarm = 5.0
    assert not plan.finished(3.0)


@pytest.mark.parametrize("partitions", [[], [1, 1]])
def test_bad_partitions(partitions: list[int]) -> None:
    with pytest.raises(InvalidInputError, match="distinct partitions"):
        ByHand(partitions, {}, CompletionHistory(), 1)


@pytest.mark.parametrize("deadline", [0.0, -1.0, math.nan])
def test_bad_deadline(deadline: float) -> None:
    with pytest.raises(InvalidInputError, match="deadline"):
        by_hand(deadline=deadline)
