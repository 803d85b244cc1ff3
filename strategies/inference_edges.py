"""Where nodes find the edge: one that runs with the ServerApp, or one elsewhere."""

from __future__ import annotations

import difflib
import inspect
import math
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flower_ext.coding.gradient_code import check_count
from flower_ext.errors import InvalidInputError

if TYPE_CHECKING:
    from flower_ext.edge import EdgeServer
    from flower_ext.models import LoadedModel

__all__ = ["EdgeAccess", "Prepare", "RunningEdge", "ServedEdge", "verified_ids"]

Prepare = Callable[["LoadedModel"], dict[str, Any]]
"""Makes of the loaded model what else :class:`~flower_ext.edge.EdgeServer` takes: with
``model``, another one in its place."""

Pem = str | PathLike[str] | bytes

_SET_BY_SERVED_EDGE = {"model", "tokenizer_fingerprint", "vocab_size", "tokens"}

_WILDCARDS = ("0.0.0.0", "::", "[::]")


@dataclass(frozen=True)
class EdgeAccess:
    """How one node reaches the edge.

    Parameters
    ----------
    address : str
        Host and port.
    token : str
        What it shows; empty: nothing.
    root_certificate : bytes
        PEM that it checks the edge's certificate against; empty: the system's.
    plaintext : bool
        Whether it talks without TLS.
    timeout : float
        Seconds that one answer may take.
    patience : float
        Seconds to go on trying after the edge was lost.
    """

    address: str
    token: str = field(repr=False)
    root_certificate: bytes = field(repr=False)
    plaintext: bool
    timeout: float
    patience: float


class RunningEdge:
    """An edge that runs already, as ``flower-ext edge`` starts it.

    Parameters
    ----------
    address : str
        Host and port, as nodes reach it.
    tokens : str | Sequence[str] | None (default: None)
        What nodes show: one token for all, or one for each, handed out in the order in
        which nodes are first asked. None: nothing.
    root_certificates : str | path | bytes | None (default: None)
        PEM, or the file on this machine that it is in. It travels to the nodes, which
        check the edge's certificate against it. None: they check against their
        system's.
    plaintext : bool (default: False)
        Whether nodes talk to it without TLS.
    timeout : float (default: 30.0)
        Seconds that one answer may take before the connection counts as lost, above 0;
        more than the target takes for a prompt.
    patience : float (default: 60.0)
        Seconds that a node goes on trying after it has lost the edge, at least 0.

    Raises
    ------
    InvalidInputError
        If the address has no port, the file cannot be read, or plaintext and
        certificates are asked for.
    """

    def __init__(
        self,
        address: str,
        *,
        tokens: str | Sequence[str] | None = None,
        root_certificates: Pem | None = None,
        plaintext: bool = False,
        timeout: float = 30.0,
        patience: float = 60.0,
    ) -> None:
        if not address.rpartition(":")[2].isdecimal():
            raise InvalidInputError(f"address must be 'host:port', got {address!r}.")
        self.address = address
        self._plaintext = plaintext
        self._root = _root(root_certificates, plaintext)
        self.timeout, self.patience = _checked(timeout, patience)
        self._shared = tokens if isinstance(tokens, str) else None
        self._tokens = (
            None
            if tokens is None or isinstance(tokens, str)
            else _TokenPerNode(tokens, "give RunningEdge as many tokens as nodes")
        )

    def access(self, node_id: int) -> EdgeAccess:
        """Return how a node reaches the edge.

        Raises
        ------
        InvalidInputError
            If all tokens are with other nodes.
        """
        token = self._shared or ""
        if self._tokens is not None:
            token = self._tokens.of(node_id)
        return EdgeAccess(
            self.address,
            token,
            self._root,
            self._plaintext,
            self.timeout,
            self.patience,
        )

    def check_target(self, target: str | None, parameter: str) -> None:
        """Raise :class:`InvalidInputError` if a target is named: it has its own."""
        if target is not None:
            raise InvalidInputError(
                f"{parameter}={target!r} is of no use with a RunningEdge, which has "
                f"its own {parameter}: leave it out."
            )

    def start(self, target: str | None, prepare: Prepare | None = None) -> None:
        """Do nothing: it runs."""

    def stop(self) -> None:
        """Do nothing: it goes on running."""

    def __str__(self) -> str:
        """Say where it is."""
        return f"running at {self.address} ({_spoken(self._plaintext)})"


