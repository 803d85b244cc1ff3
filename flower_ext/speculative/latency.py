"""Latencies as counts in fixed buckets, so that quantiles of many nodes can be had.

Quantiles of different nodes cannot be averaged into that of all; counts in the same
buckets can be added.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Sequence
from dataclasses import dataclass

from flower_ext.errors import InvalidInputError

__all__ = ["BUCKET_EDGES", "NUM_BUCKETS", "LatencyHistogram"]

_PER_DECADE = 20

BUCKET_EDGES: tuple[float, ...] = tuple(10 ** (k / _PER_DECADE) for k in range(-80, 81))
"""Seconds, from 0.0001 to 10000, twenty per decade."""

NUM_BUCKETS = len(BUCKET_EDGES) + 1
"""One below the first edge, one between each two, one from the last edge on."""


@dataclass(frozen=True)
class LatencyHistogram:
    """How often which latency occurred.

    Parameters
    ----------
    counts : tuple[int, ...] (default: zeros)
        One per bucket; bucket i holds what is at least edge i − 1 and below edge i.

    Raises
    ------
    InvalidInputError
        If there are not 162 counts, or one is negative.

    Examples
    --------
    >>> both = LatencyHistogram.of([0.1, 0.1]) + LatencyHistogram.of([10.0])
    >>> round(both.quantile(0.5), 3), round(both.quantile(0.95), 1)
    (0.106, 10.6)
    """

    counts: tuple[int, ...] = (0,) * NUM_BUCKETS

    def __post_init__(self) -> None:
        """Check the counts."""
        if len(self.counts) != NUM_BUCKETS or any(
            isinstance(c, bool) or not isinstance(c, int) or c < 0 for c in self.counts
        ):
            raise InvalidInputError(
                f"A latency histogram has {NUM_BUCKETS} counts of at least 0, got "
                f"{len(self.counts)}: {self.counts}."
            )

    @classmethod
    def of(cls, seconds: Sequence[float], times: int = 1) -> LatencyHistogram:
        """Return the histogram of some latencies.

        Parameters
        ----------
        seconds : Sequence[float]
            Each at least 0.
        times : int (default: 1)
            How often each of them is counted.
        """
        counts = [0] * NUM_BUCKETS
        for value in seconds:
            if not value >= 0:
                raise InvalidInputError(f"A latency must be at least 0 s, got {value}.")
            counts[bisect.bisect_right(BUCKET_EDGES, value)] += times
        return cls(tuple(counts))

    @property
    def total(self) -> int:
        """How many latencies it counts."""
        return sum(self.counts)

    def __add__(self, other: LatencyHistogram) -> LatencyHistogram:
        """Count what either counts."""
        pairs = zip(self.counts, other.counts, strict=True)
        return LatencyHistogram(tuple(a + b for a, b in pairs))

    def quantile(self, share: float) -> float:
        """Return the latency that this share of all does not exceed.

        Parameters
        ----------
        share : float
            In [0, 1].

        Returns
        -------
        float
            Seconds: the geometric middle of the bucket that it lies in, which is within
            6 % of it; the outermost edge where it lies beyond; nan of nothing.

        Raises
        ------
        InvalidInputError
            If the share is out of range.
        """
        if not 0 <= share <= 1:
            raise InvalidInputError(f"share must lie in [0, 1], got {share}.")
        rank = max(1, math.ceil(share * self.total))
        seen = 0
        for bucket, count in enumerate(self.counts):
            seen += count
            if seen >= rank:
                last = len(BUCKET_EDGES) - 1
                low = BUCKET_EDGES[max(bucket - 1, 0)]
                return math.sqrt(low * BUCKET_EDGES[min(bucket, last)])
        return math.nan
