"""Segments over gRPC: whole, computed once, and none of it fetched twice."""

from __future__ import annotations

import os
import random
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import grpc
import pytest
import torch
from transformers import PreTrainedModel

from flower_ext.cli import main
from flower_ext.edge import EdgeServer, RemoteSegments, segment_fetch
from flower_ext.edge import edge_pb2 as pb
from flower_ext.edgeprompt.blocks import SharedPrefix
from flower_ext.edgeprompt.errors import PrivateSegmentError, SourceError
from flower_ext.edgeprompt.hierarchy import Level, PromptHierarchy, Segment
from flower_ext.edgeprompt.linked_source import LinkedSource
from flower_ext.edgeprompt.precision import Precision
from flower_ext.edgeprompt.recording import Message, RecordingSource
from flower_ext.edgeprompt.segment_messages import (
    MAX_BLOCKS,
    segment_request,
    sent_size,
)
from flower_ext.edgeprompt.service import SegmentService
from flower_ext.edgeprompt.source import Wanted
from flower_ext.edgeprompt.store import KVStore
from flower_ext.errors import InvalidInputError
from flower_ext.models import ModelPair
from flower_ext.models.cache_argument import returned_cache
from flower_ext.network.clocks import VirtualClock
from flower_ext.network.link import Link
from flower_ext.speculative import Generation
from tests.edge.conftest import Connect, Serve, metric
from tests.edge.segment_edges import (
    SECRET,
    FlippingProxy,
    Paused,
    Raw,
    Remote,
    assert_computed_by,
    collect,
    decoded,
    every,
    order_of,
    prefix_of,
    service_of,
    wide,
)

LAYER = 4 * 2 * 256 * 512  # Bytes of a layer of the wide model, exact.
PRECISIONS = [Precision.EXACT, Precision.INT8, Precision.INT4]


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(segment_fetch, "_FIRST_WAIT", 0.01)
    monkeypatch.setattr(segment_fetch, "_LONGEST_WAIT", 0.1)


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    return wide()


@pytest.fixture
def remote() -> Iterator[Remote]:
    """Make a device's source, which is closed at the end of the test."""
    with ExitStack() as stack:

        def remote(
            edge: EdgeServer | str, service: SegmentService, **options: Any
        ) -> RemoteSegments:
            address = edge if isinstance(edge, str) else edge.address
            options.setdefault("identity", service.identity)
            source = RemoteSegments(address, plaintext=True, **options)
            return stack.enter_context(source)

        yield remote


@pytest.mark.parametrize("precision", PRECISIONS)
def test_what_comes_is_what_the_model_computes(
    serve: Serve, remote: Remote, pair: ModelPair, precision: Precision
) -> None:
    service = service_of(pair.draft)
    server = serve(model=pair.draft, segments=service)
    source = remote(server, service)
    prefix = prefix_of(service, 300, 40, source.tenant_key())
    source.request(prefix, every(prefix, precision))
    arrivals = collect(source)

    ids = torch.tensor([prefix.tokens])
    with torch.inference_mode():
        whole: Any = returned_cache(pair.draft(ids, use_cache=True))
    blocks, layers = range(3), range(service.identity.layers)
    assert order_of(arrivals) == [(b, layer) for b in blocks for layer in layers]
    for arrival in arrivals:
        block = prefix.blocks[arrival.wanted.block]
        known = whole.layers[arrival.layer]
        for got, of in zip(decoded(arrival), (known.keys, known.values), strict=True):
            there = of[0, :, block.begin : block.end]
            off = torch.linalg.norm(got - there) / torch.linalg.norm(there)
            assert off <= arrival.header.error + 1e-5
    assert (
        arrivals[0].header.error
        <= {"exact": 0, "int8": 0.02, "int4": 0.2}[precision.value]
    )
    assert [a.at for a in arrivals] == sorted(a.at for a in arrivals)
    assert source.arrived(0.0) == []
    assert metric(server, "segment_blocks_computed_total") == 3
    assert metric(server, "segment_blocks_sent_total") == 3

    source.request(prefix, every(prefix, precision))  # By addresses alone now.
    assert order_of(collect(source)) == order_of(arrivals)
    assert service.passes == 3
    assert metric(server, "segment_blocks_unknown_total") == 1
    traffic = source.traffic
    assert traffic.reconnections == 0
    assert traffic.requests == 4  # The key, addresses, the text, addresses.


