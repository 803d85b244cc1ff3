"""A session with an edge elsewhere, which outlives the connections that it goes over.

Every random choice is keyed by (seed, position, purpose), and a round sent again has
the same number; so whatever is lost, repeated or opened again, the tokens are those of
an undisturbed run.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
from dataclasses import dataclass, replace
from typing import Generic, TypeVar

from flower_ext.edge import edge_pb2 as pb
from flower_ext.edge.connection import Connection, DeviceStream, TryAgainError
from flower_ext.edge.convert import (
    ask_to_wire,
    draft_to_wire,
    opening_to_wire,
    score_to_wire,
    scored_from_wire,
    verdict_from_wire,
)
from flower_ext.edge.loop_thread import LoopThread
from flower_ext.edge.patience import Patience
from flower_ext.errors import FlowerExtError
from flower_ext.network.clocks import Clock
from flower_ext.speculative.errors import UnknownSessionError, VerifierUnavailableError
from flower_ext.speculative.messages import (
    Ask,
    Draft,
    Opening,
    Score,
    Scored,
    Verdict,
)
from flower_ext.speculative.session import Traffic

__all__ = ["RemoteSession"]

T = TypeVar("T", Verdict, Scored)

_CLOSING_SECONDS = 1.0


@dataclass(frozen=True)
class _Flight(Generic[T]):
    """A verdict or a score on its way."""

    future: concurrent.futures.Future[T]

    def done(self) -> bool:
        """Return whether it has arrived."""
        return self.future.done()

    def result(self) -> T:
        """Wait for it."""
        try:
            return self.future.result()
        except concurrent.futures.CancelledError:
            raise VerifierUnavailableError(
                "The connection to the edge was closed while an answer was in flight."
            ) from None


class RemoteSession:
    """A session with an edge elsewhere.

    Parameters
    ----------
    connection : Connection
        Made on the thread's loop.
    thread : LoopThread
        Where messages are sent and awaited.
    opening : Opening
        What is generated, and how.
    clock : Clock
        What messages take is told by it.
    patience : float
        Seconds to go on trying after a message was first lost.

    Attributes
    ----------
    traffic : Traffic
        What was actually sent and received, with what was sent again. The hello of
        every stream counts to ``opening_bytes``.
    """

    def __init__(
        self,
        connection: Connection,
        thread: LoopThread,
        opening: Opening,
        clock: Clock,
        patience: float,
    ) -> None:
        self.traffic = Traffic()
        self._connection = connection
        self._thread = thread
        self._opening = opening
        self._clock = clock
        self._patience = patience
        self._stream: DeviceStream | None = None
        self._busy = asyncio.Lock()
        self._generated: list[int] = []  # Confirmed, as far as the device has told.
        self._draft: Draft | None = None  # The last, as the edge can take it.
        self._draft_is_known = False
        self._first: Verdict | None = None  # On that draft, whenever it is sent again.
        self._opened = False  # Whether the edge has ever said so.
        self._closing: concurrent.futures.Future[None] | None = None
        thread.submit(self._begin())

    def send(self, message: Draft | Ask) -> _Flight[Verdict]:
        """Send a draft, or ask for more about the last one."""
        return _Flight(self._thread.submit(self._deliver(message, self._clock.now())))

    def score(self, message: Score) -> Scored:
        """Have the text scored; whatever is lost meanwhile, it is asked for again."""
        return _Flight(self._thread.submit(self._have_scored(message))).result()

    @property
    def closed(self) -> bool:
        """Whether it has ended, and the edge been told."""
        return self._closing is not None and self._closing.done()

    def close(self) -> None:
        """End the session, in the background; again is no error."""
        if self._closing is not None:
            return
        # The close itself is sent when nobody looks any more, and so is not counted.
        self.traffic = replace(self.traffic)
        self._closing = self._thread.submit(self._end())

    def wait_until_closed(self) -> None:
        """Wait until the edge knows, or a second is over."""
        self.close()
        assert self._closing is not None
        concurrent.futures.wait([self._closing], timeout=2 * _CLOSING_SECONDS)

    async def _begin(self) -> None:
        """Send hello and opening; what goes wrong is met by the first draft."""
        async with self._busy:
            try:
                self._stream = await self._connection.open_stream(self.traffic)
                size = await self._stream.write(opening_to_wire(self._opening))
                self.traffic.opening_bytes += size
            except (TryAgainError, FlowerExtError):
                self._drop()

    async def _end(self) -> None:
        """Close the session, if the edge can be told."""
        async with self._busy:
            stream, self._stream = self._stream, None
            if stream is None:
                return
            try:
                await stream.write(pb.DeviceMessage(close=pb.Close()))
                await stream.end(_CLOSING_SECONDS)
            except (TryAgainError, FlowerExtError):
                return

    async def _deliver(self, message: Draft | Ask, sent: float) -> Verdict:
        """Return the verdict, whatever it takes."""
        async with self._busy:
            if isinstance(message, Draft):
                known = message.confirmed - len(message.tail)
                self._generated[known:] = message.tail
                self._draft, self._draft_is_known = message, False
                self._first = None
            verdict = await self._insist(message)
            assert isinstance(verdict, Verdict)
            waited = self._clock.now() - sent
            if isinstance(message, Draft):
                self._generated += message.tokens[: verdict.accepted]
                if verdict.token is not None:
                    self._generated.append(verdict.token)
        self.traffic.verification_seconds += verdict.seconds
        self.traffic.transmission_seconds += max(0.0, waited - verdict.seconds)
        return verdict

    async def _have_scored(self, message: Score) -> Scored:
        """Return the score, whatever it takes."""
        async with self._busy:
            scored = await self._insist(message)
        assert isinstance(scored, Scored)
        return scored

    async def _insist(self, message: Draft | Ask | Score) -> Verdict | Scored:
        """Try until there is an answer, or patience ends."""
        patience = Patience(self._patience, self._clock)
        while True:
            try:
                return await self._try(message)
            except UnknownSessionError as error:
                # Dropped while the stream was there: resuming finds that out again.
                again = TryAgainError(str(error))
            except TryAgainError as error:
                again = error
            except BaseException:
                self._drop()
                raise
            if again.lost or not self._opened:
                self._drop()
            if not await patience.outlasts(again):
                self._connection.given_up = True
                raise VerifierUnavailableError(
                    f"The edge at {self._connection.address} has not answered for "
                    f"{self._patience} s ({again}): see that it runs, raise patience, "
                    "or let speculate(if_edge_is_lost='draft') finish without it."
                )

    async def _try(self, message: Draft | Ask | Score) -> Verdict | Scored:
        """Return the answer, over the stream that is there or a new one."""
        if self._stream is None:
            self._stream = await self._return()
            self.traffic.reconnections += 1
        assert self._draft is not None
        if isinstance(message, Draft) or not self._draft_is_known:
            verdict = await self._verdict(self._stream, draft_to_wire(self._draft))
            self._check_again(verdict)
            self._draft_is_known = True
            if isinstance(message, Draft):
                return verdict
        if isinstance(message, Ask):
            return await self._verdict(self._stream, ask_to_wire(message))
        reply = await self._exchange(self._stream, score_to_wire(message), "scored")
        return scored_from_wire(reply.scored, message.confirmed)

    def _check_again(self, verdict: Verdict) -> None:
        """Raise if a draft that was sent again is judged otherwise than before.

        What follows would be about another position than the device is at.
        """
        first = self._first = self._first or verdict
        if (verdict.accepted, verdict.token) != (first.accepted, first.token):
            raise FlowerExtError(
                f"The edge at {self._connection.address} accepts {verdict.accepted} "
                f"tokens of round {verdict.round} and draws {verdict.token}, where it "
                f"had accepted {first.accepted} and drawn {first.token} before it "
                "forgot the session: its target is another now, or computes otherwise. "
                "Generate the text anew."
            )

    async def _verdict(
        self, stream: DeviceStream, message: pb.DeviceMessage
    ) -> Verdict:
        """Send a draft or a question, and return the verdict on it."""
        reply = await self._exchange(stream, message, "verdict")
        assert self._connection.welcome is not None
        assert self._draft is not None
        if reply.verdict.round != self._draft.round:
            raise FlowerExtError(
                f"The edge at {self._connection.address} has sent a verdict of round "
                f"{reply.verdict.round} where round {self._draft.round} was due: it is "
                "broken, or speaks another protocol."
            )
        return verdict_from_wire(reply.verdict, self._connection.welcome.vocab_size)

    async def _exchange(
        self, stream: DeviceStream, message: pb.DeviceMessage, wanted: str
    ) -> pb.EdgeMessage:
        """Send a message, and return the answer of the kind that is wanted."""
        await stream.write(message)
        reply = await stream.read()
        if reply.WhichOneof("message") == "opened":  # Not waited for when it was sent.
            self._opened = True
            reply = await stream.read()
        if reply.WhichOneof("message") != wanted:
            raise FlowerExtError(
                f"The edge at {self._connection.address} has sent "
                f"{reply.WhichOneof('message')} where {wanted} was due: it is broken, "
                "or speaks another protocol."
            )
        return reply

    async def _return(self) -> DeviceStream:
        """Take the session up on a new stream, or open it again."""
        stream = await self._connection.open_stream(self.traffic)
        try:
            resume = pb.Resume(session=self._opening.session)
            await stream.write(pb.DeviceMessage(resume=resume))
            try:
                await stream.read()
            except UnknownSessionError:
                await self._open_again(stream)
        except BaseException:
            stream.cancel()
            raise
        self._opened = True
        return stream

    async def _open_again(self, stream: DeviceStream) -> None:
        """Open the session with all that is confirmed."""
        assert self._draft is not None
        confirmed = self._generated[: self._draft.confirmed]
        # From here on the edge may know the tail, whether or not it can say so.
        self._draft = replace(self._draft, tail=())
        self._draft_is_known = False
        opening = replace(
            self._opening,
            prompt=(*self._opening.prompt, *confirmed),
            generated=self._opening.generated + len(confirmed),
        )
        size = await stream.write(opening_to_wire(opening))
        self.traffic.opening_bytes += size
        await stream.read()

    def _drop(self) -> None:
        """Give the stream up."""
        if self._stream is not None:
            self._stream.cancel()
            self._stream = None
