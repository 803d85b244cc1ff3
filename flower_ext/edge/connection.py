"""A device's streams to an edge: what is lost, what is refused, what it takes."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
from grpc import StatusCode

from flower_ext.edge import edge_pb2 as pb
from flower_ext.edge.convert import PREFIX_BYTES
from flower_ext.edge.edge_pb2_grpc import EdgeStub
from flower_ext.edge.errors import EdgeRefusedError
from flower_ext.edge.handshake import VERSION
from flower_ext.errors import InvalidInputError
from flower_ext.speculative.errors import MemoryBudgetError, UnknownSessionError
from flower_ext.speculative.session import Traffic

__all__ = ["Connection", "DeviceStream", "TryAgainError"]

_CODES = {code.value[0]: code for code in StatusCode}
_FINAL = {
    StatusCode.UNAUTHENTICATED,
    StatusCode.PERMISSION_DENIED,
    StatusCode.FAILED_PRECONDITION,
    StatusCode.UNIMPLEMENTED,
    StatusCode.OUT_OF_RANGE,
}


class TryAgainError(Exception):
    """The message has not been answered, but may be if it is sent again.

    Parameters
    ----------
    reason : str
        What has happened.
    seconds : float (default: 0.0)
        Not to be tried before.
    lost : bool (default: True)
        Whether the stream is of no more use.
    """

    def __init__(self, reason: str, seconds: float = 0.0, lost: bool = True) -> None:
        super().__init__(reason)
        self.seconds = seconds
        self.lost = lost


class Connection:
    """A channel to an edge, made within a running event loop.

    Parameters
    ----------
    address : str
        Host and port.
    credentials : grpc.ChannelCredentials | None
        None: plaintext.
    token : str | None
        The device's.
    hello : Hello
        What every stream begins with.
    timeout : float
        Seconds to wait for an answer.

    Attributes
    ----------
    welcome : Welcome | None
        The edge's terms, as soon as they are known.
    given_up : bool
        Whether patience has ended with the edge, and it has not answered since.
    """

    def __init__(
        self,
        address: str,
        credentials: grpc.ChannelCredentials | None,
        token: str | None,
        hello: pb.Hello,
        timeout: float,
    ) -> None:
        self.address = address
        self.timeout = timeout
        self.welcome: pb.Welcome | None = None
        self.given_up = False
        self._hello = pb.DeviceMessage(hello=hello)
        self._metadata = (
            () if token is None else (("authorization", f"Bearer {token}"),)
        )
        options = [
            # When to try again is told by the sessions, which have patience to keep.
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
        self._stub: Any = EdgeStub(self._channel)  # type: ignore[no-untyped-call]

    async def open_stream(self, traffic: Traffic) -> DeviceStream:
        """Begin a stream with a hello, and do not wait for its answer."""
        stream = DeviceStream(self, self._stub.Verify(metadata=self._metadata), traffic)
        traffic.opening_bytes += await stream.write(self._hello)
        return stream

    def welcomed(self, welcome: pb.Welcome) -> None:
        """Take the edge's terms, which must stay the same from stream to stream."""
        first = self.welcome
        if welcome.version != VERSION or not welcome.vocab_size:
            raise EdgeRefusedError(
                f"The edge at {self.address} speaks version {welcome.version} of the "
                f"protocol and this device {VERSION}: install the same version of "
                "flower-ext on both."
            )
        if first is not None and first.vocab_size != welcome.vocab_size:
            raise EdgeRefusedError(
                f"The edge at {self.address} now verifies {welcome.vocab_size} ids and "
                f"did {first.vocab_size}: connect again."
            )
        self.welcome = welcome
        self.given_up = False

    async def close(self) -> None:
        """End the channel."""
        await self._channel.close()