def test_the_simulated_link_carries_what_the_wire_does(
    serve: Serve, remote: Remote, pair: ModelPair
) -> None:
    service, other = service_of(pair.draft), service_of(pair.draft)
    server = serve(model=pair.draft, segments=service, tenant_secret=SECRET)
    there = remote(server, service)
    prefix = prefix_of(service, 300, 40, there.tenant_key())
    here = LinkedSource(other, Link(1e6), VirtualClock(timer=lambda: 0.0))
    found = []
    for source in (there, here):
        recorded = RecordingSource(source)
        service.block(prefix, Wanted(0, Precision.INT8))
        other.block(prefix, Wanted(0, Precision.INT8))
        recorded.request(prefix, every(prefix, Precision.INT8))
        collect(recorded)
        messages = [r for r in recorded.transcript if isinstance(r, Message)]
        found.append([(m.up, m.size, m.data) for m in messages])

    assert found[0] == found[1]
    assert sum(1 for up, _, _ in found[0] if up) == 2
    sent = sum(size for up, size, _ in found[0] if up)
    assert here.bytes_sent == sent
    # On top, the tenant's key was asked for: an empty message.
    assert there.traffic.bytes_sent == sent + 5
    received = sum(size for up, size, _ in found[0] if not up)
    assert here.bytes_received == received
    assert there.traffic.bytes_received == received + 5 + 34
    assert metric(server, "downlink_bytes_total") == received


def test_thirty_two_ask_and_one_computes(serve: Serve, model: PreTrainedModel) -> None:
    service = Paused(model)
    server = serve(model=model, segments=service)
    prefix = prefix_of(service, 600)
    message = segment_request(prefix, [Wanted(2, Precision.INT8)], with_tokens=True)
    with ExitStack() as stack:
        devices = [stack.enter_context(Raw(server)) for _ in range(32)]
        calls = [devices[0].begin(message)]
        while not service.begun:
            time.sleep(0.005)
        calls += [device.begin(message) for device in devices[1:]]
        while metric(server, "uplink_bytes_total") < 32 * sent_size(message):
            time.sleep(0.005)
        # The first that has asked leaves, and another one.
        calls[0].cancel()
        calls[9].cancel()
        time.sleep(0.05)
        service.gate.set()
        answers = {b"".join(c) for i, c in enumerate(calls) if i not in (0, 9)}

    assert len(answers) == 1
    assert service.begun == 1
    assert service.passes == 3


def test_what_nobody_waits_for_is_left_off(
    serve: Serve, model: PreTrainedModel
) -> None:
    service = Paused(model)
    server = serve(model=model, segments=service)
    prefix = prefix_of(service, 600)
    message = segment_request(prefix, [Wanted(2, Precision.INT8)], with_tokens=True)
    with Raw(server) as device:
        call = device.begin(message)
        while not service.begun:
            time.sleep(0.005)
        call.cancel()
        time.sleep(0.2)
        service.gate.set()
        time.sleep(0.1)
        assert service.passes == 0
        assert device.ask(message)[1] is grpc.StatusCode.OK  # And begun again.
    assert (service.passes, service.begun) == (3, 2)


