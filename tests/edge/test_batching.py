"""What waits together is verified together, and nothing waits without bound."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import grpc
import numpy as np
import pytest

from flower_ext.edge import edge_pb2 as pb
from flower_ext.edge import patience
from flower_ext.edge.convert import draft_to_wire, opening_to_wire, score_to_wire
from flower_ext.models import ModelPair
from flower_ext.speculative import (
    Choices,
    Draft,
    Generation,
    Opening,
    Score,
    Verifier,
)
from flower_ext.speculative.protocols import PROTOCOLS
from tests.edge.conftest import Connect, Serve, metric
from tests.edge.raw import Conversation, hello

Generate = Callable[..., Generation]


def test_eight_devices_at_once_get_what_each_gets_alone(
    serve: Serve, connect: Connect, generate: Generate, prompts: list[list[int]]
) -> None:
    server = serve(batch_window=0.05)
    edges = [connect(server.address) for _ in range(8)]
    protocols = [list(PROTOCOLS)[index % 3] for index in range(8)]
    lengths = [12 + index for index in range(8)]
    meet = threading.Barrier(8)

    def text(index: int, remote: bool) -> tuple[int, ...]:
        if remote:
            meet.wait()
        return generate(
            edges[index] if remote else None,
            prompts[index % len(prompts)],
            index,
            protocol=protocols[index],
            max_new_tokens=lengths[index],
        ).tokens

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(text, range(8), [True] * 8))
    for edge in edges:
        edge.close()

    assert found == [text(index, False) for index in range(8)]
    batches = metric(server, "batch_size_count")
    assert metric(server, "rounds_total") >= 2 * batches
    assert metric(server, "batch_size_bucket", le="4.0") < batches
    assert metric(server, "sessions_opened_total") == 8
    assert metric(server, "sessions_open") == 0


def test_what_is_counted_is_what_the_devices_have_seen(
    serve: Serve, connect: Connect, generate: Generate, prompts: list[list[int]]
) -> None:
    server = serve()
    edge = connect(server.address)
    uplink = metric(server, "uplink_bytes_total")
    downlink = metric(server, "downlink_bytes_total")
    there = generate(edge, prompts[0], protocol="dssd-candidates")
    edge.close()
    here = generate(None, prompts[0], protocol="dssd-candidates")

    assert metric(server, "rounds_total") == there.rounds
    assert metric(server, "tokens_drafted_total") == there.drafted
    assert metric(server, "tokens_accepted_total") == there.accepted
    assert metric(server, "verification_seconds_total") > 0
    close = 2 + 5  # An empty message in its envelope, and gRPC's prefix.
    assert metric(server, "uplink_bytes_total") - uplink == there.uplink_bytes + close
    assert metric(server, "downlink_bytes_total") - downlink == there.downlink_bytes
    # Over the wire, there is a hello on top of what a simulated link carries.
    greeting = there.opening_bytes - here.opening_bytes
    assert greeting == 5 + 2 + 2 + 66 + 3
    assert there.uplink_bytes - greeting == here.uplink_bytes


class Gate(Verifier):
    """A verifier that waits at a gate before every prompt and every draft."""

    def __init__(self, pair: ModelPair) -> None:
        super().__init__(pair.target)
        self.gate = threading.Event()
        self.log: list[str] = []

    def open(self, opening: Opening, choices: Choices | None = None) -> None:
        self.gate.wait()
        self.log.append("open")
        super().open(opening, choices)

    def verify_batch(self, requests: object) -> list:  # type: ignore[type-arg]
        self.gate.wait()
        self.log.append(f"verify {len(requests)}")  # type: ignore[arg-type]
        return super().verify_batch(requests)  # type: ignore[arg-type]


def test_a_full_queue_refuses_and_a_device_tries_again(
    serve: Serve,
    connect: Connect,
    generate: Generate,
    prompts: list[list[int]],
    pair: ModelPair,
    fingerprint: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(patience, "_FIRST_WAIT", 0.01)
    verifier = Gate(pair)
    server = serve(model=verifier, max_queue=2)
    devices = [Conversation(server.address) for _ in range(5)]
    for index, device in enumerate(devices):
        device.send(hello(fingerprint))
        assert device.read().HasField("welcome")
        device.send(opening_to_wire(Opening(f"s{index}", 0, (1, 2, 3))))
    # One is computed and two wait; the others are refused, whichever they are.
    refusals = "refusals_total"
    while metric(server, refusals, code="RESOURCE_EXHAUSTED") < 2:
        threading.Event().wait(0.01)
    assert metric(server, "queue_length") == 2

    edge = connect(server.address)
    with ThreadPoolExecutor(1) as pool:
        text = pool.submit(generate, edge, prompts[0])
        while metric(server, refusals, code="RESOURCE_EXHAUSTED") < 5:
            threading.Event().wait(0.01)
        verifier.gate.set()
        assert text.result().tokens == generate(None, prompts[0]).tokens
    replies = [device.read() for device in devices]
    refused = [reply.refusal for reply in replies if reply.HasField("refusal")]
    assert len(refused) == 2
    for refusal in refused:
        assert refusal.code == grpc.StatusCode.RESOURCE_EXHAUSTED.value[0]
        assert refusal.retry_seconds > 0
        assert "2 messages wait" in refusal.message
    for device in devices:
        device.close()


def test_neither_prompts_nor_drafts_starve(
    serve: Serve, pair: ModelPair, fingerprint: str
) -> None:
    verifier = Gate(pair)
    verifier.gate.set()
    server = serve(model=verifier, batch_window=0)
    devices = [Conversation(server.address) for _ in range(8)]
    for index, device in enumerate(devices[:4]):
        device.send(hello(fingerprint))
        device.send(opening_to_wire(Opening(f"s{index}", 0, (1, 2, 3))))
        assert device.read().HasField("welcome")
        assert device.read().HasField("opened")
    verifier.gate.clear()
    verifier.log.clear()
    # The first is taken at once, and waits at the gate; then all others wait behind it.
    first, *others = devices[4:]
    for index, device in enumerate([first, *others]):
        device.send(hello(fingerprint))
        assert device.read().HasField("welcome")
        device.send(opening_to_wire(Opening(f"late {index}", 0, (1, 2, 3))))
    message = Draft(1, 0, (), (), np.zeros(0, dtype=np.float32))
    for device in devices[:4]:
        device.send(draft_to_wire(message))
    while metric(server, "queue_length") < 7:
        threading.Event().wait(0.01)
    verifier.gate.set()
    for device in devices:
        device.read()
        device.close()

    assert verifier.log == ["open", "verify 4", "open", "open", "open"]


def test_a_prompt_that_waits_is_forgotten_with_its_session(
    serve: Serve, pair: ModelPair, fingerprint: str
) -> None:
    verifier = Gate(pair)
    server = serve(model=verifier)

    def open_session(name: str) -> Conversation:
        device = Conversation(server.address)
        device.send(hello(fingerprint))
        assert device.read().HasField("welcome")
        device.send(opening_to_wire(Opening(name, 0, (1, 2, 3))))
        return device

    first = open_session("first")
    while metric(server, "sessions_open") < 1 or metric(server, "queue_length") > 0:
        threading.Event().wait(0.01)
    old = open_session("second")
    while metric(server, "queue_length") < 1:
        threading.Event().wait(0.01)
    new = open_session("second")
    assert old.status() is grpc.StatusCode.ABORTED
    verifier.gate.set()
    for device in (first, new):
        assert device.read().HasField("opened")

    assert verifier.log == ["open", "open"]
    assert verifier.sessions == metric(server, "sessions_open") == 2
    for device in (first, old, new):
        device.close()


def test_a_score_that_waits_is_forgotten_with_its_stream(
    serve: Serve, pair: ModelPair, fingerprint: str
) -> None:
    verifier = Gate(pair)
    verifier.gate.set()
    server = serve(model=verifier)
    old, other, new = (Conversation(server.address) for _ in range(3))
    for device in (old, other, new):
        device.send(hello(fingerprint))
        assert device.read().HasField("welcome")
    old.send(opening_to_wire(Opening("s", 0, (1, 2, 3), generated=1)))
    assert old.read().HasField("opened")
    verifier.gate.clear()
    other.send(opening_to_wire(Opening("other", 0, (1, 2, 3))))
    while metric(server, "sessions_open") < 2 or metric(server, "queue_length") > 0:
        threading.Event().wait(0.01)
    old.send(score_to_wire(Score(1)))
    while metric(server, "queue_length") < 1:
        threading.Event().wait(0.01)

    new.send(pb.DeviceMessage(resume=pb.Resume(session="s")))
    assert new.read().HasField("opened")
    assert old.status() is grpc.StatusCode.ABORTED
    verifier.gate.set()
    assert other.read().HasField("opened")
    new.send(score_to_wire(Score(1)))
    assert new.read().scored.tokens == 1

    assert metric(server, "texts_scored_total") == 1
    for device in (old, other, new):
        device.close()


def test_a_target_that_fails_harms_nobody_else(
    serve: Serve,
    connect: Connect,
    generate: Generate,
    prompts: list[list[int]],
    pair: ModelPair,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    verifier = Verifier(pair.target)
    whole, calls = verifier.model.extend, []

    def fail_once(rows: object) -> object:
        calls.append(rows)
        if len(calls) == 4:
            raise RuntimeError("out of memory")
        return whole(rows)  # type: ignore[arg-type]

    monkeypatch.setattr(verifier.model, "extend", fail_once)
    edge = connect(serve(model=verifier).address)
    text = generate(edge, prompts[0])

    assert text.tokens == generate(None, prompts[0]).tokens
    assert text.reconnections == 1
    assert "out of memory" in caplog.text
