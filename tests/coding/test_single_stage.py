"""One-stage rounds: the code over the idle workers, and when they end."""

import math
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from flower_ext.coding.single_stage import CODE_FAMILIES, SingleStagePlan
from flower_ext.errors import InvalidInputError
from flower_ext.scheduling.history import CompletionHistory


def make_plan(
    workers: int = 4,
    partitions: int = 4,
    history: CompletionHistory | None = None,
    **kwargs: Any,
) -> SingleStagePlan:
    held = dict.fromkeys(range(10, 10 + workers), range(partitions))
    history = CompletionHistory() if history is None else history
    return SingleStagePlan(range(partitions), held, history, 1, **kwargs)


def matrix(plan: SingleStagePlan) -> NDArray[np.float64]:
    rows = np.zeros((len(plan.dispatches), len(plan.partitions)))
    for row, dispatch in zip(rows, plan.dispatches, strict=True):
        row[list(dispatch.partitions)] = dispatch.coefficients
    return rows


@pytest.mark.parametrize("family", CODE_FAMILIES)
@pytest.mark.parametrize(("workers", "partitions"), [(4, 4), (6, 12), (5, 3)])
def test_round_ends_exactly_when_the_tolerated_stragglers_stay_silent(
    family: str, workers: int, partitions: int
) -> None:
    plan = make_plan(workers, partitions, family=family, stragglers=1)
    sent = plan.start()
    silent = 0 if family == "uncoded" else 1

    for dispatch in sent[silent:]:
        assert plan.reply(dispatch.key, at=1.0, compute_seconds=1.0) == []

    outcome = plan.outcome()
    assert plan.finished(1.0)
    assert outcome.exact
    weights = [outcome.weights.get(d.key, 0.0) for d in sent]
    np.testing.assert_allclose(weights @ matrix(plan), 1.0, atol=1e-9)


def test_uncoded_rows_share_the_partitions_in_blocks() -> None:
    plan = make_plan(workers=2, partitions=4, family="uncoded")

    assert [d.partitions for d in plan.start()] == [(0, 1), (2, 3)]
    assert plan.work == 4


def test_fractional_code_leaves_out_the_slowest_worker_of_an_odd_number() -> None:
    history = CompletionHistory(prior_weight=0)
    for worker, seconds in ((10, 1.0), (11, 9.0), (12, 1.0)):
        history.completed(worker, 1, 1, seconds, seconds)
    plan = make_plan(3, 2, history, family="fractional", stragglers=1)

    assert sorted(d.worker for d in plan.start()) == [10, 12]


def test_ignored_stragglers_end_a_round_with_what_there_is() -> None:
    plan = make_plan(family="uncoded", ignore_stragglers=1)
    sent = plan.start()
    for dispatch in sent[:3]:
        assert not plan.finished(1.0)
        plan.reply(dispatch.key, 1.0, 1.0)

    assert plan.finished(1.0)
    outcome = plan.outcome()
    assert not outcome.exact
    assert outcome.combination == {0: 1.0, 1: 1.0, 2: 1.0, 3: 0.0}
    assert outcome.residual == pytest.approx(1.0)


def test_failures_end_a_round_when_nobody_is_left() -> None:
    plan = make_plan(workers=2, partitions=2, family="uncoded")
    for dispatch in plan.start():
        assert not plan.finished(1.0)
        plan.failure(dispatch.key, 1.0)

    assert plan.finished(1.0)
    assert plan.outcome().weights == {}


def hungry(plan: SingleStagePlan) -> bool:
    """Return whether a plan is hungry by now; mypy takes the attribute for constant."""
    return plan.hungry


@pytest.mark.parametrize("family", ["cyclic", "fractional", "heterogeneity-aware"])
def test_round_waits_for_as_many_workers_as_the_code_needs(family: str) -> None:
    plan = make_plan(workers=2, partitions=3, family=family, stragglers=2)

    assert plan.start() == []
    assert hungry(plan)
    assert not plan.finished(100.0)
    sent = plan.idle(77, range(3), at=5.0)
    assert not hungry(plan)
    assert {d.worker for d in sent} <= {10, 11, 77}
    for dispatch in sent[:1]:
        plan.reply(dispatch.key, 6.0, 1.0)
    assert plan.finished(6.0) == plan.decodable


def test_deadline_follows_the_first_reply_without_history() -> None:
    plan = make_plan(family="uncoded")
    sent = plan.start()
    assert plan.deadline == math.inf
    plan.reply(sent[0].key, at=3.0, compute_seconds=3.0)

    assert plan.deadline == 60.0


def test_deadline_follows_the_history_and_a_given_one_goes_first() -> None:
    history = CompletionHistory(prior_weight=0)
    for worker in range(10, 14):
        history.completed(worker, 1, 1, 2.0, 3.0)
    plan = make_plan(history=history, family="cyclic")
    plan.start()

    assert plan.deadline == 10.0 * (2 * 2.0 + 1.0)
    assert make_plan(history=history, deadline=4.0).deadline == 4.0


def test_there_is_no_second_stage() -> None:
    plan = make_plan()
    plan.start()

    assert plan.wake_at == math.inf
    assert plan.wake(3.0) == []


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"family": "fountain"}, "fountain"),
        ({"stragglers": -1}, "stragglers"),
        ({"ignore_stragglers": -1}, "ignore_stragglers"),
        ({"deadline": 0.0}, "deadline"),
    ],
)
def test_arguments_out_of_range_are_named(
    arguments: dict[str, Any], named: str
) -> None:
    with pytest.raises(InvalidInputError, match=named):
        make_plan(**arguments)


def test_partitions_that_a_worker_lacks_are_named() -> None:
    held = {10: [0], 11: [0, 1]}
    plan = SingleStagePlan([0, 1], held, CompletionHistory(), 1, family="cyclic")

    assert plan.start() == []
    assert "worker 10 for partitions [1]" in plan.problem


def test_heterogeneity_aware_code_keeps_to_the_holdings() -> None:
    held = {10: [0, 1], 11: [1, 2], 12: [0, 2]}
    plan = SingleStagePlan(
        range(3), held, CompletionHistory(), 1, family="heterogeneity-aware"
    )

    for dispatch in plan.start():
        assert set(dispatch.partitions) <= set(held[dispatch.worker])
