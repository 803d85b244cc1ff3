"""What a coded reply says beside its arrays, as it travels from client to strategy.

The arrays of a coded reply hold ``sum_k b_k n_k delta_k``; everything else is numbers,
and they travel in one Flower ``MetricRecord``. This module fixes the keys of that
record. Like :mod:`flower_ext.coding.assignment` it knows nothing of Flower: clients
write plain dictionaries and strategies read plain mappings.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from flower_ext.coding.assignment import (
    REPLY_PREFIX,
    Assignment,
    partition_metric_key,
)
from flower_ext.errors import InvalidInputError

__all__ = [
    "COMPUTE_SECONDS_KEY",
    "EXAMPLES_KEY",
    "UPLOAD_SECONDS_KEY",
    "WEIGHTED_EXAMPLES_KEY",
    "MetricValue",
    "ReplySummary",
    "examples_from_metrics",
]

WEIGHTED_EXAMPLES_KEY = f"{REPLY_PREFIX}weighted-examples"
"""``sum_k b_k n_k``, a float."""

EXAMPLES_KEY = f"{REPLY_PREFIX}examples"
"""``n_k`` of each partition in the order of the assignment, a list of floats."""

COMPUTE_SECONDS_KEY = f"{REPLY_PREFIX}compute-seconds"
"""Seconds that each partition took, in the order of the assignment."""

UPLOAD_SECONDS_KEY = f"{REPLY_PREFIX}upload-seconds"
"""Simulated seconds of the upload under a virtual clock, else 0.0."""

MetricValue = int | float | list[int] | list[float]


def examples_from_metrics(
    metrics: Mapping[str, MetricValue], key: str, partition: int
) -> float:
    """Return the number of examples, ``n_k``, that a train function reported.

    Parameters
    ----------
    metrics : Mapping[str, MetricValue]
        The metrics that the train function returned for ``partition``.
    key : str
        The metric that holds ``n_k`` (``weighted_by_key`` of the assignment).
    partition : int
        The partition, for the message of an error.

    Returns
    -------
    float
        A finite number above 0.

    Raises
    ------
    InvalidInputError
        If the metric is missing, not a number, not finite or not positive.

    Examples
    --------
    >>> examples_from_metrics({"num-examples": 12}, "num-examples", partition=3)
    12.0
    """
    value = metrics.get(key)
    if (
        isinstance(value, bool)
        or not isinstance(value, int | float)
        or not math.isfinite(value)
        or value <= 0
    ):
        found = "is missing" if value is None else f"is {value!r}"
        raise InvalidInputError(
            f"The metric '{key}' of partition {partition} {found}: the train function "
            "must return there the number of examples it trained on, a finite number "
            "above 0 (or set the strategy's weighted_by_key to the metric that has it)."
        )
    return float(value)


@dataclass(frozen=True)
class ReplySummary:
    """The numbers of a coded reply.

    Parameters
    ----------
    partitions : tuple[int, ...]
        The partitions that were trained, in the order of the assignment.
    examples : tuple[float, ...]
        Their numbers of examples ``n_k``, each finite and above 0.
    weighted_examples : float
        ``sum_k b_k n_k``, finite; it may be negative or 0.
    compute_seconds : tuple[float, ...]
        Seconds that each partition took, each finite and at least 0.
    upload_seconds : float
        Simulated seconds of the upload, finite and at least 0.
    metrics : tuple[Mapping[str, MetricValue], ...]
        Each partition's metrics as its train function returned them.

    Raises
    ------
    InvalidInputError
        If the lengths differ or a number is out of its range.

    Examples
    --------
    >>> row = Assignment((0, 2), (1.0, -0.5), num_partitions=4, server_round=1, seed=7)
    >>> losses = ({"loss": 0.3}, {"loss": 0.4})
    >>> summary = ReplySummary((0, 2), (10.0, 8.0), 6.0, (1.5, 1.0), 0.0, losses)
    >>> ReplySummary.from_metrics(summary.to_metrics(), row) == summary
    True
    """

    partitions: tuple[int, ...]
    examples: tuple[float, ...]
    weighted_examples: float
    compute_seconds: tuple[float, ...]
    upload_seconds: float
    metrics: tuple[Mapping[str, MetricValue], ...]

    def __post_init__(self) -> None:
        """Check every field."""
        lengths = {
            EXAMPLES_KEY: len(self.examples),
            COMPUTE_SECONDS_KEY: len(self.compute_seconds),
            "the metrics": len(self.metrics),
        }
        for name, length in lengths.items():
            if length != len(self.partitions):
                raise InvalidInputError(
                    f"A reply for partitions {self.partitions} needs one entry for "
                    f"each, but {name} has {length}."
                )
        if any(not (math.isfinite(n) and n > 0) for n in self.examples):
            raise InvalidInputError(
                f"'{EXAMPLES_KEY}' must be finite and above 0, got {self.examples}."
            )
        if not math.isfinite(self.weighted_examples):
            raise InvalidInputError(
                f"'{WEIGHTED_EXAMPLES_KEY}' must be finite, "
                f"got {self.weighted_examples}."
            )
        seconds = (*self.compute_seconds, self.upload_seconds)
        if any(not (math.isfinite(s) and s >= 0) for s in seconds):
            raise InvalidInputError(
                f"'{COMPUTE_SECONDS_KEY}' and '{UPLOAD_SECONDS_KEY}' must be finite "
                f"and at least 0, got {self.compute_seconds} and "
                f"{self.upload_seconds}."
            )

    def to_metrics(self) -> dict[str, MetricValue]:
        """Return the summary as plain values that a ``MetricRecord`` can hold."""
        values: dict[str, MetricValue] = {
            WEIGHTED_EXAMPLES_KEY: self.weighted_examples,
            EXAMPLES_KEY: list(self.examples),
            COMPUTE_SECONDS_KEY: list(self.compute_seconds),
            UPLOAD_SECONDS_KEY: self.upload_seconds,
        }
        for partition, metrics in zip(self.partitions, self.metrics, strict=True):
            for name, value in metrics.items():
                values[partition_metric_key(partition, name)] = value
        return values

    @classmethod
    def from_metrics(
        cls, metrics: Mapping[str, MetricValue], assignment: Assignment
    ) -> ReplySummary:
        """Rebuild the summary of a reply to ``assignment``.

        Keys that do not start with ``flower-ext.`` are left alone: mods around the
        coded one may add their own.

        Parameters
        ----------
        metrics : Mapping[str, MetricValue]
            The values of the reply's ``MetricRecord``.
        assignment : Assignment
            The assignment that the reply answers.

        Returns
        -------
        ReplySummary
            The summary, with Python floats throughout.

        Raises
        ------
        InvalidInputError
            If a key is missing, a value is out of range, the lists do not fit the
            assignment, or ``weighted_examples`` contradicts ``examples``.
        """
        examples = _floats(metrics, EXAMPLES_KEY)
        summary = cls(
            partitions=assignment.partitions,
            examples=examples,
            weighted_examples=_float(metrics, WEIGHTED_EXAMPLES_KEY),
            compute_seconds=_floats(metrics, COMPUTE_SECONDS_KEY),
            upload_seconds=_float(metrics, UPLOAD_SECONDS_KEY),
            metrics=_partition_metrics(metrics, assignment),
        )
        terms = [b * n for b, n in zip(assignment.coefficients, examples, strict=True)]
        slack = 1e-9 * math.fsum(map(abs, terms))
        if abs(summary.weighted_examples - math.fsum(terms)) > slack:
            raise InvalidInputError(
                f"'{WEIGHTED_EXAMPLES_KEY}' is {summary.weighted_examples}, but the "
                f"coefficients {assignment.coefficients} and '{EXAMPLES_KEY}' "
                f"{examples} make {math.fsum(terms)}: the reply does not answer this "
                "assignment."
            )
        return summary


def _value(metrics: Mapping[str, MetricValue], key: str) -> MetricValue:
    """Return a value of a coded reply or say that it is none."""
    if key not in metrics:
        raise InvalidInputError(
            f"The reply has no metric '{key}', so it is not a coded reply: does the "
            "node run a CodedClientApp (or coded_mod first in its mods) of this "
            "flower-ext version?"
        )
    return metrics[key]


def _float(metrics: Mapping[str, MetricValue], key: str) -> float:
    """Return the number under ``key``."""
    value = _value(metrics, key)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InvalidInputError(f"The metric '{key}' must be a number, got {value!r}.")
    return float(value)


def _floats(metrics: Mapping[str, MetricValue], key: str) -> tuple[float, ...]:
    """Return the list of numbers under ``key``."""
    value = _value(metrics, key)
    if not isinstance(value, list):
        raise InvalidInputError(f"The metric '{key}' must be a list, got {value!r}.")
    return tuple(float(entry) for entry in value)


def _partition_metrics(
    metrics: Mapping[str, MetricValue], assignment: Assignment
) -> tuple[Mapping[str, MetricValue], ...]:
    """Sort the metrics of a coded reply by partition, names as the user gave them."""
    found: dict[int, dict[str, MetricValue]] = {p: {} for p in assignment.partitions}
    start = f"{REPLY_PREFIX}partition."
    for key, value in metrics.items():
        if not key.startswith(start):
            continue
        number, _, name = key[len(start) :].partition(".")
        if not number.isdecimal() or int(number) not in found:
            raise InvalidInputError(
                f"The metric '{key}' belongs to none of the assigned partitions "
                f"{assignment.partitions}."
            )
        found[int(number)][name] = value
    return tuple(found.values())
