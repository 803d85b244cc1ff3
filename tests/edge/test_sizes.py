"""The sizes that a simulated link counts are those on the wire, to the byte."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from flower_ext.edge import edge_pb2 as pb
from flower_ext.edge.convert import (
    PREFIX_BYTES,
    ask_from_wire,
    ask_to_wire,
    draft_from_wire,
    draft_to_wire,
    opening_from_wire,
    opening_to_wire,
    score_from_wire,
    score_to_wire,
    scored_from_wire,
    scored_to_wire,
    verdict_from_wire,
    verdict_to_wire,
)
from flower_ext.speculative.messages import (
    Ask,
    Distribution,
    Draft,
    Opening,
    Score,
    Scored,
    Verdict,
)

VOCABULARY = 70_000  # Ids of one, two and three bytes.

number = st.integers(0, 2**32 - 1)
ids = st.lists(st.integers(0, VOCABULARY - 1), max_size=12).map(tuple)
fraction = st.floats(allow_nan=False, allow_infinity=False)
float32 = st.floats(width=32, allow_nan=False, allow_infinity=False)
array = st.lists(float32, max_size=12).map(lambda x: np.array(x, dtype=np.float32))
distributions = st.one_of(
    st.builds(Distribution, array),
    st.builds(
        lambda q, ids: Distribution(q[: len(ids)], ids[: len(q)] or None), array, ids
    ),
)


def on_the_wire(message: Any) -> int:
    return len(message.SerializeToString()) + PREFIX_BYTES


@given(
    st.builds(
        Opening,
        session=st.text("0123456789abcdef", min_size=1, max_size=20),
        seed=st.integers(0, 2**64 - 1),
        prompt=ids,
        generated=number,
        protocol=st.sampled_from(["", "dsd", "dssd-candidates"]),
        candidates=number,
        temperature=fraction,
        top_k=number,
        top_p=fraction,
        min_p=fraction,
    )
)
def test_an_opening(opening: Opening) -> None:
    message = opening_to_wire(opening)

    assert on_the_wire(message) == opening.wire_size
    assert opening_from_wire(message.opening, None) == opening


@given(
    st.builds(
        Draft,
        round=number,
        confirmed=number,
        tail=ids,
        tokens=ids,
        probabilities=array,
        distributions=st.lists(distributions, max_size=3).map(tuple),
        bonus=st.booleans(),
    )
)
def test_a_draft(draft: Draft) -> None:
    message = draft_to_wire(draft)
    back = draft_from_wire(message.draft, 2**32)

    assert on_the_wire(message) == draft.wire_size
    assert back.probabilities.tobytes() == draft.probabilities.tobytes()
    for found, sent in zip(back.distributions, draft.distributions, strict=True):
        assert found.ids == sent.ids
        assert found.probabilities.tobytes() == sent.probabilities.tobytes()
    assert (back.round, back.confirmed, back.bonus) == (
        *(draft.round, draft.confirmed, draft.bonus),
    )
    assert (back.tail, back.tokens) == (draft.tail, draft.tokens)


@given(st.builds(Ask, round=number, first=number, count=number))
def test_a_question(ask: Ask) -> None:
    message = ask_to_wire(ask)

    assert on_the_wire(message) == ask.wire_size
    assert ask_from_wire(message.ask) == ask


@given(
    round=number,
    accepted=number,
    token=st.none() | st.integers(0, VOCABULARY - 1),
    candidates=st.lists(st.tuples(st.integers(0, VOCABULARY - 1), float32), max_size=9),
    sparse=st.none() | st.lists(st.integers(0, VOCABULARY - 1), min_size=1, max_size=9),
    seconds=float32,
)
def test_a_verdict(
    round: int,
    accepted: int,
    token: int | None,
    candidates: list[tuple[int, float]],
    sparse: list[int] | None,
    seconds: float,
) -> None:
    distribution = None
    if sparse is not None:
        share = np.full(len(sparse), 1 / len(sparse), dtype=np.float32)
        distribution = Distribution(share, tuple(sparse))
    drawn = np.array([p for _, p in candidates], dtype=np.float32)
    verdict = Verdict(
        round,
        accepted,
        token,
        distribution,
        tuple(y for y, _ in candidates),
        drawn if candidates else None,
        seconds,
    )
    message = verdict_to_wire(verdict)
    back = verdict_from_wire(message.verdict, VOCABULARY)

    assert on_the_wire(message) == verdict.wire_size
    assert (back.token, back.candidates) == (token, verdict.candidates)
    assert (back.round, back.accepted, back.seconds) == (round, accepted, seconds)
    if distribution is not None:
        assert back.distribution is not None
        assert back.distribution.ids == distribution.ids


@given(st.builds(Score, confirmed=number, tail=ids))
def test_a_request_for_a_score(score: Score) -> None:
    message = score_to_wire(score)

    assert on_the_wire(message) == score.wire_size
    assert score_from_wire(message.score) == score


@given(number, st.floats(-1e300, 0), st.floats(0, 1))
def test_a_score(tokens: int, log_likelihood: float, share: float) -> None:
    scored = Scored(tokens, log_likelihood, int(share * tokens))
    message = scored_to_wire(scored)

    assert on_the_wire(message) == scored.wire_size
    assert scored_from_wire(message.scored, tokens) == scored


def test_a_dense_distribution() -> None:
    distribution = Distribution(np.full(VOCABULARY, 1 / VOCABULARY, dtype=np.float32))
    verdict = Verdict(1, 2, distribution=distribution, seconds=0.25)
    message = verdict_to_wire(verdict)
    back = verdict_from_wire(message.verdict, VOCABULARY).distribution

    assert on_the_wire(message) == verdict.wire_size
    assert back is not None
    assert (back.probabilities == distribution.probabilities).all()


def test_every_message_has_a_short_tag() -> None:
    for envelope in (pb.DeviceMessage, pb.EdgeMessage):
        assert all(field.number < 16 for field in envelope.DESCRIPTOR.fields)