def test_a_cancelled_call_ends_at_once(serve: Serve, model: PreTrainedModel) -> None:
    service = service_of(model)
    server = serve(model=model, segments=service)
    prefix = prefix_of(service, 2048)
    wanted = every(prefix, Precision.EXACT)
    for each in wanted:
        service.block(prefix, each)
    with Raw(server) as device:
        call = device.begin(segment_request(prefix, wanted))
        next(call)
        call.cancel()
        time.sleep(0.3)
        sent = metric(server, "downlink_bytes_total")
        time.sleep(0.3)
        assert metric(server, "downlink_bytes_total") == sent
        assert 0 < sent < 0.7 * len(wanted) * 4 * LAYER

        # The place is free again, and nothing has broken.
        last = segment_request(prefix, [Wanted(7, Precision.INT8)])
        assert device.ask(last)[1] is grpc.StatusCode.OK
    assert metric(server, "refusals_total", code="INTERNAL") == 0


class Interruption:
    """Stops a device after so many messages until something else has been done."""

    def __init__(self, source: RemoteSegments, after: int) -> None:
        self.reached, self.go_on = threading.Event(), threading.Event()
        self._left = after
        source.observer = self._passed

    def _passed(self, up: bool, data: bytes, at: float) -> None:
        self._left -= not up
        if not up and self._left == 0:
            self.reached.set()
            assert self.go_on.wait(60)


def test_an_edge_that_is_restarted_sends_no_layer_again(
    serve: Serve, remote: Remote, model: PreTrainedModel
) -> None:
    service, again = service_of(model), service_of(model)
    first = serve(model=model, segments=service, tenant_secret=SECRET)
    source = remote(first, service)
    prefix = prefix_of(service, 1536, 512, source.tenant_key())
    interruption = Interruption(source, after=9)  # In the second layer.
    source.request(prefix, every(prefix, Precision.EXACT))
    assert interruption.reached.wait(60)
    port = int(first.address.rpartition(":")[2])
    first.stop()
    serve(model=model, segments=again, tenant_secret=SECRET, port=port)
    interruption.go_on.set()
    arrivals = collect(source)

    assert order_of(arrivals) == [(b, layer) for b in range(8) for layer in range(4)]
    assert_computed_by(service_of(model), prefix, arrivals)
    traffic = source.traffic
    assert traffic.reconnections >= 1
    assert again.passes == 8
    whole = sum(arrival.data.numel() for arrival in arrivals)
    assert whole == 8 * 4 * LAYER
    # Of the layer that was on its way, what had come; and the messages' own bytes.
    assert whole < traffic.bytes_received < whole + LAYER + 20_000


def test_a_flipped_bit_is_refused_and_fetched_again(
    serve: Serve, remote: Remote, model: PreTrainedModel
) -> None:
    service = service_of(model)
    server = serve(model=model, segments=service)
    prefix = prefix_of(service, 512)
    with FlippingProxy(server.address, every=1_200_000, flips=1) as proxy:
        source = remote(proxy.address, service)
        source.request(prefix, every(prefix, Precision.EXACT))
        arrivals = collect(source)
        traffic = source.traffic
        source.close()
        assert proxy.flipped == 1

    assert order_of(arrivals) == [(b, layer) for b in range(2) for layer in range(4)]
    assert_computed_by(service_of(model), prefix, arrivals)
    # Addresses, the text, and what was damaged.
    assert (traffic.requests, traffic.reconnections) == (3, 0)


def test_what_comes_damaged_twice_is_given_up(
    serve: Serve, remote: Remote, model: PreTrainedModel
) -> None:
    service = service_of(model)
    server = serve(model=model, segments=service)
    prefix = prefix_of(service, 512)
    with FlippingProxy(server.address, every=300_007) as proxy:
        source = remote(proxy.address, service, patience=10)
        source.request(prefix, every(prefix, Precision.EXACT))
        with pytest.raises(SourceError, match=r"digest says\. It has come so 2 times"):
            collect(source)
        assert source.arrived(1.0) == []
        source.close()


