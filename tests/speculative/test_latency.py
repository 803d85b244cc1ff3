"""Quantiles come from counts that add up."""

import math

import pytest

from flower_ext.errors import InvalidInputError
from flower_ext.speculative.latency import (
    BUCKET_EDGES,
    NUM_BUCKETS,
    LatencyHistogram,
)


def test_quantiles_of_all_are_not_the_mean_of_quantiles() -> None:
    fast = LatencyHistogram.of([0.1] * 98)
    slow = LatencyHistogram.of([10.0] * 2)
    both = fast + slow

    assert both.total == 100
    # 98 of 100 lie in [0.1, 0.112), the middle of which is 10^(-1 + 1/40).
    assert both.quantile(0.98) == pytest.approx(10 ** (-1 + 1 / 40))
    assert both.quantile(0.99) == pytest.approx(10 ** (1 + 1 / 40))
    assert both.quantile(0) == both.quantile(0.5) == both.quantile(0.98)


@pytest.mark.parametrize("seconds", [1.3e-4, 0.02, 0.5, 3.0, 77.7, 9000.0])
def test_a_quantile_is_within_six_percent(seconds: float) -> None:
    assert LatencyHistogram.of([seconds]).quantile(0.5) == pytest.approx(seconds, 0.06)


def test_what_lies_beyond_the_edges_is_told_as_the_edge() -> None:
    assert LatencyHistogram.of([0.0]).quantile(0.5) == BUCKET_EDGES[0]
    assert LatencyHistogram.of([1e9]).quantile(0.5) == BUCKET_EDGES[-1]
    assert LatencyHistogram.of([1e9]).counts[-1] == 1


def test_nothing_has_no_quantile() -> None:
    assert math.isnan(LatencyHistogram().quantile(0.5))


@pytest.mark.parametrize(
    "counts", [(1, 2), (-1,) + (0,) * (NUM_BUCKETS - 1), (0.5,) * NUM_BUCKETS]
)
def test_counts_that_cannot_be_are_refused(counts: tuple[int, ...]) -> None:
    with pytest.raises(InvalidInputError, match="162 counts of at least 0"):
        LatencyHistogram(counts)


@pytest.mark.parametrize("seconds", [-1.0, math.nan])
def test_a_latency_is_at_least_zero(seconds: float) -> None:
    with pytest.raises(InvalidInputError, match="at least 0 s"):
        LatencyHistogram.of([seconds])
