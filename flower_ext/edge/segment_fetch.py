"""Fetching blocks from an edge, over as many calls as it takes."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import hmac
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import grpc
import torch
from google.protobuf.message import DecodeError
from grpc import StatusCode

from flower_ext.edge import edge_pb2 as pb
from flower_ext.edge.connection import TryAgainError
from flower_ext.edge.segments import RETRY_KEY
from flower_ext.edgeprompt.blocks import ModelIdentity, SharedBlock, SharedPrefix
from flower_ext.edgeprompt.errors import CorruptBlockError, SourceError
from flower_ext.edgeprompt.hierarchy import Level
from flower_ext.edgeprompt.linked_source import Observer
from flower_ext.edgeprompt.precision import layer_nbytes
from flower_ext.edgeprompt.segment_messages import (
    dtype_name,
    header_code,
    segment_request,
    sent_size,
)
from flower_ext.edgeprompt.source import Arrival, BlockHeader, Wanted
from flower_ext.network.clocks import Clock

__all__ = ["Order", "SegmentFetcher", "SegmentTraffic"]

_FIRST_WAIT = 0.05  # Seconds before the second try; doubled from try to try.
_LONGEST_WAIT = 5.0
_TRIES = 2  # What comes damaged twice is not asked for again.
_SERVICE = "/flower_ext.edge.Edge/"
_PASSING = {
    StatusCode.UNAVAILABLE,
    StatusCode.DEADLINE_EXCEEDED,
    StatusCode.CANCELLED,
    StatusCode.ABORTED,
    StatusCode.INTERNAL,
    StatusCode.UNKNOWN,
    StatusCode.OK,
}


@dataclass
class SegmentTraffic:
    """What fetching has taken so far.

    Parameters
    ----------
    bytes_sent, bytes_received : int
        Messages as gRPC carries them, those of damaged or repeated ones included.
    requests : int
        Calls made.
    reconnections : int
        Of them, those after one that was lost.
    """

    bytes_sent: int = 0
    bytes_received: int = 0
    requests: int = 0
    reconnections: int = 0


@dataclass
class Order:
    """Blocks that are being fetched, and how far that is.

    Parameters
    ----------
    prefix : SharedPrefix
        Whose they are.
    wanted : list[Wanted]
        Those that have not come whole, in their order.
    layers : int
        Of the first of them, the layers that have come.
    """

    prefix: SharedPrefix
    wanted: list[Wanted]
    layers: int = 0
    told: bool = False  # Whether the edge needs the text.
    header: BlockHeader | None = None
    data: bytearray = field(default_factory=bytearray)  # Of the next layer.
    damaged: Counter[bytes] = field(default_factory=Counter)

    @property
    def block(self) -> SharedBlock:
        """The one that comes next."""
        return self.prefix.blocks[self.wanted[0].block]

    @property
    def address(self) -> bytes:
        """That block's address."""
        return self.block.addresses[self.wanted[0].precision].digest

    @property
    def done(self) -> tuple[int, int]:
        """A value that changes with every layer that comes."""
        return len(self.wanted), self.layers