def test_a_request_that_replaces_another_goes_on_from_there(
    serve: Serve, remote: Remote, model: PreTrainedModel
) -> None:
    service = service_of(model)
    server = serve(model=model, segments=service)
    prefix = prefix_of(service, 1024)
    whole = every(prefix, Precision.EXACT)
    for each in whole:
        service.block(prefix, each)
    source = remote(server, service)
    interruption = Interruption(source, after=9)
    source.request(prefix, whole)
    assert interruption.reached.wait(60)
    with ThreadPoolExecutor(1) as pool:
        replaced = pool.submit(source.request, prefix, [whole[0], whole[3]])
        time.sleep(0.05)
        interruption.go_on.set()
        replaced.result()
    arrivals = collect(source)
    expected = [(b, layer) for b in (0, 3) for layer in range(4)]
    assert [o for o in order_of(arrivals) if o[0] not in (1, 2)] == expected
    assert source.traffic.bytes_received < (len(arrivals) + 4) * LAYER
    assert_computed_by(service, prefix, arrivals)

    source.request(prefix, [whole[1]])
    source.request(prefix, [])
    source.arrived(0.0)
    assert source.arrived(60.0) == []


def test_an_edge_with_other_weights_computes_nothing(
    serve: Serve, remote: Remote, model: PreTrainedModel
) -> None:
    service, device = service_of(wide(seed=1)), service_of(model)
    server = serve(model=model, segments=service)
    source = remote(server, device)
    recorded = RecordingSource(source)
    prefix = prefix_of(device, 300)
    recorded.request(prefix, every(prefix, Precision.INT8))
    with pytest.raises(SourceError, match="model differs from the edge's in its wei"):
        recorded.arrived(60.0)

    assert service.passes == 0
    up = [r for r in recorded.transcript if isinstance(r, Message) and r.up]
    assert [pb.SegmentRequest.FromString(m.data).blocks for m in up] == [[]]
    with pytest.raises(InvalidInputError, match="another model's identity"):
        source.request(prefix_of(service, 300), [])
    # With the text told at once, and the edge's own digest claimed.
    wanted = [Wanted(0, Precision.INT8)]
    request = pb.SegmentRequest.FromString(segment_request(prefix, wanted, 0, True))
    request.model = service.identity.digest
    with Raw(server) as raw:
        code = raw.code(request.SerializeToString())
    assert code is grpc.StatusCode.FAILED_PRECONDITION
    assert service.passes == 0


def test_nothing_but_shared_prefixes_can_be_asked_for(
    serve: Serve, remote: Remote, pair: ModelPair
) -> None:
    service = service_of(pair.draft)
    source = remote(serve(model=pair.draft, segments=service), service)
    linked = LinkedSource(service, Link(1.0), VirtualClock())
    prefix = prefix_of(service, 10)

    class Disguised(SharedPrefix):
        pass

    private = Segment([1, 2, 3], Level.PRIVATE)
    disguised = Disguised(prefix.segments, service.identity)
    anything: Any
    for anything in (PromptHierarchy([private]), private, [1, 2, 3], None, disguised):
        for one in (source, linked):
            with pytest.raises(PrivateSegmentError):
                one.request(anything, [Wanted(0, Precision.EXACT)])
    for anything in ((1, 2, 3), [private], [prefix.blocks[0]]):
        with pytest.raises(PrivateSegmentError):
            source.request(prefix, anything)
    with pytest.raises(InvalidInputError, match="Block 1 is wanted of a prefix that"):
        source.request(prefix, [Wanted(1, Precision.EXACT)])
    assert source.traffic.requests == linked.requests == 0


