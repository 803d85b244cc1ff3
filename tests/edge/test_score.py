"""What the target thinks of a text is the same over the wire as in one process."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import grpc
import pytest
import torch

from flower_ext.edge import edge_pb2 as pb
from flower_ext.edge import patience
from flower_ext.edge.conversation import Conversation as Served
from flower_ext.edge.convert import opening_to_wire, scored_from_wire
from flower_ext.errors import FlowerExtError
from flower_ext.models import ModelPair
from flower_ext.speculative import (
    PROTOCOLS,
    Generation,
    Opening,
    Sampling,
    Score,
    VerifierUnavailableError,
)
from tests.edge.conftest import Connect, Serve, metric
from tests.edge.proxy import CuttingProxy
from tests.edge.raw import Conversation, hello

Generate = Callable[..., Generation]

GREEDY = Sampling(temperature=0)


def by_hand(pair: ModelPair, prompt: list[int], text: Generation) -> tuple[float, int]:
    """Return the log-likelihood of a text and how much of it is the target's choice."""
    tokens = torch.tensor([[*prompt, *text.tokens]])
    with torch.no_grad():
        logits: Any = pair.target(tokens).logits[0, len(prompt) - 1 : -1]
    chosen = tokens[0, len(prompt) :]
    logs = torch.log_softmax(logits[:, : pair.vocab_size].double(), -1)
    agreeing = logits.argmax(-1) == chosen
    return float(logs.gather(1, chosen[:, None]).sum()), int(agreeing.sum())


@pytest.mark.parametrize("ahead", [False, True])
@pytest.mark.parametrize("sampling", [GREEDY, Sampling(top_k=20)])
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_over_the_wire_and_in_process(
    serve: Serve,
    connect: Connect,
    generate: Generate,
    prompts: list[list[int]],
    pair: ModelPair,
    protocol: str,
    sampling: Sampling,
    ahead: bool,
) -> None:
    server = serve()
    edge = connect(server.address)
    options = {"sampling": sampling, "protocol": protocol, "drafting_ahead": ahead}

    for seed, prompt in enumerate(prompts):
        # Of all lengths, so that some end with a token that the edge does not know.
        options["max_new_tokens"] = 7 + 2 * seed
        there = generate(edge, prompt, seed, score=True, **options)
        here = generate(None, prompt, seed, score=True, **options)
        log_likelihood, agreeing = by_hand(pair, prompt, here)

        assert there.tokens == here.tokens
        for text in (there, here):
            assert text.score is not None
            assert text.score.tokens == len(text.tokens)
            assert text.score.log_likelihood == pytest.approx(log_likelihood, abs=1e-4)
            assert text.score.agreeing == agreeing
        if sampling is GREEDY:
            assert agreeing == len(there.tokens)
    assert metric(server, "texts_scored_total") == len(prompts)


def test_a_text_that_ends_within_a_draft(
    serve: Serve,
    connect: Connect,
    generate: Generate,
    prompts: list[list[int]],
    pair: ModelPair,
) -> None:
    edge = connect(serve().address)
    options = {"sampling": GREEDY, "draft_length": 8, "score": True}
    free = generate(edge, prompts[0], **options)
    cut = 0
    for token in free.tokens[2:12]:
        stop = pair.tokenizer.decode([token])
        text = generate(
            edge, prompts[0], stop_strings=stop, tokenizer=pair.tokenizer, **options
        )
        log_likelihood, agreeing = by_hand(pair, prompts[0], text)

        assert text.finish_reason == "stop-string"
        assert text.score is not None
        assert text.score.log_likelihood == pytest.approx(log_likelihood, abs=1e-4)
        assert (text.score.tokens, text.score.agreeing) == (len(text.tokens), agreeing)
        confirmed = sum(v.accepted + (v.token is not None) for v in text.verdicts)
        cut += confirmed > len(text.tokens)
    assert cut > 3


def test_it_is_in_none_of_the_texts_statistics(
    serve: Serve, connect: Connect, generate: Generate, prompts: list[list[int]]
) -> None:
    server = serve()
    texts: list[Generation] = []
    sent: list[tuple[float, float]] = []
    for score in (False, True):
        edge = connect(server.address)
        before = [metric(server, f"{way}link_bytes_total") for way in ("up", "down")]
        # Under dsd the edge knows all of a text.
        texts.append(generate(edge, prompts[0], protocol="dsd", score=score))
        edge.close()
        after = [metric(server, f"{way}link_bytes_total") for way in ("up", "down")]
        sent.append((after[0] - before[0], after[1] - before[1]))

    without, scored = texts
    assert without.score is None
    assert scored.score is not None
    for name in ("uplink_bytes", "downlink_bytes", "opening_bytes", "rounds"):
        assert getattr(scored, name) == getattr(without, name)
    assert sent[1][0] - sent[0][0] == Score(24).wire_size
    assert sent[1][1] - sent[0][1] == scored.score.wire_size
    here = generate(None, prompts[0], protocol="dsd", score=True)
    assert here.uplink_bytes == generate(None, prompts[0], protocol="dsd").uplink_bytes


class Saboteur:
    """Does something to the edge, once, as soon as a text is over."""

    def __init__(self, act: Callable[[], Any]) -> None:
        self.act = act

    def put(self, value: torch.Tensor) -> None:
        pass

    def end(self) -> None:
        self.act()


