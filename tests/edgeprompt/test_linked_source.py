"""The simulated link: times by hand, sizes by protobuf, what a new request keeps."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from flower_ext.edge import edge_pb2 as pb
from flower_ext.edgeprompt.blocks import SharedPrefix
from flower_ext.edgeprompt.errors import SourceError
from flower_ext.edgeprompt.hierarchy import Level, Segment
from flower_ext.edgeprompt.linked_source import LinkedSource
from flower_ext.edgeprompt.precision import KVShape, Precision
from flower_ext.edgeprompt.recording import Asked, Came, Message, RecordingSource
from flower_ext.edgeprompt.segment_messages import (
    PART_BYTES,
    UNKNOWN_PART,
    data_part,
    header_code,
    header_part,
    layer_parts,
    segment_request,
    sent_size,
)
from flower_ext.edgeprompt.service import SegmentService
from flower_ext.edgeprompt.source import BlockHeader, Wanted
from flower_ext.edgeprompt.store import KVStore
from flower_ext.errors import InvalidInputError
from flower_ext.models import default_pair
from flower_ext.network.clocks import VirtualClock, WallClock
from flower_ext.network.link import Link

UP, DOWN, RTT = 10_000.0, 40_000.0, 0.2
UNKNOWN = 7  # Bytes of that answer on the wire.


@pytest.fixture(scope="module")
def model() -> Any:
    return default_pair().draft


@pytest.fixture
def service(model: Any) -> SegmentService:
    return SegmentService(model, KVStore())


def prefix_of(service: SegmentService, tokens: int, group: int = 0) -> SharedPrefix:
    segments = [Segment((3 * t % 500 for t in range(tokens)), Level.PUBLIC)]
    if group:
        segments.append(Segment(range(group), Level.GROUP))
    return SharedPrefix(segments, service.identity, b"k" * 16)


def linked(
    service: SegmentService, link: Link | None = None
) -> tuple[LinkedSource, VirtualClock]:
    clock = VirtualClock(timer=lambda: 0.0)
    return LinkedSource(service, link or Link(UP, DOWN, RTT), clock), clock


def test_times_are_those_of_the_link(service: SegmentService, model: Any) -> None:
    prefix = prefix_of(service, 256)
    exact = [Wanted(0, Precision.EXACT)]
    source, clock = linked(service)
    source.request(prefix, exact)
    first, text = (
        sent_size(segment_request(prefix, exact, with_tokens=told))
        for told in (False, True)
    )
    # Asked, told that the text is needed, told the text; then header and layers.
    heard = first / UP + RTT / 2 + UNKNOWN / DOWN + RTT / 2 + text / UP + RTT / 2
    layer = sum(map(sent_size, layer_parts(torch.zeros(65_536, dtype=torch.uint8))))
    block = SegmentService(model, KVStore()).block(prefix, exact[0])
    header = service_header(block.layers)
    came = heard + (header + layer) / DOWN + RTT / 2
    (arrival,) = source.arrived(math.inf)
    assert arrival.at == pytest.approx(came, rel=1e-12)
    assert clock.now() == pytest.approx(came, rel=1e-12)
    assert source.arrived(0.1) == []  # Then it has waited for so long.
    assert clock.now() == pytest.approx(came + 0.1, rel=1e-12)
    (arrival,) = source.arrived(math.inf)
    assert arrival.at == pytest.approx(came + layer / DOWN, rel=1e-12)
    assert torch.equal(arrival.data, block.layers[1])
    assert source.arrived(math.inf) == []  # Nothing is under way: no wait.
    assert clock.now() == arrival.at

    begin = clock.now()
    source.request(prefix, exact)
    # It is kept by now: one way up, and down.
    arrivals = []
    while come := source.arrived(math.inf):
        arrivals += come
    whole = begin + first / UP + (header + 2 * layer) / DOWN + RTT
    assert [a.layer for a in arrivals] == [0, 1]
    assert arrivals[-1].at == pytest.approx(whole, rel=1e-12)
    assert source.requests == 3
    assert source.bytes_sent == 2 * first + text
    assert source.bytes_received == UNKNOWN + 2 * (header + 2 * layer)


def service_header(layers: tuple[torch.Tensor, ...]) -> int:
    """Return the size of an exact block's header, by protobuf."""
    sizes = [layer.numel() for layer in layers]
    header = pb.SegmentHeader(
        **{"layers": 2, "heads": 1, "tokens": 256, "key_dim": 32, "value_dim": 32},
        dtype="float32",
        precision="exact",
        sizes=sizes,
        digests=bytes(64),
        code=bytes(32),
    )
    size: int = pb.SegmentPart(header=header).ByteSize()
    return size + 5


