"""The coded reply, gathered from the train function's reply for each partition."""

from __future__ import annotations

import math

from flwr.app import ArrayRecord, MetricRecord, RecordDict

from flower_ext.clients.combination import CodedCombination
from flower_ext.coding.assignment import Assignment
from flower_ext.coding.reply import MetricValue, ReplySummary, examples_from_metrics
from flower_ext.errors import InvalidInputError

__all__ = ["CodedReply"]


class CodedReply:
    """The reply to one assignment, as it grows.

    Parameters
    ----------
    assignment : Assignment
        The partitions and their coefficients.
    received : RecordDict
        The content of the message that carries the assignment.
    """

    def __init__(self, assignment: Assignment, received: RecordDict) -> None:
        self._assignment = assignment
        self._received = received
        self._names: tuple[str, str] | None = None
        self._combination: CodedCombination | None = None
        self._terms: list[float] = []
        self._examples: list[float] = []
        self._compute_seconds: list[float] = []
        self._metrics: list[dict[str, MetricValue]] = []

    def add(self, reply: RecordDict, compute_seconds: float) -> None:
        """Add what the train function replied for the next assigned partition.

        Parameters
        ----------
        reply : RecordDict
            The content of the reply: one ``ArrayRecord``, one ``MetricRecord``, and
            config records, which are dropped.
        compute_seconds : float
            Seconds that the partition took.

        Raises
        ------
        InvalidInputError
            If the reply's records, array keys, shapes, values or number of examples
            are not what a coded round can combine.
        """
        index = len(self._examples)
        partition = self._assignment.partitions[index]
        names = _record_names(reply, partition)
        if self._names is None:
            self._names = names
        if names != self._names:
            raise InvalidInputError(
                f"The train function's records for partition {partition} are named "
                f"{names}, for the partitions before {self._names}: use the same names "
                "for every partition."
            )
        arrays_name, metrics_name = names
        if self._combination is None:
            self._combination = CodedCombination(self._start(arrays_name))
        metrics = dict(reply.metric_records[metrics_name])
        examples = examples_from_metrics(
            metrics, self._assignment.weighted_by_key, partition
        )
        weight = self._assignment.coefficients[index] * examples
        self._combination.add(reply.array_records[arrays_name], weight, partition)
        self._terms.append(weight)
        self._examples.append(examples)
        self._compute_seconds.append(compute_seconds)
        self._metrics.append(metrics)

    def to_content(self, upload_seconds: float) -> RecordDict:
        """Return the content of the coded reply, after every partition was added.

        Parameters
        ----------
        upload_seconds : float
            Simulated seconds of the upload.

        Returns
        -------
        RecordDict
            One ``ArrayRecord`` and one ``MetricRecord``, under the names that the
            train function uses.

        Raises
        ------
        InvalidInputError
            If a partition was not added, or a sum overflows its payload dtype.
        """
        if self._names is None or self._combination is None:
            raise InvalidInputError("A coded reply needs at least one partition.")
        arrays_name, metrics_name = self._names
        summary = ReplySummary(
            partitions=self._assignment.partitions,
            examples=tuple(self._examples),
            weighted_examples=math.fsum(self._terms),
            compute_seconds=tuple(self._compute_seconds),
            upload_seconds=upload_seconds,
            metrics=tuple(self._metrics),
        )
        return RecordDict(
            {
                arrays_name: self._combination.to_record(),
                metrics_name: MetricRecord(summary.to_metrics()),
            }
        )

    def _start(self, arrays_name: str) -> ArrayRecord:
        """Return the received arrays that the train function's reply changes."""
        received = self._received.array_records
        if len(received) == 1:
            return next(iter(received.values()))
        if arrays_name in received:
            return received[arrays_name]
        raise InvalidInputError(
            f"The message has the array records {sorted(received)}, the train "
            f"function's reply has '{arrays_name}': which one it changes is unclear. "
            "Reply under the name of the one that was trained."
        )


def _record_names(reply: RecordDict, partition: int) -> tuple[str, str]:
    """Return the names of the reply's only array and only metric record."""
    arrays, metrics = list(reply.array_records), list(reply.metric_records)
    if len(arrays) != 1 or len(metrics) != 1:
        raise InvalidInputError(
            f"The train function's reply for partition {partition} must have exactly "
            f"one ArrayRecord and one MetricRecord, got array records {arrays} and "
            f"metric records {metrics}."
        )
    return arrays[0], metrics[0]
