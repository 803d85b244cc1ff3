"""The draft length that pays most, as it is measured."""

from __future__ import annotations

import numpy as np
import pytest

from flower_ext.errors import InvalidInputError
from flower_ext.speculative import Adaptive, Fixed
from flower_ext.speculative.draft_length import RoundTimes

DRAFT = 0.01  # Seconds a token.


def settled(
    acceptance: float, latency: float, ahead: bool = False
) -> tuple[float, float]:
    """Return the mean of both lengths, after 200 rounds."""
    rng = np.random.default_rng(0)
    adaptive = Adaptive(maximum=24, memory=0.98)
    chosen = []
    for _ in range(600):
        lengths = adaptive.choose(ahead)
        misses = np.flatnonzero(rng.random(lengths.waited) >= acceptance)
        accepted = int(misses[0]) if len(misses) else lengths.waited
        seconds = latency + 0.001 * lengths.waited
        adaptive.observe(RoundTimes(lengths.waited, accepted, DRAFT, seconds))
        chosen.append(lengths)
    waited, in_flight = np.mean(chosen[200:], axis=0).tolist()
    return waited, in_flight


def rate(length: float, acceptance: float, latency: float) -> float:
    tokens = (1 - acceptance ** (length + 1)) / (1 - acceptance)
    return float(tokens / ((DRAFT + 0.001) * length + latency))


def rate_ahead(waited: int, in_flight: int, acceptance: float, latency: float) -> float:
    """Go through 10,000 rounds of drafting ahead."""
    rng = np.random.default_rng(1)
    tokens, seconds, ready = 0, 0.0, 0
    for _ in range(10_000):
        length = max(waited, ready)
        seconds += DRAFT * (length - ready) + latency
        misses = np.flatnonzero(rng.random(length) >= acceptance)
        tokens += int(misses[0]) + 1 if len(misses) else length
        ready = 0 if len(misses) else min(in_flight, int(latency / DRAFT))
    return tokens / seconds


@pytest.mark.parametrize(
    ("acceptance", "latency"), [(0.5, 0.02), (0.8, 0.05), (0.9, 0.2)]
)
def test_it_settles_where_nearly_the_most_tokens_come(
    acceptance: float, latency: float
) -> None:
    best = max(rate(n, acceptance, latency) for n in range(1, 25))

    found = rate(settled(acceptance, latency)[0], acceptance, latency)

    assert found > 0.95 * best


def test_it_grows_with_acceptance_and_latency() -> None:
    assert settled(0.9, 0.05)[0] > settled(0.5, 0.05)[0]
    assert settled(0.8, 0.2)[0] > settled(0.8, 0.02)[0]


@pytest.mark.parametrize(("acceptance", "latency"), [(0.9, 0.1), (0.97, 0.1)])
def test_drafting_ahead_it_settles_where_nearly_the_most_tokens_come(
    acceptance: float, latency: float
) -> None:
    """A short draft while the edge is idle, and a long one while it is not."""
    lengths = range(1, 25)
    best = max(
        rate_ahead(waited, in_flight, acceptance, latency)
        for waited in lengths[::2]
        for in_flight in lengths[::4]
    )

    waited, in_flight = settled(acceptance, latency, ahead=True)

    found = rate_ahead(round(waited), round(in_flight), acceptance, latency)
    assert found > 0.93 * best
    assert waited < in_flight


def test_bad_parameters_are_named() -> None:
    with pytest.raises(InvalidInputError, match="maximum"):
        Adaptive(maximum=0)
    with pytest.raises(InvalidInputError, match="initial"):
        Adaptive(maximum=4, initial=5)
    with pytest.raises(InvalidInputError, match="memory"):
        Adaptive(memory=1.0)
    with pytest.raises(InvalidInputError, match="draft_length"):
        Fixed(0)
    with pytest.raises(InvalidInputError, match="in_flight"):
        Fixed(4, in_flight=300)
    assert Fixed(4).choose(ahead=True) == (4, 8)