def test_a_new_request_keeps_what_has_come(service: SegmentService) -> None:
    prefix = prefix_of(service, 512)
    wanted = [Wanted(0, Precision.EXACT), Wanted(1, Precision.EXACT)]
    for each in wanted:
        service.block(prefix, each)
    source, clock = linked(service)
    recorded = RecordingSource(source)
    recorded.request(prefix, wanted)
    (first,) = recorded.arrived(math.inf)
    clock.sleep_until(first.at + 0.5)  # A part of the second layer has come.
    begin = clock.now()
    recorded.request(prefix, [wanted[0]], first.layer + 1)
    (second,) = recorded.arrived(math.inf)
    assert (first.layer, second.layer) == (0, 1)
    assert recorded.arrived(math.inf) == []

    messages = [r for r in recorded.transcript if isinstance(r, Message) and r.up]
    asked = [pb.SegmentRequest.FromString(m.data) for m in messages]
    assert [a.have_layers for a in asked] == [0, 1]
    assert [len(a.addresses) for a in asked] == [64, 32]
    # The way down is free when the message that was being sent is through.
    layer = sent_size(data_part(bytes(65_536)))
    heard = begin + messages[1].size / UP + RTT / 2
    free = first.at - RTT / 2 + layer / DOWN
    came = max(heard, free) + (service_header((first.data,) * 2) + layer) / DOWN
    assert second.at == pytest.approx(came + RTT / 2, rel=1e-12)

    recorded.request(prefix, [wanted[0]])  # By who holds nothing: all of it.
    assert [a.layer for a in recorded.arrived(math.inf)] == [0]
    assert [a.layer for a in recorded.arrived(math.inf)] == [1]
    with pytest.raises(InvalidInputError, match="at least 0, got -1"):
        recorded.request(prefix, [wanted[0]], -1)

    recorded.request(prefix, wanted)
    recorded.request(prefix, [])
    assert recorded.arrived(math.inf) == []
    recorded.request(prefix, [wanted[1]])  # Another block: from its beginning.
    assert [a.layer for a in recorded.arrived(math.inf)] == [0]


def test_what_has_come_unseen_is_not_lost(service: SegmentService) -> None:
    prefix, other = prefix_of(service, 512), prefix_of(service, 300, 10)
    wanted = [Wanted(0, Precision.INT8), Wanted(1, Precision.INT8)]
    source, clock = linked(service)
    source.request(prefix, wanted)
    clock.sleep_until(clock.now() + 1000.0)
    source.request(prefix, [wanted[1]])
    assert [(a.wanted.block, a.layer) for a in source.arrived(0.0)] == [
        *((0, 0), (0, 1), (1, 0), (1, 1)),
    ]
    clock.sleep_until(clock.now() + 1000.0)
    source.request(other, [])  # The first 256 tokens are the same, the rest are not.
    assert source.arrived(0.0) == []


def test_transcripts_are_the_same_for_the_same_shared_text(model: Any) -> None:
    found = []
    for _ in range(2):
        service = SegmentService(model, KVStore())
        source, clock = linked(service)
        recorded = RecordingSource(source)
        prefix = prefix_of(service, 300, 20)
        recorded.request(prefix, [Wanted(i, Precision.INT8) for i in range(3)])
        while recorded.arrived(math.inf):
            pass
        found.append(recorded.transcript)
        assert clock.now() == recorded.now()
    assert found[0] == found[1]
    kinds = [type(record) for record in found[0]]
    assert kinds[0] is Asked
    assert kinds.count(Came) == 6
    times = [record.at for record in found[0]]
    assert times == sorted(times)


def test_what_cannot_come(service: SegmentService, model: Any) -> None:
    prefix = prefix_of(service, 20)
    exact = [Wanted(0, Precision.EXACT)]
    for link in (Link(0.0, 1e6), Link(1e6, 0.0)):
        source, clock = linked(service, link)
        source.request(prefix, exact)
        assert source.arrived(5.0) == []
        assert clock.now() == 5.0
        with pytest.raises(SourceError, match="carries nothing any more"):
            source.arrived(math.inf)
        assert source.arrived(math.inf) == []
    short = SegmentService(model, KVStore(), max_tokens=10)
    source, _ = linked(short)
    source.request(prefix, exact)
    with pytest.raises(SourceError, match="10 tokens at most, got 20"):
        source.arrived(math.inf)
    with pytest.raises(InvalidInputError, match="at least 0, got -1"):
        source.arrived(-1.0)
    source, _ = linked(SegmentService(default_pair().target, KVStore()))
    source.request(prefix, exact)
    with pytest.raises(SourceError, match="model differs"):
        source.arrived(math.inf)


