"""Random draws by key: functions of a seed and a key, whatever was drawn before.

No generator is shared, so the order of the calls changes nothing and a run can be
repeated. :class:`SlotSeries` is a function of time whose slots are drawn so.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from flower_ext.errors import InvalidInputError

__all__ = ["SlotSeries", "check_seed", "check_span", "deal", "keyed_generator"]

Floats = NDArray[np.float64]

_BLOCK = 512  # Slots drawn at a time.
_KEPT_BLOCKS = 4  # Simulated time mostly moves on: older blocks are drawn again.


def keyed_generator(seed: int, *key: int) -> np.random.Generator:
    """Return a generator that is a function of the seed and the key alone."""
    sequence = np.random.SeedSequence(seed, spawn_key=key)
    return np.random.Generator(np.random.PCG64(sequence))


def check_seed(seed: int) -> None:
    """Raise :class:`InvalidInputError` unless ``seed`` can key the draws."""
    if seed < 0:
        raise InvalidInputError(f"seed must be at least 0, got {seed}.")


def check_span(start: float, end: float) -> None:
    """Raise :class:`InvalidInputError` unless 0 <= start <= end, both finite."""
    if not 0 <= start <= end < np.inf:
        raise InvalidInputError(
            "A span of time must have 0 <= start <= end, in finite seconds, got "
            f"start {start} and end {end}."
        )


def deal(available: int, count: int, generator: np.random.Generator) -> list[int]:
    """Deal ``count`` of the numbers below ``available``, distinct while they last.

    Parameters
    ----------
    available : int
        How many there are to deal, at least 1; shuffled anew after the last.
    count : int
        How many to deal, at least 0.
    generator : numpy.random.Generator
        Shuffles.

    Returns
    -------
    list[int]
        The numbers, each in [0, available).

    Raises
    ------
    InvalidInputError
        If ``count`` is negative.
    """
    if count < 0:
        raise InvalidInputError(f"count must be at least 0, got {count}.")
    dealt: list[int] = []
    while len(dealt) < count:
        dealt += generator.permutation(available).tolist()
    return dealt[:count]


@dataclass(frozen=True)
class SlotSeries:
    """A function of time, constant in each slot, drawn anew and without end.

    Parameters
    ----------
    slot_seconds : float
        Seconds per slot, finite and above 0. Slot k is [k, k + 1) slots from time 0.
    draw : Callable[[numpy.random.Generator, int], Floats]
        Draws that many values, each finite and at least 0.
    seed : int
        Keys the draws, at least 0.
    purpose : int
        Keys them too: series of other purposes are independent of this one.
    """

    slot_seconds: float
    draw: Callable[[np.random.Generator, int], Floats]
    seed: int
    purpose: int
    _blocks: dict[int, tuple[Floats, Floats]] = field(
        init=False, repr=False, compare=False, default_factory=dict
    )

    def at(self, t: float) -> float:
        """Return the value at time ``t``, in seconds, at least 0."""
        number, slot = self._place(t)
        return float(self._block(number)[0][int(slot)])

    def between(self, start: float, end: float) -> float:
        """Return the exact integral over [start, end], in the value's unit times s."""
        first, begin = self._place(start)
        last, stop = self._place(end)
        whole = sum(self._block(number)[1][-1] for number in range(first, last))
        return float(whole + self._up_to(last, stop) - self._up_to(first, begin))

    def seconds_for(self, amount: float, at: float) -> float:
        """Return the least seconds in which the integral from ``at`` is ``amount``."""
        if amount == 0:
            return 0.0
        number, begin = self._place(at)
        need = amount + self._up_to(number, begin)
        slots = -begin
        values, totals = self._block(number)
        while need > totals[-1]:
            need -= float(totals[-1])
            slots += _BLOCK
            number += 1
            values, totals = self._block(number)
        slot = int(totals.searchsorted(need)) - 1
        part = (need - float(totals[slot])) / (float(values[slot]) * self.slot_seconds)
        return max(0.0, (slots + slot + part) * self.slot_seconds)

    def _place(self, t: float) -> tuple[int, float]:
        """Return the block of time ``t`` and the slots that have passed in it."""
        check_span(t, t)
        slots = t / self.slot_seconds
        number = int(slots // _BLOCK)
        return number, slots - number * _BLOCK

    def _up_to(self, number: int, slots: float) -> float:
        """Integrate from the start of a block over that many slots."""
        values, totals = self._block(number)
        whole = int(slots)
        part = (slots - whole) * self.slot_seconds
        return float(totals[whole] + part * values[whole])

    def _block(self, number: int) -> tuple[Floats, Floats]:
        """Return the values of a block and their running integral from 0."""
        block = self._blocks.get(number)
        if block is None:
            generator = keyed_generator(self.seed, self.purpose, number)
            values = self.draw(generator, _BLOCK)
            totals = np.append(0.0, np.cumsum(values)) * self.slot_seconds
            block = values, totals
            if len(self._blocks) >= _KEPT_BLOCKS:
                del self._blocks[next(iter(self._blocks))]
            self._blocks[number] = block
        return block