def test_a_full_edge_says_when_to_try_again(
    serve: Serve, remote: Remote, model: PreTrainedModel
) -> None:
    service = Paused(model)
    server = serve(model=model, segments=service, max_queue=2)
    prefixes = [prefix_of(service, 20 + i) for i in range(5)]
    exact = [Wanted(0, Precision.EXACT)]
    with ExitStack() as stack:
        devices = [stack.enter_context(Raw(server)) for _ in range(4)]
        calls = []
        for device, prefix in zip(devices[:2], prefixes, strict=False):
            calls.append(device.begin(segment_request(prefix, exact, 0, True)))
            while service.begun < len(calls):
                time.sleep(0.005)
        for device, prefix in zip(devices[2:], prefixes[2:], strict=False):
            parts, code, text, metadata = device.ask(
                segment_request(prefix, exact, 0, True)
            )
            assert (parts, code) == ([], grpc.StatusCode.RESOURCE_EXHAUSTED)
            assert "try again in 0.1 s" in text
            assert ("retry-seconds", "0.1") in metadata
        source = remote(server, service)
        source.request(prefixes[4], exact)
        assert source.arrived(0.5) == []
        service.gate.set()
        assert len(collect(source)) == 4
        assert all(list(call) for call in calls)
    assert source.traffic.reconnections == 0
    assert service.passes == 3


def test_garbage_is_answered_by_a_status(serve: Serve, pair: ModelPair) -> None:
    service = service_of(pair.draft, max_tokens=500, precisions=PRECISIONS)
    server = serve(model=pair.draft, segments=service, max_message_bytes=200_000)
    prefix = prefix_of(service, 300)
    wanted = every(prefix, Precision.INT8)
    service.block(prefix, wanted[0])

    def changed(**fields: Any) -> bytes:
        told = fields.pop("told", False)
        whole = segment_request(prefix, wanted, with_tokens=told)
        request = pb.SegmentRequest.FromString(whole)
        for name, value in fields.items():
            if name == "blocks":
                del request.blocks[:]
                request.blocks.extend(value)
            else:
                setattr(request, name, value)
        data: bytes = request.SerializeToString()
        return data

    def told(level: int, *tokens: int) -> pb.BlockTokens:
        return pb.BlockTokens(level=level, tokens=tokens)

    unserved = segment_request(prefix, [Wanted(1, Precision.FP16)], 0, True)
    longer = prefix_of(service, 501)
    long = segment_request(longer, every(longer, Precision.INT8), 0, True)
    code = grpc.StatusCode
    with Raw(server) as device:
        for message, expected in (
            (b"", code.INVALID_ARGUMENT),
            (b"\xff" * 50, code.INVALID_ARGUMENT),
            (changed(addresses=b"a" * 33), code.INVALID_ARGUMENT),
            (changed(addresses=b"a" * 32 * (MAX_BLOCKS + 1)), code.INVALID_ARGUMENT),
            (changed(have_layers=99), code.INVALID_ARGUMENT),
            (changed(have_layers=2**32 - 1), code.INVALID_ARGUMENT),
            (changed(model=b"x"), code.FAILED_PRECONDITION),
            (changed(dtype="float16"), code.FAILED_PRECONDITION),
            (changed(blocks=[told(2, 1, 2)]), code.INVALID_ARGUMENT),
            (changed(blocks=[told(1, 1), told(0, 1)]), code.INVALID_ARGUMENT),
            (changed(blocks=[told(2**32 - 1, 1)]), code.INVALID_ARGUMENT),
            (changed(blocks=[told(0)]), code.INVALID_ARGUMENT),
            (changed(blocks=[told(0, 2**32 - 1)]), code.INVALID_ARGUMENT),
            (changed(blocks=[told(0, 1, 2)]), code.FAILED_PRECONDITION),
            (unserved, code.INVALID_ARGUMENT),
            (long, code.INVALID_ARGUMENT),
            (changed(told=True, model=bytes(300_000)), code.RESOURCE_EXHAUSTED),
        ):
            assert device.code(message) is expected, message[:80]
        noise = random.Random(0)
        whole = changed(told=True)
        for _ in range(300):
            data = bytearray(whole)
            for _ in range(noise.randrange(1, 4)):
                data[noise.randrange(len(data))] = noise.randrange(256)
            assert device.ask(bytes(data[: noise.randrange(1, len(data))]))[1] in (
                *(code.OK, code.INVALID_ARGUMENT, code.FAILED_PRECONDITION),
            )
        assert device.ask(changed(told=True))[1] is code.OK
    assert metric(server, "refusals_total", code="INTERNAL") == 0
    assert metric(server, "refusals_total", code="INVALID_ARGUMENT") > 100


