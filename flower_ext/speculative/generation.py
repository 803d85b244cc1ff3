"""What speculative decoding returns: the tokens, and what they took."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["FinishReason", "Generation"]

FinishReason = Literal["length", "eos", "stop-string"]


@dataclass(frozen=True)
class Generation:
    """A generated text and its statistics.

    Parameters
    ----------
    tokens : tuple[int, ...]
        The generated ids, without the prompt; the last one ends the text if
        ``finish_reason`` says so.
    finish_reason : str
        ``"length"``, ``"eos"`` or ``"stop-string"``.
    rounds : int
        Drafts that the verifier answered.
    drafted : int
        Tokens in them.
    examined : int
        Of them, those that the verifier came to: the accepted and, per round with a
        rejection, one.
    accepted : int
        Of them, those accepted.
    drafted_ahead : int
        Tokens drafted while a verdict was in flight.
    discarded : int
        Of these, those thrown away because of it.
    questions : int
        Round trips beyond one a round (none of the candidates was kept).
    fallback_tokens : int
        Tokens at the end that the small model alone has chosen, as the edge stayed
        away: they follow the drafter's law, not the target's.
    opening_bytes, uplink_bytes, downlink_bytes : int
        What was sent, opening included in the uplink.
    drafting_seconds : float
        The device's computation.
    verification_seconds : float
        The edge's.
    transmission_seconds : float
        Messages in flight, both ways together. Drafting ahead overlaps with this and
        with verification.
    seconds : float
        From the opening to the last token.
    reconnections : int
        How often the connection was lost and made again.
    """

    tokens: tuple[int, ...]
    finish_reason: FinishReason
    rounds: int
    drafted: int
    examined: int
    accepted: int
    drafted_ahead: int
    discarded: int
    questions: int
    fallback_tokens: int
    opening_bytes: int
    uplink_bytes: int
    downlink_bytes: int
    drafting_seconds: float
    verification_seconds: float
    transmission_seconds: float
    seconds: float
    reconnections: int

    @property
    def acceptance_rate(self) -> float:
        """Accepted of examined: an estimate of 1 − E[TV(P, Q)]; nan if none was."""
        return self.accepted / self.examined if self.examined else float("nan")

    @property
    def tokens_per_round(self) -> float:
        """Tokens confirmed per verdict, those of the fallback left out; nan if none."""
        confirmed = len(self.tokens) - self.fallback_tokens
        return confirmed / self.rounds if self.rounds else float("nan")

    @property
    def tokens_per_second(self) -> float:
        """Generated tokens per second; nan if none took any time."""
        return len(self.tokens) / self.seconds if self.seconds else float("nan")
