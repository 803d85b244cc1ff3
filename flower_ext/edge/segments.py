"""The edge's side of segments: blocks that are kept are sent, others computed once.

Tenants. What a tenant is told depends on public blocks, on its own group blocks, and on
how busy the edge is. Group blocks of others are on no path of its requests: they lie in
other stores, under other names, so neither a look-up nor a computation meets them, and
they take no room of its own. Requests that wait are held to their number alone. Public
blocks are shared by design, and so tell that somebody has had them computed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Generator
from dataclasses import dataclass, field
from functools import partial

from google.protobuf.message import DecodeError
from grpc import StatusCode

from flower_ext.edge import edge_pb2 as pb
from flower_ext.edge.convert import PREFIX_BYTES
from flower_ext.edge.counters import Counters
from flower_ext.edge.model_thread import ModelThread
from flower_ext.edge.refusals import RefusedError, busy
from flower_ext.edge.tenants import TenantKeys
from flower_ext.edgeprompt.blocks import Address, SharedPrefix
from flower_ext.edgeprompt.hierarchy import Level, Segment
from flower_ext.edgeprompt.precision import EncodedBlock
from flower_ext.edgeprompt.segment_messages import (
    MAX_BLOCKS,
    UNKNOWN_PART,
    dtype_name,
    header_of,
    header_part,
    layer_parts,
)
from flower_ext.edgeprompt.service import SegmentService
from flower_ext.edgeprompt.source import Wanted
from flower_ext.errors import InvalidInputError

__all__ = ["RETRY_KEY", "SegmentDesk"]

RETRY_KEY = "retry-seconds"
"""Of the metadata behind a refusal: after which it may be tried again."""

_ADDRESS_BYTES = 32
_AT_ONCE = 2  # Chains in the making: each holds its KV so far.

Write = Callable[[bytes], Awaitable[None]]
Plan = dict[bytes, tuple[SharedPrefix, Wanted]]


@dataclass(eq=False)
class _Flight:
    """A block in the making."""

    client: str
    waiting: int = 0
    task: asyncio.Task[EncodedBlock | RefusedError] = field(init=False)


class SegmentDesk:
    """Where segments are asked for, on an edge's event loop.

    Parameters
    ----------
    service : SegmentService
        Touched by the thread alone.
    keys : TenantKeys
        The tenants'.
    thread : ModelThread
        Where the service computes.
    counters : Counters
        What is counted.
    max_waiting : int
        Blocks that may be computed or wait for it, at least 1; further ones are refused
        with a hint when to try again.
    max_waiting_per_client : int | None
        Of them, those that one client has asked for first; None: no limit.
    """

    def __init__(
        self,
        service: SegmentService,
        keys: TenantKeys,
        thread: ModelThread,
        counters: Counters,
        max_waiting: int,
        max_waiting_per_client: int | None,
    ) -> None:
        self._service = service
        self._keys = keys
        self._thread = thread
        self._counters = counters
        self._max_waiting = max_waiting
        self._max_waiting_per_client = max_waiting_per_client
        self._flights: dict[tuple[str | None, bytes], _Flight] = {}
        self._turns = asyncio.Semaphore(_AT_ONCE)

    def key(self, client: str) -> bytes:
        """Return a ``TenantKeyReply`` with a client's key."""
        reply: bytes = pb.TenantKeyReply(key=self._keys.key(client)).SerializeToString()
        return reply

    async def send(self, client: str, data: bytes, write: Write) -> None:
        """Answer a ``SegmentRequest``.

        Parameters
        ----------
        client : str
            Who asks; its tenant's name.
        data : bytes
            The request.
        write : Callable[[bytes], Awaitable[None]]
            Sends a ``SegmentPart``, and waits while the device does not take more.

        Raises
        ------
        RefusedError
            If it is not served.
        """
        self._counters.bytes_up.inc(len(data) + PREFIX_BYTES)
        request = _parse(data)
        addresses = _addresses(request)
        self._check_model(request)
        plan: Plan = {}
        if request.blocks:
            plan = await self._thread.run(partial(self._plan, client, request))
            if not plan.keys() >= set(addresses):
                raise RefusedError(
                    StatusCode.FAILED_PRECONDITION,
                    "The addresses are not those of the text: the device cuts it "
                    "otherwise, or has another tenant's key, or an old one. Ask for "
                    "the key again.",
                )
        for index, address in enumerate(addresses):
            found = await self._thread.run(partial(self._find, client, address))
            if found is None and not plan:
                self._counters.blocks_unknown.inc()
                await self._write(write, UNKNOWN_PART)
                return
            if found is None:
                prefix, wanted = plan[address]
                level = prefix.blocks[wanted.block].level
                found = level, await self._computed(client, prefix, wanted)
            have = request.have_layers if index == 0 else 0
            await self._send_block(client, address, found, have, write)

    async def close(self) -> None:
        """Give up what is being computed."""
        tasks = [flight.task for flight in self._flights.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _check_model(self, request: pb.SegmentRequest) -> None:
        """Raise unless the device has the same model."""
        own = self._service.identity
        if request.model != own.digest:
            raise RefusedError(
                StatusCode.FAILED_PRECONDITION,
                "The device's model differs from the edge's in its weights or its "
                f"configuration, whatever it is called: {request.model[:8].hex()} and "
                f"{own.digest[:8].hex()}. Load the same one on both.",
            )
        if request.dtype != dtype_name(own.dtype):
            raise RefusedError(
                StatusCode.FAILED_PRECONDITION,
                f"The device's model computes in {request.dtype[:20]!r} and the edge's "
                f"in {dtype_name(own.dtype)}: load it with the same dtype on both.",
            )

    def _plan(self, client: str, request: pb.SegmentRequest) -> Plan:
        """Return the addresses of a text; in the thread, as it may be long."""
        levels = [block.level for block in request.blocks]
        if max(levels) >= Level.PRIVATE or levels != sorted(levels):
            raise InvalidInputError(
                "The text told must consist of public blocks (level 0), then of the "
                "group's (level 1): nothing else may be sent to an edge."
            )
        self._service.check(
            sum(len(block.tokens) for block in request.blocks),
            max(max(block.tokens, default=0) for block in request.blocks),
        )
        prefix = SharedPrefix(
            [Segment(block.tokens, Level(block.level)) for block in request.blocks],
            self._service.identity,
            self._keys.key(client),
        )
        return {
            address.digest: (prefix, Wanted(index, precision))
            for index, block in enumerate(prefix.blocks)
            for precision, address in block.addresses.items()
        }

    def _find(self, client: str, address: bytes) -> tuple[Level, EncodedBlock] | None:
        """Return a block that is kept, the tenant's own or a public one."""
        # Both are always looked for, so that an answer takes as long for either.
        own = self._service.find(Address(address, Level.GROUP), client)
        public = self._service.find(Address(address, Level.PUBLIC))
        if own is not None:
            return Level.GROUP, own
        return None if public is None else (Level.PUBLIC, public)

    async def _computed(
        self, client: str, prefix: SharedPrefix, wanted: Wanted
    ) -> EncodedBlock:
        """Have a block computed, once for all who ask at the same time."""
        block = prefix.blocks[wanted.block]
        # What a group has in the making is as much its own as what it keeps.
        tenant = client if block.level == Level.GROUP else None
        key = tenant, block.addresses[wanted.precision].digest
        flight = self._flights.get(key)
        if flight is None:
            self._check_room(client)
            self._flights[key] = flight = _Flight(client)
            steps = self._service.steps(prefix, wanted, tenant or "")
            flight.task = asyncio.create_task(self._fly(key, flight, steps))
        flight.waiting += 1
        try:
            # Who leaves does not take it from the others.
            found = await asyncio.shield(flight.task)
        finally:
            flight.waiting -= 1
        if isinstance(found, RefusedError):
            raise RefusedError(found.code, found.text, found.retry_seconds)
        return found

    def _check_room(self, client: str) -> None:
        """Raise if too much is being computed already."""
        if len(self._flights) >= self._max_waiting:
            raise busy(f"{self._max_waiting} segments wait")
        most = self._max_waiting_per_client
        own = sum(flight.client == client for flight in self._flights.values())
        if most is not None and own >= most:
            raise busy(f"{most} segments wait that this client has asked for")

    async def _fly(
        self,
        key: tuple[str | None, bytes],
        flight: _Flight,
        steps: Generator[None, None, EncodedBlock],
    ) -> EncodedBlock | RefusedError:
        """Compute a block, as long as somebody waits for it."""
        try:
            async with self._turns:
                while flight.waiting:
                    try:
                        found = await self._thread.run(partial(self._step, steps))
                    except RefusedError as refused:
                        # Drafts have filled the queue: this one has its place already.
                        if not refused.retry_seconds > 0:
                            return refused
                        await asyncio.sleep(refused.retry_seconds)
                        continue
                    if found is not None:
                        return found
            return RefusedError(StatusCode.CANCELLED, "Nobody has waited for it.")
        finally:
            del self._flights[key]

    def _step(self, steps: Generator[None, None, EncodedBlock]) -> EncodedBlock | None:
        """Compute the next block of a chain; return the last one, else None."""
        before = self._service.passes
        try:
            next(steps)
        except StopIteration as end:
            found: EncodedBlock = end.value
            return found
        finally:
            self._counters.blocks_computed.inc(self._service.passes - before)
        return None

    async def _send_block(
        self,
        client: str,
        address: bytes,
        found: tuple[Level, EncodedBlock],
        have: int,
        write: Write,
    ) -> None:
        """Send a block's header, and the layers that the device does not have."""
        level, block = found
        if have > len(block.layers):
            raise RefusedError(
                StatusCode.INVALID_ARGUMENT,
                f"The device says it has {have} layers of a block that has "
                f"{len(block.layers)}.",
            )
        # Digesting takes a while, and leaves the interpreter to others.
        header = await asyncio.to_thread(header_of, block)
        key = self._keys.key(client) if level == Level.GROUP else b""
        await self._write(write, header_part(header, address, key))
        for layer in block.layers[have:]:
            for part in layer_parts(layer):
                await self._write(write, part)
        self._counters.blocks_sent.inc()

    async def _write(self, write: Write, message: bytes) -> None:
        await write(message)
        self._counters.bytes_down.inc(len(message) + PREFIX_BYTES)


def _parse(data: bytes) -> pb.SegmentRequest:
    """Return a request.

    Raises
    ------
    RefusedError
        If it is none.
    """
    try:
        request: pb.SegmentRequest = pb.SegmentRequest.FromString(data)
    except DecodeError as error:
        text = f"{len(data)} bytes came that are no SegmentRequest."
        raise RefusedError(StatusCode.INVALID_ARGUMENT, text) from error
    return request


def _addresses(request: pb.SegmentRequest) -> list[bytes]:
    """Return the addresses asked for.

    Raises
    ------
    RefusedError
        If there is none, there are too many, or one is no address.
    """
    whole = request.addresses
    if not whole or len(whole) % _ADDRESS_BYTES:
        raise RefusedError(
            StatusCode.INVALID_ARGUMENT,
            f"A request needs addresses of {_ADDRESS_BYTES} bytes, one after the "
            f"other, got {len(whole)} bytes.",
        )
    if len(whole) > MAX_BLOCKS * _ADDRESS_BYTES:
        raise RefusedError(
            StatusCode.INVALID_ARGUMENT,
            f"At most {MAX_BLOCKS} blocks are sent at once, got "
            f"{len(whole) // _ADDRESS_BYTES}: ask for some of them first.",
        )
    return [
        whole[begin : begin + _ADDRESS_BYTES]
        for begin in range(0, len(whole), _ADDRESS_BYTES)
    ]
