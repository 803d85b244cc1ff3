"""What device and edge say to each other, and how many bytes each message takes.

The edge service sends these as the protobuf messages of ``flower_ext/edge``. The sizes
here are theirs to the byte, the five-byte prefix of a gRPC message included, so that a
simulated link carries what a real one would.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from flower_ext.speculative.sampling import Probabilities

__all__ = [
    "Ask",
    "Distribution",
    "Draft",
    "Opening",
    "Score",
    "Scored",
    "Verdict",
    "varint_size",
]

_GRPC_PREFIX = 5
_TAG = 1  # Field numbers below 16 take one byte.
_FLOAT = 4


def varint_size(value: int) -> int:
    """Return the bytes of an unsigned protobuf integer."""
    return max(1, (value.bit_length() + 6) // 7)


def _number_size(value: int) -> int:
    """Return the bytes of an integer field; protobuf leaves zeros out."""
    return _TAG + varint_size(value) if value else 0


def _bytes_size(length: int) -> int:
    """Return the bytes of a length-delimited field that is there."""
    return _TAG + varint_size(length) + length


def _ids_size(ids: Sequence[int]) -> int:
    """Return the bytes of a packed field of integers."""
    return _bytes_size(sum(map(varint_size, ids))) if len(ids) else 0


def _floats_size(count: int) -> int:
    """Return the bytes of a packed field of floats."""
    return _bytes_size(_FLOAT * count) if count else 0


def _float_size(value: float) -> int:
    """Return the bytes of a float field; protobuf leaves zeros out."""
    return _TAG + _FLOAT if value else 0


def _sent_size(body: int) -> int:
    """Return the bytes of a message in its envelope, as gRPC carries it."""
    return _GRPC_PREFIX + _bytes_size(body)


@dataclass(frozen=True)
class Distribution:
    """A distribution on the wire: dense, or sparse where that is shorter; exact.

    Parameters
    ----------
    probabilities : tuple[float, ...] | numpy.ndarray
        Float32: of all ids, or of ``ids``.
    ids : tuple[int, ...] | None (default: None)
        The ids that have a probability above 0, ascending; None: dense.
    """

    probabilities: Probabilities
    ids: tuple[int, ...] | None = None

    @classmethod
    def of(cls, dense: Probabilities) -> Distribution:
        """Return the shorter form of a distribution of shape [vocabulary]."""
        ids = np.flatnonzero(dense)
        # An id and its length prefix cannot be shorter than this; so look no closer.
        if len(ids) * (_FLOAT + 1) >= len(dense) * _FLOAT:
            return cls(dense)
        sparse = cls(dense[ids], tuple(ids.tolist()))
        whole = cls(dense)
        return sparse if sparse.body_size < whole.body_size else whole

    def dense(self, vocab_size: int) -> Probabilities:
        """Return it with shape [vocab_size]."""
        if self.ids is None:
            return self.probabilities
        dense = np.zeros(vocab_size, dtype=np.float32)
        dense[list(self.ids)] = self.probabilities
        return dense

    @property
    def body_size(self) -> int:
        """Bytes without the envelope."""
        return _floats_size(len(self.probabilities)) + _ids_size(self.ids or ())


@dataclass(frozen=True)
class Opening:
    """Device to edge, once: what is generated, and how.

    Parameters
    ----------
    session : str
        The session's name, chosen by the device and hard to guess.
    seed : int
        Of all random choices, in [0, 2**64).
    prompt : tuple[int, ...]
        Token ids, at least one; on return of a device whose session the edge has lost,
        followed by the tokens confirmed since.
    generated : int (default: 0)
        How many of them were generated: the next token's position.
    protocol : str (default: "dssd")
        The protocol's name.
    candidates : int (default: 0)
        How many candidates the edge draws first; 0 where the protocol has none.
    temperature, top_k, top_p, min_p
        The sampling.
    """

    session: str
    seed: int
    prompt: tuple[int, ...]
    generated: int = 0
    protocol: str = "dssd"
    candidates: int = 0
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0

    @property
    def wire_size(self) -> int:
        """Bytes on the wire."""
        return _sent_size(
            (_bytes_size(len(self.session)) if self.session else 0)
            + _number_size(self.seed)
            + _ids_size(self.prompt)
            + _number_size(self.generated)
            + (_bytes_size(len(self.protocol)) if self.protocol else 0)
            + _number_size(self.candidates)
            + _double_size(self.temperature)
            + _number_size(self.top_k)
            + _double_size(self.top_p)
            + _double_size(self.min_p)
        )


def _double_size(value: float) -> int:
    """Return the bytes of a double field; protobuf leaves zeros out."""
    return _TAG + 8 if value else 0


@dataclass(frozen=True)
class Draft:
    """Device to edge, every round: tokens to verify.

    Parameters
    ----------
    round : int
        From 1; a round sent again has the same number.
    confirmed : int
        Generated tokens before the draft, ``tail`` included: the position of the first
        drafted token.
    tail : tuple[int, ...]
        The last of them, as far as the edge cannot know them (what the device drew
        itself after a rejection).
    tokens : tuple[int, ...]
        The drafted ids x_1 … x_γ; none asks for one token of the target.
    probabilities : numpy.ndarray
        Q_j(x_j), float32, in (0, 1]; empty if ``distributions`` has them.
    distributions : tuple[Distribution, ...] (default: ())
        Q_j as a whole.
    bonus : bool (default: True)
        Whether the edge draws the token after an accepted draft; a device that is
        already drafting further does without.
    """

    round: int
    confirmed: int
    tail: tuple[int, ...]
    tokens: tuple[int, ...]
    probabilities: Probabilities
    distributions: tuple[Distribution, ...] = ()
    bonus: bool = True

    @property
    def wire_size(self) -> int:
        """Bytes on the wire."""
        return _sent_size(
            _number_size(self.round)
            + _number_size(self.confirmed)
            + _ids_size(self.tail)
            + _ids_size(self.tokens)
            + _floats_size(len(self.probabilities))
            + sum(_bytes_size(q.body_size) for q in self.distributions)
            + (0 if self.bonus else _TAG + 1)
        )


@dataclass(frozen=True)
class Ask:
    """Device to edge: no candidate was kept.

    Parameters
    ----------
    round : int
        The round that was rejected.
    first : int
        The number of the first candidate wanted.
    count : int
        How many; 0 asks for the distribution itself.
    """

    round: int
    first: int
    count: int

    @property
    def wire_size(self) -> int:
        """Bytes on the wire."""
        return _sent_size(
            _number_size(self.round)
            + _number_size(self.first)
            + _number_size(self.count)
        )


@dataclass(frozen=True)
class Verdict:
    """Edge to device: what became of a draft, or the answer to an :class:`Ask`.

    Parameters
    ----------
    round : int
        The draft's.
    accepted : int
        How many of the drafted tokens are kept.
    token : int | None (default: None)
        The next token, where the edge has drawn it.
    distribution : Distribution | None (default: None)
        P_j of the rejected position.
    candidates : tuple[int, ...] (default: ())
        Draws from P_j, in their order.
    candidate_probabilities : numpy.ndarray | None (default: None)
        Their P_j(y), float32.
    seconds : float (default: 0.0)
        What verification took at the edge.
    """

    round: int
    accepted: int
    token: int | None = None
    distribution: Distribution | None = None
    candidates: tuple[int, ...] = ()
    candidate_probabilities: Probabilities | None = None
    seconds: float = 0.0

    @property
    def wire_size(self) -> int:
        """Bytes on the wire."""
        distribution = self.distribution
        return _sent_size(
            _number_size(self.round)
            + _number_size(self.accepted)
            + (0 if self.token is None else _TAG + varint_size(self.token))
            + (0 if distribution is None else _bytes_size(distribution.body_size))
            + _ids_size(self.candidates)
            + _floats_size(len(self.candidates))
            + _float_size(self.seconds)
        )


@dataclass(frozen=True)
class Score:
    """Device to edge, at the end of a text: asks how likely the target finds it.

    Parameters
    ----------
    confirmed : int
        The generated tokens of the text, ``tail`` included, at least 1; all of them are
        scored. Fewer than the edge knows where the text has ended within a draft.
    tail : tuple[int, ...] (default: ())
        The last of them, as far as the edge cannot know them.
    """

    confirmed: int
    tail: tuple[int, ...] = ()

    @property
    def wire_size(self) -> int:
        """Bytes on the wire."""
        return _sent_size(_number_size(self.confirmed) + _ids_size(self.tail))


@dataclass(frozen=True)
class Scored:
    """Edge to device: what the target thinks of a text.

    Parameters
    ----------
    tokens : int
        The tokens scored.
    log_likelihood : float
        The sum of their log-probabilities under the target's own distribution, before
        any warping, in nats; at most 0.
    agreeing : int
        Of them, those that are the target's likeliest, given the text before.
    """

    tokens: int
    log_likelihood: float
    agreeing: int

    @property
    def wire_size(self) -> int:
        """Bytes on the wire."""
        return _sent_size(
            _number_size(self.tokens)
            + _double_size(self.log_likelihood)
            + _number_size(self.agreeing)
        )
