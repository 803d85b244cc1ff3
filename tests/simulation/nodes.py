"""What the simulated nodes hold, and what they train: a closed form.

The change that training makes to the model is a fixed function of the round, the
partition and the arrays that it starts from, so the update that a round should make is
known without running it. What nodes send is made by the client's own arithmetic.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from flwr.app import (
    Array,
    ArrayRecord,
    ConfigRecord,
    Message,
    MetricRecord,
    RecordDict,
)
from numpy.typing import NDArray

from flower_ext.clients.coded_reply import CodedReply
from flower_ext.coding.assignment import Assignment

__all__ = ["Training", "examples_of", "start_arrays"]

Arrays = dict[str, NDArray[Any]]

_REMEMBERED = 64  # trained models, of rounds under way


def examples_of(partition: int) -> int:
    """Return the number of examples of a partition."""
    return 3 + (7 * partition) % 11


def start_arrays() -> ArrayRecord:
    """Return the model that a federation begins with."""
    return ArrayRecord(
        {
            "weight": Array(np.linspace(-1.0, 1.0, 6, dtype=np.float32).reshape(2, 3)),
            "count": Array(np.array(7, np.int64)),
        }
    )


class _Loaded(Array):
    """An array that is read once: reading one takes longer than training it."""

    def numpy(self) -> NDArray[Any]:
        """Return the values; they are not to be changed."""
        found = self.__dict__.get("_values")
        if found is None:
            found = self.__dict__["_values"] = super().numpy()
        return found


class Training:
    """Trains, and remembers what it has trained of late."""

    def __init__(self) -> None:
        self._known: dict[tuple[int, int], tuple[ArrayRecord, RecordDict]] = {}
        self._received: tuple[ArrayRecord, RecordDict] | None = None

    def _loaded(self, arrays: ArrayRecord) -> RecordDict:
        """Return the arrays as arrays that are read once."""
        if self._received is None or self._received[0] is not arrays:
            loaded = ArrayRecord()
            for name, a in arrays.items():
                loaded[name] = _Loaded(a.dtype, a.shape, a.stype, a.data)
            self._received = arrays, RecordDict({"arrays": loaded})
        return self._received[1]

    def _values(self, arrays: ArrayRecord) -> Arrays:
        loaded = self._loaded(arrays)["arrays"]
        assert isinstance(loaded, ArrayRecord)
        return {name: array.numpy() for name, array in loaded.items()}

    def step(self, values: Arrays, server_round: int, partition: int) -> Arrays:
        """Return what training on a partition makes of the arrays."""
        weight = values["weight"]
        phase = 1.7 * server_round + 0.9 * partition
        step = 0.3 * np.sin(phase + np.arange(weight.size)).reshape(weight.shape)
        return {
            "weight": (0.9 * weight + step).astype(np.float32),
            "count": np.asarray(values["count"] + 3),
        }

    def _trained(
        self, arrays: ArrayRecord, server_round: int, partition: int
    ) -> RecordDict:
        """Return the train function's reply for a partition."""
        key = server_round, partition
        known = self._known.get(key)
        if known is None or known[0] is not arrays:
            if len(self._known) >= _REMEMBERED:
                self._known.clear()
            stepped = self.step(self._values(arrays), server_round, partition)
            record = ArrayRecord()
            for name, value in stepped.items():
                record[name] = _Loaded(value)
                record[name].__dict__["_values"] = value
            metrics = MetricRecord(
                {"num-examples": examples_of(partition), "round": float(server_round)}
            )
            reply = RecordDict({"arrays": record, "metrics": metrics})
            known = self._known[key] = arrays, reply
        return known[1]

    def reply(
        self, message: Message, assignment: Assignment, seconds: float
    ) -> RecordDict:
        """Return the content of a node's reply; `seconds` is what a partition took."""
        arrays = message.content["arrays"]
        assert isinstance(arrays, ArrayRecord)
        server_round = _round_of(message)
        reply = CodedReply(assignment, self._loaded(arrays))
        for partition in assignment.partitions:
            reply.add(self._trained(arrays, server_round, partition), seconds)
        return reply.to_content(0.0)

    def evaluation(self, message: Message) -> RecordDict:
        """Return the content of a node's reply to an evaluate message."""
        server_round = float(_round_of(message))
        metrics = MetricRecord({"num-examples": 5, "round": server_round})
        return RecordDict({"metrics": metrics})

    def fedavg(
        self, arrays: ArrayRecord, server_round: int, shares: dict[int, float]
    ) -> Arrays:
        """Return the true update of a round.

        Parameters
        ----------
        arrays : ArrayRecord
            The global arrays that the round began with.
        server_round : int
            The round.
        shares : dict[int, float]
            c_k by partition: 1 for all of them in FedAvg's own update.

        Returns
        -------
        dict[str, ndarray]
            The new global arrays in float64, before they are cast.
        """
        values = self._values(arrays)
        weights = {p: c * examples_of(p) for p, c in shares.items() if c}
        total = sum(weights.values())
        moved = {name: np.zeros(a.shape) for name, a in values.items()}
        for partition, weight in weights.items():
            trained = self.step(values, server_round, partition)
            for name, after in trained.items():
                change = after.astype(float) - values[name].astype(float)
                moved[name] += weight / total * change
        return {name: values[name] + change for name, change in moved.items()}


def _round_of(message: Message) -> int:
    """Return the round that the message's config names, as it is by now."""
    config = message.content["config"]
    assert isinstance(config, ConfigRecord)
    server_round = config["server-round"]
    assert isinstance(server_round, int)
    return server_round