def test_it_runs_on_the_wall_clock_too(service: SegmentService) -> None:
    prefix = prefix_of(service, 20)
    source = LinkedSource(service, Link(1e9), WallClock())
    begin = source.now()
    source.request(prefix, [Wanted(0, Precision.EXACT)])
    arrivals = [*source.arrived(10.0), *source.arrived(10.0)]
    assert [a.layer for a in arrivals] == [0, 1]
    assert begin < arrivals[0].at <= arrivals[1].at <= source.now() < begin + 10


def test_a_service_computes_each_block_once_and_alike(model: Any) -> None:
    service, other = (SegmentService(model, KVStore()) for _ in range(2))
    prefix = prefix_of(service, 600, 30)
    last = service.block(prefix, Wanted(3, Precision.INT8))
    assert service.passes == 4
    for index in range(4):  # One after the other, from what is kept.
        each = other.block(prefix, Wanted(index, Precision.INT8))
    assert other.passes == 4
    assert all(map(torch.equal, each.layers, last.layers))
    assert service.block(prefix, Wanted(2, Precision.FP16)).precision is Precision.FP16
    assert service.passes == 4
    steps = SegmentService(model, KVStore()).steps(prefix, Wanted(3, Precision.INT8))
    assert len(list(steps)) == 4
    for wrong, text in (
        (Wanted(4, Precision.EXACT), "Block 4 is wanted"),
        (Wanted(-1, Precision.EXACT), "Block -1 is wanted"),
    ):
        with pytest.raises(InvalidInputError, match=text):
            service.block(prefix, wrong)


numbers = st.integers(1, 2**20)
text = st.lists(st.integers(0, 2**31), min_size=1, max_size=300)


@given(
    public=text, group=st.none() | text, have=st.integers(0, 200), told=st.booleans()
)
def test_requests_are_those_of_protobuf(
    service_identity: Any,
    public: list[int],
    group: list[int] | None,
    have: int,
    told: bool,
) -> None:
    segments = [Segment(public, Level.PUBLIC)]
    if group is not None:
        segments.append(Segment(group, Level.GROUP))
    prefix = SharedPrefix(segments, service_identity, b"k" * 16)
    wanted = [Wanted(i, Precision.INT4) for i in reversed(range(len(prefix.blocks)))]
    addresses = [
        prefix.blocks[w.block].addresses[Precision.INT4].digest for w in wanted
    ]
    known = pb.SegmentRequest(
        addresses=b"".join(addresses),
        have_layers=have,
        model=service_identity.digest,
        dtype="float32",
        blocks=[pb.BlockTokens(level=b.level, tokens=b.tokens) for b in prefix.blocks]
        if told
        else [],
    )
    message = segment_request(prefix, wanted, have, told)
    assert message == known.SerializeToString()
    # Of a text, nothing behind the last block wanted is told.
    only = segment_request(prefix, [Wanted(0, Precision.INT4)], 0, True)
    assert len(pb.SegmentRequest.FromString(only).blocks) == 1


@given(
    shape=st.tuples(numbers, numbers, numbers, numbers, numbers),
    precision=st.sampled_from(Precision),
    error=st.floats(0, 1) | st.just(math.inf),
    sizes=st.lists(st.integers(0, 2**40), max_size=5),
    data=st.binary(min_size=1, max_size=300),
)
def test_parts_are_those_of_protobuf(
    shape: tuple[int, int, int, int, int],
    precision: Precision,
    error: float,
    sizes: list[int],
    data: bytes,
) -> None:
    digests = tuple(bytes([i]) * 32 for i in range(len(sizes)))
    header = BlockHeader(
        KVShape(*shape, torch.bfloat16), precision, error, tuple(sizes), digests
    )
    known = pb.SegmentHeader(
        **dict(
            zip(
                ("layers", "heads", "tokens", "key_dim", "value_dim"),
                shape,
                strict=True,
            )
        ),
        dtype="bfloat16",
        precision=precision.value,
        error=error,
        sizes=sizes,
        digests=b"".join(digests),
        code=header_code(header, data, b"key"),
    )
    sent = header_part(header, data, b"key")
    assert sent == pb.SegmentPart(header=known).SerializeToString()
    assert data_part(data) == pb.SegmentPart(data=data).SerializeToString()
    assert pb.SegmentPart(unknown=pb.Unknown()).SerializeToString() == UNKNOWN_PART


def test_parts_have_all_bytes_of_a_layer() -> None:
    layer = torch.arange(2 * PART_BYTES + 3).to(torch.uint8)
    parts = [pb.SegmentPart.FromString(part).data for part in layer_parts(layer)]
    assert [len(part) for part in parts] == [PART_BYTES, PART_BYTES, 3]
    assert b"".join(parts) == bytes(layer.numpy())


@pytest.fixture(scope="module")
def service_identity(model: Any) -> Any:
    return SegmentService(model, KVStore()).identity
