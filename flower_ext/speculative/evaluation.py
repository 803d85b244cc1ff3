"""What a DSSD evaluation asks of a node, as it travels from the strategy to the client.

Strategies write a :class:`DSSDRequest` into a Flower ``ConfigRecord`` and clients read
it back. This module fixes the keys of that exchange and knows nothing of Flower.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import ClassVar

from flower_ext.errors import InvalidInputError
from flower_ext.speculative.draft_length import (
    Adaptive,
    DraftLength,
    as_draft_length,
)
from flower_ext.speculative.protocols import VerificationProtocol, protocol_named
from flower_ext.speculative.records import (
    RequestRecord,
    check_choice,
    check_kind,
    key_of,
)
from flower_ext.speculative.sampling import Sampling

__all__ = ["DRAFTER_WEIGHTS", "DSSD_KEY", "EDGES", "DSSDRequest"]

DSSD_KEY = "flower-ext.dssd"
"""Name of the ``ConfigRecord`` that carries a request in an evaluate message."""

EDGES = ("in-process", "grpc")
DRAFTER_WEIGHTS = ("message", "node")

ADAPTIVE = "adaptive"


@dataclass(frozen=True)
class DSSDRequest(RequestRecord):
    """One node's part of a DSSD evaluation.

    In a ``ConfigRecord`` every field has its name with hyphens; those that have their
    default may be left out.

    Parameters
    ----------
    edge : str
        ``"in-process"``: the node has the target too, and verifies by itself.
        ``"grpc"``: an edge at `address` verifies.
    drafter_weights : str
        ``"message"``: the message's arrays are the drafter's state_dict. ``"node"``:
        the node drafts with what it has, and ignores arrays in the message.
    seed : int (default: 0)
        The run seed, at least 0.
    server_round : int (default: 0)
        The round, at least 0.
    max_new_tokens : int (default: 64)
        The most tokens of a text, at least 1.
    protocol : str (default: "dssd-candidates")
        ``"dsd"``, ``"dssd"`` or ``"dssd-candidates"``.
    candidates : int (default: 0)
        For the last: how many are drawn first; 0 takes the protocol's default.
    draft_length : int | str (default: 4)
        Tokens per draft, 1 to 256, or ``"adaptive"``.
    drafting_ahead : bool (default: False)
        Whether the node drafts on while a verdict is in flight.
    temperature, top_k, top_p, min_p : float, int, float, float
        As :class:`~flower_ext.speculative.Sampling` has them, and its defaults.
    stop_strings : tuple[str, ...] (default: ())
        What ends a text.
    if_edge_is_lost : str (default: "raise")
        ``"raise"``, or ``"draft"``: the drafter finishes the text alone.
    prompts : tuple[str, ...] (default: ())
        For nodes that have no prompts of their own.
    target : str (default: "")
        Path or id of the target, in process; empty: the node's own.
    address : str (default: "")
        The edge's, ``host:port``.
    token : str (default: "")
        What the node shows to the edge; empty: nothing.
    root_certificate : bytes (default: b"")
        PEM certificate that the edge's is checked against; empty: the system's.
    plaintext : bool (default: False)
        Whether to talk to the edge without TLS.
    timeout : float (default: 30.0)
        Seconds that one answer of the edge may take, above 0; more than the target
        takes for a prompt.
    patience : float (default: 60.0)
        Seconds to go on trying after the edge was lost, at least 0.

    Raises
    ------
    InvalidInputError
        If a field is out of range, or does not go with the edge.

    Examples
    --------
    >>> request = DSSDRequest("in-process", "node", server_round=2, top_k=40)
    >>> request.to_config()["top-k"]
    40
    >>> DSSDRequest.from_config(request.to_config()) == request
    True
    """

    about: ClassVar[str] = "A DSSD evaluation"

    edge: str
    drafter_weights: str
    seed: int = 0
    server_round: int = 0
    max_new_tokens: int = 64
    protocol: str = "dssd-candidates"
    candidates: int = 0
    draft_length: int | str = 4
    drafting_ahead: bool = False
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    stop_strings: tuple[str, ...] = ()
    if_edge_is_lost: str = "raise"
    prompts: tuple[str, ...] = ()
    target: str = ""
    address: str = ""
    token: str = field(default="", repr=False)
    root_certificate: bytes = field(default=b"", repr=False)
    plaintext: bool = False
    timeout: float = 30.0
    patience: float = 60.0

    def __post_init__(self) -> None:
        """Check every field."""
        for entry in fields(self):
            check_kind(entry.name, str(entry.type), getattr(self, entry.name))
        check_choice("edge", self.edge, EDGES)
        check_choice("drafter-weights", self.drafter_weights, DRAFTER_WEIGHTS)
        check_choice("if-edge-is-lost", self.if_edge_is_lost, ("raise", "draft"))
        for name, least in (("seed", 0), ("server_round", 0), ("max_new_tokens", 1)):
            if getattr(self, name) < least:
                raise InvalidInputError(
                    f"{key_of(name)} must be at least {least}, "
                    f"got {getattr(self, name)}."
                )
        if not 0 < self.timeout < float("inf"):
            raise InvalidInputError(
                f"timeout must be a positive number of seconds, got {self.timeout}."
            )
        if not 0 <= self.patience < float("inf"):
            raise InvalidInputError(
                f"patience must be at least 0 seconds, got {self.patience}."
            )
        # Their own checks name what is wrong.
        _ = self.sampling, self.verification, self.drafting
        remote = [
            key_of(name)
            for name in ("address", "token", "root_certificate", "plaintext")
            if getattr(self, name)
        ]
        if self.edge == "in-process" and remote:
            raise InvalidInputError(
                f"{', '.join(remote)} is of no use with edge='in-process': choose "
                "edge='grpc', or leave it out."
            )
        if self.edge == "grpc":
            self._check_remote()

    def _check_remote(self) -> None:
        """Raise unless a node can tell from the request how to reach the edge."""
        if not self.address:
            raise InvalidInputError("edge='grpc' needs address='host:port'.")
        if self.target:
            raise InvalidInputError(
                f"target={self.target!r} is of no use with edge='grpc', where the edge "
                "has the target: leave it out."
            )
        if self.plaintext and self.root_certificate:
            raise InvalidInputError(
                "plaintext talks without TLS, so root-certificate is of no use: choose "
                "one of them."
            )

    @property
    def sampling(self) -> Sampling:
        """How tokens are drawn."""
        return Sampling(self.temperature, self.top_k, self.top_p, self.min_p)

    @property
    def verification(self) -> VerificationProtocol:
        """How verification is split."""
        return protocol_named(self.protocol, self.candidates)

    @property
    def drafting(self) -> DraftLength:
        """How many tokens are drafted; a new object each time."""
        if isinstance(self.draft_length, int):
            return as_draft_length(self.draft_length)
        check_choice("draft-length", self.draft_length, (ADAPTIVE,))
        return Adaptive()