class ServedEdge:
    """An edge that runs beside the ServerApp while the strategy does.

    Every node gets a token of its own, made anew for each run.

    Parameters
    ----------
    host : str (default: "127.0.0.1")
        The address that it listens at.
    port : int (default: 0)
        0 takes a free one.
    reached_at : str | None (default: None)
        The host by which nodes know this machine; None: `host`. Needed where that is
        no address of a machine (``0.0.0.0``).
    tls_cert, tls_key : str | path | bytes | None (default: None)
        PEM, or the files that it is in. Needed unless ``plaintext``.
    root_certificates : str | path | bytes | None (default: None)
        As :class:`RunningEdge` has it; for a self-signed certificate, that itself.
    plaintext : bool (default: False)
        Whether nodes talk to it without TLS; where others can listen, tokens are then
        of no use.
    max_nodes : int (default: 256)
        The most nodes that may be asked in a run, at least 1.
    timeout, patience : float (default: 30.0, 60.0)
        As :class:`RunningEdge` has them.
    dtype : str (default: "float32")
        Precision that the target is loaded in: the name of a torch dtype.
    device : str (default: "cpu")
        Where it runs.
    **server : Any
        Further arguments of :class:`~flower_ext.edge.EdgeServer`, as `memory_budget`.

    Raises
    ------
    InvalidInputError
        If a parameter is unknown or out of range.
    """

    def __init__(
        self,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        reached_at: str | None = None,
        tls_cert: Pem | None = None,
        tls_key: Pem | None = None,
        root_certificates: Pem | None = None,
        plaintext: bool = False,
        max_nodes: int = 256,
        timeout: float = 30.0,
        patience: float = 60.0,
        dtype: str = "float32",
        device: str = "cpu",
        **server: Any,
    ) -> None:
        if host in _WILDCARDS and reached_at is None:
            raise InvalidInputError(
                f"host={host!r} is no address that a node can connect to: give "
                "reached_at=..., this machine's name or address."
            )
        if plaintext == (tls_cert is not None and tls_key is not None):
            raise InvalidInputError(
                "A ServedEdge needs tls_cert and tls_key, or plaintext=True if nobody "
                "else can listen; not both."
            )
        _check_options(server)
        self.max_nodes = check_count("max_nodes", max_nodes, low=1)
        self._reached_at = reached_at or host
        self._plaintext = plaintext
        self._root = _root(root_certificates, plaintext)
        self.timeout, self.patience = _checked(timeout, patience)
        self._dtype, self._device = dtype, device
        self._options = {
            "host": host,
            "port": port,
            "tls_cert": tls_cert,
            "tls_key": tls_key,
            "plaintext": plaintext,
            **server,
        }
        self._server: EdgeServer | None = None
        self._tokens = _TokenPerNode((), "")

    def access(self, node_id: int) -> EdgeAccess:
        """Return how a node reaches the edge.

        Raises
        ------
        InvalidInputError
            If it does not run, or there are more than ``max_nodes`` nodes.
        """
        if self._server is None:
            raise InvalidInputError("The edge does not run: start it first.")
        port = self._server.address.rpartition(":")[2]
        return EdgeAccess(
            f"{self._reached_at}:{port}",
            self._tokens.of(node_id),
            self._root,
            self._plaintext,
            self.timeout,
            self.patience,
        )

    def check_target(self, target: str | None, parameter: str) -> None:
        """Raise :class:`InvalidInputError` if no target is named."""
        if target is None:
            raise InvalidInputError(
                f"A ServedEdge needs a {parameter}: give the evaluation {parameter}=..."
                ", a folder, an id in the local cache, or 'default'."
            )

    def start(self, target: str | None, prepare: Prepare | None = None) -> None:
        """Load the target and listen.

        Parameters
        ----------
        target : str | None
            A folder, an id in the local Hugging Face cache, or ``"default"``.
        prepare : Callable[[LoadedModel], dict[str, Any]] | None (default: None)
            Is given the model before the edge listens, and returns further arguments of
            :class:`~flower_ext.edge.EdgeServer`.

        Raises
        ------
        InvalidInputError
            If it runs already, no target is named, it cannot be loaded, or the address
            cannot be listened at.
        """
        if self._server is not None:
            raise InvalidInputError(
                "This ServedEdge runs already: give each evaluation one of its own."
            )
        self.check_target(target, "target")
        assert target is not None
        # Imported here because they take seconds, which other edges need not.
        import torch  # noqa: PLC0415

        from flower_ext.edge import EdgeServer  # noqa: PLC0415
        from flower_ext.models import load_model, tokenizer_fingerprint  # noqa: PLC0415

        loaded = load_model(
            target, dtype=getattr(torch, self._dtype), device=self._device
        )
        further = {} if prepare is None else prepare(loaded)
        tokenizer = loaded.tokenizer
        named = {str(i): secrets.token_urlsafe(32) for i in range(self.max_nodes)}
        self._tokens = _TokenPerNode(
            list(named.values()), f"raise max_nodes={self.max_nodes} of ServedEdge"
        )
        server = EdgeServer(
            further.pop("model", loaded.model),
            tokenizer_fingerprint(tokenizer),
            vocab_size=verified_ids(loaded),
            tokens=named,
            **self._options,
            **further,
        )
        server.start()
        self._server = server

    def stop(self) -> None:
        """Stop listening; one that does not run is left alone."""
        if self._server is not None:
            self._server.stop()
            self._server = None

    def __str__(self) -> str:
        """Say where it is."""
        return (
            f"served at {self._reached_at} ({_spoken(self._plaintext)}, one token per "
            "node)"
        )


