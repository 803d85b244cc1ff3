"""Who is not served, and what is told to him."""

from __future__ import annotations

import gc
import logging
import socket
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from flower_ext.edge import EdgeRefusedError, EdgeServer, RemoteVerifier, client
from flower_ext.edge import edge_pb2 as pb
from flower_ext.edge.convert import opening_to_wire
from flower_ext.errors import InvalidInputError
from flower_ext.models import ModelPair
from flower_ext.speculative import Generation, Opening, VerifierUnavailableError
from tests.edge.conftest import Connect, Serve, metric
from tests.edge.raw import Conversation, hello

Generate = Callable[..., Generation]

TOKENS = {"ann": "a-secret", "bob": "b-secret"}


def opening(name: str, length: int = 3, **changes: Any) -> pb.DeviceMessage:
    return opening_to_wire(Opening(name, 0, (1,) * length, **changes))


def resume(name: str) -> pb.DeviceMessage:
    return pb.DeviceMessage(resume=pb.Resume(session=name))


def draft(round: int = 1, known: int = 0) -> pb.DeviceMessage:
    return pb.DeviceMessage(draft=pb.Draft(round=round, confirmed=known))


def test_a_token_is_wanted_and_must_be_right(
    serve: Serve, connect: Connect, generate: Generate, prompts: list[list[int]]
) -> None:
    server = serve(tokens=TOKENS)

    with pytest.raises(EdgeRefusedError, match="wants a token: pass token="):
        connect(server.address)
    for wrong in ("a-secre", "a-secret2", "ann"):
        with pytest.raises(EdgeRefusedError, match="does not know this token"):
            connect(server.address, token=wrong)
    edge = connect(server.address, token="b-secret")
    assert generate(edge, prompts[0]).tokens == generate(None, prompts[0]).tokens
    assert metric(server, "refusals_total", code="UNAUTHENTICATED") == 4


def test_another_tokenizer_is_refused_with_both_fingerprints(
    serve: Serve, connect: Connect, fingerprint: str
) -> None:
    with pytest.raises(EdgeRefusedError) as caught:
        connect(serve().address, tokenizer_fingerprint="f" * 64)

    assert fingerprint in str(caught.value)
    assert "f" * 64 in str(caught.value)


def test_another_version_is_refused_with_both_numbers(
    serve: Serve, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "VERSION", 7)

    with pytest.raises(EdgeRefusedError, match=r"version 2 .* the device 7"):
        connect(serve().address)


def test_vocabularies_are_reconciled_or_refused(
    serve: Serve,
    connect: Connect,
    generate: Generate,
    prompts: list[list[int]],
    pair: ModelPair,
) -> None:
    ids = pair.vocab_size
    with pytest.raises(EdgeRefusedError, match=f"verifies {ids} ids .* has {ids - 24}"):
        connect(serve().address, vocab_size=ids - 24)
    assert connect(serve().address, vocab_size=ids + 24).vocab_size == ids

    cut = connect(serve(vocab_size=ids - 24).address)
    assert cut.vocab_size == ids - 24
    with pytest.raises(
        InvalidInputError, match=f"{ids} ids and the verifier {ids - 24}"
    ):
        generate(cut, prompts[0])


def test_nobody_at_the_address(connect: Connect) -> None:
    with pytest.raises(VerifierUnavailableError, match="no answer from an edge at"):
        connect("127.0.0.1:9", timeout=5, patience=0.2)


def test_an_edge_that_is_up_a_second_later(serve: Serve, connect: Connect) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    with ThreadPoolExecutor(1) as pool:
        edge = pool.submit(connect, f"127.0.0.1:{port}", timeout=5, patience=30)
        time.sleep(1)
        server = serve(port=port)

        assert edge.result().vocab_size == server.vocab_size


def test_parameters_out_of_range(pair: ModelPair, fingerprint: str) -> None:
    for name, value in (
        ("max_queue", 0),
        ("max_batch", 0),
        ("max_sessions", 0),
        ("batch_window", -1),
        ("idle_seconds", 0),
        ("port", -1),
    ):
        changed: dict[str, Any] = {"plaintext": True, name: value}
        with pytest.raises(InvalidInputError, match=f"{name} must .* got {value}"):
            EdgeServer(pair.target, fingerprint, **changed)
    with pytest.raises(InvalidInputError, match="tls_cert, tls_key"):
        EdgeServer(pair.target, fingerprint)
    for name, value in (("timeout", 0), ("patience", -1), ("vocab_size", 0)):
        options: dict[str, Any] = {"vocab_size": 9, "tokenizer_fingerprint": "x"}
        with pytest.raises(InvalidInputError, match=f"{name} must .* got {value}"):
            RemoteVerifier("127.0.0.1:9", **{**options, name: value})


def test_a_port_that_is_taken(serve: Serve) -> None:
    port = int(serve().address.rpartition(":")[2])

    with pytest.raises(InvalidInputError, match=f"cannot listen at 127.0.0.1:{port}"):
        serve(port=port)


def test_tokens_over_plaintext_are_warned_of(
    pair: ModelPair, fingerprint: str, caplog: pytest.LogCaptureFixture
) -> None:
    options: dict[str, Any] = {"plaintext": True, "tokens": TOKENS}
    with caplog.at_level(logging.WARNING):
        EdgeServer(pair.target, fingerprint, **options)
        assert not caplog.records
        EdgeServer(pair.target, fingerprint, host="0.0.0.0", **options)
    assert "Tokens travel unencrypted to 0.0.0.0" in caplog.text


