"""How many tokens to draft: a fixed number, or as many as pay."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from flower_ext.errors import InvalidInputError
from flower_ext.speculative.checks import LONGEST_DRAFT

__all__ = ["Adaptive", "DraftLength", "Fixed", "RoundTimes", "as_draft_length"]


@dataclass(frozen=True)
class RoundTimes:
    """What a round was measured at.

    Parameters
    ----------
    drafted : int
        Tokens that were sent.
    accepted : int
        Of them, from the first on.
    draft_seconds : float
        What drafting one token took.
    verdict_seconds : float
        From sending the draft to having the verdict.
    """

    drafted: int
    accepted: int
    draft_seconds: float
    verdict_seconds: float


class DraftLength(Protocol):
    """Anything that says how many tokens to draft."""

    def choose(self, ahead: bool) -> int:
        """Return the next draft's length, at least 1.

        Parameters
        ----------
        ahead : bool
            Whether the device goes on drafting while the verdict is in flight.
        """
        ...

    def observe(self, times: RoundTimes) -> None:
        """Take in what a round was measured at."""
        ...


@dataclass(frozen=True)
class Fixed:
    """Always the same length.

    Parameters
    ----------
    length : int
        From 1 to 256; 3 to 8 for most pairs.
    """

    length: int

    def __post_init__(self) -> None:
        """Check the length."""
        if not 1 <= self.length <= LONGEST_DRAFT:
            raise InvalidInputError(
                f"draft_length must lie in [1, {LONGEST_DRAFT}], got {self.length}."
            )

    def choose(self, ahead: bool) -> int:
        """Return the length."""
        del ahead
        return self.length

    def observe(self, times: RoundTimes) -> None:
        """Learn nothing."""


class Adaptive:
    """The length with the most expected tokens per second, as measured so far.

    With acceptance α, draft time d and verdict time L(γ) = a + bγ, a round yields
    (1 − α^(γ+1)) / (1 − α) tokens in γd + L(γ) seconds. Drafting ahead, it yields
    (1 − α^γ) / (1 − α), and drafts within L(γ) as far as the last draft was accepted as
    a whole, which it is with probability α^γ. All four are averages that forget.

    One object may serve many prompts, and learns from all of them. The length depends
    on measured time, so a seed gives the same law, but not the same tokens every time.

    Parameters
    ----------
    maximum : int (default: 16)
        The longest draft, from 1 to 256.
    initial : int (default: 4)
        The length of the first draft, from 1 to ``maximum``.
    memory : float (default: 0.9)
        What a round's weight is multiplied by with every further round, in (0, 1);
        0.8 to 0.98.

    Raises
    ------
    InvalidInputError
        If a parameter is out of range.
    """

    def __init__(
        self, maximum: int = 16, initial: int = 4, memory: float = 0.9
    ) -> None:
        if not 1 <= maximum <= LONGEST_DRAFT:
            raise InvalidInputError(
                f"maximum must lie in [1, {LONGEST_DRAFT}], got {maximum}."
            )
        if not 1 <= initial <= maximum:
            raise InvalidInputError(
                f"initial must lie in [1, {maximum}], the maximum, got {initial}."
            )
        if not 0 < memory < 1:
            raise InvalidInputError(f"memory must lie in (0, 1), got {memory}.")
        self._maximum = maximum
        self._initial = initial
        self._memory = memory
        # Two rounds' worth of belief in an acceptance of 0.8.
        self._accepted, self._examined = 1.6, 2.0
        self._weight = 0.0
        self._sums = [0.0] * 5  # of d, γ, γ², L and γL

    @property
    def acceptance(self) -> float:
        """The estimate of α, in (0, 1)."""
        return self._accepted / self._examined

    def choose(self, ahead: bool) -> int:
        """Return the length of the highest expected rate."""
        if not self._weight:
            return self._initial
        lengths = range(1, self._maximum + 1)
        return max(lengths, key=lambda length: self._rate(length, ahead))

    def observe(self, times: RoundTimes) -> None:
        """Take in what a round was measured at."""
        keep, drafted, latency = self._memory, times.drafted, times.verdict_seconds
        rejected = times.accepted < drafted
        self._accepted = keep * self._accepted + times.accepted
        self._examined = keep * self._examined + times.accepted + rejected
        self._weight = keep * self._weight + 1
        seen = (times.draft_seconds, drafted, drafted**2, latency, drafted * latency)
        self._sums = [keep * a + b for a, b in zip(self._sums, seen, strict=True)]

    def _rate(self, length: int, ahead: bool) -> float:
        """Return the expected tokens per second of drafts of that length."""
        draft = self._sums[0] / self._weight * length
        latency = self._latency(length)
        # Never 1, where the sums below would not be told by their closed form.
        alpha = min(self.acceptance, 1 - 1e-9)
        all_accepted = alpha**length
        if not ahead:
            tokens = (1 - alpha * all_accepted) / (1 - alpha)
            return tokens / max(draft + latency, 1e-9)
        tokens = (1 - all_accepted) / (1 - alpha)
        left = max(0.0, draft - latency)
        seconds = latency + all_accepted * left + (1 - all_accepted) * draft
        return tokens / max(seconds, 1e-9)

    def _latency(self, length: int) -> float:
        """Return L at a length, by least squares; level until lengths have varied."""
        mean = [value / self._weight for value in self._sums]
        _, drafted, squares, latency, products = mean
        variance = squares - drafted**2
        slope = 0.0
        if variance > 0.05:
            slope = max(0.0, (products - drafted * latency) / variance)
        return max(0.0, latency + slope * (length - drafted))


def as_draft_length(length: int | DraftLength) -> DraftLength:
    """Return a number of tokens as a :class:`DraftLength`; pass others on."""
    if isinstance(length, int):
        return Fixed(length)
    return length
