"""Edges that serve segments, what is asked of them, and proxies that do damage."""

from __future__ import annotations

import math
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import grpc
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from flower_ext.edge import EdgeServer, RemoteSegments
from flower_ext.edge import edge_pb2 as pb
from flower_ext.edgeprompt.blocks import SharedPrefix
from flower_ext.edgeprompt.hierarchy import Level, Segment
from flower_ext.edgeprompt.precision import Precision, decode_layer
from flower_ext.edgeprompt.service import SegmentService
from flower_ext.edgeprompt.source import Arrival, SegmentSource, Wanted
from flower_ext.edgeprompt.store import KVStore
from tests.edge.proxy import Proxy

SECRET = bytes(range(32))
TOKENS = {"ann": "a-secret", "bob": "b-secret"}
KEY = b"k" * 32


def wide(seed: int = 0, dim: int = 512, layers: int = 4) -> PreTrainedModel:
    """Return a model whose KV is large: a layer of 256 tokens takes 2 KiB x dim."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=300,
        hidden_size=dim,
        intermediate_size=16,
        num_hidden_layers=layers,
        num_attention_heads=4,
        max_position_embeddings=2048,
    )
    return LlamaForCausalLM(config)


def service_of(model: PreTrainedModel, **options: Any) -> SegmentService:
    """Return a service that keeps all in memory."""
    return SegmentService(
        model, KVStore(), tenant_store=lambda name: KVStore(), **options
    )


def prefix_of(
    service: SegmentService, public: int, group: int = 0, key: bytes = KEY
) -> SharedPrefix:
    """Return a prefix of so many tokens of either level."""
    segments = [Segment((7 * t % 251 for t in range(public)), Level.PUBLIC)]
    if group:
        segments.append(Segment((5 * t % 249 for t in range(group)), Level.GROUP))
    return SharedPrefix(segments, service.identity, key)


def every(prefix: SharedPrefix, precision: Precision) -> list[Wanted]:
    """Return all blocks of a prefix."""
    return [Wanted(index, precision) for index in range(len(prefix.blocks))]


def collect(source: SegmentSource) -> list[Arrival]:
    """Return all that comes."""
    found: list[Arrival] = []
    while come := source.arrived(60.0):
        found += come
    return found


def order_of(arrivals: Iterable[Arrival]) -> list[tuple[int, int]]:
    """Return which layers have come."""
    return [(arrival.wanted.block, arrival.layer) for arrival in arrivals]


def decoded(arrival: Arrival) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the keys and values of a layer that has come."""
    shape = arrival.header.shape
    keys = torch.empty(shape.heads, shape.tokens, shape.key_dim, dtype=shape.dtype)
    values = torch.empty(shape.heads, shape.tokens, shape.value_dim, dtype=shape.dtype)
    decode_layer(arrival.data, shape, arrival.header.precision, keys, values)
    return keys, values


def assert_computed_by(
    service: SegmentService, prefix: SharedPrefix, arrivals: Sequence[Arrival]
) -> None:
    """Check every byte that has come against what another edge computes."""
    for arrival in arrivals:
        block = service.block(prefix, arrival.wanted, "checker")
        assert torch.equal(arrival.data, block.layers[arrival.layer])
        assert arrival.header.error == block.error


class Paused(SegmentService):
    """A service that computes nothing until it is let; the thread goes on meanwhile."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__(model, KVStore(), tenant_store=lambda name: KVStore())
        self.gate = threading.Event()
        self.begun = 0

    def steps(self, *arguments: Any) -> Any:
        self.begun += 1
        return self._paused(*arguments)

    def _paused(self, *arguments: Any) -> Any:
        while not self.gate.wait(0.001):
            yield
        return (yield from super().steps(*arguments))


class Raw:
    """A device that sends whatever bytes it is told to."""

    def __init__(self, server: EdgeServer, token: str | None = None) -> None:
        options = [("grpc.use_local_subchannel_pool", 1)]
        self._channel = grpc.insecure_channel(server.address, options)
        self._metadata = (
            () if token is None else (("authorization", f"Bearer {token}"),)
        )
        self._get: Any = self._channel.unary_stream("/flower_ext.edge.Edge/GetSegment")
        self._key: Any = self._channel.unary_unary("/flower_ext.edge.Edge/TenantKey")

    def begin(self, message: bytes) -> Any:
        """Make a call, and return it."""
        return self._get(message, metadata=self._metadata, timeout=60)

    def ask(self, message: bytes) -> tuple[Any, ...]:
        """Return all that a call brings: messages, status, text, metadata."""
        call = self.begin(message)
        parts = []
        try:
            for part in call:
                parts.append(part)
        except grpc.RpcError:
            pass
        metadata = [tuple(pair) for pair in call.trailing_metadata() or ()]
        return parts, call.code(), call.details(), metadata

    def code(self, message: bytes) -> grpc.StatusCode:
        """Return the status of a call that brings nothing."""
        parts, code, _, _ = self.ask(message)
        assert not parts
        assert isinstance(code, grpc.StatusCode)
        return code

    def key(self) -> bytes:
        """Return the tenant's key."""
        reply = self._key(b"", metadata=self._metadata, timeout=60)
        found: bytes = pb.TenantKeyReply.FromString(reply).key
        return found

    def close(self) -> None:
        self._channel.close()

    def __enter__(self) -> Raw:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class FlippingProxy(Proxy):
    """A TCP proxy that flips a bit of every so many bytes that come down.

    Parameters
    ----------
    target : str
        The edge's address.
    every : int
        Bytes from one flip to the next; it begins after as many.
    flips : float
        How many are flipped in all; inf: no end.
    """

    def __init__(self, target: str, every: int, flips: float = math.inf) -> None:
        self._every = every
        self._left = flips
        self._passed: Counter[int] = Counter()
        self.flipped = 0
        super().__init__(target)

    def passes(self, data: bytearray, up: bool, connection: int) -> None:
        """Flip bits of what comes down."""
        if up:
            return
        passed = self._passed[connection]
        self._passed[connection] += len(data)
        next_one = (passed // self._every + 1) * self._every - passed
        for at in range(next_one, len(data), self._every):
            if self._left > 0:
                data[at] ^= 4
                self._left -= 1
                self.flipped += 1


Remote = Callable[..., RemoteSegments]
