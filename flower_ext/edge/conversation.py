"""One stream at the edge: a device says hello, opens a session and has it verified.

A stream's messages are served one after the other, so a device has at most one message
in the queue per stream, and what it sends ahead waits in the transport's window.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

import grpc
from google.protobuf.message import DecodeError
from grpc import StatusCode

from flower_ext.edge import edge_pb2 as pb
from flower_ext.edge.batching import Batcher, superseded
from flower_ext.edge.convert import (
    PREFIX_BYTES,
    ask_from_wire,
    draft_from_wire,
    opening_from_wire,
    score_from_wire,
    scored_to_wire,
    verdict_to_wire,
)
from flower_ext.edge.counters import Counters
from flower_ext.edge.handshake import Terms
from flower_ext.edge.refusals import RefusedError, refusal, unknown_session
from flower_ext.edge.sessions import OpenSession, Sessions
from flower_ext.errors import InvalidInputError
from flower_ext.speculative.messages import Ask, Draft, Score, Scored, Verdict

__all__ = ["Conversation", "Desk"]

_HELLO_SECONDS = 30.0


@dataclass(frozen=True)
class Desk:
    """What all conversations of an edge share.

    Parameters
    ----------
    terms : Terms
        What is served.
    sessions : Sessions
        Those open.
    batcher : Batcher
        Where they are computed.
    counters : Counters
        What is counted.
    idle_seconds : float
        A stream that is silent for longer is ended.
    """

    terms: Terms
    sessions: Sessions
    batcher: Batcher
    counters: Counters
    idle_seconds: float

    def drop(self, session: OpenSession) -> None:
        """Forget a session, here and at the verifier."""
        self.sessions.remove(session)
        self.batcher.close(session.key)
        self.count()

    def count(self) -> None:
        """Take note of how many sessions there are."""
        self.counters.open_sessions.set(len(self.sessions))
        self.batcher.devices = self.sessions.attached


class Conversation:
    """One stream.

    Parameters
    ----------
    desk : Desk
        The edge's.
    client : str
        Who is on the other side.
    context : grpc.aio.ServicerContext
        The stream, of bytes.
    """

    def __init__(self, desk: Desk, client: str, context: Any) -> None:
        self._desk = desk
        self._client = client
        self._context = context
        self._session: OpenSession | None = None
        self._reading: asyncio.Future[Any] | None = None
        self._superseded = False

    async def run(self) -> None:
        """Serve until the device goes.

        Raises
        ------
        RefusedError
            If the stream ends with a status.
        """
        try:
            await self._greet()
            while (data := await self._read(self._desk.idle_seconds)) is not None:
                reply: pb.EdgeMessage | None
                try:
                    reply = await self._serve(_parse(data))
                except InvalidInputError as error:
                    reply = self._refuse(refusal(error))
                except RefusedError as refused:
                    if refused.code is StatusCode.ABORTED:
                        raise
                    reply = self._refuse(refused)
                if self._superseded:
                    raise superseded()
                if reply is not None:
                    await self._write(reply)
        finally:
            self._detach()

    def supersede(self) -> None:
        """End: a newer stream has the session."""
        self._superseded = True
        self._session = None
        if self._reading is not None:
            self._reading.cancel()

    async def _greet(self) -> None:
        """Take the device's hello."""
        data = await self._read(min(_HELLO_SECONDS, self._desk.idle_seconds))
        message = pb.DeviceMessage()
        if data is not None:
            try:
                message = _parse(data)
            except InvalidInputError as error:
                raise refusal(error) from error
        if not message.HasField("hello"):
            raise RefusedError(
                StatusCode.FAILED_PRECONDITION, "A stream must begin with a Hello."
            )
        self._desk.terms.check(message.hello)
        await self._write(self._desk.terms.welcome())

    async def _serve(self, message: pb.DeviceMessage) -> pb.EdgeMessage | None:
        """Return the answer to a message."""
        kind = message.WhichOneof("message")
        if kind == "draft":
            vocab_size = self._desk.terms.vocab_size
            return await self._verify(draft_from_wire(message.draft, vocab_size))
        if kind == "ask":
            return await self._verify(ask_from_wire(message.ask))
        if kind == "score":
            return await self._verify(score_from_wire(message.score))
        if kind == "opening":
            return await self._open(message.opening)
        if kind == "resume":
            return await self._resume(message.resume.session)
        if kind == "close":
            if self._session is not None:
                self._desk.drop(self._session)
                self._session = None
            return None
        raise InvalidInputError(
            "A message must be an opening, a resumption, a draft, a question, a score "
            f"or a close, got {kind or 'none of them'}."
        )

    async def _open(self, message: pb.Opening) -> pb.EdgeMessage:
        """Open a session; it goes on being opened if the device goes away meanwhile."""
        desk = self._desk
        opening = opening_from_wire(message, desk.terms.max_length)
        self._detach()
        going = desk.sessions.room_for(self._client, opening.session)
        key = desk.sessions.new_key()
        opened = desk.batcher.submit(key, opening)
        for gone in going:
            if gone.stream is not None:
                gone.stream.supersede()
            if gone.name != opening.session or gone.client != self._client:
                desk.counters.evicted.inc()
            desk.drop(gone)
        now = asyncio.get_running_loop().time()
        session = OpenSession(self._client, opening.session, key, opened, now, self)
        desk.sessions.add(session)
        self._session = session

        def forget_if_refused(answer: asyncio.Future[Any]) -> None:
            if answer.cancelled() or answer.result() is not None:
                desk.drop(session)

        opened.add_done_callback(forget_if_refused)
        desk.count()
        await self._wait_for(session)
        desk.counters.opened.inc()
        return pb.EdgeMessage(opened=pb.Opened())

    async def _resume(self, name: str) -> pb.EdgeMessage:
        """Take a session over from the stream that had it."""
        desk = self._desk
        self._detach()
        session = desk.sessions.resume(self._client, name, self)
        desk.batcher.withdraw(session.key)
        self._session = session
        desk.count()
        await self._wait_for(session)
        desk.counters.resumed.inc()
        return pb.EdgeMessage(opened=pb.Opened())

    async def _wait_for(self, session: OpenSession) -> None:
        """Wait until a session's prompt is computed."""
        answer = await asyncio.shield(session.opened)
        if isinstance(answer, RefusedError):
            self._session = None
            raise answer

    async def _verify(self, message: Draft | Ask | Score) -> pb.EdgeMessage:
        """Have a draft verified, a question answered or a text scored."""
        session = self._session
        if session is None or not self._desk.sessions.has(session):
            raise unknown_session()
        self._desk.sessions.touch(session)
        answer = await self._desk.batcher.submit(session.key, message)
        if isinstance(answer, Verdict):
            return verdict_to_wire(answer)
        if isinstance(answer, Scored):
            return scored_to_wire(answer)
        assert answer is not None
        if answer.code in (StatusCode.INTERNAL, StatusCode.NOT_FOUND):
            self._desk.drop(session)
        raise answer

    def _detach(self) -> None:
        """Leave the session to whoever resumes it."""
        session, self._session = self._session, None
        if session is not None and session.stream is self:
            session.stream = None
            self._desk.sessions.touch(session)
            self._desk.count()

    def _refuse(self, refused: RefusedError) -> pb.EdgeMessage:
        """Count a refusal, and return its message."""
        self._desk.counters.refusals.labels(refused.code.name).inc()
        return refused.to_wire()

    async def _read(self, seconds: float) -> bytes | None:
        """Return the next message, or None at the end."""
        if self._superseded:
            raise superseded()
        self._reading = asyncio.ensure_future(self._context.read())
        try:
            data = await asyncio.wait_for(self._reading, seconds)
        except TimeoutError:
            raise RefusedError(
                StatusCode.DEADLINE_EXCEEDED, f"Nothing came for {seconds} s."
            ) from None
        except asyncio.CancelledError:
            if self._superseded:
                raise superseded() from None
            raise
        finally:
            self._reading = None
        if data is grpc.aio.EOF:
            return None
        assert isinstance(data, bytes)
        self._desk.counters.bytes_up.inc(len(data) + PREFIX_BYTES)
        return data

    async def _write(self, message: pb.EdgeMessage) -> None:
        data = message.SerializeToString()
        await self._context.write(data)
        self._desk.counters.bytes_down.inc(len(data) + PREFIX_BYTES)


def _parse(data: bytes) -> pb.DeviceMessage:
    """Return a message.

    Raises
    ------
    InvalidInputError
        If it is none.
    """
    try:
        message: pb.DeviceMessage = pb.DeviceMessage.FromString(data)
    except DecodeError as error:
        raise InvalidInputError(
            f"{len(data)} bytes came that are no message of flower_ext.edge."
        ) from error
    return message
