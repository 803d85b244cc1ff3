"""What the app trains: a change in closed form, of the round, the partition and W."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["PARTITIONS", "change", "examples", "initial"]

PARTITIONS = 8

Model = dict[str, NDArray[np.float64]]


def initial() -> Model:
    """Return the arrays that a run begins with."""
    return {
        "weights": np.linspace(-1.0, 1.0, 12).reshape(4, 3),
        "bias": np.linspace(0.5, 1.5, 3),
    }


def examples(partition: int) -> int:
    """Return how many examples a partition has; each has another number."""
    return 10 + 3 * partition


def change(
    server_round: int, partition: int, name: str, array: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return what training on a partition adds to an array.

    It depends on the array, so that an error in one round shows in all that follow.
    """
    phase = 1.7 * partition + 0.3 * server_round + len(name)
    return 0.4 * np.sin(1.3 * array + phase) + 0.05 * (partition + 1) / server_round