def test_an_edge_that_serves_no_segments(
    serve: Serve, remote: Remote, pair: ModelPair
) -> None:
    service = service_of(pair.draft)
    source = remote(serve(), service)
    with pytest.raises(SourceError, match="UNIMPLEMENTED"):
        source.tenant_key()
    nobody = remote("127.0.0.1:9", service, patience=0.1)
    nobody.request(prefix_of(service, 9), [Wanted(0, Precision.EXACT)])
    with pytest.raises(SourceError, match=r"has sent nothing for 0\.1 s"):
        nobody.arrived(60.0)
    with pytest.raises(InvalidInputError, match="segments too"):
        serve(tenant_secret=SECRET)


def test_drafts_are_verified_beside(
    serve: Serve,
    connect: Connect,
    remote: Remote,
    generate: Callable[..., Generation],
    prompts: list[list[int]],
    pair: ModelPair,
) -> None:
    service = service_of(pair.target)  # One model for both.
    server = serve(segments=service, vocab_size=pair.vocab_size)
    edge = connect(server.address)
    source = remote(server, service)
    with ThreadPoolExecutor(1) as pool:
        texts = pool.submit(
            lambda: [generate(edge, prompt, max_new_tokens=40) for prompt in prompts]
        )
        arrivals, count = [], 0
        while count < 4 or not texts.done():
            prefix = prefix_of(service, 300 + count)
            source.request(prefix, every(prefix, Precision.EXACT))
            arrivals = collect(source)
            count += 1
        there = texts.result()
    for prompt, text in zip(prompts, there, strict=True):
        assert text.tokens == generate(None, prompt, max_new_tokens=40).tokens
    assert_computed_by(service_of(pair.target), prefix, arrivals)


def test_the_command_serves_segments(
    remote: Remote,
    pair: ModelPair,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    service = service_of(pair.target)
    folder, secret = tmp_path / "segments", tmp_path / "secret"
    options = ["edge", "--plaintext", "--port", "0", "--segments"]
    options += ["--segment-dir", str(folder), "--tenant-secret-file", str(secret)]
    ready = threading.Event()
    lines: list[str] = []

    class Output:
        def write(self, text: str) -> int:
            lines.append(text)
            if text.endswith("segments"):
                ready.set()
            return len(text)

        def flush(self) -> None:
            pass

    def device() -> bytes:
        try:
            assert ready.wait(60)
            words = "".join(lines).split()
            address = words[words.index("at") + 1].strip(",")
            source = remote(address, service)
            key = source.tenant_key()
            prefix = prefix_of(service, 20, 20, key)
            source.request(prefix, every(prefix, Precision.INT8))
            assert_computed_by(service, prefix, collect(source))
            source.close()
            return key
        finally:
            os.kill(os.getpid(), signal.SIGTERM)

    keys = []
    for _ in range(2):
        ready.clear()
        lines.clear()
        monkeypatch.setattr(sys, "stdout", Output())
        with ThreadPoolExecutor(1) as pool:
            found = pool.submit(device)
            assert main(options) == 0
            keys.append(found.result())
    assert keys[0] == keys[1]
    assert secret.stat().st_mode & 0o777 == 0o600
    assert {p.name for p in folder.iterdir()} == {"clients", "public"}
    assert KVStore(folder / "public").nbytes.disk > 0
    monkeypatch.undo()
    assert main(["edge", "--plaintext", "--segment-dir", str(folder)]) == 1
    assert "--segment-dir needs --segments" in capsys.readouterr().err
