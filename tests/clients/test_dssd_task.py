"""A node answers a DSSD request with sums that are its own, and leaks nothing."""

from __future__ import annotations

import math
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.common.serde import message_from_proto, message_to_proto
from flwr.proto.message_pb2 import Message as ProtoMessage

from flower_ext.clients import DSSDTask
from flower_ext.edge import EdgeServer
from flower_ext.errors import InvalidInputError
from flower_ext.models import ModelPair, default_pair, tokenizer_fingerprint
from flower_ext.network.link import Link
from flower_ext.speculative import Generation, VerifierUnavailableError, speculate
from flower_ext.speculative.evaluation import DSSD_KEY, DSSDRequest
from flower_ext.speculative.totals import DSSDTotals

PROMPTS = ["ROMEO:", "The king"]
MakeContext = Callable[..., Context]


@pytest.fixture(scope="module")
def pair() -> ModelPair:
    return default_pair()


def ask(arrays: ArrayRecord | None = None, **fields: Any) -> Message:
    request = DSSDRequest(
        **{
            "edge": "in-process",
            "drafter_weights": "node",
            "max_new_tokens": 8,
            "server_round": 1,
            **fields,
        }
    )
    content = RecordDict({DSSD_KEY: ConfigRecord(request.to_config())})
    if arrays is not None:
        content["arrays"] = arrays
    return Message(content, dst_node_id=77, message_type="evaluate.dssd")


def told(reply: Message) -> dict[str, Any]:
    records = list(reply.content.metric_records.values())
    assert len(records) == 1
    return dict(records[0])


def unclocked(metrics: dict[str, Any]) -> dict[str, Any]:
    """Return what does not depend on how fast the machine is."""
    timed = ("seconds", "latency", "second")
    return {n: v for n, v in metrics.items() if not any(t in n for t in timed)}


@pytest.fixture
def generations(
    monkeypatch: pytest.MonkeyPatch,
) -> list[tuple[list[int], Generation]]:
    """Return the prompts' ids and the texts as they are generated."""
    found: list[tuple[list[int], Generation]] = []

    def recorded(drafter: Any, verifier: Any, ids: Any, *args: Any, **kw: Any) -> Any:
        generation = speculate(drafter, verifier, ids, *args, **kw)
        found.append((list(ids), generation))
        return generation

    monkeypatch.setattr("flower_ext.clients.dssd_inference.speculate", recorded)
    return found


def test_sums_and_scores_are_those_of_the_texts(
    make_context: MakeContext,
    pair: ModelPair,
    generations: list[tuple[list[int], Generation]],
) -> None:
    metrics = told(DSSDTask(PROMPTS)(ask(), make_context()))

    assert [ids for ids, _ in generations] == [
        pair.tokenizer(prompt)["input_ids"] for prompt in PROMPTS
    ]
    log_likelihood = 0.0
    for ids, generation in generations:
        with torch.no_grad():
            tokens = torch.tensor([[*ids, *generation.tokens]])
            logits: Any = pair.target(tokens).logits[0]
        logs = torch.log_softmax(logits[len(ids) - 1 : -1].double(), -1)
        log_likelihood += float(logs.gather(1, tokens[0, len(ids) :, None]).sum())
    assert metrics["num-prompts"] == 2
    assert metrics["num-tokens"] == metrics["scored-tokens"] == 16
    assert metrics["log-likelihood"] == pytest.approx(log_likelihood, rel=1e-5)
    assert metrics["perplexity"] == pytest.approx(math.exp(-log_likelihood / 16))
    for name in ("accepted", "examined", "drafted", "uplink_bytes", "opening_bytes"):
        total = sum(getattr(g, name) for _, g in generations)
        assert metrics[name.replace("_", "-")] == total
    assert metrics["acceptance-rate"] == metrics["accepted"] / metrics["examined"]
    assert metrics["compared-tokens"] == 0
    assert DSSDTotals.from_metrics(metrics).num_prompts == 2


def test_greedy_texts_are_the_targets_own(make_context: MakeContext) -> None:
    metrics = told(DSSDTask(PROMPTS)(ask(temperature=0), make_context()))

    assert metrics["compared-tokens"] == 16
    assert metrics["agreeing-tokens"] == 16
    assert metrics["greedy-agreement"] == 1.0


