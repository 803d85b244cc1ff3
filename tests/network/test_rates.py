"""Rates: exact integrals, and inverses that are the least."""

import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flower_ext.errors import InvalidInputError
from flower_ext.network import ConstantRate, Rate, TraceRate

# Intervals 1, 2 and 5 s, so the last sample lasts 2 s: a loop is 10 s and 130 bytes.
TRACE = TraceRate((3.0, 4.0, 6.0, 11.0), (10.0, 40.0, 0.0, 20.0))

samples = st.lists(
    st.tuples(st.integers(1, 50), st.sampled_from([0.0, 0.5, 1.0, 7.0, 1000.0])),
    min_size=1,
    max_size=8,
).filter(lambda pairs: any(rate for _, rate in pairs))
instants = st.floats(0, 500)
sizes = st.floats(0.001, 1e5)


@st.composite
def traces(draw: st.DrawFn) -> TraceRate:
    lengths, rates = zip(*draw(samples), strict=True)
    times = np.cumsum(lengths) / 10
    return TraceRate(times.tolist(), rates, draw(st.floats(0, 100)))


def test_a_constant_rate() -> None:
    rate = ConstantRate(4.0)
    assert rate.at(3.0) == 4.0
    assert rate.bytes_between(1.0, 3.5) == 10.0
    assert rate.seconds_for(10.0, at=1.0) == 2.5
    assert ConstantRate(0.0).seconds_for(0.0, at=1.0) == 0.0
    assert ConstantRate(0.0).seconds_for(1.0, at=1.0) == math.inf


def test_a_trace_by_hand() -> None:
    assert TRACE.seconds == 10.0
    assert [TRACE.at(t) for t in (0, 0.9, 1, 3, 8, 9.9, 10)] == [
        10,
        10,
        40,
        0,
        20,
        20,
        10,
    ]
    assert TRACE.bytes_between(0.0, 1.0) == 10.0
    assert TRACE.bytes_between(0.5, 2.0) == 5.0 + 40.0
    assert TRACE.bytes_between(2.0, 9.0) == 40.0 + 0.0 + 20.0
    assert TRACE.bytes_between(9.0, 32.0) == 20.0 + 2 * 130.0 + 10.0 + 40.0
    assert TRACE.bytes_between(5.0, 5.0) == 0.0


@pytest.mark.parametrize(
    ("size", "at", "seconds"),
    [
        (0.0, 4.0, 0.0),
        (5.0, 0.0, 0.5),
        (10.0, 0.0, 1.0),
        (50.0, 0.0, 2.0),
        (90.0, 0.0, 3.0),  # Not 8: the samples at rate 0 add nothing.
        (91.0, 0.0, 8.05),
        (130.0, 0.0, 10.0),
        (260.0, 0.0, 20.0),
        (40.0, 4.0, 6.0),  # To the end of the loop.
        (45.0, 4.0, 6.5),
        (90.0 + 1300.0, 0.0, 103.0),
    ],
)
def test_the_inverse_of_a_trace_by_hand(size: float, at: float, seconds: float) -> None:
    assert TRACE.seconds_for(size, at) == pytest.approx(seconds, abs=1e-12)


def test_an_offset_starts_later_and_loops() -> None:
    for offset in (4.0, 14.0):
        shifted = TraceRate(TRACE.times, TRACE.bytes_per_second, offset)
        assert shifted == TRACE.shifted(offset)
        assert shifted.at(0.0) == 0.0
        assert shifted.at(4.0) == 20.0
        assert shifted.bytes_between(0.0, 7.0) == 40.0 + 10.0
        assert shifted.seconds_for(45.0, at=0.0) == 6.5


def test_a_single_sample_lasts_for_ever() -> None:
    rate = TraceRate([5.0], [3.0])
    assert rate.bytes_between(0.25, 100.25) == pytest.approx(300.0)
    assert rate.seconds_for(10.0, at=0.3) == pytest.approx(10.0 / 3.0)


