"""Which partitions a node holds: declared, never assumed.

A coded strategy assigns a worker partitions beyond its own, which is only sound for
data that the worker can load. A node therefore holds its own ``partition-id`` alone
unless its app or its node-config declares more, and says so when the strategy asks.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal, SupportsIndex

from flwr.app import ConfigRecord, Context

from flower_ext.clients.configs import own_partition
from flower_ext.errors import InvalidInputError

__all__ = ["Declaration", "Holdings", "PartitionSpec", "parse_partitions"]

PartitionSpec = str | SupportsIndex | Iterable[SupportsIndex]
"""``"all"``, ``"0-3,7"``, one partition, or several."""

Declaration = PartitionSpec | Callable[[Context], PartitionSpec]
"""Partitions, or a function of the context that returns them."""


def parse_partitions(spec: PartitionSpec) -> tuple[int, ...] | Literal["all"]:
    """Return the partitions that ``spec`` names.

    Parameters
    ----------
    spec : str | int | Iterable[int]
        ``"all"``; partitions and inclusive ranges, separated by commas; one partition;
        or an iterable of partitions. Partitions are at least 0.

    Returns
    -------
    tuple[int, ...] | Literal["all"]
        Distinct partitions in ascending order, or ``"all"``.

    Raises
    ------
    InvalidInputError
        If ``spec`` names no partition numbers, or a range runs backwards.

    Examples
    --------
    >>> parse_partitions("0-3,7")
    (0, 1, 2, 3, 7)
    >>> parse_partitions([5, 2])
    (2, 5)
    """
    found: list[SupportsIndex]
    if isinstance(spec, str):
        if spec.strip() == "all":
            return "all"
        found = [p for part in spec.split(",") for p in _parse_part(part, spec)]
    elif isinstance(spec, Iterable):
        found = list(spec)
    else:
        found = [spec]
    if any(isinstance(p, bool) or not hasattr(p, "__index__") for p in found):
        raise _invalid(spec)
    partitions = {operator.index(p) for p in found}
    if any(p < 0 for p in partitions):
        raise _invalid(spec)
    return tuple(sorted(partitions))


def _parse_part(part: str, spec: str) -> range:
    """Return the partitions of ``"7"`` or ``"0-3"``."""
    first, dash, last = part.strip().partition("-")
    try:
        start = int(first)
        stop = int(last) if dash else start
    except ValueError:
        raise _invalid(spec) from None
    if stop < start:
        raise _invalid(spec)
    return range(start, stop + 1)


def _invalid(spec: object) -> InvalidInputError:
    """Return the error for partitions that cannot be read."""
    return InvalidInputError(
        f"Partitions must be 'all', a string such as '0-3,7', or ints of at least 0, "
        f"got {spec!r}."
    )


@dataclass(frozen=True)
class Holdings:
    """The partitions that a node holds.

    Parameters
    ----------
    partitions : tuple[int, ...]
        The partitions, ascending; every partition of the federation where ``holds_all``
        and their number is known.
    holds_all : bool
        Whether the node declares ``"all"``.
    num_partitions : int
        Number of partitions in the federation, or 0 if the node does not know.
    worker : int
        The node's own partition, or -1 if it has none.
    """

    partitions: tuple[int, ...]
    holds_all: bool
    num_partitions: int
    worker: int

    @classmethod
    def of(
        cls, declared: Declaration | None, context: Context, num_partitions: object
    ) -> Holdings:
        """Find out what a node holds.

        Parameters
        ----------
        declared : Declaration | None
            What the app declares; None leaves it to the node-config's ``partitions``,
            and without that the node holds its own ``partition-id`` alone.
        context : Context
            The node's context.
        num_partitions : object
            What the strategy says is the number of partitions, which goes before the
            node-config's ``num-partitions``; None if it says nothing.

        Returns
        -------
        Holdings
            What the node holds; nothing if no partition is declared anywhere.

        Raises
        ------
        InvalidInputError
            If partitions or their number cannot be read.
        """
        if num_partitions is None:
            num_partitions = context.node_config.get("num-partitions", 0)
        if type(num_partitions) is not int or num_partitions < 0:
            raise InvalidInputError(
                f"'num-partitions' must be an int of at least 0, "
                f"got {num_partitions!r}."
            )
        own = own_partition(context)
        spec = declared(context) if callable(declared) else declared
        if spec is None:
            node_spec = context.node_config.get("partitions")
            if isinstance(node_spec, bool | float):
                raise _invalid(node_spec)
            spec = node_spec
        if spec is None:
            spec = () if own is None else (own,)
        found = parse_partitions(spec)
        return cls(
            partitions=tuple(range(num_partitions)) if found == "all" else found,
            holds_all=found == "all",
            num_partitions=num_partitions,
            worker=-1 if own is None else own,
        )

    def require(self, partitions: Iterable[int]) -> None:
        """Check that the node holds what it is asked to train on.

        Parameters
        ----------
        partitions : Iterable[int]
            The assigned partitions.

        Raises
        ------
        InvalidInputError
            If the node does not hold one of them.
        """
        missing = sorted(set(partitions) - set(self.partitions))
        if missing and not self.holds_all:
            raise InvalidInputError(
                f"This node was assigned partitions {missing}, which it does not hold; "
                f"it holds {list(self.partitions)}. Declare what it can load by "
                "CodedClientApp(partitions=...) or the node-config's 'partitions', or "
                "take the partitions off the strategy's plan."
            )

    def to_record(self) -> ConfigRecord:
        """Return the answer to a holdings request."""
        return ConfigRecord(
            {
                "partitions": list(self.partitions),
                "all": self.holds_all,
                "num-partitions": self.num_partitions,
                "worker": self.worker,
            }
        )
