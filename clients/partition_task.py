"""The partition that is being trained now, as mods under the coded mod see it.

Flower hands a mod the message and the context; which worker trains which partition,
and whether time is simulated, is known to the coded mod alone. It sets a
:class:`PartitionTask` around each call, and mods such as
:func:`flower_ext.clients.straggler_mod` read it and report simulated seconds to it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field

from flower_ext.network.delays import check_seconds

__all__ = ["PartitionTask", "current_partition_task", "partition_task"]

_CURRENT: ContextVar[PartitionTask | None] = ContextVar(
    "flower_ext_partition_task", default=None
)


@dataclass
class PartitionTask:
    """One call of the train function, for one partition.

    Parameters
    ----------
    server_round : int
        The round, or 0 where the message names none.
    partition : int
        The partition that is trained.
    worker : int
        The node's own partition-id, or its node id if it has none.
    seed : int
        The run seed.
    virtual : bool
        Whether time is simulated: delays are then reported, never slept.

    Attributes
    ----------
    compute_seconds : float | None
        Simulated seconds that mods reported for this partition; None before the first
        report.
    upload_seconds : float
        Simulated seconds that mods reported for the upload of the whole reply.
    """

    server_round: int
    partition: int
    worker: int
    seed: int
    virtual: bool
    compute_seconds: float | None = field(default=None, init=False)
    upload_seconds: float = field(default=0.0, init=False)

    def report_compute(self, seconds: float) -> None:
        """Add simulated seconds to this partition's computing.

        They count under a virtual clock only; on the wall clock a mod sleeps.

        Parameters
        ----------
        seconds : float
            Finite, at least 0.

        Raises
        ------
        InvalidInputError
            If ``seconds`` is out of range.
        """
        check_seconds("seconds", seconds)
        self.compute_seconds = (self.compute_seconds or 0.0) + seconds

    def report_upload(self, seconds: float) -> None:
        """Add simulated seconds to the upload of the reply.

        A reply is uploaded once for all of its partitions, so the coded mod takes the
        longest report among them; on the wall clock it sleeps that long, once.

        Parameters
        ----------
        seconds : float
            Finite, at least 0.

        Raises
        ------
        InvalidInputError
            If ``seconds`` is out of range.
        """
        check_seconds("seconds", seconds)
        self.upload_seconds += seconds


def current_partition_task() -> PartitionTask | None:
    """Return the partition that is being trained now.

    Returns
    -------
    PartitionTask | None
        None outside of a train message, and in an app without the coded mod.
    """
    return _CURRENT.get()


@contextmanager
def partition_task(task: PartitionTask) -> Iterator[None]:
    """Make ``task`` the current one within a ``with`` block.

    Parameters
    ----------
    task : PartitionTask
        The partition about to be trained.
    """
    token = _CURRENT.set(task)
    try:
        yield
    finally:
        _CURRENT.reset(token)