def test_it_begins_with_a_hello(serve: Serve, fingerprint: str) -> None:
    server = serve()
    for first in (draft(), opening("s"), pb.DeviceMessage()):
        with Conversation(server.address) as device:
            device.send(first)
            assert device.status() is grpc.StatusCode.FAILED_PRECONDITION


def test_a_message_longer_than_the_edge_takes(
    serve: Serve, connect: Connect, generate: Generate, fingerprint: str
) -> None:
    server = serve(max_message_bytes=1024)
    with Conversation(server.address) as device:
        device.send(hello(fingerprint))
        device.send(opening("s", length=2000))
        assert device.read().HasField("welcome")
        assert device.status() is grpc.StatusCode.RESOURCE_EXHAUSTED

    edge = connect(server.address)
    with pytest.raises(InvalidInputError, match="at most 1024: draft fewer"):
        generate(edge, [1, 2, 3], protocol="dsd", max_new_tokens=6)
    assert generate(edge, [1, 2, 3]).tokens == generate(None, [1, 2, 3]).tokens


def test_a_prompt_longer_than_the_edge_takes_leaves_no_stream_behind(
    serve: Serve, connect: Connect, generate: Generate
) -> None:
    server = serve(tokens=TOKENS, max_sessions_per_client=1, max_message_bytes=1024)
    edge = connect(server.address, token="a-secret", patience=2)
    gc.disable()  # It would end streams that nobody holds.
    try:
        for _ in range(5):  # More than a client may have streams.
            with pytest.raises(InvalidInputError, match="1024: shorten the prompt"):
                generate(edge, [500] * 900, max_new_tokens=6)
        text = generate(edge, [1, 2, 3])
    finally:
        gc.enable()
    assert text.tokens == generate(None, [1, 2, 3]).tokens


def test_a_foreign_session_is_as_unknown_as_one_that_is_not(
    serve: Serve, fingerprint: str
) -> None:
    server = serve(tokens=TOKENS)
    with (
        Conversation(server.address, "a-secret") as ann,
        Conversation(server.address, "b-secret") as bob,
    ):
        for device in (ann, bob):
            device.send(hello(fingerprint))
            assert device.read().HasField("welcome")
        ann.send(opening("hers"))
        assert ann.read().HasField("opened")

        bob.send(resume("hers"))
        foreign = bob.read()
        bob.send(resume("nobody's"))
        assert foreign == bob.read()
        assert foreign.refusal.code == grpc.StatusCode.NOT_FOUND.value[0]

        bob.send(opening("hers", length=5))  # Of that name, he may have his own.
        assert bob.read().HasField("opened")
        ann.send(draft())
        assert ann.read().verdict.round == 1


def test_a_newer_stream_takes_a_session_over(serve: Serve, fingerprint: str) -> None:
    server = serve()
    with Conversation(server.address) as old, Conversation(server.address) as new:
        for device in (old, new):
            device.send(hello(fingerprint))
            assert device.read().HasField("welcome")
        old.send(opening("s"))
        assert old.read().HasField("opened")
        new.send(resume("s"))
        assert new.read().HasField("opened")

        old.send(draft())
        assert old.status() is grpc.StatusCode.ABORTED
        new.send(draft())
        assert new.read().verdict.round == 1


def test_a_full_edge_says_when_to_try_again(serve: Serve, fingerprint: str) -> None:
    server = serve(tokens=TOKENS, max_sessions=3, max_sessions_per_client=2)
    devices = []
    for token in ("a-secret", "a-secret", "a-secret", "b-secret", "b-secret"):
        device = Conversation(server.address, token)
        devices.append(device)
        device.send(hello(fingerprint))
        device.send(opening(f"session {len(devices)}"))
        assert device.read().HasField("welcome")
    replies = [device.read() for device in devices]

    assert [reply.WhichOneof("message") for reply in replies] == [
        *("opened", "opened", "refusal", "opened", "refusal"),
    ]
    for reply, text in ((replies[2], "a client may have 2"), (replies[4], "it has 3")):
        assert reply.refusal.code == grpc.StatusCode.RESOURCE_EXHAUSTED.value[0]
        assert text in reply.refusal.message
        assert reply.refusal.retry_seconds > 0
    devices.pop(0).close()  # Its session is idle now, and gives way.
    with Conversation(server.address, "b-secret") as device:
        device.send(hello(fingerprint))
        device.read()
        for _ in range(100):
            device.send(opening("late"))
            if device.read().HasField("opened"):
                break
        else:
            pytest.fail("No room was made.")
    assert metric(server, "sessions_evicted_total") == 1
    for device in devices:
        device.close()


def test_what_nobody_comes_back_for_is_forgotten(
    serve: Serve, fingerprint: str
) -> None:
    server = serve(idle_seconds=0.2)
    with Conversation(server.address) as device:
        device.send(hello(fingerprint))
        device.send(opening("s"))
        assert [device.read().WhichOneof("message") for _ in range(2)] == [
            *("welcome", "opened"),
        ]
        assert device.status() is grpc.StatusCode.DEADLINE_EXCEEDED
    for _ in range(100):
        if not metric(server, "sessions_open"):
            break
        time.sleep(0.05)
    assert metric(server, "sessions_open") == 0


def test_health(serve: Serve) -> None:
    with grpc.insecure_channel(serve().address) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        for service in ("", "flower_ext.edge.Edge"):
            reply = stub.Check(health_pb2.HealthCheckRequest(service=service))
            assert reply.status == health_pb2.HealthCheckResponse.SERVING
