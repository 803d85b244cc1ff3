"""What a verifier checks of every message before it looks at a model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from flower_ext.errors import FlowerExtError, InvalidInputError, PrivateSegmentError
from flower_ext.speculative.messages import Distribution, Draft, Score

__all__ = [
    "LONGEST_DRAFT",
    "Hierarchy",
    "check_draft",
    "check_finite",
    "check_ids",
    "check_length",
    "check_score",
    "disclosed",
]

LONGEST_DRAFT = 256  # Tokens; beyond some tens nothing is gained.

# Float32 probabilities of a softmax add up to 1 within this.
_ROUNDING = 1e-3


class Hierarchy(Protocol):
    """A prompt that knows what of it is private, as ``edgeprompt.PromptHierarchy``."""

    @property
    def tokens(self) -> tuple[int, ...]:
        """All tokens."""
        ...

    @property
    def private_tokens(self) -> tuple[int, ...]:
        """Those that must not leave the device."""
        ...


def disclosed(prompt: Sequence[int] | Hierarchy) -> Sequence[int]:
    """Return a prompt's tokens, which the edge will see, as will it the drafts.

    Raises
    ------
    PrivateSegmentError
        If the prompt has a private segment.
    """
    if isinstance(prompt, Sequence) or not hasattr(prompt, "private_tokens"):
        return prompt  # type: ignore[return-value]
    if prompt.private_tokens:
        raise PrivateSegmentError(
            f"The prompt has {len(prompt.private_tokens)} private tokens, and drafts "
            "that depend on them go to the edge: generate with EdgePrompt, or declare "
            "the segment public or group if the edge may see it."
        )
    return prompt.tokens


def check_draft(draft: Draft, vocab_size: int, protocol: str) -> None:
    """Raise unless a draft is well-formed, whatever its session.

    Raises
    ------
    InvalidInputError
        If a number, an id, a probability or a distribution is out of range.
    """
    if draft.round < 1:
        raise InvalidInputError(f"round must be at least 1, got {draft.round}.")
    if draft.confirmed < len(draft.tail):
        raise InvalidInputError(
            f"confirmed counts the tail too: it must be at least {len(draft.tail)}, "
            f"got {draft.confirmed}."
        )
    if len(draft.tokens) > LONGEST_DRAFT or len(draft.tail) > LONGEST_DRAFT:
        raise InvalidInputError(
            f"A draft and its tail may have {LONGEST_DRAFT} tokens each, got "
            f"{len(draft.tokens)} and {len(draft.tail)}."
        )
    check_ids("tail", draft.tail, vocab_size)
    check_ids("tokens", draft.tokens, vocab_size)
    if protocol == "dsd":
        _check_counts("distributions", len(draft.distributions), len(draft.tokens))
        _check_counts("probabilities", len(draft.probabilities), 0)
        for token, distribution in zip(draft.tokens, draft.distributions, strict=True):
            _check_distribution(distribution, token, vocab_size)
        return
    _check_counts("probabilities", len(draft.probabilities), len(draft.tokens))
    _check_counts("distributions", len(draft.distributions), 0)
    for probability in draft.probabilities.tolist():
        if not 0 < probability <= 1 + _ROUNDING:  # False for nan, too.
            raise InvalidInputError(
                "Every drafted token's probability must be finite and lie in (0, 1], "
                f"got {probability}."
            )


def check_score(score: Score, vocab_size: int) -> None:
    """Raise unless a request for a score is well-formed, whatever its session.

    Raises
    ------
    InvalidInputError
        If a number or an id is out of range.
    """
    if score.confirmed < max(1, len(score.tail)):
        raise InvalidInputError(
            "confirmed counts the tokens to score, the tail too: it must be at least "
            f"{max(1, len(score.tail))}, got {score.confirmed}."
        )
    if len(score.tail) > LONGEST_DRAFT:
        raise InvalidInputError(
            f"A tail may have {LONGEST_DRAFT} tokens, got {len(score.tail)}."
        )
    check_ids("tail", score.tail, vocab_size)


def check_ids(name: str, ids: Sequence[int], vocab_size: int) -> None:
    """Raise unless all ids are of the vocabulary."""
    for token in ids:
        if not 0 <= token < vocab_size:
            raise InvalidInputError(
                f"{name} must be ids in [0, {vocab_size}), got {token}."
            )


def check_length(length: int, max_length: int | None) -> None:
    """Raise if a text, its prompt included, is longer than the target can attend to."""
    if max_length is not None and length > max_length:
        raise InvalidInputError(
            f"The target takes at most {max_length} tokens with the prompt, "
            f"got {length}: shorten the prompt or generate fewer."
        )


def check_finite(finite: bool) -> None:
    """Raise, as the target breaks, if what its logits came to is not finite."""
    if not finite:
        raise FlowerExtError(
            "The target's logits are not finite: its weights are broken, or its "
            "precision is too low for this text."
        )


def _check_counts(name: str, found: int, wanted: int) -> None:
    """Raise unless a draft has as many of something as its protocol asks for."""
    if found != wanted:
        raise InvalidInputError(
            f"The session's protocol wants {wanted} {name} in this draft, got {found}."
        )


def _check_distribution(
    distribution: Distribution, token: int, vocab_size: int
) -> None:
    """Raise unless it is a distribution from which the token can come."""
    probabilities, ids = distribution.probabilities, distribution.ids
    if ids is None:
        _check_counts("dense probabilities", len(probabilities), vocab_size)
    else:
        _check_counts("sparse probabilities", len(probabilities), len(ids))
        check_ids("ids", ids, vocab_size)
        if len(set(ids)) != len(ids):
            raise InvalidInputError("The ids of a sparse distribution must differ.")
    if not np.isfinite(probabilities).all() or (probabilities < 0).any():
        raise InvalidInputError("Probabilities must be finite and at least 0.")
    total = float(probabilities.sum(dtype=np.float64))
    if abs(total - 1) > _ROUNDING:
        raise InvalidInputError(f"A distribution must add up to 1, got {total}.")
    if not distribution.dense(vocab_size)[token] > 0:
        raise InvalidInputError(
            f"Token {token} cannot be drafted from a distribution that gives it 0."
        )
