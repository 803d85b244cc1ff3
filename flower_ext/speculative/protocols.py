"""The split of verification between device and edge: what each protocol sends.

All of them accept x_j with probability min(1, P_j(x_j) / Q_j(x_j)) and replace the
first token rejected by a draw from norm(max(0, P_j − Q_j)) (Leviathan et al., "Fast
inference from Transformers via speculative decoding", ICML 2023, algorithm 1), so the
law of the text is the target model's own. They differ in who draws the replacement, and
so in what travels. (The acceptance test printed in DSSD, arXiv:2507.12000, algorithm 1,
has the ratio upside down.)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np

from flower_ext.errors import InvalidInputError
from flower_ext.speculative.choices import Choices, Purpose
from flower_ext.speculative.messages import Ask, Distribution, Draft, Verdict
from flower_ext.speculative.sampling import Probabilities

__all__ = [
    "DSD",
    "DSSD",
    "PROTOCOLS",
    "DSSDCandidates",
    "VerificationProtocol",
    "accept",
    "protocol_named",
    "residual",
]


class VerificationProtocol(Protocol):
    """How a round's verification is split; a small object without state."""

    @property
    def name(self) -> str:
        """The protocol's name."""
        ...

    @property
    def candidates(self) -> int:
        """How many candidates the edge draws first; 0 where it draws none."""
        ...

    def describe(
        self, tokens: Sequence[int], drafted_from: Sequence[Probabilities]
    ) -> tuple[Probabilities, tuple[Distribution, ...]]:
        """On the device: return what of Q travels.

        Parameters
        ----------
        tokens : Sequence[int]
            The drafted tokens x_j.
        drafted_from : Sequence[numpy.ndarray]
            The distributions Q_j, each of shape [vocabulary].

        Returns
        -------
        tuple[numpy.ndarray, tuple[Distribution, ...]]
            Q_j(x_j) for all j, or nothing and the Q_j.
        """
        ...

    def reject(
        self,
        draft: Draft,
        accepted: int,
        target: Probabilities,
        position: int,
        choices: Choices,
    ) -> Verdict:
        """On the edge: answer a draft whose token number ``accepted`` is rejected.

        Parameters
        ----------
        draft : Draft
            The draft.
        accepted : int
            The tokens before the rejected one.
        target : numpy.ndarray
            P_j at the rejected token, of shape [vocabulary].
        position : int
            The rejected token's position.
        choices : Choices
            The session's.

        Returns
        -------
        Verdict
            What the device needs to go on.
        """
        ...

    def answer(
        self, ask: Ask, target: Probabilities, position: int, choices: Choices
    ) -> Verdict:
        """On the edge: answer a device that kept no candidate."""
        ...

    def correct(
        self, verdict: Verdict, drafted_from: Probabilities, seen: int, choice: Chooser
    ) -> int | Ask:
        """On the device: return the token in place of the rejected one.

        Parameters
        ----------
        verdict : Verdict
            The edge's.
        drafted_from : numpy.ndarray
            Q_j at the rejected token, of shape [vocabulary].
        seen : int
            Candidates seen before this verdict's.
        choice : Chooser
            The choices at the rejected token's position.

        Returns
        -------
        int | Ask
            The token, or what to ask the edge for.
        """
        ...


class Chooser:
    """The choices at one position."""

    def __init__(self, choices: Choices, position: int) -> None:
        self._choices = choices
        self._position = position

    def draw(self, weights: Probabilities, purpose: Purpose) -> int:
        """Draw an index in proportion to its weight."""
        return self._choices.draw(weights, self._position, purpose)

    def happens(self, probability: float, purpose: Purpose, index: int) -> bool:
        """Return True with that probability."""
        return self._choices.happens(probability, self._position, purpose, index)


def accept(
    target: Sequence[float], drafted: Sequence[float], position: int, choices: Choices
) -> int:
    """Return how many drafted tokens are accepted, from the first on.

    Parameters
    ----------
    target : Sequence[float]
        P_j(x_j) for every drafted token.
    drafted : Sequence[float]
        Q_j(x_j), above 0.
    position : int
        The first drafted token's position.
    choices : Choices
        The session's.

    Returns
    -------
    int
        From 0 to the draft's length.
    """
    for index, (p, q) in enumerate(zip(target, drafted, strict=True)):
        if p < q and not choices.happens(p / q, position + index, Purpose.ACCEPT):
            return index
    return len(drafted)