class DeviceStream:
    """One stream, as a device has it.

    Parameters
    ----------
    connection : Connection
        Whose it is.
    call : Any
        gRPC's.
    traffic : Traffic
        What its messages are counted in.
    """

    def __init__(self, connection: Connection, call: Any, traffic: Traffic) -> None:
        self._connection = connection
        self._call = call
        self._traffic = traffic

    async def write(self, message: pb.DeviceMessage) -> int:
        """Send a message, and return its bytes.

        Raises
        ------
        InvalidInputError
            If it is longer than the edge takes.
        TryAgainError, FlowerExtError
            As :meth:`read`.
        """
        size: int = message.ByteSize()
        welcome = self._connection.welcome
        if welcome is not None and size > welcome.max_message_bytes:
            fix = (
                "shorten the prompt, generate fewer tokens or raise the edge's "
                "max_message_bytes."
                if message.HasField("opening")
                else "draft fewer tokens at once, or choose a protocol that sends no "
                "distributions up."
            )
            raise InvalidInputError(
                f"The message takes {size} bytes and the edge at "
                f"{self._connection.address} at most {welcome.max_message_bytes}: {fix}"
            )
        try:
            await asyncio.wait_for(self._call.write(message), self._connection.timeout)
        except TimeoutError:
            raise self._silence() from None
        except (grpc.RpcError, asyncio.InvalidStateError):
            raise await self._ended() from None
        self._traffic.uplink_bytes += size + PREFIX_BYTES
        return size + PREFIX_BYTES

    async def read(self) -> pb.EdgeMessage:
        """Return the next message, a welcome left out.

        Raises
        ------
        UnknownSessionError
            If the edge does not know the session, or no longer.
        TryAgainError
            If the stream is lost, or the edge is busy.
        FlowerExtError
            If the edge refuses for good.
        """
        reply = await self._receive()
        while reply.HasField("welcome"):
            self._connection.welcomed(reply.welcome)
            reply = await self._receive()
        if reply.HasField("refusal"):
            raise self._refused(reply.refusal)
        return reply

    async def welcome(self) -> pb.Welcome:
        """Return the answer to the hello; raises as :meth:`read`."""
        reply = await self._receive()
        self._connection.welcomed(reply.welcome)
        return reply.welcome

    async def _receive(self) -> pb.EdgeMessage:
        """Return the next message, whatever it is."""
        try:
            reply = await asyncio.wait_for(self._call.read(), self._connection.timeout)
        except TimeoutError:
            raise self._silence() from None
        except (grpc.RpcError, asyncio.InvalidStateError):
            raise await self._ended() from None
        if reply is grpc.aio.EOF:
            raise TryAgainError("the edge has ended the stream")
        assert isinstance(reply, pb.EdgeMessage)
        self._traffic.downlink_bytes += reply.ByteSize() + PREFIX_BYTES
        return reply

    async def end(self, seconds: float) -> None:
        """Send nothing more, and give the edge that long to read the rest."""
        try:
            await self._call.done_writing()
            await asyncio.wait_for(self._call.read(), seconds)
        except (grpc.RpcError, asyncio.InvalidStateError, TimeoutError):
            self.cancel()

    def cancel(self) -> None:
        """Give the stream up."""
        self._call.cancel()

    def _silence(self) -> TryAgainError:
        """Return what an answer that does not come raises."""
        self.cancel()
        return TryAgainError(f"no answer within {self._connection.timeout} s")

    def _refused(self, refusal: pb.Refusal) -> Exception:
        """Return what a refusal within the stream raises."""
        code = _CODES.get(refusal.code, StatusCode.UNKNOWN)
        if code is StatusCode.RESOURCE_EXHAUSTED:
            if not refusal.retry_seconds > 0:
                return MemoryBudgetError(refusal.message)
            return TryAgainError(refusal.message, refusal.retry_seconds, lost=False)
        return self._error(code, refusal.message)

    async def _ended(self) -> Exception:
        """Return what the end of the stream raises."""
        code = await self._call.code()
        return self._error(code, await self._call.details() or "")

    def _error(self, code: StatusCode, text: str) -> Exception:
        """Return the error of a status."""
        shown = f"The edge at {self._connection.address}: {text}"
        if code is StatusCode.NOT_FOUND:
            return UnknownSessionError(shown)
        if code is StatusCode.INVALID_ARGUMENT:
            return InvalidInputError(shown)
        if code in _FINAL:
            return EdgeRefusedError(shown)
        if code is StatusCode.OK:
            return TryAgainError("the edge has ended the stream")
        return TryAgainError(f"{code.name}: {text}")
