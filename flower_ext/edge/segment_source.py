"""The device's way to an edge's segments: a source over gRPC."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
import math
import threading
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

import grpc

from flower_ext.edge.loop_thread import LoopThread
from flower_ext.edge.segment_fetch import Order, SegmentFetcher, SegmentTraffic
from flower_ext.edge.tls import client_credentials, is_loopback
from flower_ext.edgeprompt.blocks import ModelIdentity, SharedPrefix
from flower_ext.edgeprompt.errors import SourceError
from flower_ext.edgeprompt.linked_source import (
    Observer,
    left_to_fetch,
    still_wanted,
)
from flower_ext.edgeprompt.segment_messages import check_request
from flower_ext.edgeprompt.source import Arrival, Wanted
from flower_ext.errors import InvalidInputError
from flower_ext.network.clocks import WallClock

__all__ = ["RemoteSegments"]

_LOG = logging.getLogger(__name__)


class RemoteSegments:
    """An edge elsewhere that has segments, or computes them.

    A :class:`~flower_ext.edgeprompt.source.SegmentSource`. Blocks are fetched in the
    background, layer by layer; each is checked, and fetched once more if it has come
    damaged. A connection that is lost is made again, and of what has come whole nothing
    is fetched twice. Nothing leaves the device but what is written by
    :func:`~flower_ext.edgeprompt.segment_messages.segment_request`: addresses and,
    where the edge does not know them, the text of shared segments.

    Parameters
    ----------
    address : str
        Host and port, as ``"edge.example:50061"``.
    identity : ModelIdentity
        Of the device's model, by :func:`~flower_ext.edgeprompt.blocks.identity_of`.
    token : str | None (default: None)
        The device's, where the edge wants one.
    root_certificates : str | Path | bytes | None (default: None)
        PEM, or the file that it is in: the authority that has signed the edge's
        certificate, or the certificate itself. None: the system's authorities.
    plaintext : bool (default: False)
        Do without encryption.
    timeout : float (default: 30.0)
        Seconds to wait for a message before the connection counts as lost, above 0;
        more than the edge takes to compute the blocks before the first that is wanted.
    patience : float (default: 60.0)
        Seconds to go on trying while nothing comes, at least 0.

    Raises
    ------
    InvalidInputError
        If a parameter is out of range.

    Attributes
    ----------
    observer : Observer | None
        Is told of every message that leaves or has come, on another thread.

    Examples
    --------
    ::

        identity = identity_of(model)
        with RemoteSegments("edge.example:50061", identity=identity) as edge:
            prefix = SharedPrefix(prompt.shared, identity, edge.tenant_key())
            edge.request(prefix, [Wanted(0, Precision.INT8)])
            layers = edge.arrived(math.inf)
    """

    def __init__(
        self,
        address: str,
        *,
        identity: ModelIdentity,
        token: str | None = None,
        root_certificates: str | Path | bytes | None = None,
        plaintext: bool = False,
        timeout: float = 30.0,
        patience: float = 60.0,
    ) -> None:
        if not address.rpartition(":")[2].isdecimal() or "://" in address:
            raise InvalidInputError(f"address must be 'host:port', got {address!r}.")
        if not isinstance(identity, ModelIdentity):
            raise InvalidInputError(
                "identity must be flower_ext.edgeprompt.identity_of(model), got "
                f"{type(identity).__name__}."
            )
        if not timeout > 0:
            raise InvalidInputError(f"timeout must be above 0 seconds, got {timeout}.")
        if not patience >= 0:
            raise InvalidInputError(
                f"patience must be at least 0 seconds, got {patience}."
            )
        if token is not None and not (token.isascii() and token.isprintable()):
            raise InvalidInputError("token must have printable ASCII characters only.")
        credentials = client_credentials(root_certificates, plaintext)
        host = address.rpartition(":")[0] or address
        if plaintext and not is_loopback(host):
            _LOG.warning(
                "The tenant's key, and the token if there is one, travel unencrypted "
                "from and to %s: whoever listens can use them.",
                address,
            )
        self._identity = identity
        self._clock = WallClock()
        self._changed = threading.Condition()
        self._come: list[Arrival] = []
        self._error: Exception | None = None
        self._busy = False
        self._closed = False
        self._prefix: SharedPrefix | None = None  # On the loop's thread, as the task.
        self._task: asyncio.Task[None] | None = None
        self._thread = LoopThread("flower-ext segments")
        self._fetcher: SegmentFetcher = self._thread.run(
            self._connect(address, credentials, token, timeout, patience)
        )

    @property
    def observer(self) -> Observer | None:
        """What is told of every message."""
        return self._fetcher.observer

    @observer.setter
    def observer(self, observer: Observer | None) -> None:
        self._fetcher.observer = observer

    @property
    def traffic(self) -> SegmentTraffic:
        """What fetching has taken so far."""
        return dataclasses.replace(self._fetcher.traffic)

    def now(self) -> float:
        """Return the wall clock's time in seconds."""
        return self._clock.now()

    def tenant_key(self) -> bytes:
        """Return the key that this tenant's group segments are addressed under.

        Returns
        -------
        bytes
            32 bytes. An edge that was started again without the secret that it had
            tells another one, under which it does not know what it knew.

        Raises
        ------
        SourceError
            If the edge does not tell it.
        """
        self._check_open()
        return self._thread.run(self._fetcher.key(fresh=True))

    def request(
        self, prefix: SharedPrefix, wanted: Sequence[Wanted], have_layers: int = 0
    ) -> None:
        """Begin to fetch blocks, in this order, in place of what is under way.

        Of the first block, what whoever asks holds is not sent again, nor is what has
        come behind it and was not handed over yet.

        Parameters
        ----------
        prefix : SharedPrefix
            The shared part of a prompt.
        wanted : Sequence[Wanted]
            Blocks of it. None: end what is under way.
        have_layers : int (default: 0)
            The layers of the first that whoever asks holds, at least 0.

        Raises
        ------
        PrivateSegmentError
            If the prefix, or what is wanted of it, is of any other type.
        InvalidInputError
            If a block is none of the prefix's, ``have_layers`` is below 0, the prefix
            was made for another model, or this source is closed.
        """
        check_request(prefix, wanted)
        if prefix.identity != self._identity:
            raise InvalidInputError(
                "The prefix was made with another model's identity than this source: "
                "make both with the same."
            )
        self._check_open()
        self._thread.run(self._replace(prefix, tuple(wanted), have_layers))

    def arrived(self, timeout: float) -> list[Arrival]:
        """Return what has come since the last call.

        Parameters
        ----------
        timeout : float
            The most seconds to wait for something if nothing has come, at least 0; inf
            to wait until something does.

        Returns
        -------
        list[Arrival]
            Empty if nothing has come by then, or nothing is under way.

        Raises
        ------
        InvalidInputError
            If the timeout is below 0.
        SourceError
            If the rest will not come. The next call returns at once; blocks may be
            requested again.
        """
        if not timeout >= 0:
            raise InvalidInputError(f"timeout must be at least 0, got {timeout}.")
        seconds = None if math.isinf(timeout) else min(timeout, threading.TIMEOUT_MAX)
        with self._changed:
            self._changed.wait_for(lambda: self._come or not self._busy, seconds)
            come, self._come = self._come, []
            if come:
                return come
            error, self._error = self._error, None
        if error is not None:
            raise error
        return []

    def close(self) -> None:
        """End what is under way and the connection; again is no error."""
        if self._closed:
            return
        self._closed = True
        self._thread.run(self._end())
        self._thread.run(self._fetcher.close())
        self._thread.close()

    def __enter__(self) -> RemoteSegments:
        """Return this object."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close."""
        self.close()

    def _check_open(self) -> None:
        if self._closed:
            raise InvalidInputError("This source is closed: make another.")

    async def _connect(
        self,
        address: str,
        credentials: grpc.ChannelCredentials | None,
        token: str | None,
        timeout: float,
        patience: float,
    ) -> SegmentFetcher:
        """Make the channel, on the loop that it belongs to."""
        return SegmentFetcher(
            *(address, credentials, token, self._identity, self._clock),
            *(timeout, patience, self._take),
        )

    def _take(self, arrival: Arrival) -> None:
        """Hand an arrival to whoever waits."""
        with self._changed:
            self._come.append(arrival)
            self._changed.notify_all()

    async def _end(self) -> None:
        """End what is under way."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
            self._task = None
        with self._changed:
            self._busy, self._error = False, None
            self._changed.notify_all()

    async def _replace(
        self, prefix: SharedPrefix, wanted: tuple[Wanted, ...], have: int
    ) -> None:
        """Begin an order in place of another."""
        await self._end()
        before, self._prefix = self._prefix, prefix
        with self._changed:
            self._come = [a for a in self._come if still_wanted(a, before, prefix)]
            left, layers = left_to_fetch(self._come, wanted, have)
            self._busy = bool(left)
        if left:
            order = Order(prefix, list(left), layers)
            self._task = asyncio.create_task(self._fetch(order))

    async def _fetch(self, order: Order) -> None:
        """Fetch an order, and tell how it ended."""
        error: Exception | None = None
        try:
            await self._fetcher.fetch(order)
        except SourceError as found:
            error = found
        except Exception as found:
            _LOG.exception("Fetching segments has failed.")
            error = SourceError(f"Fetching segments has failed: {found}")
        with self._changed:
            self._busy, self._error = False, error
            self._changed.notify_all()
