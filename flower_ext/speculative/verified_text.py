"""What the edge remembers of one text, and how a verdict changes it.

No model is asked here: what a verdict needs of the target are its logits.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from flower_ext.errors import InvalidInputError
from flower_ext.speculative.checks import (
    check_draft,
    check_finite,
    check_length,
    check_score,
)
from flower_ext.speculative.choices import Choices, Purpose
from flower_ext.speculative.messages import Ask, Draft, Score, Verdict
from flower_ext.speculative.protocols import (
    MOST_CANDIDATES,
    VerificationProtocol,
    accept,
)
from flower_ext.speculative.sampling import Probabilities, Sampling

__all__ = ["VerifiedText"]


@dataclass
class VerifiedText:
    """A text that a device drafts and the edge verifies, as far as the edge knows it.

    Parameters
    ----------
    tokens : list[int]
        The prompt, and the generated tokens that the edge knows.
    start : int
        How many tokens come before generated position 0.
    sampling : Sampling
        How the target's distribution is warped.
    protocol : VerificationProtocol
        What drafts carry, and what a rejection says.
    choices : Choices
        The random choices.
    vocab_size : int
        The ids that the text is made of.
    max_length : int | None (default: None)
        The most tokens with the prompt; None: no limit.
    cache : Any (default: None)
        Of a beginning of `tokens`; None once it is evicted.
    last_logits : torch.Tensor | None (default: None)
        After the last of `tokens`, shape [1, vocabulary], if the cache has all of them.
    round : int (default: 0)
        The last draft's number.
    round_base : int (default: 0)
        Generated tokens that were known when that round began.
    rejected : tuple[int, numpy.ndarray | None] | None (default: None)
        Position and P_j of the token that this round rejected; None for P_j: it is not
        asked about, or was dropped with the cache.
    """

    tokens: list[int]
    start: int
    sampling: Sampling
    protocol: VerificationProtocol
    choices: Choices
    vocab_size: int
    max_length: int | None = None
    cache: Any = None
    last_logits: torch.Tensor | None = None
    round: int = 0
    round_base: int = 0
    rejected: tuple[int, Probabilities | None] | None = None

    @property
    def generated(self) -> int:
        """The generated tokens that the edge knows."""
        return len(self.tokens) - self.start

    @property
    def nbytes(self) -> int:
        """The bytes of what can be computed again."""
        held = 0 if self.cache is None else int(self.cache.nbytes)
        if self.last_logits is not None:
            held += self.last_logits.nbytes
        if self.rejected is not None and self.rejected[1] is not None:
            held += self.rejected[1].nbytes
        return held

    def forget_cache(self) -> None:
        """Drop what can be computed again."""
        self.cache = None
        self.last_logits = None
        if self.rejected is not None:
            self.rejected = (self.rejected[0], None)

    def check(self, draft: Draft) -> None:
        """Raise unless a draft follows what the edge knows.

        Raises
        ------
        InvalidInputError
            If it is malformed, or too long, or builds on other tokens or rounds.
        """
        check_draft(draft, self.vocab_size, self.protocol.name)
        known = draft.confirmed - len(draft.tail)
        if draft.round < self.round:
            raise InvalidInputError(
                f"Round {draft.round} comes after round {self.round}: only the last "
                "round may be sent again."
            )
        again = draft.round == self.round
        wanted = self.round_base if again else self.generated
        if known != wanted:
            raise InvalidInputError(
                f"Round {draft.round} must build on the {wanted} generated tokens that "
                f"the edge knows, got {known}: open the session again."
            )
        length = self.start + draft.confirmed + len(draft.tokens)
        check_length(length, self.max_length)

    def scored(self, score: Score) -> list[int]:
        """Return the text that a device wants to have scored, prompt included.

        Raises
        ------
        InvalidInputError
            If it is malformed, or too long, or none that this text can be.
        """
        check_score(score, self.vocab_size)
        known = score.confirmed - len(score.tail)
        if known > self.generated or (score.tail and known < self.generated):
            raise InvalidInputError(
                f"The text to score must consist of the {self.generated} generated "
                f"tokens that the edge knows and a tail, or of the first of them, got "
                f"{known} and a tail of {len(score.tail)}: open the session again."
            )
        check_length(self.start + score.confirmed, self.max_length)
        return [*self.tokens[: self.start + known], *score.tail]

    def asked_about(self, ask: Ask) -> tuple[int, Probabilities | None]:
        """Return position and P_j of what a device asks about; None: computed again.

        Raises
        ------
        InvalidInputError
            If nothing was rejected in that round, or the numbers are out of range.
        """
        if self.rejected is None or ask.round != self.round:
            raise InvalidInputError(
                f"Nothing was rejected in round {ask.round}: send its draft (again)."
            )
        if not (0 <= ask.first < 2**31 and 0 <= ask.count <= MOST_CANDIDATES):
            raise InvalidInputError(
                f"first must lie in [0, 2**31) and count in [0, {MOST_CANDIDATES}], "
                f"got {ask.first} and {ask.count}."
            )
        if not self.protocol.candidates:
            raise InvalidInputError(
                f"Protocol {self.protocol.name!r} has no questions, got {ask}."
            )
        return self.rejected

    def begin(self, draft: Draft) -> None:
        """Go to a draft's first position; the draft has been checked."""
        known = self.start + draft.confirmed - len(draft.tail)
        if len(self.tokens) > known:
            self.last_logits = None  # A round sent again: they are of later tokens.
        self.round_base = known - self.start
        self.round = draft.round
        self.rejected = None
        del self.tokens[known:]
        if draft.tail:
            self.last_logits = None
        self.tokens += draft.tail
        if self.cache is not None:
            spare = 0 if self.last_logits is not None else 1
            self.cache.roll_back(min(known, len(self.tokens) - spare))

    def judge(self, draft: Draft, logits: torch.Tensor) -> Verdict:
        """Accept and reject, and go to what is confirmed.

        Parameters
        ----------
        draft : Draft
            The draft that :meth:`begin` was told of.
        logits : torch.Tensor
            The target's, after the last confirmed token and after each drafted one,
            shape [drafted + 1, vocabulary].

        Returns
        -------
        Verdict
            How much of it is accepted, and what follows.

        Raises
        ------
        FlowerExtError
            If the logits are not finite.
        """
        target = self.sampling.probabilities(logits)
        check_finite(bool(np.isfinite(target).all()))
        drafted = draft.probabilities.tolist() or [
            float(q.dense(self.vocab_size)[token])
            for q, token in zip(draft.distributions, draft.tokens, strict=True)
        ]
        likely = [float(p[x]) for p, x in zip(target, draft.tokens, strict=False)]
        accepted = accept(likely, drafted, draft.confirmed, self.choices)
        position = draft.confirmed + accepted
        self.tokens += draft.tokens[:accepted]
        self.cache.roll_back(len(self.tokens))
        self.last_logits = None
        if accepted < len(draft.tokens):
            asked_about = target[accepted].copy() if self.protocol.candidates else None
            self.rejected = (position, asked_about)
            verdict = self.protocol.reject(
                draft, accepted, target[accepted], position, self.choices
            )
        elif draft.bonus:
            token = self.choices.draw(target[accepted], position, Purpose.BONUS)
            verdict = Verdict(draft.round, accepted, token=token)
        else:
            self.last_logits = logits[accepted : accepted + 1].clone()
            verdict = Verdict(draft.round, accepted)
        if verdict.token is not None:
            self.tokens.append(verdict.token)
        return verdict
