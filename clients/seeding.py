"""Seeding of a partition's training, so that its result has no owner.

A coded round takes the change ``delta_k`` from whichever worker has it, so it must not
depend on who computed it. Before each partition Python, NumPy and torch are seeded
from (run seed, round, partition).
"""

from __future__ import annotations

import random

import numpy as np

from flower_ext.errors import InvalidInputError

__all__ = ["seed_partition"]


def seed_partition(seed: int, server_round: int, partition: int) -> None:
    """Seed the global generators of Python, NumPy and, where installed, torch.

    ``torch.manual_seed`` covers every device. The three libraries get different words
    of one ``numpy.random.SeedSequence``. Nodes that share a process (threads) share
    the generators, so the guarantee holds for nodes in processes of their own, as in
    Flower's deployment and simulation engines.

    Parameters
    ----------
    seed : int
        The run seed, at least 0.
    server_round : int
        The round, at least 0.
    partition : int
        The partition, at least 0.

    Raises
    ------
    InvalidInputError
        If a number is negative.

    Examples
    --------
    >>> seed_partition(seed=1, server_round=2, partition=3)
    >>> first = random.random()
    >>> seed_partition(seed=1, server_round=2, partition=3)
    >>> random.random() == first
    True
    """
    if min(seed, server_round, partition) < 0:
        raise InvalidInputError(
            "The run seed, the round and the partition must be at least 0, got "
            f"{seed}, {server_round} and {partition}."
        )
    sequence = np.random.SeedSequence((seed, server_round, partition))
    for_python, for_torch = (int(w) for w in sequence.generate_state(2, np.uint64))
    random.seed(for_python)
    # User code draws from NumPy's global generator, so that is the one to seed.
    np.random.seed(sequence.spawn(1)[0].generate_state(4))  # noqa: NPY002
    try:
        # Imported here because it takes seconds, which a node that only answers a
        # holdings request should not spend.
        import torch  # noqa: PLC0415
    except ImportError:
        return
    torch.manual_seed(for_torch)