def residual(target: Probabilities, drafted_from: Probabilities) -> Probabilities:
    """Return max(0, P − Q), not normalised; P where rounding leaves nothing of it."""
    left: Probabilities = np.maximum(target - drafted_from, 0)
    return left if left.any() else target


class DSD:
    """Distributed speculative decoding: all of Q travels uplink (the baseline).

    The edge draws the replacement: with the same seed, the same tokens as ``dssd``.
    """

    name = "dsd"
    candidates = 0

    def describe(
        self, tokens: Sequence[int], drafted_from: Sequence[Probabilities]
    ) -> tuple[Probabilities, tuple[Distribution, ...]]:
        """Return every Q_j."""
        del tokens
        return _NONE, tuple(map(Distribution.of, drafted_from))

    def reject(
        self,
        draft: Draft,
        accepted: int,
        target: Probabilities,
        position: int,
        choices: Choices,
    ) -> Verdict:
        """Draw the replacement."""
        drafted_from = draft.distributions[accepted].dense(len(target))
        weights = residual(target, drafted_from)
        token = choices.draw(weights, position, Purpose.RESIDUAL)
        return Verdict(draft.round, accepted, token=token)

    def answer(
        self, ask: Ask, target: Probabilities, position: int, choices: Choices
    ) -> Verdict:
        """Refuse: there is nothing to ask for."""
        raise InvalidInputError(f"Protocol 'dsd' has no questions, got {ask}.")

    def correct(
        self, verdict: Verdict, drafted_from: Probabilities, seen: int, choice: Chooser
    ) -> int | Ask:
        """Return the edge's token."""
        del drafted_from, seen, choice
        if verdict.token is None:
            raise InvalidInputError("A verdict under 'dsd' must have a token.")
        return verdict.token


class DSSD:
    """Distributed split speculative decoding (arXiv:2507.12000, section III).

    Only Q_j(x_j) travels uplink; P_j travels downlink when a token is rejected, as
    (id, probability) pairs where that is shorter, and the device draws the replacement.
    """

    name = "dssd"
    candidates = 0

    def describe(
        self, tokens: Sequence[int], drafted_from: Sequence[Probabilities]
    ) -> tuple[Probabilities, tuple[Distribution, ...]]:
        """Return Q_j(x_j)."""
        return _of_tokens(tokens, drafted_from), ()

    def reject(
        self,
        draft: Draft,
        accepted: int,
        target: Probabilities,
        position: int,
        choices: Choices,
    ) -> Verdict:
        """Send P_j."""
        del position, choices
        distribution = Distribution.of(target)
        return Verdict(draft.round, accepted, distribution=distribution)

    def answer(
        self, ask: Ask, target: Probabilities, position: int, choices: Choices
    ) -> Verdict:
        """Refuse: there is nothing to ask for."""
        raise InvalidInputError(f"Protocol 'dssd' has no questions, got {ask}.")

    def correct(
        self, verdict: Verdict, drafted_from: Probabilities, seen: int, choice: Chooser
    ) -> int | Ask:
        """Draw the replacement."""
        del seen
        if verdict.distribution is None:
            raise InvalidInputError("A verdict under 'dssd' must have a distribution.")
        target = verdict.distribution.dense(len(drafted_from))
        return choice.draw(residual(target, drafted_from), Purpose.RESIDUAL)


