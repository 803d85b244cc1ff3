"""The device's way to an edge: what :func:`flower_ext.speculative.speculate` takes."""

from __future__ import annotations

import concurrent.futures
import logging
from pathlib import Path
from types import TracebackType

import grpc

from flower_ext.edge import edge_pb2 as pb
from flower_ext.edge.connection import Connection, TryAgainError
from flower_ext.edge.handshake import VERSION
from flower_ext.edge.loop_thread import LoopThread
from flower_ext.edge.patience import Patience
from flower_ext.edge.remote_session import RemoteSession
from flower_ext.edge.tls import client_credentials, is_loopback
from flower_ext.errors import FlowerExtError, InvalidInputError
from flower_ext.network.clocks import WallClock
from flower_ext.speculative.choices import Choices
from flower_ext.speculative.errors import VerifierUnavailableError
from flower_ext.speculative.messages import Opening
from flower_ext.speculative.session import Traffic

__all__ = ["RemoteVerifier"]

_LOG = logging.getLogger(__name__)


class RemoteVerifier:
    """An edge elsewhere.

    It connects before anything else, with patience, and once is enough: sessions that
    lose the connection make it again. Generations may run side by side, each in a
    thread of its own.

    Parameters
    ----------
    address : str
        Host and port, as ``"edge.example:50061"``.
    tokenizer_fingerprint : str
        The drafter's tokenizer's, by :func:`flower_ext.models.tokenizer_fingerprint`.
    vocab_size : int
        The ids that the drafter's model has, padding included, at least 1. The edge may
        verify fewer: cut the drafter to :attr:`vocab_size`.
    token : str | None (default: None)
        The device's, where the edge wants one.
    root_certificates : str | Path | bytes | None (default: None)
        PEM, or the file that it is in: the authority that has signed the edge's
        certificate, or the certificate itself. None: the system's authorities.
    plaintext : bool (default: False)
        Do without encryption.
    timeout : float (default: 30.0)
        Seconds to wait for an answer before the connection counts as lost, above 0;
        more than the target takes for a prompt.
    patience : float (default: 60.0)
        Seconds to go on trying after a message was first lost, the first hello too, at
        least 0.

    Raises
    ------
    InvalidInputError
        If a parameter is out of range.
    EdgeRefusedError
        If the edge does not take the token, or has another tokenizer, another protocol
        or more ids.
    VerifierUnavailableError
        If no edge has answered at the address until patience ended.

    Examples
    --------
    ::

        with RemoteVerifier(
            "edge.example:50061",
            tokenizer_fingerprint=tokenizer_fingerprint(tokenizer),
            vocab_size=model.config.vocab_size,
            token=token,
        ) as edge:
            drafter = Drafter(model, vocab_size=edge.vocab_size)
            text = speculate(drafter, edge, prompt_ids, max_new_tokens=64)
    """

    def __init__(
        self,
        address: str,
        *,
        tokenizer_fingerprint: str,
        vocab_size: int,
        token: str | None = None,
        root_certificates: str | Path | bytes | None = None,
        plaintext: bool = False,
        timeout: float = 30.0,
        patience: float = 60.0,
    ) -> None:
        if vocab_size < 1:
            raise InvalidInputError(f"vocab_size must be at least 1, got {vocab_size}.")
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
        if token is not None and plaintext and not is_loopback(host):
            _LOG.warning(
                "The token travels unencrypted to %s: whoever listens can use it.",
                address,
            )
        hello = pb.Hello(
            version=VERSION,
            tokenizer_fingerprint=tokenizer_fingerprint,
            vocab_size=vocab_size,
        )
        self._patience = patience
        self._clock = WallClock()
        self._sessions: list[RemoteSession] = []
        self._thread = LoopThread("flower-ext device")
        self._connection: Connection | None = None
        self._looking: concurrent.futures.Future[None] | None = None
        try:
            self._welcome = self._thread.run(
                self._connect(address, credentials, token, hello, timeout)
            )
        except TryAgainError as error:
            self.close()
            raise VerifierUnavailableError(
                f"There is no answer from an edge at {address} ({error}): see that it "
                "runs, and that both sides have TLS or both plaintext."
            ) from None
        except BaseException:
            self.close()
            raise

    @property
    def vocab_size(self) -> int:
        """The ids that the edge verifies."""
        return self._welcome.vocab_size

    @property
    def max_length(self) -> int | None:
        """The most tokens of a text with its prompt, if there is a limit."""
        return self._welcome.max_length or None

    @property
    def eos_token_ids(self) -> tuple[int, ...]:
        """The tokens that end the target's texts."""
        return tuple(self._welcome.eos_token_ids)

    @property
    def clock(self) -> WallClock:
        """The wall clock."""
        return self._clock

    @property
    def lost(self) -> bool:
        """Whether patience has ended with the edge, and it has not answered since.

        While it is lost, looking here says hello to it once more in the background.
        """
        assert self._connection is not None
        lost = self._connection.given_up
        if lost and (self._looking is None or self._looking.done()):
            self._looking = self._thread.submit(self._look(self._connection))
        return lost

    def start(self, opening: Opening, choices: Choices) -> RemoteSession:
        """Open a session; the edge computes the prompt while the device drafts.

        Parameters
        ----------
        opening : Opening
            What is generated, and how.
        choices : Choices
            Not looked at: the edge chooses by the opening's seed.
        """
        del choices
        assert self._connection is not None
        self._sessions = [s for s in self._sessions if not s.closed]
        session = RemoteSession(
            self._connection, self._thread, opening, self._clock, self._patience
        )
        self._sessions.append(session)
        return session

    def close(self) -> None:
        """End all sessions and the connection; again is no error."""
        for session in self._sessions:
            session.close()
        for session in self._sessions:
            session.wait_until_closed()
        self._sessions = []
        if self._connection is not None:
            self._thread.run(self._connection.close())
            self._connection = None
        self._thread.close()

    def __enter__(self) -> RemoteVerifier:
        """Return this object, which is connected already."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close."""
        self.close()

    async def _connect(
        self,
        address: str,
        credentials: grpc.ChannelCredentials | None,
        token: str | None,
        hello: pb.Hello,
        timeout: float,
    ) -> pb.Welcome:
        """Say hello until it is answered, and return the edge's terms."""
        connection = Connection(address, credentials, token, hello, timeout)
        self._connection = connection
        patience = Patience(self._patience, self._clock)
        while True:
            try:
                return await _hello(connection)
            except TryAgainError as again:
                if not await patience.outlasts(again):
                    raise
                _LOG.info("No answer from the edge at %s yet: %s", address, again)

    async def _look(self, connection: Connection) -> None:
        """Say hello to an edge that was lost."""
        try:
            await _hello(connection)
        except (TryAgainError, FlowerExtError) as error:
            _LOG.info("No edge at %s yet: %s", connection.address, error)


async def _hello(connection: Connection) -> pb.Welcome:
    """Say hello on a stream of its own, and return the edge's terms."""
    stream = await connection.open_stream(Traffic())
    try:
        welcome = await stream.welcome()
        await stream.end(connection.timeout)
    except BaseException:
        stream.cancel()
        raise
    return welcome