def test_whatever_is_cut_it_is_told(
    serve: Serve,
    connect: Connect,
    generate: Generate,
    prompts: list[list[int]],
    pair: ModelPair,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(patience, "_FIRST_WAIT", 0.005)
    server = serve()
    with CuttingProxy(server.address, seed=3) as proxy:

        def cut_soon() -> None:
            proxy.cuts_left = 2

        edge = connect(proxy.address)
        for seed in range(9):
            text = generate(
                *(edge, prompts[seed % 4], seed),
                protocol=list(PROTOCOLS)[seed % 3],
                streamer=Saboteur(cut_soon),
                score=True,
            )
            log_likelihood, agreeing = by_hand(pair, prompts[seed % 4], text)

            assert text.score is not None
            assert text.score.log_likelihood == pytest.approx(log_likelihood, abs=1e-4)
            assert text.score.agreeing == agreeing
        proxy.cuts_left = 0
        edge.close()
    assert proxy.cuts > 4


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_an_edge_that_has_forgotten_the_text(
    serve: Serve,
    connect: Connect,
    generate: Generate,
    prompts: list[list[int]],
    pair: ModelPair,
    protocol: str,
) -> None:
    for seed in range(2):
        first = serve()
        port = int(first.address.rpartition(":")[2])

        def restart(first: Any = first, port: int = port) -> None:
            first.stop()
            serve(port=port)

        options = {"protocol": protocol, "max_new_tokens": 9 + seed, "score": True}
        text = generate(
            *(connect(first.address), prompts[0], seed),
            streamer=Saboteur(restart),
            **options,
        )
        log_likelihood, agreeing = by_hand(pair, prompts[0], text)

        assert text.reconnections == 0  # The text was over.
        assert text.score is not None
        assert text.score.log_likelihood == pytest.approx(log_likelihood, abs=1e-4)
        assert text.score.agreeing == agreeing


def test_an_edge_that_is_gone_by_then(
    serve: Serve, connect: Connect, generate: Generate, prompts: list[list[int]]
) -> None:
    for otherwise in ("draft", "raise"):
        server = serve()
        edge = connect(server.address, patience=0.2)
        options = {
            "if_edge_is_lost": otherwise,
            "streamer": Saboteur(server.stop),
            "score": True,
        }
        if otherwise == "raise":
            with pytest.raises(VerifierUnavailableError, match="not answered"):
                generate(edge, prompts[0], **options)
        else:
            text = generate(edge, prompts[0], **options)
            assert text.score is None
            assert text.fallback_tokens == 0


def score(confirmed: int, *tail: int) -> pb.DeviceMessage:
    return pb.DeviceMessage(score=pb.Score(confirmed=confirmed, tail=tail))


def test_what_cannot_be_scored_is_refused(
    serve: Serve, pair: ModelPair, fingerprint: str
) -> None:
    server = serve()
    invalid, unknown = grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND
    longest = server._terms.max_length
    assert longest is not None
    # Two tokens of the prompt, and three that were generated.
    session = Opening("s", 0, (1, 2, 3, 4, 5), generated=3)
    with Conversation(server.address) as device:
        device.send(hello(fingerprint))
        assert device.read().HasField("welcome")

        def reply(message: pb.DeviceMessage) -> Any:
            device.send(message)
            return device.read()

        assert reply(score(1)).refusal.code == unknown.value[0]
        assert reply(opening_to_wire(session)).HasField("opened")
        for message, text in (
            (score(0), "must be at least 1, got 0"),
            (score(1, 7, 8), "must be at least 2, got 1"),
            (score(4), "the 3 generated tokens that the edge knows"),
            (score(3, 7), "the 3 generated tokens that the edge knows"),
            (score(2**32 - 1), "the 3 generated tokens that the edge knows"),
            (score(4, pair.vocab_size), "must be ids in"),
            (score(260, *[7] * 257), "256 entries in one message, got 257"),
        ):
            refused = reply(message).refusal
            assert refused.code == invalid.value[0]
            assert text in refused.message
        assert metric(server, "texts_scored_total") == 0

        whole, again = reply(score(3)), reply(score(3))
        assert whole.scored.tokens == 3
        assert whole.scored.log_likelihood < 0
        assert again.scored.tokens == 3
        assert again.scored.log_likelihood == pytest.approx(
            whole.scored.log_likelihood, abs=1e-6
        )
        assert reply(score(2)).scored.log_likelihood > whole.scored.log_likelihood
        assert reply(score(5, 7, 8)).scored.tokens == 5

        prompt = (1,) * (longest - 1)
        long = replace(session, session="t", prompt=prompt, generated=1)
        assert reply(opening_to_wire(long)).HasField("opened")
        assert f"at most {longest}" in reply(score(3, 7, 8)).refusal.message
        assert reply(score(2, 7)).scored.tokens == 2
    assert metric(server, "texts_scored_total") == 5
    assert metric(server, "refusals_total", code="INVALID_ARGUMENT") == 8


def test_an_edge_that_scores_another_text_is_found_out(
    serve: Serve,
    connect: Connect,
    generate: Generate,
    prompts: list[list[int]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for broken in (
        pb.Scored(tokens=23, log_likelihood=-1),
        pb.Scored(tokens=24, log_likelihood=-1, agreeing=25),
        pb.Scored(tokens=24, log_likelihood=0.5),
        pb.Scored(tokens=24, log_likelihood=float("nan")),
        pb.Scored(tokens=24, log_likelihood=float("-inf")),
    ):
        with pytest.raises(FlowerExtError, match="is none of 24 tokens"):
            scored_from_wire(broken, 24)
    verify = Served._verify

    async def mix_up(self: Served, message: Any) -> pb.EdgeMessage:
        if type(message).__name__ == "Score":
            return pb.EdgeMessage(verdict=pb.Verdict())
        return await verify(self, message)

    monkeypatch.setattr(Served, "_verify", mix_up)
    edge = connect(serve().address)
    with pytest.raises(FlowerExtError, match="has sent verdict where scored was due"):
        generate(edge, prompts[0], score=True)
