"""The edge: a model that devices reach over gRPC, to verify drafts or send segments."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from prometheus_client import CollectorRegistry
from transformers import PreTrainedModel

from flower_ext.edge import edge_pb2 as pb
from flower_ext.edge.conversation import Conversation, Desk
from flower_ext.edge.counters import Counters
from flower_ext.edge.handshake import Terms
from flower_ext.edge.loop_thread import LoopThread
from flower_ext.edge.model_thread import ModelThread
from flower_ext.edge.refusals import RefusedError, busy
from flower_ext.edge.segments import RETRY_KEY, SegmentDesk
from flower_ext.edge.sessions import Sessions
from flower_ext.edge.tenants import TenantKeys
from flower_ext.edge.tls import is_loopback, server_credentials
from flower_ext.edge.tokens import Tokens
from flower_ext.edgeprompt.service import SegmentService
from flower_ext.errors import InvalidInputError
from flower_ext.speculative.language_model import LanguageModel
from flower_ext.speculative.verifier import Verifier

__all__ = ["EdgeServer"]

_LOG = logging.getLogger(__name__)
_SERVICE = pb.DESCRIPTOR.services_by_name["Edge"].full_name
_REFUSING_SECONDS = 2.0  # A stranger's stream is held no longer.
_STOP_SECONDS = 1.0  # What is being answered may still be.
_KEEPALIVE_MS = 30_000  # A device that is gone without a word is noticed by then.


class EdgeServer:
    """A verifier behind a port, with its event loop and its model in own threads.

    With ``segments`` it also computes, keeps and sends the KV of prompts' shared
    segments; one thread computes all, so the two may have the same model.

    Parameters
    ----------
    model : PreTrainedModel | LanguageModel | Verifier
        The target. A verifier that is given belongs to the server until it is stopped.
    tokenizer_fingerprint : str
        The target's tokenizer's, by :func:`flower_ext.models.tokenizer_fingerprint`;
        devices must have the same.
    host : str (default: "127.0.0.1")
        The address that it listens at.
    port : int (default: 0)
        0 takes a free one; see :attr:`address`.
    vocab_size : int | None (default: None)
        The ids that it verifies; a drafter with more is cut to them, one with fewer is
        refused. None: all of the model's. Give the number of the tokenizer's ids to
        serve drafters that are padded to another size than the target.
    tls_cert, tls_key : str | Path | bytes | None (default: None)
        PEM, or the files that it is in. Needed unless ``plaintext``.
    tokens : Mapping[str, str] | None (default: None)
        From a client's name to its token. A session belongs to the client that has
        opened it. None: anyone may come, and all are one client.
    plaintext : bool (default: False)
        Do without encryption.
    memory_budget : int | None (default: None)
        Bytes of all sessions, as :class:`~flower_ext.speculative.Verifier` has it.
    max_sessions : int (default: 256)
        Sessions open, at least 1. A new one takes the place of the longest idle one
        whose device is away; that one is opened again when its device returns.
    max_sessions_per_client : int (default: 64)
        Of a client with a token, at least 1.
    max_queue : int (default: 128)
        Messages that may wait for the target, at least 1; further ones are refused
        with a hint when to try again.
    batch_window : float (default: 0.002)
        Seconds that a draft waits for those of other sessions, at least 0.
    max_batch : int (default: 16)
        Drafts verified in one pass, at least 1.
    max_message_bytes : int (default: 4 MiB)
        The longest message taken, at least 1024. Under ``dsd`` a draft takes up to four
        bytes per id and token.
    idle_seconds : float (default: 600)
        A silent stream is ended and a session without a stream forgotten after this,
        above 0.
    segments : SegmentService | None (default: None)
        What computes and keeps segments; it belongs to the server until it is stopped.
        With tokens, every client is a tenant: give the service a ``tenant_store``.
        None: no segments are served.
    tenant_secret : bytes | None (default: None)
        What tenants' keys are made from, at least 32 bytes; see
        :func:`~flower_ext.edge.load_tenant_secret`. None: random, so that group
        segments are addressed otherwise when the server is made again.

    Raises
    ------
    InvalidInputError
        If a parameter is out of range.

    Examples
    --------
    >>> from flower_ext.models import default_pair, tokenizer_fingerprint
    >>> pair = default_pair()
    >>> fingerprint = tokenizer_fingerprint(pair.tokenizer)
    >>> with EdgeServer(pair.target, fingerprint, plaintext=True) as edge:
    ...     edge.address.startswith("127.0.0.1:")
    True
    """

    def __init__(  # noqa: PLR0913 - one parameter per line of the command's help
        self,
        model: PreTrainedModel | LanguageModel | Verifier,
        tokenizer_fingerprint: str,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        vocab_size: int | None = None,
        tls_cert: str | Path | bytes | None = None,
        tls_key: str | Path | bytes | None = None,
        tokens: Mapping[str, str] | None = None,
        plaintext: bool = False,
        memory_budget: int | None = None,
        max_sessions: int = 256,
        max_sessions_per_client: int = 64,
        max_queue: int = 128,
        batch_window: float = 0.002,
        max_batch: int = 16,
        max_message_bytes: int = 4 * 2**20,
        idle_seconds: float = 600.0,
        segments: SegmentService | None = None,
        tenant_secret: bytes | None = None,
    ) -> None:
        for name, value, least in (
            ("port", port, 0),
            ("max_sessions", max_sessions, 1),
            ("max_sessions_per_client", max_sessions_per_client, 1),
            ("max_queue", max_queue, 1),
            ("batch_window", batch_window, 0),
            ("max_batch", max_batch, 1),
            ("max_message_bytes", max_message_bytes, 1024),
        ):
            if not value >= least:
                raise InvalidInputError(
                    f"{name} must be at least {least}, got {value}."
                )
        if not idle_seconds > 0:
            raise InvalidInputError(
                f"idle_seconds must be above 0, got {idle_seconds}."
            )
        self._verifier = _verifier(model, vocab_size, memory_budget)
        self._credentials = server_credentials(tls_cert, tls_key, plaintext)
        self._tokens = Tokens(tokens)
        if self._tokens.named and plaintext and not is_loopback(host):
            _LOG.warning(
                "Tokens travel unencrypted to %s: whoever listens can use them.", host
            )
        if tenant_secret is not None and segments is None:
            raise InvalidInputError(
                "tenant_secret is of use where segments are served: give segments too."
            )
        self._segments = segments
        self._tenant_keys = TenantKeys(tenant_secret)
        self._host, self._port = host, port
        self._max_sessions = max_sessions
        self._max_sessions_per_client = (
            max_sessions_per_client if self._tokens.named else None
        )
        self._batching = (max_queue, max_batch, batch_window)
        self._idle_seconds = idle_seconds
        self._terms = Terms(
            tokenizer_fingerprint,
            self._verifier.vocab_size,
            self._verifier.max_length,
            max_message_bytes,
            self._verifier.eos_token_ids,
        )
        self._counters = Counters()
        self._thread: LoopThread | None = None
        self._server: Any = None
        self._batcher: ModelThread | None = None
        self._segment_desk: SegmentDesk | None = None
        self._streams: dict[str, int] = {}

    @property
    def address(self) -> str:
        """Host and port, as a device is given them.

        Raises
        ------
        InvalidInputError
            Before it has started, if the port is 0.
        """
        if not self._port:
            raise InvalidInputError("An edge with port=0 has no address until started.")
        return f"{self._host}:{self._port}"

    @property
    def registry(self) -> CollectorRegistry:
        """The Prometheus counters."""
        return self._counters.registry

    @property
    def vocab_size(self) -> int:
        """The ids that it verifies."""
        return self._terms.vocab_size

    def start(self) -> None:
        """Listen, and return at once; a server that runs already is left alone.

        Raises
        ------
        InvalidInputError
            If the address cannot be listened at.
        """
        if self._thread is not None:
            return
        self._thread = LoopThread("flower-ext edge")
        try:
            self._thread.run(self._start())
        except BaseException:
            self._thread.close()
            self._thread = None
            raise

    def stop(self) -> None:
        """End all streams, forget all sessions; a stopped server is left alone."""
        if self._thread is None:
            return
        self._thread.run(self._stop())
        self._thread.close()
        self._thread = None

    def __enter__(self) -> EdgeServer:
        """Start."""
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Stop."""
        self.stop()

    async def _start(self) -> None:
        """Listen."""
        self._server = grpc.aio.server(
            options=[
                ("grpc.so_reuseport", 0),  # Two edges on one port would share devices.
                ("grpc.max_receive_message_length", self._terms.max_message_bytes),
                ("grpc.max_send_message_length", -1),
                ("grpc.keepalive_time_ms", _KEEPALIVE_MS),
            ],
            # Streams that have lost their device are not noticed at once.
            maximum_concurrent_rpcs=4 * self._max_sessions + 16,
        )
        # Bytes as they come: what is no message is answered by us, not by a crash.
        handlers = {"Verify": grpc.stream_stream_rpc_method_handler(self._converse)}
        if self._segments is not None:
            handlers["GetSegment"] = grpc.unary_stream_rpc_method_handler(
                self._get_segment
            )
            handlers["TenantKey"] = grpc.unary_unary_rpc_method_handler(
                self._tenant_key
            )
        self._server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler(_SERVICE, handlers),)
        )
        checks = health.aio.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(checks, self._server)
        address = f"{self._host}:{self._port}"
        try:
            if self._credentials is None:
                self._port = self._server.add_insecure_port(address)
            else:
                self._port = self._server.add_secure_port(address, self._credentials)
        except RuntimeError as error:
            raise InvalidInputError(
                f"The edge cannot listen at {address}: choose another host or port "
                f"({error})."
            ) from error
        sessions = Sessions(self._max_sessions, self._max_sessions_per_client)
        self._batcher = ModelThread(self._verifier, self._counters, *self._batching)
        self._desk = Desk(
            self._terms, sessions, self._batcher, self._counters, self._idle_seconds
        )
        if self._segments is not None:
            waiting = self._batching[0]
            self._segment_desk = SegmentDesk(
                *(self._segments, self._tenant_keys, self._batcher, self._counters),
                max_waiting=waiting,
                # So that no client alone can fill the edge.
                max_waiting_per_client=(
                    max(1, waiting // 4) if self._tokens.named else None
                ),
            )
        self._streams.clear()
        self._batcher.start()
        await self._server.start()
        self._reaping = asyncio.create_task(self._reap())
        for name in ("", _SERVICE):
            await checks.set(name, health_pb2.HealthCheckResponse.SERVING)
        self._checks = checks

    async def _stop(self) -> None:
        """End all streams, then the thread that computes."""
        self._reaping.cancel()
        await self._checks.enter_graceful_shutdown()
        await self._server.stop(_STOP_SECONDS)
        if self._segment_desk is not None:
            await self._segment_desk.close()
        assert self._batcher is not None
        for session in list(self._desk.sessions):
            self._desk.drop(session)
        await asyncio.get_running_loop().run_in_executor(None, self._batcher.stop)

    async def _reap(self) -> None:
        """Forget sessions that nobody comes back for."""
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(self._idle_seconds / 4)
            for session in self._desk.sessions.idle_since(
                loop.time() - self._idle_seconds
            ):
                if session.stream is None:
                    self._counters.evicted.inc()
                    self._desk.drop(session)

    async def _converse(self, requests: Any, context: Any) -> None:
        """Serve one stream."""
        del requests  # Read from the context.
        client: str | None = None
        try:
            client = self._admit(context.invocation_metadata())
            await Conversation(self._desk, client, context).run()
        except RefusedError as refused:
            self._counters.refusals.labels(refused.code.name).inc()
            if client is None:
                # A device that is still writing its hello would see the stream break,
                # and not why.
                with suppress(TimeoutError):
                    await asyncio.wait_for(context.read(), _REFUSING_SECONDS)
            await context.abort(refused.code, refused.text)
        finally:
            self._leave(client)

    async def _get_segment(self, data: bytes, context: Any) -> None:
        """Send the blocks of one request."""
        assert self._segment_desk is not None
        client: str | None = None
        try:
            client = self._admit(context.invocation_metadata())
            await self._segment_desk.send(client, data, context.write)
        except RefusedError as refused:
            await self._abort(context, refused)
        finally:
            self._leave(client)

    async def _tenant_key(self, data: bytes, context: Any) -> bytes:
        """Tell a client its tenant's key."""
        del data  # There is nothing in it.
        assert self._segment_desk is not None
        client: str | None = None
        try:
            client = self._admit(context.invocation_metadata())
            return self._segment_desk.key(client)
        except RefusedError as refused:
            await self._abort(context, refused)
            raise
        finally:
            self._leave(client)

    async def _abort(self, context: Any, refused: RefusedError) -> None:
        """End a call by a status, and say when it may be made again."""
        self._counters.refusals.labels(refused.code.name).inc()
        hint = (
            ((RETRY_KEY, str(refused.retry_seconds)),) if refused.retry_seconds else ()
        )
        await context.abort(refused.code, refused.text, hint)

    def _leave(self, client: str | None) -> None:
        """Count a stream as ended, if it was admitted."""
        if client is not None:
            self._streams[client] -= 1
            if not self._streams[client]:
                del self._streams[client]

    def _admit(self, metadata: Any) -> str:
        """Return the client's name, if it may have another stream.

        Raises
        ------
        RefusedError
            If its token is wrong, or it has too many streams.
        """
        client = self._tokens.identify(metadata or ())
        most = self._max_sessions_per_client
        streams = self._streams.get(client, 0)
        # Twice as many: an old stream may not know yet that a newer took its place.
        if most is not None and streams >= 2 * most:
            raise busy(f"a client may have {2 * most} streams")
        self._streams[client] = streams + 1
        return client


def _verifier(
    model: PreTrainedModel | LanguageModel | Verifier,
    vocab_size: int | None,
    memory_budget: int | None,
) -> Verifier:
    """Return the verifier of a model, or the one that is given."""
    if not isinstance(model, Verifier):
        return Verifier(model, vocab_size, memory_budget)
    if vocab_size is not None or memory_budget is not None:
        raise InvalidInputError(
            "A Verifier was given, which has a vocab_size and a memory_budget of its "
            "own: give it those, or give the server the model."
        )
    return model
