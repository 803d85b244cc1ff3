"""The numbers of a coded reply survive their travel, and nonsense is named."""

import pytest

from flower_ext.coding.assignment import Assignment
from flower_ext.coding.reply import MetricValue, ReplySummary
from flower_ext.errors import InvalidInputError

ASSIGNMENT = Assignment((11, 1), (1.0, -0.5), num_partitions=12, server_round=3, seed=0)
SUMMARY = ReplySummary(
    partitions=(11, 1),
    examples=(10.0, 8.0),
    weighted_examples=6.0,
    compute_seconds=(0.5, 1.0),
    upload_seconds=0.25,
    metrics=({"num-examples": 10, "loss.x": 0.5}, {"num-examples": 8, "ids": [1, 2]}),
)


def test_keys_on_the_wire() -> None:
    assert SUMMARY.to_metrics() == {
        "flower-ext.weighted-examples": 6.0,
        "flower-ext.examples": [10.0, 8.0],
        "flower-ext.compute-seconds": [0.5, 1.0],
        "flower-ext.upload-seconds": 0.25,
        "flower-ext.partition.11.num-examples": 10,
        "flower-ext.partition.11.loss.x": 0.5,
        "flower-ext.partition.1.num-examples": 8,
        "flower-ext.partition.1.ids": [1, 2],
    }


def test_round_trip_leaves_foreign_keys_alone() -> None:
    metrics = SUMMARY.to_metrics() | {"added-by-a-mod": 1}
    assert ReplySummary.from_metrics(metrics, ASSIGNMENT) == SUMMARY


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"flower-ext.examples": [10.0]}, "examples has 1"),
        ({"flower-ext.examples": 10.0}, "examples' must be a list"),
        ({"flower-ext.examples": [10.0, 0.0]}, "above 0"),
        ({"flower-ext.compute-seconds": [1.0]}, "compute-seconds has 1"),
        ({"flower-ext.compute-seconds": [1.0, -1.0]}, "at least 0"),
        ({"flower-ext.upload-seconds": float("inf")}, "must be finite"),
        ({"flower-ext.upload-seconds": [0.0]}, "must be a number"),
        ({"flower-ext.weighted-examples": float("nan")}, "must be finite"),
        ({"flower-ext.weighted-examples": 7.0}, "does not answer this assignment"),
        ({"flower-ext.partition.2.loss": 1.0}, "none of the assigned"),
        ({"flower-ext.partition.x": 1.0}, "none of the assigned"),
    ],
)
def test_bad_values_are_named(change: dict[str, MetricValue], text: str) -> None:
    with pytest.raises(InvalidInputError, match=text):
        ReplySummary.from_metrics(SUMMARY.to_metrics() | change, ASSIGNMENT)


def test_reply_of_a_plain_app_is_recognised() -> None:
    with pytest.raises(InvalidInputError, match="not a coded reply"):
        ReplySummary.from_metrics({"num-examples": 3, "loss": 0.1}, ASSIGNMENT)


def test_metrics_must_match_the_partitions() -> None:
    with pytest.raises(InvalidInputError, match="the metrics has 0"):
        ReplySummary((0,), (1.0,), 1.0, (0.0,), 0.0, ())
