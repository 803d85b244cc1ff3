"""The loop on the device: endings, streams, statistics, and what is refused."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import MISSING, fields
from functools import partial
from typing import Any

import pytest
import torch
from transformers import (
    DynamicCache,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

from flower_ext.errors import FlowerExtError, InvalidInputError
from flower_ext.models import default_pair
from flower_ext.models.cache_argument import forward_cache
from flower_ext.network import Link, VirtualClock
from flower_ext.speculative import (
    Adaptive,
    Choices,
    Draft,
    Drafter,
    EdgeSession,
    Fixed,
    Generation,
    Opening,
    Pending,
    Row,
    Sampling,
    Score,
    Scored,
    Traffic,
    TransformersModel,
    Verifier,
    VerifierUnavailableError,
    speculate,
)
from flower_ext.speculative.session import LocalEdge
from tests.speculative.conftest import TableModel

Pair = tuple[LlamaForCausalLM, LlamaForCausalLM]


def run(pair: Pair, **changes: Any) -> Generation:
    settings: dict[str, Any] = {
        "prompt_ids": [1, 2, 3],
        "max_new_tokens": 20,
        "sampling": Sampling(temperature=0.7),
        "generator": torch.Generator().manual_seed(0),
    }
    return speculate(Drafter(pair[0]), Verifier(pair[1]), **settings | changes)


class Recorder:
    def __init__(self) -> None:
        self.values: list[list[int]] = []
        self.ended = False

    def put(self, value: torch.Tensor) -> None:
        self.values.append(value.flatten().tolist())

    def end(self) -> None:
        self.ended = True


def test_tokens_are_streamed_as_they_are_confirmed(llamas: Pair) -> None:
    recorder = Recorder()

    found = run(llamas, streamer=recorder)

    prompt, *rounds = recorder.values
    assert prompt == [1, 2, 3]
    assert len(rounds) == found.rounds
    assert [token for new in rounds for token in new] == list(found.tokens)
    assert recorder.ended


@pytest.mark.parametrize("ahead", [False, True])
def test_a_text_ends_with_its_first_eos(llamas: Pair, ahead: bool) -> None:
    free = run(llamas, drafting_ahead=ahead)
    eos = free.tokens[7]

    found = run(llamas, drafting_ahead=ahead, eos_token_ids=[eos])

    assert found.finish_reason == "eos"
    assert found.tokens == free.tokens[: free.tokens.index(eos) + 1]


def test_a_text_ends_with_the_token_that_completes_a_stop_string() -> None:
    pair = default_pair()
    decode: Any = pair.tokenizer.decode
    drafter = Drafter(pair.draft, pair.vocab_size)
    verifier = Verifier(pair.target, pair.vocab_size)
    prompt = pair.tokenizer("First Citizen:\n")["input_ids"]

    def text(stop: tuple[str, ...]) -> Generation:
        return speculate(
            drafter,
            verifier,
            prompt,
            60,
            generator=torch.Generator().manual_seed(1),
            stop_strings=stop,
            tokenizer=pair.tokenizer,
            eos_token_ids=(),
        )

    whole = decode(text(()).tokens)
    stop = whole[40:44]
    found = text((stop,))

    decoded = decode(found.tokens)
    assert found.finish_reason == "stop-string"
    assert stop in decoded
    assert stop not in decode(found.tokens[:-1])
    assert whole.startswith(decoded)


def test_statistics_add_up(llamas: Pair) -> None:
    found = run(llamas, link=Link(up=1e5, rtt=0.1), max_new_tokens=50)

    assert len(found.tokens) == 50
    assert found.finish_reason == "length"
    assert found.accepted <= found.examined <= found.drafted
    assert found.examined - found.accepted <= found.rounds
    assert found.acceptance_rate == found.accepted / found.examined
    assert found.tokens_per_round == 50 / found.rounds
    assert 0 < found.opening_bytes < found.uplink_bytes
    # Each round has one way up and one down, at half the round-trip time each.
    assert found.transmission_seconds > 0.1 * found.rounds
    assert found.seconds >= found.transmission_seconds
    assert found.tokens_per_second == 50 / found.seconds


def test_time_on_a_virtual_link_is_exact() -> None:
    """One round: 2 bytes a second up, 4 down, no computation."""
    clock = VirtualClock(timer=lambda: 0.0)
    link = Link(up=2.0, down=4.0, rtt=1.0)

    found = speculate(
        Drafter(TableModel(4, 1)),
        Verifier(TableModel(4, 1)),  # The same model: everything is accepted.
        [0],
        3,
        draft_length=2,
        link=link,
        generator=torch.Generator().manual_seed(0),
        clock=clock,
    )

    assert found.rounds == 1
    opening, draft = found.opening_bytes, found.uplink_bytes - found.opening_bytes
    # The draft waits for the edge to have the opening.
    up = max(opening, draft) / 2 + 0.5
    assert found.seconds == pytest.approx(up + found.downlink_bytes / 4 + 0.5)


class TimedTable(TableModel):
    """A model that takes 10 ms a pass."""

    seconds = 0.0

    def extend(self, rows: Sequence[Row]) -> list[torch.Tensor]:
        self.seconds += 0.01
        return super().extend(rows)


def test_drafting_ahead_hides_the_drafts_behind_the_link() -> None:
    """Everything is accepted: five drafts of 80 ms and five round trips of 100 ms."""
    seconds = {}
    for ahead in (False, True):
        model = TimedTable(4, 1)
        found = speculate(
            Drafter(model),
            Verifier(TableModel(4, 1)),
            [0],
            45,
            # Nine tokens a round either way: with a bonus token, or without.
            draft_length=Fixed(9, in_flight=9) if ahead else 8,
            link=Link(up=1e12, rtt=0.1),
            generator=torch.Generator().manual_seed(0),
            drafting_ahead=ahead,
            clock=VirtualClock(timer=partial(getattr, model, "seconds")),
        )
        assert found.acceptance_rate == 1
        assert found.discarded == 0
        assert found.rounds == 5
        seconds[ahead] = found.seconds

    assert seconds[False] == pytest.approx(5 * (0.08 + 0.1), abs=1e-6)
    # Only the first draft is waited for; the others hide behind the link.
    assert seconds[True] == pytest.approx(0.09 + 5 * 0.1, abs=1e-6)


class LostEdge(LocalEdge):
    """An edge that goes away after so many messages."""

    left = 3

    def start(self, opening: Opening, choices: Choices) -> EdgeSession:
        edge, session = self, super().start(opening, choices)

        class Session:
            traffic = Traffic()

            def send(self, message: Any) -> Pending:
                edge.left -= 1
                if edge.left < 0:
                    raise VerifierUnavailableError("gone")
                return session.send(message)

            def score(self, message: Score) -> Scored:
                if edge.left < 1:
                    raise VerifierUnavailableError("gone")
                return session.score(message)

            def close(self) -> None:
                session.close()

        return Session()


def test_the_small_model_finishes_if_the_edge_is_lost(llamas: Pair) -> None:
    whole = run(llamas)
    verifier = Verifier(llamas[1])
    drafter = Drafter(llamas[0])

    def lost(if_edge_is_lost: Any) -> Generation:
        return speculate(
            drafter,
            LostEdge(verifier, None, VirtualClock()),
            [1, 2, 3],
            20,
            Sampling(temperature=0.7),
            generator=torch.Generator().manual_seed(0),
            if_edge_is_lost=if_edge_is_lost,
            score=True,
        )

    found = lost("draft")

    confirmed = 20 - found.fallback_tokens
    # A fourth one went out and was never answered.
    assert found.rounds == len(found.verdicts) == 3
    assert found.tokens_per_round == confirmed / 3
    assert 3 <= confirmed < 20
    assert len(found.tokens) == 20
    assert found.tokens[:confirmed] == whole.tokens[:confirmed]
    assert found.score is None  # Some of it is the drafter's own.
    with pytest.raises(VerifierUnavailableError):
        lost("raise")
    with pytest.raises(InvalidInputError, match="if_edge_is_lost"):
        lost("drafts")
    assert verifier.sessions == 0


@pytest.mark.parametrize(
    "sampling",
    [Sampling(), Sampling(temperature=0), Sampling(top_k=5), Sampling(top_p=0.9)],
    ids=str,
)
@pytest.mark.parametrize("protocol", ["dsd", "dssd"])
def test_a_drafter_that_has_diverged_says_so(
    protocol: str, sampling: Sampling, llamas: Pair
) -> None:
    diverged = copy.deepcopy(llamas[0])
    with torch.no_grad():
        for weight in diverged.parameters():
            weight.fill_(math.nan)

    with pytest.raises(FlowerExtError, match="drafter's logits are not finite: its w"):
        run((diverged, llamas[1]), sampling=sampling, protocol=protocol)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_generator_may_be_on_cuda(llamas: Pair) -> None:
    def text() -> tuple[int, ...]:
        return run(llamas, generator=torch.Generator("cuda").manual_seed(3)).tokens

    assert text() == text()


def test_two_vocabularies_are_refused(llamas: Pair) -> None:
    with pytest.raises(InvalidInputError, match=r"64 ids and the verifier 60"):
        speculate(Drafter(llamas[0]), Verifier(llamas[1], 60), [1], 4)
    found = speculate(Drafter(llamas[0], 60), Verifier(llamas[1], 60), [1], 30)
    assert max(found.tokens) < 60


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"prompt_ids": []}, "at least one token"),
        ({"prompt_ids": [64]}, r"\[0, 64\)"),
        ({"max_new_tokens": 0}, "max_new_tokens"),
        ({"max_new_tokens": 600}, "at most 512"),
        ({"protocol": "dsdd"}, "'dsdd'"),
        ({"protocol": None}, "no protocol None"),
        ({"draft_length": 0}, "draft_length"),
        ({"draft_length": "6"}, "draft_length"),
        ({"draft_length": Adaptive}, r"Adaptive\(\)"),
        ({"generator": 0}, "torch.Generator"),
        ({"prompt_ids": "ROMEO"}, "list of token ids"),
        ({"prompt_ids": torch.tensor([[1, 2]])}, "batch dimension"),
        ({"stop_strings": ["x"]}, "tokenizer"),
        ({"stop_strings": [""]}, "empty"),
    ],
    ids=str,
)
def test_bad_input_is_named(llamas: Pair, changes: dict[str, Any], match: str) -> None:
    with pytest.raises(InvalidInputError, match=match):
        run(llamas, **changes)


@pytest.mark.parametrize(
    "model",
    [
        lambda: MambaForCausalLM(
            MambaConfig(vocab_size=32, hidden_size=16, num_hidden_layers=1)
        ),
        lambda: MistralForCausalLM(
            MistralConfig(
                vocab_size=32,
                hidden_size=16,
                intermediate_size=16,
                num_hidden_layers=1,
                num_attention_heads=2,
                num_key_value_heads=2,
                sliding_window=8,
            )
        ),
        lambda: T5ForConditionalGeneration(
            T5Config(vocab_size=32, d_model=16, d_ff=16, num_layers=1, num_heads=2)
        ),
        object,
    ],
    ids=["recurrent", "sliding-window", "encoder-decoder", "no-model"],
)
def test_models_that_cannot_be_rolled_back_are_refused(model: Any) -> None:
    with pytest.raises(InvalidInputError, match=r"rolled back|decoder-only|must be"):
        Drafter(model())


@pytest.mark.parametrize("make", [Drafter, Verifier])
def test_a_wrapped_model_is_not_cut_silently(make: Any, llamas: Pair) -> None:
    cut = TransformersModel(llamas[0], 60)

    assert make(cut).vocab_size == make(cut, 60).vocab_size == 60
    with pytest.raises(InvalidInputError, match=r"vocab_size=50 cannot cut a Trans"):
        make(cut, 50)


def test_learned_positions_work_in_ragged_batches() -> None:
    """GPT-2 has absolute positions, which left padding must not shift."""
    torch.manual_seed(0)
    model = GPT2LMHeadModel(
        GPT2Config(vocab_size=40, n_embd=16, n_layer=2, n_head=2, initializer_range=0.3)
    )
    verifier = Verifier(model)
    prompts = {"a": (1, 2, 3), "b": tuple(range(20)), "c": (7,)}
    draft = Draft(1, 0, (), (), torch.zeros(0).numpy())
    for name, prompt in prompts.items():
        verifier.open(Opening(name, 0, prompt, temperature=0))

    found = verifier.verify_batch([(name, draft) for name in prompts])

    for verdict, prompt in zip(found, prompts.values(), strict=True):
        with torch.inference_mode():
            logits = model(
                torch.tensor([prompt]), **forward_cache(model, DynamicCache())
            ).logits
        assert not isinstance(verdict, Exception)
        assert verdict.token == int(logits[0, -1].argmax())


def test_nothing_at_all_has_no_rate() -> None:
    required = [field for field in fields(Generation) if field.default is MISSING]
    empty = Generation((), "length", *[0] * (len(required) - 2))

    assert math.isnan(empty.acceptance_rate)
    assert math.isnan(empty.tokens_per_round)
    assert math.isnan(empty.tokens_per_second)