class SegmentFetcher:
    """A device's calls to an edge, made within a running event loop.

    Parameters
    ----------
    address : str
        Host and port.
    credentials : grpc.ChannelCredentials | None
        None: plaintext.
    token : str | None
        The device's.
    identity : ModelIdentity
        Of the device's model: what comes must have its shape.
    clock : Clock
        What arrivals are told by.
    timeout, patience : float
        Seconds to wait for a message, and to go on trying after one was lost.
    came : Callable[[Arrival], None]
        Takes what has come.

    Attributes
    ----------
    traffic : SegmentTraffic
        What it has taken.
    observer : Observer | None
        Is told of every message.
    """

    def __init__(
        self,
        address: str,
        credentials: grpc.ChannelCredentials | None,
        token: str | None,
        identity: ModelIdentity,
        clock: Clock,
        timeout: float,
        patience: float,
        came: Callable[[Arrival], None],
    ) -> None:
        self.traffic = SegmentTraffic()
        self.observer: Observer | None = None
        self._address = address
        self._identity = identity
        self._clock = clock
        self._timeout = timeout
        self._patience = patience
        self._came = came
        self._key: bytes | None = None
        self._metadata = (
            () if token is None else (("authorization", f"Bearer {token}"),)
        )
        options = [
            # When to try again is told by patience.
            ("grpc.enable_retries", 0),
            ("grpc.initial_reconnect_backoff_ms", 20),
            ("grpc.max_reconnect_backoff_ms", 1000),
            ("grpc.min_reconnect_backoff_ms", max(1000, int(timeout * 1000))),
            ("grpc.max_send_message_length", -1),
        ]
        self._channel = (
            grpc.aio.insecure_channel(address, options)
            if credentials is None
            else grpc.aio.secure_channel(address, credentials, options)
        )
        # Bytes both ways: what goes out is written in one place, and what comes in may
        # be damaged.
        self._get_segment: Any = self._channel.unary_stream(_SERVICE + "GetSegment")
        self._tenant_key: Any = self._channel.unary_unary(_SERVICE + "TenantKey")

    async def close(self) -> None:
        """End the channel."""
        await self._channel.close()

    async def fetch(self, order: Order) -> None:
        """Fetch all that an order has left.

        Raises
        ------
        SourceError
            If the rest will not come.
        """
        while order.wanted:
            await self._insist(lambda: self._stream(order), lambda: order.done)

    async def key(self, fresh: bool = False) -> bytes:
        """Return the tenant's key, asked for once, or once more.

        Raises
        ------
        SourceError
            If the edge does not tell it.
        """
        if self._key is None or fresh:
            await self._insist(self._ask_key, lambda: None)
        assert self._key is not None
        return self._key

    async def _insist(
        self, attempt: Callable[[], Any], done: Callable[[], object]
    ) -> None:
        """Try until an attempt succeeds, or patience ends."""
        began: float | None = None
        wait, before = _FIRST_WAIT, done()
        while True:
            try:
                await attempt()
                return
            except TryAgainError as error:
                again = error
            self.traffic.reconnections += again.lost
            now = self._clock.now()
            if began is None or done() != before:
                began, wait, before = now, _FIRST_WAIT, done()
            # Jitter, so that devices which were lost together do not return together.
            pause = max(again.seconds, wait * random.uniform(0.5, 1.0))
            if now + pause > began + self._patience:
                raise SourceError(
                    f"The edge at {self._address} has sent nothing for "
                    f"{self._patience} s ({again}): see that it runs, and that both "
                    "sides have TLS or both plaintext; or raise patience."
                )
            await asyncio.sleep(pause)
            wait = min(2 * wait, _LONGEST_WAIT)

    async def _ask_key(self) -> None:
        """Ask for the tenant's key."""
        message = pb.TenantKeyRequest().SerializeToString()
        self._sent(message)
        call = self._tenant_key(message, metadata=self._metadata, timeout=self._timeout)
        try:
            data = await call
        except grpc.RpcError:
            raise await self._ended(call) from None
        self._received(data)
        try:
            self._key = pb.TenantKeyReply.FromString(data).key
        except DecodeError:
            raise TryAgainError("the tenant's key has come damaged") from None

    async def _stream(self, order: Order) -> None:
        """Make one call, and take what comes; return at the end or if the text is due.

        Raises
        ------
        TryAgainError
            If the call has ended early.
        SourceError
            If the edge refuses for good, or something has come damaged again.
        """
        blocks = [order.prefix.blocks[wanted.block] for wanted in order.wanted]
        if any(block.level == Level.GROUP for block in blocks):
            await self.key()
        message = segment_request(
            order.prefix, order.wanted, order.layers, with_tokens=order.told
        )
        order.header = None
        order.data.clear()
        self._sent(message)
        call = self._get_segment(message, metadata=self._metadata)
        try:
            while order.wanted:
                data = await self._read(call)
                self._received(data)
                if self._is_text_due(order, data):
                    order.told = True
                    return
        except CorruptBlockError as error:
            what = order.address + order.layers.to_bytes(4, "little")
            order.damaged[what] += 1
            if order.damaged[what] >= _TRIES:
                raise SourceError(f"{error} It has come so {_TRIES} times.") from error
            raise TryAgainError(str(error), lost=False) from error
        finally:
            call.cancel()

    async def _read(self, call: Any) -> bytes:
        """Return the next message of a call."""
        try:
            data = await asyncio.wait_for(call.read(), self._timeout)
        except TimeoutError:
            raise TryAgainError(f"nothing came for {self._timeout} s") from None
        except (grpc.RpcError, asyncio.InvalidStateError):
            raise await self._ended(call) from None
        if data is grpc.aio.EOF:
            raise await self._ended(call)
        assert isinstance(data, bytes)
        return data

    def _is_text_due(self, order: Order, data: bytes) -> bool:
        """Take a part; return whether the edge needs the text."""
        try:
            part = pb.SegmentPart.FromString(data)
        except DecodeError:
            raise CorruptBlockError(
                f"{len(data)} bytes have come that are no part of a segment."
            ) from None
        kind = part.WhichOneof("part")
        if kind == "unknown" and not order.told and order.header is None:
            return True
        if kind == "header" and order.header is None:
            order.header = self._checked(order, part.header)
        elif kind == "data" and order.header is not None:
            self._take(order, order.header, part.data)
        else:
            raise CorruptBlockError(f"A part has come out of its order: {kind}.")
        return False

    def _checked(self, order: Order, header: pb.SegmentHeader) -> BlockHeader:
        """Return a header that is what was asked for, unchanged."""
        precision = order.wanted[0].precision
        shape = self._identity.shape(len(order.block.tokens))
        digests = header.digests
        found = BlockHeader(
            shape,
            precision,
            header.error,
            tuple(header.sizes),
            tuple(digests[at : at + 32] for at in range(0, len(digests), 32)),
        )
        # Sizes are known beforehand, so nobody can make a device wait for more.
        names = ("layers", "heads", "tokens", "key_dim", "value_dim")
        fits = all(getattr(header, name) == getattr(shape, name) for name in names)
        key = b""
        if order.block.level == Level.GROUP:
            assert self._key is not None
            key = self._key
        code = header_code(found, order.address, key)
        if not (
            fits
            and header.dtype == dtype_name(shape.dtype)
            and header.precision == precision.value
            and found.sizes == (layer_nbytes(shape, precision),) * shape.layers
            and len(digests) == 32 * shape.layers
            and hmac.compare_digest(code, header.code)
        ):
            raise CorruptBlockError("A block's header is not that of what was wanted.")
        return found

    def _take(self, order: Order, header: BlockHeader, data: bytes) -> None:
        """Take bytes of a layer; hand it on when it is whole."""
        order.data += data
        size = header.sizes[order.layers]
        if len(order.data) < size:
            return
        if hashlib.sha256(order.data).digest() != header.digests[order.layers]:
            raise CorruptBlockError(
                f"Layer {order.layers} of a block is not what its digest says."
            )
        layer = torch.frombuffer(order.data, dtype=torch.uint8)
        order.data = bytearray()  # The layer has the other one's memory.
        wanted, index = order.wanted[0], order.layers
        order.layers += 1
        if order.layers == len(header.sizes):
            del order.wanted[0]
            order.layers, order.header = 0, None
        self._came(Arrival(wanted, header, index, layer, self._clock.now()))

    def _sent(self, message: bytes) -> None:
        """Count a message that leaves."""
        self.traffic.requests += 1
        self.traffic.bytes_sent += sent_size(message)
        if self.observer is not None:
            self.observer(True, message, self._clock.now())

    def _received(self, message: bytes) -> None:
        """Count a message that has come."""
        self.traffic.bytes_received += sent_size(message)
        if self.observer is not None:
            self.observer(False, message, self._clock.now())

    async def _ended(self, call: Any) -> Exception:
        """Return what the end of a call raises."""
        code = await call.code()
        text = f"{code.name}: {await call.details() or 'the edge has ended the call'}"
        if code is StatusCode.RESOURCE_EXHAUSTED:
            for name, value in await call.trailing_metadata() or ():
                with contextlib.suppress(ValueError):
                    if name == RETRY_KEY:
                        return TryAgainError(text, float(value), lost=False)
        if code in _PASSING:
            return TryAgainError(text)
        return SourceError(f"The edge at {self._address} refuses, {text}")
