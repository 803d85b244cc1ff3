"""The messages of :mod:`flower_ext.speculative` to and from protobuf.

What comes from a stranger is checked for its form here, and for its content where the
pure messages are checked anyway.
"""

from __future__ import annotations

import math
from collections.abc import Sized

import numpy as np

from flower_ext.edge import edge_pb2 as pb
from flower_ext.errors import FlowerExtError, InvalidInputError
from flower_ext.speculative.checks import LONGEST_DRAFT
from flower_ext.speculative.messages import (
    Ask,
    Distribution,
    Draft,
    Opening,
    Score,
    Scored,
    Verdict,
)
from flower_ext.speculative.sampling import Probabilities

__all__ = [
    "LONGEST_NAME",
    "PREFIX_BYTES",
    "ask_from_wire",
    "ask_to_wire",
    "draft_from_wire",
    "draft_to_wire",
    "opening_from_wire",
    "opening_to_wire",
    "score_from_wire",
    "score_to_wire",
    "scored_from_wire",
    "scored_to_wire",
    "verdict_from_wire",
    "verdict_to_wire",
]

PREFIX_BYTES = 5  # Before every message of gRPC.
LONGEST_NAME = 64  # Characters of a session's name.


def opening_to_wire(opening: Opening) -> pb.DeviceMessage:
    """Return an opening in its envelope."""
    return pb.DeviceMessage(
        opening=pb.Opening(
            session=opening.session,
            seed=opening.seed,
            prompt=opening.prompt,
            generated=opening.generated,
            protocol=opening.protocol,
            candidates=opening.candidates,
            # Adding 0 makes -0.0 a zero that protobuf leaves out.
            temperature=opening.temperature + 0.0,
            top_k=opening.top_k,
            top_p=opening.top_p + 0.0,
            min_p=opening.min_p + 0.0,
        )
    )


def opening_from_wire(message: pb.Opening, max_length: int | None) -> Opening:
    """Return an opening.

    Parameters
    ----------
    message : Opening
        From the wire.
    max_length : int | None
        The most tokens that the target takes; a longer prompt is not even unpacked.

    Raises
    ------
    InvalidInputError
        If the name's length or the prompt's is out of range.
    """
    if not 1 <= len(message.session) <= LONGEST_NAME:
        raise InvalidInputError(
            f"session must have 1 to {LONGEST_NAME} characters, got "
            f"{len(message.session)}."
        )
    if max_length is not None and len(message.prompt) > max_length:
        raise InvalidInputError(
            f"The target takes at most {max_length} tokens, got a prompt of "
            f"{len(message.prompt)}: shorten it."
        )
    return Opening(
        session=message.session,
        seed=message.seed,
        prompt=tuple(message.prompt),
        generated=message.generated,
        protocol=message.protocol,
        candidates=message.candidates,
        temperature=message.temperature,
        top_k=message.top_k,
        top_p=message.top_p,
        min_p=message.min_p,
    )


def draft_to_wire(draft: Draft) -> pb.DeviceMessage:
    """Return a draft in its envelope."""
    return pb.DeviceMessage(
        draft=pb.Draft(
            round=draft.round,
            confirmed=draft.confirmed,
            tail=draft.tail,
            tokens=draft.tokens,
            probabilities=_to_bytes(draft.probabilities),
            distributions=map(_distribution_to_wire, draft.distributions),
            no_bonus=not draft.bonus,
        )
    )


def draft_from_wire(message: pb.Draft, vocab_size: int) -> Draft:
    """Return a draft.

    Parameters
    ----------
    message : Draft
        From the wire.
    vocab_size : int
        The ids that the edge verifies; a distribution of more is not even unpacked.

    Raises
    ------
    InvalidInputError
        If something has more entries than it may, or an array is no array.
    """
    # Entries take no bytes to speak of on the wire, and much time once unpacked.
    for name, entries in (
        ("tail", message.tail),
        ("tokens", message.tokens),
        ("distributions", message.distributions),
    ):
        _check_entries(name, entries)
    for distribution in message.distributions:
        if len(distribution.ids) > vocab_size:
            raise InvalidInputError(
                f"A distribution may have {vocab_size} ids, got "
                f"{len(distribution.ids)}: send it dense."
            )
    return Draft(
        round=message.round,
        confirmed=message.confirmed,
        tail=tuple(message.tail),
        tokens=tuple(message.tokens),
        probabilities=_from_bytes("probabilities", message.probabilities),
        distributions=tuple(map(_distribution_from_wire, message.distributions)),
        bonus=not message.no_bonus,
    )


def ask_to_wire(ask: Ask) -> pb.DeviceMessage:
    """Return a question in its envelope."""
    return pb.DeviceMessage(
        ask=pb.Ask(round=ask.round, first=ask.first, count=ask.count)
    )