def _check_options(options: dict[str, Any]) -> None:
    """Raise if an edge has no such argument, and name the nearest."""
    if not options:
        return
    # Imported here because it takes seconds, which most edges need not.
    from flower_ext.edge import EdgeServer  # noqa: PLC0415

    known = set(inspect.signature(EdgeServer).parameters) - _SET_BY_SERVED_EDGE
    for name in options:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            meant = f"did you mean {near[0]}?" if near else f"there is {sorted(known)}."
            raise InvalidInputError(f"ServedEdge has no parameter {name!r}: {meant}")


def verified_ids(loaded: LoadedModel) -> int:
    """Return how many ids a served edge verifies: the tokenizer's, without padding."""
    return max(loaded.tokenizer.get_vocab().values()) + 1


class _TokenPerNode:
    """Tokens, handed out to nodes for as long as there are some."""

    def __init__(self, tokens: Sequence[str], advice: str) -> None:
        self._left = list(reversed(tokens))
        self._advice = advice
        self._given: dict[int, str] = {}

    def of(self, node_id: int) -> str:
        """Return a node's token; always the same."""
        if node_id not in self._given:
            if not self._left:
                raise InvalidInputError(
                    f"All {len(self._given)} tokens are with other nodes: "
                    f"{self._advice}."
                )
            self._given[node_id] = self._left.pop()
        return self._given[node_id]


def _root(source: Pem | None, plaintext: bool) -> bytes:
    """Return PEM that nodes are sent."""
    if source is None:
        return b""
    if plaintext:
        raise InvalidInputError(
            "plaintext and root_certificates were given: choose one of them."
        )
    if isinstance(source, bytes):
        return source
    try:
        return Path(source).expanduser().read_bytes()
    except OSError as error:
        raise InvalidInputError(
            f"root_certificates={str(source)!r}: {error}."
        ) from error


def _checked(timeout: float, patience: float) -> tuple[float, float]:
    """Return how long nodes wait, checked."""
    if not 0 < timeout < math.inf:
        raise InvalidInputError(f"timeout must be above 0 seconds, got {timeout}.")
    if not 0 <= patience < math.inf:
        raise InvalidInputError(f"patience must be at least 0 seconds, got {patience}.")
    return float(timeout), float(patience)


def _spoken(plaintext: bool) -> str:
    """Return what is spoken with an edge."""
    return "plaintext" if plaintext else "TLS"
