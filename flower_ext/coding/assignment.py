"""What a worker is asked to compute, as it travels from the strategy to the client.

An assignment is one row of the encoding matrix, restricted to its support: the
partitions to train on and their coefficients. Strategies write it into a Flower
``ConfigRecord`` and clients read it back; this module fixes the keys of that exchange
and knows nothing of Flower, so both sides stand on the same definition.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from flower_ext.errors import InvalidInputError

__all__ = [
    "ASSIGNMENT_KEY",
    "HOLDINGS_KEY",
    "REPLY_PREFIX",
    "Assignment",
    "partition_metric_key",
]

ASSIGNMENT_KEY = "flower-ext.assignment"
"""Name of the ``ConfigRecord`` that carries an assignment in a train message."""

HOLDINGS_KEY = "flower-ext.holdings"
"""Name of the ``ConfigRecord`` of a holdings request and of its answer."""

REPLY_PREFIX = "flower-ext."
"""Prefix of the keys that a coded reply adds to its ``MetricRecord``."""

ConfigValue = (
    int
    | float
    | str
    | bytes
    | bool
    | list[int]
    | list[float]
    | list[str]
    | list[bytes]
    | list[bool]
)


def partition_metric_key(partition: int, name: str) -> str:
    """Return the key under which a partition's own metric travels in a coded reply.

    Parameters
    ----------
    partition : int
        The partition that the metric belongs to.
    name : str
        The metric's name as the user's train function returned it.

    Returns
    -------
    str
        For example ``"flower-ext.partition.3.train-loss"``.
    """
    return f"{REPLY_PREFIX}partition.{partition}.{name}"


@dataclass(frozen=True)
class Assignment:
    """One row of the encoding matrix, restricted to its support.

    The worker trains on every partition of ``partitions`` and replies with
    ``sum_k coefficients[k] * n_k * delta_k``, where ``delta_k`` is the change of the
    model that training on partition ``k`` made and ``n_k`` its number of examples.

    Parameters
    ----------
    partitions : tuple[int, ...]
        Distinct partition ids, each at least 0; at least one.
    coefficients : tuple[float, ...]
        One finite non-zero coefficient per partition.
    num_partitions : int
        Number of partitions in the federation, K.
    server_round : int
        The round, starting from 1.
    seed : int, optional
        The run seed that partition seeds are derived from, at least 0; None leaves it
        to the client's run-config.
    stage : int (default: 1)
        1 or 2.
    virtual : bool (default: False)
        Whether time is simulated: delays are then reported, never slept.
    weighted_by_key : str (default: "num-examples")
        The key of the user's metrics that holds n_k.

    Raises
    ------
    InvalidInputError
        If a field is out of range.

    Examples
    --------
    >>> row = Assignment((0, 2), (1.0, -0.5), num_partitions=4, server_round=1, seed=7)
    >>> Assignment.from_config(row.to_config()) == row
    True
    """

    partitions: tuple[int, ...]
    coefficients: tuple[float, ...]
    num_partitions: int
    server_round: int
    seed: int | None = None
    stage: int = 1
    virtual: bool = False
    weighted_by_key: str = "num-examples"

    def __post_init__(self) -> None:
        """Check every field."""
        if not self.partitions or len(self.partitions) != len(self.coefficients):
            raise InvalidInputError(
                "An assignment needs at least one partition and one coefficient for "
                f"each, got {len(self.partitions)} partitions and "
                f"{len(self.coefficients)} coefficients."
            )
        if len(set(self.partitions)) != len(self.partitions):
            raise InvalidInputError(
                f"An assignment names each partition once, got {self.partitions}."
            )
        if any(not 0 <= p < self.num_partitions for p in self.partitions):
            raise InvalidInputError(
                f"Partitions must lie in [0, {self.num_partitions}), "
                f"got {self.partitions}."
            )
        if any(c == 0 or not math.isfinite(c) for c in self.coefficients):
            raise InvalidInputError(
                f"Coefficients must be finite and non-zero, got {self.coefficients}."
            )
        if self.stage not in (1, 2) or (self.seed is not None and self.seed < 0):
            raise InvalidInputError(
                "An assignment's stage is 1 or 2 and its seed at least 0, "
                f"got stage {self.stage} and seed {self.seed}."
            )

    def to_config(self) -> dict[str, ConfigValue]:
        """Return the fields as plain values that a ``ConfigRecord`` can hold."""
        values: dict[str, ConfigValue] = {
            "partitions": [int(p) for p in self.partitions],
            "coefficients": [float(c) for c in self.coefficients],
            "num-partitions": self.num_partitions,
            "server-round": self.server_round,
            "stage": self.stage,
            "virtual": self.virtual,
            "weighted-by-key": self.weighted_by_key,
        }
        if self.seed is not None:
            values["seed"] = self.seed
        return values

    @classmethod
    def from_config(cls, config: Mapping[str, object]) -> Assignment:
        """Rebuild an assignment from the values of :meth:`to_config`.

        Raises
        ------
        InvalidInputError
            If a key is missing or a value has the wrong type or range.
        """
        try:
            partitions = config["partitions"]
            coefficients = config["coefficients"]
            if not isinstance(partitions, Sequence) or not isinstance(
                coefficients, Sequence
            ):
                raise TypeError("partitions and coefficients must be lists")
            return cls(
                partitions=tuple(int(p) for p in partitions),
                coefficients=tuple(float(c) for c in coefficients),
                num_partitions=int(config["num-partitions"]),  # type: ignore[call-overload]
                server_round=int(config["server-round"]),  # type: ignore[call-overload]
                seed=int(config["seed"]) if "seed" in config else None,  # type: ignore[call-overload]
                stage=int(config["stage"]),  # type: ignore[call-overload]
                virtual=bool(config["virtual"]),
                weighted_by_key=str(config["weighted-by-key"]),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise InvalidInputError(
                f"The record '{ASSIGNMENT_KEY}' of a train message is malformed: "
                f"{error!r}. Use the same flower-ext version on server and clients."
            ) from error
