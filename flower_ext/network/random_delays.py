"""Random delay models: stragglers whose draws are keyed, not sequential.

Every draw is a function of (seed, kind of draw, worker, round, partition) alone; no
generator is shared, so the order of the calls changes nothing and a run can be
repeated. All times are seconds.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from flower_ext.errors import InvalidInputError
from flower_ext.network.delays import DelayModel, SpeedProfile, check_seconds
from flower_ext.network.keyed import check_seed, keyed_generator

__all__ = ["BernoulliSlowdown", "ShiftedExponential"]

_COMPUTE_DRAW = 0
_SLOWDOWN_DRAW = 1


@dataclass(frozen=True)
class ShiftedExponential:
    """A least time plus an exponential one, independent for every partition.

    The usual model of a worker's completion time in coded computation: Lee et al.,
    "Speeding Up Distributed Machine Learning Using Codes" (arXiv:1512.02673).

    Parameters
    ----------
    shift : float
        The least seconds per partition, finite and at least 0.
    mean : float
        The mean of the exponential part in seconds, finite and at least 0. As large as
        ``shift`` makes mild stragglers, ten times as large severe ones.
    upload : float (default: 0.0)
        Seconds per upload, finite and at least 0.
    seed : int (default: 0)
        Keys the draws, at least 0.

    Raises
    ------
    InvalidInputError
        If a parameter is out of range.

    Examples
    --------
    >>> delays = ShiftedExponential(shift=2.0, mean=1.0, seed=3)
    >>> first = delays.compute_seconds(worker=0, server_round=1, partition=0)
    >>> first > 2.0, first == delays.compute_seconds(0, 1, 0)
    (True, True)
    """

    shift: float
    mean: float
    upload: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        """Check every field."""
        check_seconds("shift", self.shift)
        check_seconds("mean", self.mean)
        check_seconds("upload", self.upload)
        check_seed(self.seed)

    def compute_seconds(self, worker: int, server_round: int, partition: int) -> float:
        """Return ``shift`` plus a draw of mean ``mean``."""
        draw = _uniform(self.seed, _COMPUTE_DRAW, worker, server_round, partition)
        return self.shift - self.mean * math.log1p(-draw)

    def upload_seconds(self, worker: int, server_round: int) -> float:
        """Return the seconds per upload."""
        return self.upload


@dataclass(frozen=True)
class BernoulliSlowdown:
    """Workers that are stragglers in some rounds, for the whole round.

    Parameters
    ----------
    probability : float
        The probability that a worker is a straggler in a round, in [0, 1].
    slowdown : float
        Factor on a straggler's compute times, finite and at least 1; the straggler
        experiments of the literature use 2 to 10.
    base : DelayModel | float (default: 1.0)
        The delays of a worker that is no straggler: another model, or seconds per
        partition (finite, at least 0) with no time for the upload.
    seed : int (default: 0)
        Keys the draws, at least 0.

    Raises
    ------
    InvalidInputError
        If a parameter is out of range.

    Examples
    --------
    >>> delays = BernoulliSlowdown(probability=0.5, slowdown=10.0, base=2.0)
    >>> [delays.compute_seconds(0, server_round, 0) for server_round in range(1, 7)]
    [2.0, 20.0, 2.0, 2.0, 20.0, 20.0]
    """

    probability: float
    slowdown: float
    base: DelayModel | float = 1.0
    seed: int = 0
    _model: DelayModel = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Check every field."""
        if not 0 <= self.probability <= 1:
            raise InvalidInputError(
                f"probability must lie in [0, 1], got {self.probability}."
            )
        if not (math.isfinite(self.slowdown) and self.slowdown >= 1):
            raise InvalidInputError(
                f"slowdown must be finite and at least 1, got {self.slowdown}."
            )
        check_seed(self.seed)
        base = self.base
        model = SpeedProfile((base,)) if isinstance(base, int | float) else base
        object.__setattr__(self, "_model", model)

    def is_straggler(self, worker: int, server_round: int) -> bool:
        """Return whether ``worker`` is a straggler in the whole of ``server_round``."""
        draw = _uniform(self.seed, _SLOWDOWN_DRAW, worker, server_round)
        return draw < self.probability

    def compute_seconds(self, worker: int, server_round: int, partition: int) -> float:
        """Return the base model's seconds, times ``slowdown`` for a straggler."""
        seconds = self._model.compute_seconds(worker, server_round, partition)
        if self.is_straggler(worker, server_round):
            return self.slowdown * seconds
        return seconds

    def upload_seconds(self, worker: int, server_round: int) -> float:
        """Return the base model's seconds: only computing is slower."""
        return self._model.upload_seconds(worker, server_round)


def _uniform(seed: int, *key: int) -> float:
    """Draw from [0, 1) as a function of the seed and the key alone."""
    return float(keyed_generator(seed, *key).random())