def test_runs_repeat_and_rounds_nodes_prompts_and_seeds_differ(
    make_context: MakeContext, generations: list[tuple[list[int], Generation]]
) -> None:
    task = DSSDTask(["ROMEO:", "ROMEO:"])
    node = make_context({"partition-id": 3})
    other = make_context({"partition-id": 4})

    first, again = told(task(ask(), node)), told(task(ask(), node))
    task(ask(server_round=2), node)
    task(ask(), other)
    task(ask(seed=1), node)

    assert unclocked(first) == unclocked(again)
    texts = [generation.tokens for _, generation in generations]
    assert texts[0:2] == texts[2:4]
    assert len(set(texts)) == len(texts) - 2


def test_weights_of_a_message_are_drafted_with_and_forgotten(
    make_context: MakeContext, pair: ModelPair
) -> None:
    task = DSSDTask(PROMPTS)
    own = pair.draft.state_dict()
    alike = ArrayRecord({name: value.clone() for name, value in own.items()})
    blank = ArrayRecord({name: torch.zeros_like(v) for name, v in own.items()})

    before = unclocked(told(task(ask(), make_context())))
    same = unclocked(told(task(ask(alike, drafter_weights="message"), make_context())))
    zero = told(task(ask(blank, drafter_weights="message"), make_context()))
    after = unclocked(told(task(ask(blank), make_context())))

    assert same == before
    assert after == before  # Arrays in the message are ignored.
    assert zero["accepted"] < before["accepted"]


def test_weights_of_another_model_are_refused(
    make_context: MakeContext, pair: ModelPair
) -> None:
    task = DSSDTask(PROMPTS)
    other = ArrayRecord(pair.target.state_dict())

    with pytest.raises(InvalidInputError, match="choose drafter_weights='node'"):
        task(ask(other, drafter_weights="message"), make_context())
    with pytest.raises(InvalidInputError, match="needs exactly one ArrayRecord"):
        task(ask(drafter_weights="message"), make_context())


def test_a_model_of_ones_own_needs_a_tokenizer(
    make_context: MakeContext, pair: ModelPair
) -> None:
    by_path = told(DSSDTask(PROMPTS)(ask(), make_context()))
    given = DSSDTask(PROMPTS, lambda ctxt: pair.draft, tokenizer=pair.tokenizer)

    assert unclocked(told(given(ask(), make_context()))) == unclocked(by_path)
    with pytest.raises(InvalidInputError, match="DSSDTask\\(tokenizer="):
        DSSDTask(PROMPTS, pair.draft)(ask(), make_context())


def test_a_link_makes_texts_slower(make_context: MakeContext) -> None:
    slow = DSSDTask(["ROMEO:"], link=lambda ctxt: Link(up=1e6, rtt=5.0))
    metrics = told(slow(ask(), make_context()))

    assert metrics["transmission-seconds"] == pytest.approx(5 * metrics["rounds"], 0.1)
    assert metrics["latency-p50"] > 5


def test_prompts_are_the_nodes_then_the_messages(make_context: MakeContext) -> None:
    sent = ask(prompts=("One.", "Two.", "Three."))
    of_node = DSSDTask(lambda ctxt: [str(ctxt.node_config["text"])])

    assert told(DSSDTask()(sent, make_context()))["num-prompts"] == 3
    assert told(of_node(sent, make_context({"text": "Four."})))["num-prompts"] == 1
    with pytest.raises(InvalidInputError, match="nothing to generate from"):
        DSSDTask()(ask(), make_context())
    with pytest.raises(InvalidInputError, match="into a list"):
        DSSDTask("One.")


def test_a_mistyped_key_is_named(make_context: MakeContext) -> None:
    message = ask()
    record: Any = message.content[DSSD_KEY]
    record["draft-lenght"] = 4

    with pytest.raises(InvalidInputError, match="did you mean 'draft-length'"):
        DSSDTask(PROMPTS)(message, make_context())


def test_a_message_without_a_request_is_refused(make_context: MakeContext) -> None:
    message = Message(RecordDict(), dst_node_id=77, message_type="evaluate.dssd")

    with pytest.raises(InvalidInputError, match="WithInference"):
        DSSDTask(PROMPTS)(message, make_context())


