"""The draft length that pays most, as it is measured."""

from __future__ import annotations

import numpy as np
import pytest

from flower_ext.errors import InvalidInputError
from flower_ext.speculative import Adaptive, Fixed
from flower_ext.speculative.draft_length import RoundTimes


def settled(acceptance: float, latency: float, ahead: bool = False) -> float:
    """Return the mean choice after 200 rounds, at 10 ms a drafted token."""
    rng = np.random.default_rng(0)
    adaptive = Adaptive(maximum=24, memory=0.98)
    chosen = []
    for _ in range(600):
        length = adaptive.choose(ahead)
        misses = np.flatnonzero(rng.random(length) >= acceptance)
        accepted = int(misses[0]) if len(misses) else length
        seconds = latency + 0.001 * length
        adaptive.observe(RoundTimes(length, accepted, 0.01, seconds))
        chosen.append(length)
    return float(np.mean(chosen[200:]))


def rate(length: float, acceptance: float, latency: float) -> float:
    tokens = (1 - acceptance ** (length + 1)) / (1 - acceptance)
    return float(tokens / (0.011 * length + latency))


@pytest.mark.parametrize(
    ("acceptance", "latency"), [(0.5, 0.02), (0.8, 0.05), (0.9, 0.2)]
)
def test_it_settles_where_nearly_the_most_tokens_come(
    acceptance: float, latency: float
) -> None:
    best = max(rate(n, acceptance, latency) for n in range(1, 25))

    found = rate(settled(acceptance, latency), acceptance, latency)

    assert found > 0.95 * best


def test_it_grows_with_acceptance_and_latency() -> None:
    assert settled(0.9, 0.05) > settled(0.5, 0.05)
    assert settled(0.8, 0.2) > settled(0.8, 0.02)


def test_drafting_ahead_it_fills_the_wait() -> None:
    """At an acceptance near 1 a draft of 100 ms hides behind a verdict of 100 ms."""
    assert 8 <= settled(0.97, 0.1, ahead=True) <= 14


def test_bad_parameters_are_named() -> None:
    with pytest.raises(InvalidInputError, match="maximum"):
        Adaptive(maximum=0)
    with pytest.raises(InvalidInputError, match="initial"):
        Adaptive(maximum=4, initial=5)
    with pytest.raises(InvalidInputError, match="memory"):
        Adaptive(memory=1.0)
    with pytest.raises(InvalidInputError, match="draft_length"):
        Fixed(0)
