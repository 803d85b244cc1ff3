"""Links: half a round trip, the bytes sent again, both directions."""

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flower_ext.errors import InvalidInputError
from flower_ext.network import ConstantRate, Link, TraceRate

TRACE = TraceRate((0.0, 1.0, 3.0), (10.0, 0.0, 40.0))


def test_by_hand() -> None:
    link = Link(TRACE, down=80.0, rtt=0.5, loss=0.2)
    # 8 useful bytes are 10 sent ones; 16 wait for the third second.
    assert link.transmit(8.0, at=0.0) == pytest.approx(0.25 + 1.0)
    assert link.transmit(16.0, at=0.0) == pytest.approx(0.25 + 3.25)
    assert link.seconds_to_send(16.0, at=0.0) == pytest.approx(3.25)
    assert link.receive(16.0, at=0.0) == pytest.approx(0.25 + 0.25)
    assert link.sent_between(0.5, 3.5) == pytest.approx(0.8 * 25.0)
    assert link.transmit(0.0, at=2.0) == 0.25


def test_numbers_are_rates_and_down_is_as_up() -> None:
    assert Link(5.0) == Link(ConstantRate(5.0), ConstantRate(5.0))
    assert Link(TRACE).down is TRACE
    assert Link(5.0, 7).down == ConstantRate(7.0)
    assert replace(Link(5.0, 7.0), rtt=1.0) == Link(5.0, 7.0, rtt=1.0)
    assert Link(0.0).transmit(1.0, at=0.0) == math.inf


@given(
    st.floats(0, 100), st.floats(0.01, 1e4), st.floats(0.05, 0.95), st.floats(0, 0.9)
)
def test_an_upload_in_two_parts_takes_as_long(
    at: float, size: float, part: float, loss: float
) -> None:
    link = Link(TRACE, loss=loss)
    whole = link.transmit(size, at)
    first = link.transmit(part * size, at)
    second = link.transmit((1 - part) * size, at + first)
    sent = link.sent_between(at, at + whole)
    assert sent == pytest.approx(size, rel=1e-9, abs=1e-9)
    # Rounding may put an end on the other side of the gap only if it lies beside it.
    beside = any(
        abs((at + s) % 5.0 - 1.0) < 1e-6 or abs((at + s) % 5.0 - 3.0) < 1e-6
        for s in (first, whole)
    )
    if not beside:
        assert first + second == pytest.approx(whole, abs=1e-8)


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: Link(-1.0), "up: bytes_per_second .* got -1.0"),
        (lambda: Link(1.0, down=math.nan), "down: bytes_per_second .* got nan"),
        (lambda: Link(1.0, rtt=-0.1), "rtt must be .* got -0.1"),
        (lambda: Link(1.0, loss=1.0), "loss must lie .* got 1.0"),
        (lambda: Link(1.0, loss=math.nan), "loss must lie .* got nan"),
        (lambda: Link(1.0).transmit(-1.0, 0.0), "size must be .* got -1.0"),
        (lambda: Link(1.0).receive(math.nan, 0.0), "size must be .* got nan"),
        (lambda: Link(1.0).transmit(1.0, -1.0), "start -1.0"),
        (lambda: Link(1.0).sent_between(1.0, 0.0), "start 1.0 and end 0.0"),
    ],
)
def test_bad_input_is_named(make: Callable[[], object], text: str) -> None:
    with pytest.raises(InvalidInputError, match=text):
        make()
