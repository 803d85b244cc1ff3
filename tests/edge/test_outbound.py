"""What a device sends to a real edge is the same whatever is private, and how long."""

from __future__ import annotations

import copy
import itertools
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from flower_ext.edge import EdgeServer, RemoteSegments
from flower_ext.edge import edge_pb2 as pb
from flower_ext.edgeprompt import (
    EdgePrompt,
    KVStore,
    Level,
    Precision,
    PromptHierarchy,
    Segment,
    SegmentService,
    identity_of,
)
from flower_ext.errors import InvalidInputError
from flower_ext.models import ModelPair, tokenizer_fingerprint
from tests.edge.proxy import Proxy
from tests.edge.segment_edges import SECRET, TOKENS
from tests.edgeprompt.leaks import LengthInThePlan, MovedBorder

# RFC 9113: what a connection begins with, two types of frames, and the flag of padding.
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS = 0, 1
PADDED = 8
TEXTS = [
    [
        Segment([5 + (7 * i + 11 * text) % 1000 for i in range(300)], Level.PUBLIC),
        Segment([5 + (11 * i + 7 * text) % 1000 for i in range(100)], Level.GROUP),
    ]
    for text in range(2)
]
PRIVATE = [
    [9],
    [9] * 7,
    [(13 * i) % 1000 for i in range(60)],
    [(17 * i) % 1000 for i in range(600)],
    [9] * 5000,  # More than the model takes.
]


class ListeningProxy(Proxy):
    """A proxy that writes down all that goes up."""

    def __init__(self, target: str) -> None:
        self.heard: defaultdict[int, bytearray] = defaultdict(bytearray)
        super().__init__(target)

    def passes(self, data: bytearray, up: bool, connection: int) -> None:
        """Write it down."""
        if up:
            self.heard[connection] += data


def frames(heard: bytes) -> Iterator[tuple[int, int, bytes]]:
    """Yield the HTTP/2 frames of a connection: type, stream, and what they carry."""
    assert heard.startswith(PREFACE)
    at = len(PREFACE)
    while at < len(heard):
        size = int.from_bytes(heard[at : at + 3], "big")
        kind, flags = heard[at + 3], heard[at + 4]
        stream = int.from_bytes(heard[at + 5 : at + 9], "big")
        body = heard[at + 9 : at + 9 + size]
        if kind in (DATA, HEADERS) and flags & PADDED:
            body = body[1 : len(body) - body[0]]
        yield kind, stream, body
        at += 9 + size


def messages(heard: bytes) -> list[list[bytes]]:
    """Return the gRPC messages of a connection, by call, in the order of calls."""
    calls: dict[int, bytearray] = {}
    for kind, stream, body in frames(heard):
        if kind == HEADERS:
            calls.setdefault(stream, bytearray())
        elif kind == DATA:
            calls[stream] += body
    found = []
    for _, carried in sorted(calls.items()):
        own, at = [], 0
        while at < len(carried):
            end = at + 5 + int.from_bytes(carried[at + 1 : at + 5], "big")
            own.append(bytes(carried[at:end]))  # Whether compressed, the length, it.
            assert len(own[-1]) == end - at
            at = end
        found.append(own)
    return found


@pytest.fixture(scope="module")
def edge(pair: ModelPair) -> Iterator[EdgeServer]:
    model = copy.deepcopy(pair.draft)
    service = SegmentService(model, KVStore(), tenant_store=lambda name: KVStore())
    with EdgeServer(
        model,
        tokenizer_fingerprint(pair.tokenizer),
        port=0,
        plaintext=True,
        tokens=TOKENS,
        segments=service,
        tenant_secret=SECRET,
    ) as server:
        sent(EdgePrompt, pair, server, [9])  # It has the blocks then.
        yield server


def sent(
    kind: type[EdgePrompt], pair: ModelPair, edge: EdgeServer, private: Sequence[int]
) -> list[list[list[bytes]]]:
    """Return all that a new device sends for three prompts, by connection and call."""
    with (
        ListeningProxy(edge.address) as proxy,
        RemoteSegments(
            proxy.address,
            identity=identity_of(pair.draft),
            token=TOKENS["ann"],
            plaintext=True,
        ) as remote,
    ):
        engine = kind(
            pair.draft,
            pair.tokenizer,
            source=remote,
            tenant_key=remote.tenant_key(),
            precisions=[Precision.EXACT],
        )
        # As if it had found out that it is slow: when it gives up waiting is left
        # to the link alone, and this one is never so late.
        for tokens in (64, 128, 256):
            engine._loader.speed.computed(0, tokens, 1.0 * tokens)
        failed = 0
        for text in (0, 1, 0):
            own = [*TEXTS[text], Segment(private, Level.PRIVATE)]
            try:
                engine.generate(PromptHierarchy(own), 2, do_sample=False)
            except InvalidInputError:
                failed += 1
        assert failed == (3 if len(private) == 5000 else 0)
    return [messages(bytes(heard)) for _, heard in sorted(proxy.heard.items())]


def test_messages_are_the_same_to_the_byte(pair: ModelPair, edge: EdgeServer) -> None:
    found = [sent(EdgePrompt, pair, edge, private) for private in PRIVATE]
    for one, other in itertools.combinations(found, 2):
        assert one == other
    (calls,) = found[0]
    key, *asked = [message for call in calls for message in call]
    assert key == bytes(5)  # TenantKey, which says nothing.
    # Of every text three blocks, with their addresses alone; of the last one none.
    requests = [pb.SegmentRequest.FromString(message[5:]) for message in asked]
    assert [len(request.addresses) for request in requests] == [3 * 32, 3 * 32]
    assert not any(request.blocks for request in requests)


@pytest.mark.parametrize("leak", [MovedBorder, LengthInThePlan])
def test_a_leak_is_noticed(leak: Any, pair: ModelPair, edge: EdgeServer) -> None:
    found = [sent(leak, pair, edge, private) for private in PRIVATE[:4]]
    assert any(one != other for one, other in itertools.combinations(found, 2))