def test_messages_travel_as_bytes(make_context: MakeContext, pair: ModelPair) -> None:
    def through_bytes(message: Message) -> Message:
        data = message_to_proto(message).SerializeToString()
        return message_from_proto(ProtoMessage.FromString(data))

    arrays = ArrayRecord(pair.draft.state_dict())
    message = ask(arrays, drafter_weights="message", prompts=tuple(PROMPTS), top_k=20)
    message.metadata.__dict__["_message_id"] = "the-message"

    reply = DSSDTask()(through_bytes(message), make_context())
    metrics = told(through_bytes(reply))

    assert DSSDTotals.from_metrics(metrics).num_tokens == 16
    assert math.isnan(metrics["greedy-agreement"])


def test_declaring_the_task_loads_no_torch() -> None:
    code = (
        "import sys; from flower_ext.clients import DSSDTask; DSSDTask(['a']); "
        "from flower_ext.strategies import WithInference; print('torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )

    assert done.stdout.strip() == "False"


def test_an_edge_that_never_answers_is_waited_for_once(
    make_context: MakeContext, pair: ModelPair
) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        fields: dict[str, Any] = {"edge": "grpc", "address": address, "plaintext": True}
        fields |= {"patience": 0.5, "timeout": 5.0}

        with pytest.raises(VerifierUnavailableError, match="no answer"):
            DSSDTask(PROMPTS)(ask(**fields), make_context())
        reply = DSSDTask(PROMPTS)(
            ask(if_edge_is_lost="draft", **fields), make_context()
        )

    metrics = told(reply)
    assert metrics["num-prompts"] == len(PROMPTS)
    assert metrics["fallback-tokens"] == metrics["num-tokens"] > 0
    assert metrics["scored-tokens"] == 0
    assert math.isnan(metrics["perplexity"])


def test_an_edge_that_is_lost_is_waited_for_once(
    make_context: MakeContext, pair: ModelPair, monkeypatch: pytest.MonkeyPatch
) -> None:
    patience = 4.0
    fingerprint = tokenizer_fingerprint(pair.tokenizer)
    server = EdgeServer(pair.target, fingerprint, plaintext=True)
    server.start()
    port = int(server.address.rpartition(":")[2])
    seconds: list[float] = []
    fallen: list[bool] = []
    again: list[EdgeServer] = []

    def watched(*args: Any, **options: Any) -> Generation:
        if len(seconds) == 1:
            server.stop()
        if len(seconds) == 5:
            again.append(
                EdgeServer(pair.target, fingerprint, plaintext=True, port=port)
            )
            again[0].start()
        begin = time.perf_counter()
        generation = speculate(*args, **options)
        seconds.append(time.perf_counter() - begin)
        fallen.append(generation.fallback_tokens > 0)
        time.sleep(0.3)  # Time for a hello in the background.
        return generation

    monkeypatch.setattr("flower_ext.clients.dssd_inference.speculate", watched)
    fields: dict[str, Any] = {"edge": "grpc", "address": server.address}
    fields |= {"plaintext": True, "patience": patience, "if_edge_is_lost": "draft"}
    try:
        metrics = told(DSSDTask(PROMPTS * 6)(ask(**fields), make_context()))
    finally:
        for edge in again:
            edge.stop()

    assert seconds[1] > patience / 4
    assert sum(seconds[2:5]) < patience / 2
    assert fallen[:5] == [False, True, True, True, True]
    assert not fallen[-1]
    # Eight tokens each of the texts that the edge was there for.
    assert metrics["scored-tokens"] == 8 * fallen.count(False)
    assert 1 < metrics["perplexity"] < 1000


def test_scores_over_grpc_are_those_in_process(
    make_context: MakeContext, pair: ModelPair
) -> None:
    fingerprint = tokenizer_fingerprint(pair.tokenizer)
    for temperature in (0, 1):
        here = told(DSSDTask(PROMPTS)(ask(temperature=temperature), make_context()))
        with EdgeServer(pair.target, fingerprint, plaintext=True) as server:
            fields: dict[str, Any] = {"edge": "grpc", "address": server.address}
            fields |= {"plaintext": True, "temperature": temperature}
            there = told(DSSDTask(PROMPTS)(ask(**fields), make_context()))

        assert there["log-likelihood"] == pytest.approx(
            here["log-likelihood"], abs=1e-4
        )
        assert there["perplexity"] == pytest.approx(here["perplexity"], abs=1e-4)
        for name in ("scored-tokens", "compared-tokens", "agreeing-tokens"):
            assert there[name] == here[name]
