"""For how long answers are waited for."""

from __future__ import annotations

import math

from flower_ext.coding.plan import LEAST_DEADLINE
from flower_ext.strategies.answer_times import AnswerTimes


def test_nothing_is_known_until_somebody_has_answered() -> None:
    times = AnswerTimes()
    times.begin([1, 2, 3, 4])
    assert times.deadline == math.inf
    times.answered(1, 10.0)
    assert times.deadline == 200.0
    times.answered(2, 20.0)
    assert times.deadline == 60.0


def test_later_rounds_go_by_earlier_ones_and_by_the_slowest_asked() -> None:
    times = AnswerTimes(slack=5.0)
    for _ in range(3):
        times.begin([1, 2])
        times.answered(1, 10.0)
        times.answered(2, 40.0)
    times.begin([1, 2])
    assert times.deadline == 125.0
    times.begin([1])
    assert times.deadline == 35.0
    times.answered(1, 1.0)
    assert times.deadline == 35.0


def test_quick_answers_leave_a_least_deadline() -> None:
    times = AnswerTimes()
    times.begin([1])
    times.answered(1, 0.01)
    assert times.deadline == LEAST_DEADLINE


def test_a_given_deadline_holds_always() -> None:
    times = AnswerTimes(7.0, slack=5.0)
    for _ in range(2):
        times.begin([1, 2])
        assert times.deadline == 7.0
        times.answered(1, 100.0)


def test_a_node_that_has_become_slower_is_found_again() -> None:
    times = AnswerTimes()
    times.begin([1, 2])
    times.answered(1, 20.0)
    times.answered(2, 20.0)
    times.end([], 20.0)
    times.begin([1, 2])
    assert times.deadline == 60.0
    times.answered(1, 20.0)
    times.end([2], 60.0)
    times.begin([1, 2])
    assert times.deadline == 180.0
    times.answered(2, 150.0)
    times.end([], 150.0)
    times.begin([1, 2])
    assert times.deadline == 450.0


def test_a_node_that_stays_silent_holds_up_two_rounds_and_no_more() -> None:
    times = AnswerTimes()
    deadlines = []
    for _ in range(5):
        times.begin([1, 2])
        times.answered(1, 10.0)
        deadlines.append(times.deadline)
        times.end([2], times.deadline)
    # Of a node that never answered, the first deadline is that of the other.
    assert deadlines == [30.0, 90.0, 30.0, 30.0, 30.0]


def test_where_all_have_become_silent_nothing_is_known() -> None:
    times = AnswerTimes()
    times.begin([1, 2])
    times.answered(1, 10.0)
    times.answered(2, 10.0)
    deadlines = []
    for _ in range(3):
        times.begin([1, 2])
        deadlines.append(times.deadline)
        times.end([1, 2], times.deadline)
    assert deadlines == [30.0, 90.0, math.inf]


def test_a_node_that_was_never_asked_may_be_as_slow_as_any() -> None:
    times = AnswerTimes()
    times.begin([1, 2])
    times.answered(1, 10.0)
    times.answered(2, 40.0)
    times.begin([1])
    assert times.deadline == 30.0
    times.begin([1, 3])
    assert times.deadline == 120.0


def test_what_is_known_outlives_the_process() -> None:
    times, other = AnswerTimes(), AnswerTimes()
    for _ in range(3):
        times.begin([1, 2])
        times.answered(1, 100.0)
        times.answered(2, 10.0)
    other.restore(times.state())
    other.rename({1: 7})
    for one, slow in ((times, 1), (other, 7)):
        one.begin([slow])
        assert one.deadline == 300.0