def numeric_integral(rate: Rate, start: float, end: float) -> float:
    steps = 20000
    width = (end - start) / steps
    return sum(rate.at(start + (i + 0.5) * width) for i in range(steps)) * width


def test_the_integral_is_that_of_the_rate() -> None:
    rate = TRACE.shifted(2.3)
    for start, end in ((0.0, 7.7), (3.1, 44.4), (12.0, 12.5)):
        expected = numeric_integral(rate, start, end)
        assert rate.bytes_between(start, end) == pytest.approx(expected, rel=1e-3)


@given(traces(), instants, sizes)
def test_seconds_for_inverts_the_integral(
    rate: TraceRate, at: float, size: float
) -> None:
    seconds = rate.seconds_for(size, at)
    slack = 1e-9 * (size + 1000)  # 1000 bytes/s for the rounding of a time.
    assert rate.bytes_between(at, at + seconds) == pytest.approx(size, abs=slack)
    if seconds > 1e-6:
        # The least: a moment earlier something is missing.
        earlier = rate.bytes_between(at, at + seconds * (1 - 1e-6))
        assert earlier < size


@given(traces(), instants, st.floats(0, 300), st.floats(0, 300))
def test_integrals_add_up(rate: TraceRate, at: float, one: float, two: float) -> None:
    parts = rate.bytes_between(at, at + one) + rate.bytes_between(
        at + one, at + one + two
    )
    whole = rate.bytes_between(at, at + one + two)
    assert parts == pytest.approx(whole, abs=1e-6)


def test_what_rounding_leaves_does_not_wait_for_the_end_of_a_gap() -> None:
    """0.1 + 0.2 is more than 0.3 in floats, and nothing that anybody waits for."""
    rate = TraceRate((0.0, 1.0, 2.0), (0.3, 0.0, 1.0))
    assert rate.bytes_between(0.0, 1.0) < 0.1 + 0.2
    assert rate.seconds_for(0.1 + 0.2, at=0.0) == pytest.approx(1.0)


def test_whole_loops_end_before_a_gap_at_the_end() -> None:
    rate = TraceRate((0.0, 1.0), (10.0, 0.0))
    assert rate.seconds_for(20.0, at=0.0) == pytest.approx(3.0)


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: ConstantRate(-1.0), r"bytes_per_second .* got -1.0"),
        (lambda: ConstantRate(math.nan), r"bytes_per_second .* got nan"),
        (lambda: TraceRate([], []), "at least one"),
        (lambda: TraceRate([0.0, 1.0], [1.0]), r"\(2,\) and \(1,\)"),
        (lambda: TraceRate([0.0, 1.0, 1.0], [1.0] * 3), "increase, got 1.0 after 1.0"),
        (lambda: TraceRate([0.0, math.nan], [1.0, 1.0]), "times .* finite"),
        (lambda: TraceRate([0.0, 1.0], [1.0, -2.0]), "got -2.0"),
        (lambda: TraceRate([0.0, 1.0], [1.0, math.inf]), "got inf"),
        (lambda: TraceRate([0.0, 1.0], [0.0, 0.0]), "0 everywhere"),
        (lambda: TraceRate([0.0], [1.0], offset=-1.0), "offset .* got -1.0"),
        (lambda: TRACE.shifted(math.nan), "offset .* got nan"),
        (lambda: TRACE.at(-1.0), "got start -1.0"),
        (lambda: TRACE.bytes_between(2.0, 1.0), "start 2.0 and end 1.0"),
        (lambda: TRACE.bytes_between(0.0, math.inf), "end inf"),
        (lambda: TRACE.seconds_for(-1.0, 0.0), "size .* got -1.0"),
        (lambda: TRACE.seconds_for(1.0, math.nan), "start nan"),
        (lambda: ConstantRate(1.0).seconds_for(math.inf, 0.0), "size .* got inf"),
    ],
)
def test_bad_input_is_named(make: Callable[[], object], text: str) -> None:
    with pytest.raises(InvalidInputError, match=text):
        make()