class DSSDCandidates(DSSD):
    """DSSD with candidates in place of the vocabulary; as exact, and far shorter.

    On rejection the edge draws y_1 … y_n from P_j and sends them with P_j(y_i). The
    device keeps the first with u_i < 1 − Q_j(y_i) / P_j(y_i): rejection sampling of
    norm(max(0, P_j − Q_j)), as P_j · (1 − Q_j / P_j) is the residual. With probability
    (1 − TV(P_j, Q_j))^n none is kept, and it asks for twice as many, or for P_j itself
    where that is shorter or twice as many are more than 4096.

    Parameters
    ----------
    candidates : int (default: 32)
        n, from 1 to 4096. A candidate takes up to 7 bytes at a vocabulary of 50,000;
        a further round trip happens with the probability above, so that 32 is plenty
        for total variations of 0.1 and more where tokens are rejected.

    Raises
    ------
    InvalidInputError
        If ``candidates`` is out of range.
    """

    name = "dssd-candidates"

    def __init__(self, candidates: int = 32) -> None:
        if not 1 <= candidates <= MOST_CANDIDATES:
            raise InvalidInputError(
                f"candidates must lie in [1, {MOST_CANDIDATES}], got {candidates}."
            )
        self.candidates = candidates

    def reject(
        self,
        draft: Draft,
        accepted: int,
        target: Probabilities,
        position: int,
        choices: Choices,
    ) -> Verdict:
        """Send candidates, or P_j where that is shorter."""
        first = Ask(draft.round, 0, self.candidates)
        return self._verdict(first, accepted, target, position, choices)

    def answer(
        self, ask: Ask, target: Probabilities, position: int, choices: Choices
    ) -> Verdict:
        """Send further candidates, or P_j if that is asked for or shorter."""
        return self._verdict(ask, 0, target, position, choices)

    def _verdict(
        self,
        ask: Ask,
        accepted: int,
        target: Probabilities,
        position: int,
        choices: Choices,
    ) -> Verdict:
        """Return candidates if they are asked for and always shorter, or else P_j."""
        distribution = Distribution.of(target)
        whole = Verdict(ask.round, accepted, distribution=distribution)
        # Told by P_j and the number alone. If what is drawn had a say, candidates would
        # come where their ids are short, and the text would lean towards such ids.
        last = distribution.ids[-1] if distribution.ids else len(target) - 1
        longest = Verdict(ask.round, accepted, candidates=(last,) * ask.count)
        if not ask.count or longest.wire_size >= whole.wire_size:
            return whole
        drawn = choices.draws(target, position, ask.first, ask.count)
        return Verdict(
            ask.round,
            accepted,
            candidates=tuple(drawn),
            candidate_probabilities=target[drawn],
        )

    def correct(
        self, verdict: Verdict, drafted_from: Probabilities, seen: int, choice: Chooser
    ) -> int | Ask:
        """Keep a candidate, or draw from P_j if it has come."""
        if verdict.distribution is not None:
            return super().correct(verdict, drafted_from, seen, choice)
        probabilities = verdict.candidate_probabilities
        if probabilities is None or not verdict.candidates:
            raise InvalidInputError(
                "A verdict under 'dssd-candidates' must have candidates or a "
                "distribution."
            )
        drafted = drafted_from[list(verdict.candidates)]
        keep = 1 - drafted.astype(np.float64) / probabilities
        for index, (token, chance) in enumerate(
            zip(verdict.candidates, keep.tolist(), strict=True)
        ):
            if chance > 0 and choice.happens(chance, Purpose.KEEP, seen + index):
                return token
        drawn = len(verdict.candidates)
        wanted = 2 * drawn
        if wanted > MOST_CANDIDATES or wanted * _CANDIDATE_BYTES >= 4 * len(
            drafted_from
        ):
            wanted = 0
        return Ask(verdict.round, seen + drawn, wanted)


MOST_CANDIDATES = 4096
_CANDIDATE_BYTES = 7
_NONE: Probabilities = np.zeros(0, dtype=np.float32)

PROTOCOLS: Mapping[str, type[DSD] | type[DSSD] | type[DSSDCandidates]] = {
    protocol.name: protocol for protocol in (DSD, DSSD, DSSDCandidates)
}


def protocol_named(
    name: str | VerificationProtocol, candidates: int = 0
) -> VerificationProtocol:
    """Return a protocol by its name; one that is given as an object is passed on.

    Parameters
    ----------
    name : str | VerificationProtocol
        ``"dsd"``, ``"dssd"`` or ``"dssd-candidates"``.
    candidates : int (default: 0)
        For the last: how many are drawn first; 0 takes the default.

    Returns
    -------
    VerificationProtocol
        The protocol.

    Raises
    ------
    InvalidInputError
        If there is none of that name.
    """
    if not isinstance(name, str) and hasattr(name, "describe"):
        return name
    kind = PROTOCOLS.get(name) if isinstance(name, str) else None
    if kind is None:
        known = ", ".join(map(repr, PROTOCOLS))
        raise InvalidInputError(f"There is no protocol {name!r}: choose from {known}.")
    if kind is DSSDCandidates and candidates:
        return DSSDCandidates(candidates)
    return kind()


def _of_tokens(
    tokens: Sequence[int], drafted_from: Sequence[Probabilities]
) -> Probabilities:
    """Return Q_j(x_j) for all j."""
    pairs = zip(tokens, drafted_from, strict=True)
    return np.array([q[x] for x, q in pairs], dtype=np.float32)
