"""Sums over prompts and nodes, and the rates that follow from them."""

import math
from dataclasses import replace
from typing import Any

import pytest

from flower_ext.errors import InvalidInputError
from flower_ext.speculative import Generation
from flower_ext.speculative.totals import DSSDTotals

TEXT = Generation(
    tokens=(1, 2, 3, 4),
    finish_reason="length",
    rounds=2,
    drafted=6,
    examined=4,
    accepted=2,
    drafted_ahead=0,
    discarded=0,
    questions=1,
    fallback_tokens=0,
    opening_bytes=30,
    uplink_bytes=100,
    downlink_bytes=40,
    drafting_seconds=0.5,
    verification_seconds=1.0,
    transmission_seconds=0.25,
    seconds=2.0,
    reconnections=1,
)


def test_rates_are_ratios_of_sums() -> None:
    one = DSSDTotals.of(TEXT, scored_tokens=4, log_likelihood=-4 * math.log(3))
    other = DSSDTotals.of(
        replace(TEXT, tokens=(5,) * 12, seconds=2.0, accepted=4, uplink_bytes=700),
        scored_tokens=12,
        log_likelihood=-12 * math.log(3),
    )
    rates = (one + other).rates()

    assert rates["tokens-per-second"] == 16 / 4
    assert rates["acceptance-rate"] == 6 / 8
    assert rates["tokens-per-round"] == 16 / 4
    assert rates["uplink-bytes-per-token"] == 800 / 16
    assert rates["downlink-bytes-per-token"] == 80 / 16
    assert rates["perplexity"] == pytest.approx(3)
    assert math.isnan(rates["greedy-agreement"])
    # Four tokens took half a second each, twelve a sixth.
    assert (one + other).token_latency_histogram.total == 16
    assert rates["token-latency-p50"] == pytest.approx(1 / 6, 0.06)
    assert rates["token-latency-p95"] == pytest.approx(1 / 2, 0.06)
    assert rates["latency-p50"] == pytest.approx(2, 0.06)


def test_metrics_say_all_there_is() -> None:
    totals = DSSDTotals.of(TEXT, compared_tokens=4, agreeing_tokens=3)
    metrics = totals.to_metrics()

    assert metrics["num-prompts"] == 1
    assert metrics["opening-bytes"] == 30
    assert metrics["reconnections"] == 1
    assert DSSDTotals.from_metrics({**metrics, "tokens-per-second": 2.0}) == totals


@pytest.mark.parametrize(
    ("spoiled", "problem"),
    [
        ({"num-tokens": -4}, "num-tokens is out of range"),
        ({"num-tokens": 4.0}, "num-tokens must be int"),
        ({"seconds": math.nan}, "seconds is out of range"),
        ({"log-likelihood": 1.0}, "log-likelihood is out of range"),
        ({"accepted": 5}, "accepted is 5, more than examined, 4"),
        ({"opening-bytes": 101}, "opening-bytes is 101, more than uplink-bytes"),
        ({"num-prompts": 2}, "counts 1 latencies, but num-prompts is 2"),
        ({"latency-histogram": [1]}, "has 162 counts"),
        ({"latency-histogram": 7}, "must be a list"),
    ],
)
def test_what_cannot_be_is_refused(spoiled: dict[str, Any], problem: str) -> None:
    metrics = {**DSSDTotals.of(TEXT).to_metrics(), **spoiled}

    with pytest.raises(InvalidInputError, match=problem):
        DSSDTotals.from_metrics(metrics)


def test_what_is_lacking_is_named() -> None:
    metrics = DSSDTotals.of(TEXT).to_metrics()
    del metrics["downlink-bytes"]

    with pytest.raises(InvalidInputError, match="'downlink-bytes' is lacking"):
        DSSDTotals.from_metrics(metrics)