def ask_from_wire(message: pb.Ask) -> Ask:
    """Return a question."""
    return Ask(round=message.round, first=message.first, count=message.count)


def score_to_wire(score: Score) -> pb.DeviceMessage:
    """Return a request for a score in its envelope."""
    return pb.DeviceMessage(score=pb.Score(confirmed=score.confirmed, tail=score.tail))


def score_from_wire(message: pb.Score) -> Score:
    """Return a request for a score.

    Raises
    ------
    InvalidInputError
        If the tail has more entries than it may.
    """
    _check_entries("tail", message.tail)
    return Score(confirmed=message.confirmed, tail=tuple(message.tail))


def scored_to_wire(scored: Scored) -> pb.EdgeMessage:
    """Return a score in its envelope."""
    return pb.EdgeMessage(
        scored=pb.Scored(
            tokens=scored.tokens,
            log_likelihood=scored.log_likelihood + 0.0,
            agreeing=scored.agreeing,
        )
    )


def scored_from_wire(message: pb.Scored, tokens: int) -> Scored:
    """Return a score.

    Parameters
    ----------
    message : Scored
        From the wire.
    tokens : int
        The tokens that were to be scored.

    Raises
    ------
    FlowerExtError
        If it is none of so many tokens.
    """
    fits = message.tokens == tokens and message.agreeing <= tokens
    if not (fits and -math.inf < message.log_likelihood <= 0):
        raise FlowerExtError(
            f"The edge's score, {message.agreeing} agreeing of {message.tokens} tokens "
            f"and a log-likelihood of {message.log_likelihood}, is none of {tokens} "
            "tokens: it is broken, or speaks another protocol."
        )
    return Scored(message.tokens, message.log_likelihood, message.agreeing)


def verdict_to_wire(verdict: Verdict) -> pb.EdgeMessage:
    """Return a verdict in its envelope."""
    distribution, drawn = verdict.distribution, verdict.candidate_probabilities
    return pb.EdgeMessage(
        verdict=pb.Verdict(
            round=verdict.round,
            accepted=verdict.accepted,
            token=verdict.token,
            distribution=(
                None if distribution is None else _distribution_to_wire(distribution)
            ),
            candidates=verdict.candidates,
            candidate_probabilities=b"" if drawn is None else _to_bytes(drawn),
            seconds=verdict.seconds + 0.0,
        )
    )


def verdict_from_wire(message: pb.Verdict, vocab_size: int) -> Verdict:
    """Return a verdict.

    Raises
    ------
    FlowerExtError
        If it speaks of ids that there are not, or an array has another length than it
        must.
    """
    distribution = None
    if message.HasField("distribution"):
        distribution = _distribution_from_wire(message.distribution)
    candidates = tuple(message.candidates)
    drawn = _from_bytes("candidate_probabilities", message.candidate_probabilities)
    token = message.token if message.HasField("token") else None
    ids = [*candidates, *(() if token is None else (token,))]
    wanted = len(candidates)
    fits = len(drawn) == wanted
    if distribution is not None:
        ids += distribution.ids or ()
        wanted = vocab_size if distribution.ids is None else len(distribution.ids)
        fits = fits and len(distribution.probabilities) == wanted
    if not fits or (ids and max(ids) >= vocab_size):
        raise FlowerExtError(
            f"The edge's verdict does not fit a vocabulary of {vocab_size} ids: it is "
            "broken, or speaks another protocol."
        )
    return Verdict(
        round=message.round,
        accepted=message.accepted,
        token=token,
        distribution=distribution,
        candidates=candidates,
        candidate_probabilities=drawn if candidates else None,
        seconds=message.seconds,
    )


def _check_entries(name: str, entries: Sized) -> None:
    """Raise if a field of a draft or a score has more entries than it may."""
    if len(entries) > LONGEST_DRAFT:
        raise InvalidInputError(
            f"{name} may have {LONGEST_DRAFT} entries in one message, got "
            f"{len(entries)}: draft fewer tokens at once."
        )


def _distribution_to_wire(distribution: Distribution) -> pb.Distribution:
    return pb.Distribution(
        probabilities=_to_bytes(distribution.probabilities), ids=distribution.ids
    )


def _distribution_from_wire(message: pb.Distribution) -> Distribution:
    probabilities = _from_bytes("probabilities", message.probabilities)
    return Distribution(probabilities, tuple(message.ids) or None)


def _to_bytes(array: Probabilities) -> bytes:
    """Return float32, little-endian."""
    return array.astype("<f4", copy=False).tobytes()


def _from_bytes(name: str, data: bytes) -> Probabilities:
    """Return what :func:`_to_bytes` was given; it cannot be written to."""
    if len(data) % 4:
        raise InvalidInputError(
            f"{name} must be float32 numbers of 4 bytes each, got {len(data)} bytes."
        )
    return np.frombuffer(data, "<f4").astype(np.float32, copy=False)
