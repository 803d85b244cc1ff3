"""What the server accepts as a reply, and why it rejects what it does not."""

from __future__ import annotations

import math

import numpy as np
from flwr.app import ArrayRecord, Message, RecordDict

from flower_ext.coding.assignment import Assignment
from flower_ext.coding.payload import payload_dtype
from flower_ext.coding.reply import MetricValue, ReplySummary
from flower_ext.errors import InvalidInputError
from flower_ext.strategies.array_views import view

__all__ = [
    "CodedReply",
    "accept_evaluation",
    "accept_reply",
    "content_bytes",
    "summary_of",
]

CodedReply = tuple[ArrayRecord, ReplySummary]
"""The combined arrays of a reply and the numbers that came with them."""


def accept_reply(
    message: Message, assignment: Assignment, arrays: ArrayRecord
) -> CodedReply:
    """Check a reply to an assignment.

    Parameters
    ----------
    message : Message
        The reply, without an error.
    assignment : Assignment
        What it answers.
    arrays : ArrayRecord
        The global arrays that were sent.

    Returns
    -------
    tuple[ArrayRecord, ReplySummary]
        The coded arrays and the numbers.

    Raises
    ------
    InvalidInputError
        If a record is missing, keys, shapes or dtypes differ from what was sent, a
        value is NaN or infinite, or the numbers are not those of the assignment.
    """
    summary = summary_of(message, assignment)
    if len(message.content.array_records) != 1:
        raise InvalidInputError(
            "It must hold exactly one ArrayRecord, but holds "
            f"{len(message.content.array_records)}."
        )
    coded = next(iter(message.content.array_records.values()))
    if coded.keys() != arrays.keys():
        lacking = sorted(arrays.keys() - coded.keys())
        extra = sorted(coded.keys() - arrays.keys())
        raise InvalidInputError(f"Its arrays lack {lacking} and add {extra}.")
    for name, sent in arrays.items():
        combined = view(name, coded[name])
        expected = payload_dtype(np.dtype(sent.dtype))
        if combined.shape != tuple(sent.shape) or combined.dtype != expected:
            raise InvalidInputError(
                f"The array '{name}' should be {expected} {tuple(sent.shape)}, but is "
                f"{combined.dtype} {combined.shape}."
            )
        # A finite sum proves all terms finite; only a doubtful one is looked into.
        with np.errstate(over="ignore", invalid="ignore"):
            finite = bool(np.isfinite(combined.sum())) or np.isfinite(combined).all()
        if not finite:
            raise InvalidInputError(f"The array '{name}' has NaN or infinite values.")
    return coded, summary


def content_bytes(content: RecordDict) -> int:
    """Return the bytes of all arrays in a message."""
    return sum(
        len(array.data)
        for record in content.array_records.values()
        for array in record.values()
    )


def summary_of(message: Message, assignment: Assignment) -> ReplySummary:
    """Return the numbers of a reply to an assignment.

    Raises
    ------
    InvalidInputError
        If there is not one MetricRecord, it does not answer the assignment, or its
        times are not finite.
    """
    summary = ReplySummary.from_metrics(_only_metrics(message), assignment)
    if not math.isfinite(sum(summary.compute_seconds) + summary.upload_seconds):
        raise InvalidInputError("The seconds that it reports add up to infinity.")
    return summary


def _only_metrics(message: Message) -> dict[str, MetricValue]:
    """Return the values of the reply's only metric record."""
    records = list(message.content.metric_records.values())
    if len(records) != 1:
        raise InvalidInputError(
            f"It must hold exactly one MetricRecord, but holds {len(records)}."
        )
    return dict(records[0])


def accept_evaluation(message: Message, weighted_by_key: str) -> RecordDict:
    """Check a reply to an evaluate message.

    Parameters
    ----------
    message : Message
        The reply.
    weighted_by_key : str
        The metric that holds the number of examples.

    Returns
    -------
    RecordDict
        Its content.

    Raises
    ------
    InvalidInputError
        If it carries an error, there is not one MetricRecord, the number of examples
        is not positive, or a metric is NaN or infinite.
    """
    if message.has_error():
        raise InvalidInputError(f"code {message.error.code}: {message.error.reason}")
    metrics = _only_metrics(message)
    for name, value in metrics.items():
        values = value if isinstance(value, list) else [value]
        if not all(math.isfinite(v) for v in values):
            raise InvalidInputError(f"The metric '{name}' is NaN or infinite: {value}.")
    examples = metrics.get(weighted_by_key)
    if isinstance(examples, list) or examples is None or examples <= 0:
        raise InvalidInputError(
            f"The metric '{weighted_by_key}' must be the number of examples, above 0, "
            f"got {examples!r}."
        )
    return message.content
