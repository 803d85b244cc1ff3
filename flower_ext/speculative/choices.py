"""Random choices that are functions of (seed, position, purpose), and of nothing else.

Device and edge draw from the same keyed source, so that a message that is sent twice,
a session that is rebuilt and a draft that is thrown away change no token. The bits come
from Philox (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011).
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from flower_ext.errors import InvalidInputError
from flower_ext.speculative.sampling import Probabilities

__all__ = ["Choices", "KeyedChoices", "Purpose"]

_BLOCK = 4  # Philox gives four words per counter.


class Purpose(IntEnum):
    """What a choice is for; choices of different purposes are independent."""

    DRAFT = 1
    ACCEPT = 2
    BONUS = 3
    RESIDUAL = 4
    CANDIDATE = 5
    KEEP = 6


class Choices(Protocol):
    """Anything that makes the random choices of a generation."""

    def draw(self, weights: Probabilities, position: int, purpose: Purpose) -> int:
        """Draw an index with probability in proportion to its weight.

        Parameters
        ----------
        weights : numpy.ndarray
            Of shape [vocabulary], at least 0, not all 0.
        position : int
            The token's place in the generated text, from 0.
        purpose : Purpose
            What the draw is for.

        Returns
        -------
        int
            An index with a weight above 0.
        """
        ...

    def draws(
        self, weights: Probabilities, position: int, first: int, count: int
    ) -> list[int]:
        """Draw candidates number ``first`` to ``first + count - 1``, independently.

        The other parameters are those of :meth:`draw`.
        """
        ...

    def happens(
        self, probability: float, position: int, purpose: Purpose, index: int = 0
    ) -> bool:
        """Return True with that probability (all of it from 1 on)."""
        ...


class KeyedChoices:
    """Choices keyed by (seed, position, purpose, index).

    Parameters
    ----------
    seed : int
        In [0, 2**64).

    Raises
    ------
    InvalidInputError
        If the seed is out of range.

    Examples
    --------
    >>> fair = np.array([0.5, 0.5], dtype=np.float32)
    >>> KeyedChoices(7).draw(fair, 3, Purpose.DRAFT) == KeyedChoices(7).draw(
    ...     fair, 3, Purpose.DRAFT
    ... )
    True
    """

    def __init__(self, seed: int) -> None:
        if not 0 <= seed < 2**64:
            raise InvalidInputError(f"seed must lie in [0, 2**64), got {seed}.")
        self.seed = seed
        self._bits = np.random.Philox(key=0)  # The key is set with every counter.
        self._state: Any = self._bits.state

    def draw(self, weights: Probabilities, position: int, purpose: Purpose) -> int:
        """Draw an index, as :meth:`Choices.draw`."""
        return _invert(weights, self._uniforms(position, purpose, 0, 1))[0]

    def draws(
        self, weights: Probabilities, position: int, first: int, count: int
    ) -> list[int]:
        """Draw candidates, as :meth:`Choices.draws`."""
        uniforms = self._uniforms(position, Purpose.CANDIDATE, first, count)
        return _invert(weights, uniforms)

    def happens(
        self, probability: float, position: int, purpose: Purpose, index: int = 0
    ) -> bool:
        """Return True with that probability, as :meth:`Choices.happens`."""
        return bool(self._uniforms(position, purpose, index, 1)[0] < probability)

    def _uniforms(
        self, position: int, purpose: Purpose, first: int, count: int
    ) -> NDArray[np.float64]:
        """Return uniforms in [0, 1) by their key."""
        block, skipped = divmod(first, _BLOCK)
        state = self._state
        state["state"] = {
            "counter": np.array([block, position, purpose, 0], dtype=np.uint64),
            "key": np.array([self.seed, 0], dtype=np.uint64),
        }
        state["buffer_pos"] = _BLOCK
        self._bits.state = state
        words = np.asarray(self._bits.random_raw(skipped + count))[skipped:]
        return np.asarray((words >> np.uint64(11)) * 2.0**-53, dtype=np.float64)


def _invert(weights: Probabilities, uniforms: Sequence[float] | Any) -> list[int]:
    """Return the indices at which the weights' running sum passes the uniforms."""
    totals = np.cumsum(weights, dtype=np.float64)
    # The right side skips indices of weight 0; a product rounded up to the total does
    # not fall off the end, nor on an index of weight 0 there.
    targets = np.minimum(uniforms * totals[-1], np.nextafter(totals[-1], 0))
    found: list[int] = np.searchsorted(totals, targets, side="right").tolist()
    return found
