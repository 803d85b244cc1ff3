"""When a round will decode, estimated over resampled completion times.

Scenarios are arrays whose first axis runs over draws of the delays from the history, so
that an expectation is a mean over that axis.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

__all__ = ["completion_if_stopped"]

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


def completion_if_stopped(
    stops: Sequence[float],
    arrivals: Floats,
    loads: Ints,
    pending: Ints,
    seconds: Floats,
    overhead: Floats,
) -> tuple[Floats, Floats]:
    """Return when the round decodes if stage one is stopped at given times.

    What has not arrived by then is spread uncoded over the workers that are idle by
    then, by their expected speed; late replies of stage one still count.

    Parameters
    ----------
    stops : Sequence[float]
        Candidates for T₁, seconds since the round began; inf never stops.
    arrivals : ndarray of shape (scenarios, jobs)
        When each outstanding job of stage one arrives; inf if it never does.
    loads : ndarray of shape (jobs,)
        Partitions of each job.
    pending : ndarray of shape (workers,)
        For each worker the job it is busy with, or -1 when it is idle already.
    seconds, overhead : ndarray of shape (scenarios, workers)
        Times of a second job.

    Returns
    -------
    tuple[ndarray, ndarray]
        Completion times and numbers of partitions sent again, both of shape
        (stops, scenarios).
    """
    units = 2 + 2 * int(loads.sum()) // max(len(pending), 1)
    counts = np.arange(1, units + 1)
    expected = overhead.mean(0)[:, None] + seconds.mean(0)[:, None] * counts
    worker, count = np.divmod(np.argsort(expected, axis=None), units)
    everything = arrivals.max(axis=1)
    completion = np.empty((len(stops), len(arrivals)))
    again = np.zeros((len(stops), len(arrivals)))
    for i, stop in enumerate(stops):
        late = arrivals > stop
        missing = late @ loads
        free = np.where(pending < 0, True, ~late[:, pending])
        ever = np.asarray(free.any(axis=0))
        useful = np.flatnonzero(ever[worker])
        # So many of the earliest units are enough, but for an odd scenario.
        share = free.sum() / max(ever.sum() * len(free), 1)
        wanted = 1.5 * missing.max(initial=0) / max(share, 1e-3)
        useful = useful[: int(wanted) + 2 * units]
        who = worker[useful]
        idle = free[:, who]
        done = overhead[:, who] + seconds[:, who] * (count[useful] + 1)
        chosen = idle & (np.cumsum(idle, axis=1) <= missing[:, None])
        found = chosen.sum(axis=1)
        last = np.where(chosen, done, 0.0).max(axis=1, initial=0.0)
        with np.errstate(divide="ignore", invalid="ignore"):  # nobody idle: never
            stretch = np.where(found < missing, missing / found, 1.0)
            redone = np.where(missing > 0, stop + last * stretch, stop)
        redone[(found == 0) & (missing > 0)] = np.inf
        completion[i] = np.where(
            missing > 0, np.minimum(everything, redone), everything
        )
        again[i] = missing
    return completion, again
