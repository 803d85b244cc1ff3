"""Sessions at the edge: batches, eviction, retries, and drafts that are refused."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from transformers import LlamaForCausalLM

from flower_ext.errors import FlowerExtError, InvalidInputError
from flower_ext.speculative import (
    Ask,
    Distribution,
    Draft,
    Drafter,
    KeyedChoices,
    MemoryBudgetError,
    Opening,
    Row,
    Sampling,
    Score,
    UnknownSessionError,
    Verdict,
    Verifier,
    protocol_named,
    speculate,
)
from tests.speculative.conftest import TableModel

Pair = tuple[LlamaForCausalLM, LlamaForCausalLM]


def floats(*values: float) -> np.ndarray:
    return np.array(values, dtype=np.float32)


def draft(number: int = 1, **changes: Any) -> Draft:
    return replace(Draft(number, 0, (), (1, 2), floats(0.5, 0.25)), **changes)


@pytest.fixture
def verifier() -> Verifier:
    """Return a verifier with one session, "a"."""
    found = Verifier(TableModel(8, seed=3))
    found.open(Opening("a", 7, (0, 1)))
    return found


def converse(
    verifier: Verifier, drafter: Drafter, count: int, rounds: int, batched: bool
) -> list[list[int]]:
    """Run ``count`` devices in step; return what each has confirmed."""
    protocol = protocol_named("dsd")  # The edge draws, so a verdict says it all.
    rng = np.random.default_rng(0)
    devices = {}
    for index in range(count):
        prompt = rng.integers(64, size=int(rng.integers(2, 30))).tolist()
        name = f"device {index}"
        sampling = Sampling(temperature=0.5 + 0.1 * (index % 3))
        verifier.open(
            Opening(
                name,
                index,
                tuple(prompt),
                protocol="dsd",
                temperature=sampling.temperature,
            )
        )
        devices[name] = drafter.start(prompt, sampling, KeyedChoices(index))
    for number in range(1, rounds + 1):
        requests = []
        for index, (name, drafting) in enumerate(devices.items()):
            for _ in range((index + number) % 5):
                drafting.extend()
            probabilities, whole = protocol.describe(
                drafting.draft, drafting.drafted_from
            )
            message = Draft(
                number,
                drafting.generated,
                (),
                tuple(drafting.draft),
                probabilities,
                whole,
            )
            requests.append((name, message))
        if batched:
            verdicts = verifier.verify_batch(requests)
        else:
            verdicts = [verifier.verify(*request) for request in requests]
        for drafting, verdict in zip(devices.values(), verdicts, strict=True):
            assert isinstance(verdict, Verdict)
            drafting.confirm(verdict.accepted, verdict.token)
    return [drafting.tokens for drafting in devices.values()]


def test_a_batch_gives_every_device_the_tokens_it_gets_alone(llamas: Pair) -> None:
    drafter = Drafter(llamas[0])
    one, many = Verifier(llamas[1]), Verifier(llamas[1])

    alone = converse(one, drafter, 6, 12, batched=False)
    together = converse(many, drafter, 6, 12, batched=True)

    assert together == alone
    assert many.positions_processed == one.positions_processed


def test_evicted_sessions_go_on_as_if_they_had_not_been(llamas: Pair) -> None:
    drafter = Drafter(llamas[0])
    free = Verifier(llamas[1])
    wanted = converse(free, drafter, 6, 12, batched=False)
    tight = Verifier(llamas[1], memory_budget=free.cached_bytes // 3)

    found = converse(tight, drafter, 6, 12, batched=False)

    assert found == wanted
    assert tight.evictions > 20
    assert tight.cached_bytes <= free.cached_bytes // 3


def test_what_is_kept_beside_the_caches_counts(verifier: Verifier) -> None:
    vocabulary = 4 * 8  # Bytes of one float32 for every id.
    assert verifier.cached_bytes == 8 * 1  # A table's cache takes eight a token.

    # All are accepted, and the logits after the last are kept for the next round.
    sure = draft(bonus=False, probabilities=floats(1e-6, 1e-6))
    assert verifier.verify("a", sure).accepted == 2
    assert verifier.cached_bytes == 8 * 4 + vocabulary

    verifier.open(Opening("a", 7, (0, 1), protocol="dssd-candidates"))
    assert rejected(verifier, "a").accepted == 0
    assert verifier.cached_bytes == 8 * 2 + vocabulary
    # Nobody can ask about what dssd and dsd have rejected.
    verifier.open(Opening("a", 7, (0, 1)))
    assert rejected(verifier, "a").accepted == 0
    assert verifier.cached_bytes == 8 * 2


def rejected(verifier: Verifier, session: str) -> Verdict:
    """Have tokens rejected that the target finds unlikely."""
    logits = verifier.model.extend([Row(verifier.model.new_cache(), [0, 1], 1)])[0][0]
    token = int(logits.argmin())
    return verifier.verify(session, draft(tokens=(token,), probabilities=floats(1)))


@pytest.mark.parametrize("count", [0, 1, 3])
def test_a_question_about_an_evicted_session_has_the_same_answer(count: int) -> None:
    def asked(verifier: Verifier) -> Verdict:
        verifier.open(Opening("a", 7, (0, 1), protocol="dssd-candidates"))
        assert rejected(verifier, "a").accepted == 0
        verifier.open(Opening("b", 8, (0, 1, 2, 3)))
        return verifier.answer("a", Ask(1, 0, count))

    tight = Verifier(TableModel(500, seed=3), memory_budget=60)
    free = Verifier(TableModel(500, seed=3))

    found, wanted = asked(tight), asked(free)

    assert tight.evictions > 0
    assert tight.cached_bytes <= 60
    assert found.candidates == wanted.candidates
    if count:
        assert len(found.candidates) == count
    else:
        assert found.distribution is not None
        assert wanted.distribution is not None
        difference = found.distribution.dense(500) - wanted.distribution.dense(500)
        assert abs(difference).max() == 0
    # And the session goes on.
    again = [v.verify("a", draft(2, confirmed=1, tail=(5,))) for v in (tight, free)]
    assert again[0].accepted == again[1].accepted


def test_a_text_that_alone_exceeds_the_budget_is_refused(llamas: Pair) -> None:
    verifier = Verifier(llamas[1], memory_budget=20_000)
    verifier.open(Opening("short", 0, (1, 2, 3)))

    with pytest.raises(MemoryBudgetError, match="memory_budget is 20000"):
        verifier.open(Opening("long", 0, tuple(range(60)) * 2))

    assert verifier.sessions == 1
    assert verifier.verify("short", draft()).round == 1
    with pytest.raises(InvalidInputError, match="memory_budget"):
        Verifier(llamas[1], memory_budget=0)


def test_the_last_round_may_be_sent_again_and_no_other(verifier: Verifier) -> None:
    first = verifier.verify("a", draft(tokens=(), probabilities=floats()))
    assert first.token is not None

    again = verifier.verify("a", draft(tokens=(), probabilities=floats()))
    second = verifier.verify("a", draft(2, confirmed=1))

    assert again == first
    assert second.round == 2
    with pytest.raises(InvalidInputError, match="Round 1 comes after round 2"):
        verifier.verify("a", draft())
    with pytest.raises(InvalidInputError, match="generated tokens that the edge"):
        verifier.verify("a", draft(3, confirmed=9))


def test_one_bad_draft_spoils_no_other(verifier: Verifier) -> None:
    verifier.open(Opening("b", 7, (0, 1)))
    alone = verifier.verify("a", draft())

    bad, good, missing = verifier.verify_batch(
        [("a", draft(2, confirmed=5)), ("b", draft()), ("c", draft())]
    )

    assert isinstance(bad, InvalidInputError)
    assert isinstance(missing, UnknownSessionError)
    assert isinstance(good, Verdict)
    assert good.accepted == alone.accepted  # The same seed and prompt.
    with pytest.raises(InvalidInputError, match="one draft per session"):
        verifier.verify_batch([("a", draft()), ("a", draft())])


def test_a_target_that_breaks_says_so_and_spoils_no_other() -> None:
    class Broken(TableModel):
        def logits(self, context: Sequence[int]) -> torch.Tensor:
            found = super().logits(context)
            return found * float("nan") if context[0] == 7 else found

    verifier = Verifier(Broken(8, seed=3))
    verifier.open(Opening("a", 7, (0, 1)))
    verifier.open(Opening("b", 7, (7, 1)))

    good, bad = verifier.verify_batch([("a", draft()), ("b", draft())])

    assert isinstance(good, Verdict)
    assert "not finite" in str(bad)
    with pytest.raises(FlowerExtError, match="not finite"):
        verifier.score("b", Score(1, (3,)))


def test_closed_sessions_are_unknown(verifier: Verifier) -> None:
    verifier.close("a")
    verifier.close("a")

    with pytest.raises(UnknownSessionError, match="'a'"):
        verifier.verify("a", draft())
    with pytest.raises(UnknownSessionError):
        verifier.answer("a", Ask(1, 0, 1))


def test_a_score_is_that_of_one_pass_and_changes_nothing(llamas: Pair) -> None:
    tokens = np.random.default_rng(0).integers(64, size=340).tolist()
    start = 10
    with torch.no_grad():
        logits: Any = llamas[1](torch.tensor([[*tokens, 5]])).logits[0, start - 1 : -1]
    chosen = torch.tensor([*tokens[start:], 5])
    logs = torch.log_softmax(logits.double(), -1).gather(1, chosen[:, None])[:, 0]
    agrees = logits.argmax(-1) == chosen
    opening = Opening("a", 7, tuple(tokens), generated=330)
    undisturbed, scored = Verifier(llamas[1]), Verifier(llamas[1])
    undisturbed.open(opening)
    scored.open(opening)
    other = draft(3, confirmed=330)
    assert len(chosen) == 331  # More than fit into one piece.

    for _ in range(2):  # Asked again, it is the same.
        for confirmed, tail in ((330, ()), (331, (5,)), (100, ())):
            found = scored.score("a", Score(confirmed, tail))

            assert found.tokens == confirmed
            assert found.log_likelihood == pytest.approx(
                float(logs[:confirmed].sum()), abs=1e-3
            )
            assert found.agreeing == int(agrees[:confirmed].sum())
    verdicts = [verifier.verify("a", other) for verifier in (undisturbed, scored)]
    assert verdicts[0].accepted == verdicts[1].accepted


def test_an_evicted_session_is_scored_and_the_budget_kept(llamas: Pair) -> None:
    text = Opening("a", 7, tuple(range(64)), generated=40)
    free = Verifier(llamas[1])
    free.open(text)
    tight = Verifier(llamas[1], memory_budget=free.cached_bytes)
    tight.open(text)
    tight.open(replace(text, session="b"))

    assert tight.evictions == 1
    found = tight.score("a", Score(40))
    wanted = free.score("a", Score(40))
    assert found.agreeing == wanted.agreeing
    assert found.log_likelihood == pytest.approx(wanted.log_likelihood, abs=1e-4)
    assert tight.evictions == 2
    assert tight.cached_bytes <= free.cached_bytes


@pytest.mark.parametrize(
    ("score", "match"),
    [
        (Score(0), "at least 1"),
        (Score(1, (1, 2)), "at least 2"),
        (Score(1), "the 0 generated tokens"),
        (Score(2, (1,)), "the 0 generated tokens"),
        (Score(1, (8,)), r"\[0, 8\)"),
        (Score(300, (1,) * 300), "256"),
    ],
    ids=str,
)
def test_bad_requests_for_a_score_are_refused(
    verifier: Verifier, score: Score, match: str
) -> None:
    with pytest.raises(InvalidInputError, match=match):
        verifier.check("a", score)
    with pytest.raises(InvalidInputError, match=match):
        verifier.score("a", score)
    with pytest.raises(UnknownSessionError):
        verifier.score("b", score)
    assert verifier.score("a", Score(1, (3,))).tokens == 1


NAN = float("nan")


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"round": 0}, "round"),
        ({"confirmed": 0, "tail": (1,)}, "confirmed"),
        ({"tokens": (1, 8)}, r"\[0, 8\)"),
        ({"tokens": (1, -1)}, r"\[0, 8\)"),
        ({"probabilities": floats(0.5)}, "2 probabilities"),
        ({"probabilities": floats(0.5, 0)}, r"\(0, 1\]"),
        ({"probabilities": floats(0.5, 1.5)}, r"\(0, 1\]"),
        ({"probabilities": floats(0.5, NAN)}, r"\(0, 1\]"),
        ({"distributions": (Distribution(floats(*[0.125] * 8)),)}, "0 distributions"),
        (
            {"tokens": (1,) * 300, "probabilities": floats(*[0.5] * 300)},
            "256",
        ),
    ],
    ids=str,
)
def test_bad_drafts_are_refused_and_change_nothing(
    verifier: Verifier, changes: dict[str, Any], match: str
) -> None:
    with pytest.raises(InvalidInputError, match=match):
        verifier.check("a", draft(**changes))
    with pytest.raises(InvalidInputError, match=match):
        verifier.verify("a", draft(**changes))

    fresh = Verifier(TableModel(8, seed=3))
    fresh.open(Opening("a", 7, (0, 1)))
    one, other = verifier.verify("a", draft()), fresh.verify("a", draft())
    assert (one.accepted, one.token) == (other.accepted, other.token)


@pytest.mark.parametrize(
    ("distribution", "match"),
    [
        (Distribution(floats(0.5, 0.5)), "8 dense"),
        (Distribution(floats(0.5, 0.5), (1,)), "1 sparse"),
        (Distribution(floats(0.5, 0.5), (1, 1)), "differ"),
        (Distribution(floats(0.5, 0.5), (1, 9)), "ids"),
        (Distribution(floats(0.5, 0.6), (1, 2)), "add up"),
        (Distribution(floats(1.5, -0.5), (1, 2)), "at least 0"),
        (Distribution(floats(NAN, 1), (1, 2)), "finite"),
        (Distribution(floats(0.5, 0.5), (2, 3)), "gives it 0"),
    ],
    ids=str,
)
def test_bad_distributions_are_refused(distribution: Distribution, match: str) -> None:
    verifier = Verifier(TableModel(8, seed=3))
    verifier.open(Opening("a", 7, (0, 1), protocol="dsd"))
    message = Draft(1, 0, (), (1,), floats(), (distribution,))

    with pytest.raises(InvalidInputError, match=match):
        verifier.verify("a", message)


def test_questions_are_checked(verifier: Verifier) -> None:
    with pytest.raises(InvalidInputError, match="Nothing was rejected"):
        verifier.answer("a", Ask(1, 0, 1))
    rejected = draft(tokens=(1,), probabilities=floats(1))
    for seed in range(20):
        verifier.open(Opening("a", seed, (0, 1)))
        if verifier.verify("a", rejected).accepted == 0:
            break
    with pytest.raises(InvalidInputError, match="no questions"):
        verifier.answer("a", Ask(1, 0, 1))
    verifier.open(Opening("a", seed, (0, 1), protocol="dssd-candidates"))
    verifier.verify("a", rejected)
    with pytest.raises(InvalidInputError, match="count"):
        verifier.answer("a", Ask(1, 0, 10**6))
    assert verifier.answer("a", Ask(1, 0, 0)).distribution is not None


@pytest.mark.parametrize(
    ("opening", "match"),
    [
        (Opening("b", 0, ()), "at least one"),
        (Opening("b", 0, (8,)), r"\[0, 8\)"),
        (Opening("b", 0, (1, 2), generated=2), "generated"),
        (Opening("b", 0, (1,), protocol="x"), "'x'"),
        (Opening("b", 0, (1,), temperature=-1), "temperature"),
        (Opening("b", 0, (1,), top_p=0), "top_p"),
        (Opening("b", 2**64, (1,)), "seed"),
        (Opening("b", 0, (1,), protocol="dssd-candidates", candidates=9999), "4096"),
    ],
    ids=str,
)
def test_bad_openings_are_refused(
    verifier: Verifier, opening: Opening, match: str
) -> None:
    with pytest.raises(InvalidInputError, match=match):
        verifier.open(opening)

    assert verifier.sessions == 1


def test_texts_longer_than_the_target_attends_to_are_refused(llamas: Pair) -> None:
    verifier = Verifier(llamas[1])

    with pytest.raises(InvalidInputError, match="at most 512"):
        verifier.open(Opening("a", 0, (1,) * 513))
    verifier.open(Opening("a", 0, (1,) * 511))
    with pytest.raises(InvalidInputError, match="at most 512"):
        verifier.verify("a", draft())


def test_generations_of_one_seed_are_the_same_and_of_two_are_not(llamas: Pair) -> None:
    def tokens(seed: int, protocol: str) -> tuple[int, ...]:
        generator = torch.Generator().manual_seed(seed)
        return speculate(
            Drafter(llamas[0]),
            Verifier(llamas[1]),
            [1],
            30,
            protocol=protocol,
            generator=generator,
        ).tokens

    for protocol in ("dsd", "dssd", "dssd-candidates"):
        assert tokens(1, protocol) == tokens(1, protocol)
        assert tokens(1, protocol) != tokens(2, protocol)
