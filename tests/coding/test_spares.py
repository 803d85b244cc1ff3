"""Spare workers of a round's parts, and rounds that go on until they have them."""

import itertools

import numpy as np
import pytest

from flower_ext.coding import CyclicRepetition, FractionalRepetition
from flower_ext.coding.plan import Dispatch
from flower_ext.coding.single_stage import SingleStagePlan
from flower_ext.coding.spares import Part, parts_of, second_opinions
from flower_ext.coding.verified_two_stage import VerifiedTwoStagePlan
from flower_ext.scheduling.history import CompletionHistory


def rows_of(matrix: np.ndarray) -> list[Dispatch]:
    rows = []
    for worker, line in enumerate(matrix):
        columns = tuple(int(k) for k in np.flatnonzero(line))
        rows.append(Dispatch(worker, worker, 1, columns, tuple(line[list(columns)])))
    return rows


@pytest.mark.parametrize("stragglers", [0, 1, 2])
def test_a_code_spares_the_stragglers_it_tolerates(stragglers: int) -> None:
    (cyclic,) = parts_of(rows_of(CyclicRepetition(7, stragglers).matrix), 3)[:1]
    groups = parts_of(rows_of(FractionalRepetition(6, stragglers).matrix), 3)
    if stragglers:
        assert cyclic.spares == stragglers
    assert {part.spares for part in groups} == {stragglers}


def test_a_worker_is_spared_with_all_of_its_rows() -> None:
    copies = [Dispatch(k, w, 1, (0,), (1.0,)) for k, w in enumerate((4, 4, 4))]
    assert parts_of(copies, 2)[0].spares == 0
    assert parts_of([Dispatch(0, 1, 1, (0, 1), (1.0, 2.0))], 1)[0].spares == -1


def test_second_opinions_are_of_others() -> None:
    parts = [Part((i,), (2 * i, 2 * i + 1), frozenset([i]), 0) for i in range(3)]
    every = [set(range(6))] * 3
    jobs, unmet = second_opinions(parts, [0, 1, 2], every, [1.0] * 3, [0.0] * 3)
    assert not unmet
    assert sorted(itertools.chain(*jobs.values())) == list(range(6))
    for part in parts:
        (author,) = part.workers
        assert not set(jobs.get(author, ())) & set(part.partitions)
    # Nobody but 0 holds partitions 0 and 1 both: two others share them.
    held = [set(range(6)), {0, 3, 4, 5}, {1, 2, 3}]
    jobs, unmet = second_opinions(parts[:1], [0, 1, 2], held, [1.0] * 3, [0.0] * 3)
    assert (jobs, unmet) == ({1: [0], 2: [1]}, set())
    jobs, unmet = second_opinions(parts[:1], [0, 1], held[:2], [1.0] * 2, [0.0] * 2)
    assert (jobs, unmet) == ({}, {0, 1})


@pytest.mark.parametrize("spare", [1, 2])
@pytest.mark.parametrize("workers", [3, 5, 8])
def test_a_verified_round_spares_anybody(workers: int, spare: int) -> None:
    held = dict.fromkeys(range(workers), range(9))
    rng = np.random.default_rng(0)
    plan = VerifiedTwoStagePlan(range(9), held, CompletionHistory(), 1, rng)
    plan.verify(spare)
    waiting, at = plan.start(), 0.0
    while waiting:
        at += 1.0
        waiting = waiting[1:] + plan.reply(waiting[0].key, at, 1.0)
    assert plan.complete
    rows = [plan.dispatches[k] for k in plan.received]
    for absent in itertools.combinations(range(workers), spare):
        kept = [r for r in rows if r.worker not in absent]
        assert all(part.spares >= 0 for part in parts_of(kept, 0))
        assert {p for r in kept for p in r.partitions} == set(range(9))
    assert 9 * (spare + 1) <= plan.work <= 9 * (spare + 2)


def test_a_single_stage_waits_for_the_spare_reply_and_leaves_liars_out() -> None:
    held = dict.fromkeys(range(5), range(5))
    plan = SingleStagePlan(
        range(5), held, CompletionHistory(), 1, family="cyclic", stragglers=2
    )
    plan.verify(1)
    sent = plan.start()
    ends = []
    for dispatch in sent[:4]:
        plan.reply(dispatch.key, 1.0, 1.0)
        ends.append(plan.finished(1.0))
    assert ends == [False, False, False, True]
    plan.doubt([], [0, 1, 2, 3], 1, 1.0)
    assert (plan.received, plan.finished(1.0)) == ([], False)
    plan.reply(sent[4].key, 2.0, 1.0)
    plan.doubt([2], [], 1, 2.0)
    assert plan.received == [0, 1, 3, 4]
    assert plan.outcome().exact
    assert 2 not in plan.outcome().weights


def test_only_what_is_verified_counts_at_the_deadline() -> None:
    held = {0: [0, 1], 1: [1], 2: [0, 1]}
    plan = VerifiedTwoStagePlan(
        [0, 1], held, CompletionHistory(), 1, np.random.default_rng(0), deadline=9.0
    )
    plan.verify(1)
    first = plan.start()
    by_partition = {d.partitions: d for d in first}
    plan.reply(by_partition[0,].key, 1.0, 1.0)
    again = plan.reply(by_partition[1,].key, 1.0, 1.0)
    confirmed = next(d for d in again if d.partitions == (1,))
    plan.reply(confirmed.key, 2.0, 1.0)
    outcome = plan.outcome()
    assert outcome.combination == {0: 0.0, 1: 1.0}
    assert not outcome.exact
    assert set(outcome.weights) == {by_partition[1,].key, confirmed.key}
