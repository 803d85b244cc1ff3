"""How many tokens to draft: a fixed number, or as many as pay."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from flower_ext.errors import InvalidInputError
from flower_ext.speculative.checks import LONGEST_DRAFT

__all__ = [
    "Adaptive",
    "DraftLength",
    "Fixed",
    "Lengths",
    "RoundTimes",
    "as_draft_length",
]


Floats = NDArray[np.float64]


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


class Lengths(NamedTuple):
    """How many tokens to draft.

    Parameters
    ----------
    waited : int
        Before a draft is sent, while the edge has nothing to do; at least 1.
    in_flight : int
        At most, while a verdict is in flight, at least 1.
    """

    waited: int
    in_flight: int


class DraftLength(Protocol):
    """Anything that says how many tokens to draft."""

    def choose(self, ahead: bool) -> Lengths:
        """Return the next draft's length.

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
    in_flight : int | None (default: None)
        The most tokens that are drafted while a verdict is in flight, from 1 to 256;
        None: twice the length, as nobody waits for them.

    Raises
    ------
    InvalidInputError
        If one of them is out of range.
    """

    length: int
    in_flight: int | None = None

    def __post_init__(self) -> None:
        """Check both."""
        for name, value in (
            ("draft_length", self.length),
            ("in_flight", self.in_flight),
        ):
            if value is not None and not 1 <= value <= LONGEST_DRAFT:
                raise InvalidInputError(
                    f"{name} must lie in [1, {LONGEST_DRAFT}], got {value}."
                )

    def choose(self, ahead: bool) -> Lengths:
        """Return the length."""
        del ahead
        return Lengths(
            self.length, self.in_flight or min(2 * self.length, LONGEST_DRAFT)
        )

    def observe(self, times: RoundTimes) -> None:
        """Learn nothing."""


class Adaptive:
    """The lengths with the most expected tokens per second, as measured so far.

    With acceptance α, draft time d and verdict time L(γ) = a + bγ, a round yields
    (1 − α^(γ+1)) / (1 − α) tokens in γd + L(γ) seconds. Drafting ahead, it yields
    (1 − α^γ) / (1 − α) without the bonus token; after a draft that is accepted as a
    whole, which it is with probability α^γ, the next one is there already, as far as
    L/d tokens go, and after another it has to be waited for: a chain of two states. All
    four numbers are averages that forget.

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

    def choose(self, ahead: bool) -> Lengths:
        """Return the lengths of the highest expected rate."""
        if not self._weight:
            return Lengths(self._initial, self._maximum)
        rates = self._rates_ahead() if ahead else self._rates()[:, None]
        waited, in_flight = np.unravel_index(int(rates.argmax()), rates.shape)
        return Lengths(int(waited) + 1, int(in_flight) + 1)

    def observe(self, times: RoundTimes) -> None:
        """Take in what a round was measured at."""
        keep, drafted, latency = self._memory, times.drafted, times.verdict_seconds
        rejected = times.accepted < drafted
        self._accepted = keep * self._accepted + times.accepted
        self._examined = keep * self._examined + times.accepted + rejected
        self._weight = keep * self._weight + 1
        seen = (times.draft_seconds, drafted, drafted**2, latency, drafted * latency)
        self._sums = [keep * a + b for a, b in zip(self._sums, seen, strict=True)]

    def _rates(self) -> Floats:
        """Return the expected tokens per second of drafts of every length."""
        lengths, alpha = self._lengths(), self._alpha()
        tokens = (1 - alpha ** (lengths + 1)) / (1 - alpha)
        seconds = self._draft_seconds() * lengths + self._latency(lengths)
        return np.asarray(tokens / np.maximum(seconds, 1e-9))

    def _rates_ahead(self) -> Floats:
        """Return those of drafting ahead, by length waited for and in flight."""
        alpha, draft = self._alpha(), self._draft_seconds()
        waited = self._lengths()[:, None]
        most = self._lengths()[None, :]
        ready = np.minimum(most, self._latency(most) / draft)
        sent = np.maximum(ready, waited)
        all_waited, all_sent = alpha**waited, alpha**sent
        # How often a draft follows one that was accepted as a whole.
        after = all_waited / (1 - all_sent + all_waited)
        tokens = (1 - after) * (1 - all_waited) + after * (1 - all_sent)
        missing = np.maximum(waited - ready, 0)
        seconds = (1 - after) * (draft * waited + self._latency(waited)) + after * (
            draft * missing + self._latency(sent)
        )
        return np.asarray(tokens / np.maximum(seconds, 1e-9))

    def _lengths(self) -> Floats:
        """Return all lengths there are to choose from."""
        return np.arange(1.0, self._maximum + 1)

    def _alpha(self) -> float:
        """Return α, never 1, where the sums would not be told by their closed form."""
        return min(self.acceptance, 1 - 1e-9)

    def _draft_seconds(self) -> float:
        """Return d."""
        return max(self._sums[0] / self._weight, 1e-9)

    def _latency(self, lengths: Floats) -> Floats:
        """Return L at lengths, by least squares; level until they have varied."""
        mean = [value / self._weight for value in self._sums]
        _, drafted, squares, latency, products = mean
        variance = squares - drafted**2
        slope = 0.0
        if variance > 0.05:
            slope = max(0.0, (products - drafted * latency) / variance)
        return np.maximum(0.0, latency + slope * (lengths - drafted))


def as_draft_length(length: int | DraftLength) -> DraftLength:
    """Return a number of tokens as a :class:`DraftLength`; pass others on.

    Raises
    ------
    InvalidInputError
        If it is neither, or out of range.
    """
    if isinstance(length, int):
        return Fixed(length)
    if isinstance(length, type) or not hasattr(length, "choose"):
        raise InvalidInputError(
            "draft_length must be a number of tokens, Fixed(...) or Adaptive(), got "
            f"{length!r}."
        )
    return length
