"""What speculative decoding returns: the tokens, and what they took."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from flower_ext.speculative.messages import Scored

__all__ = ["DraftVerdict", "FinishReason", "Generation", "TokenOrigin", "TracedToken"]

FinishReason = Literal["length", "eos", "stop-string"]

TokenOrigin = Literal["accepted", "rejected", "corrected", "bonus", "alone"]
"""Where a token comes from.

``"accepted"``: it was drafted, and the edge accepted it. ``"rejected"``: it was
drafted, and is not in the text. ``"corrected"``: it replaces a rejected one.
``"bonus"``: the target's own, after a draft that was accepted whole. ``"alone"``: the
drafter's own, as the edge stayed away.
"""


class DraftVerdict(NamedTuple):
    """A draft, and what became of it.

    Parameters
    ----------
    drafted : tuple[int, ...]
        The tokens that the verifier was sent.
    accepted : int
        How many of them it accepted.
    token : int | None
        What follows them: in place of the first rejected one, or after a draft that was
        accepted whole; None: nothing.
    """

    drafted: tuple[int, ...]
    accepted: int
    token: int | None


class TracedToken(NamedTuple):
    """A token, and where it comes from."""

    token: int
    origin: TokenOrigin


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
    verdicts : tuple[DraftVerdict, ...] (default: ())
        Every draft with its verdict, in order.
    score : Scored | None (default: None)
        What the target thinks of the text; None: it was not asked, or stayed away.
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
    verdicts: tuple[DraftVerdict, ...] = field(default=(), kw_only=True)
    score: Scored | None = field(default=None, kw_only=True)

    def trace(self) -> list[TracedToken]:
        """Return all tokens of the text and, between them, those that were rejected.

        Drafted tokens that follow a rejected one are left out, as the verifier never
        came to them; so are those after the end of the text.
        """
        found: list[TracedToken] = []
        left = len(self.tokens)
        for drafted, accepted, token in self.verdicts:
            taken = drafted[: min(accepted, left)]
            found += [TracedToken(each, "accepted") for each in taken]
            left -= len(taken)
            if not left:
                break
            rejected = accepted < len(drafted)
            if rejected:
                found.append(TracedToken(drafted[accepted], "rejected"))
            if token is not None:
                found.append(TracedToken(token, "corrected" if rejected else "bonus"))
                left -= 1
        alone = self.tokens[len(self.tokens) - left :]
        return found + [TracedToken(each, "alone") for each in alone]

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
