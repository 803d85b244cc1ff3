"""What an EdgePrompt evaluation asks of a node, as it travels from strategy to client.

Strategies write an :class:`EdgePromptRequest` into a Flower ``ConfigRecord``, clients
read it back. This module fixes the keys of that exchange and knows nothing of Flower.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields
from typing import ClassVar

from flower_ext.edgeprompt.errors import PrivateSegmentError
from flower_ext.edgeprompt.hierarchy import Level
from flower_ext.edgeprompt.precision import Precision
from flower_ext.errors import InvalidInputError
from flower_ext.speculative.records import (
    RequestRecord,
    check_choice,
    check_kind,
    key_of,
)
from flower_ext.speculative.sampling import Sampling

__all__ = ["DSSD_PUBLIC_KEY", "EDGEPROMPT_KEY", "EDGES", "EdgePromptRequest"]

EDGEPROMPT_KEY = "flower-ext.edgeprompt"
"""Name of the ``ConfigRecord`` that carries a request in an evaluate message."""

DSSD_PUBLIC_KEY = "flower-ext.dssd-public"
"""Name of the ``ConfigRecord`` whose ``text`` goes before all prompts of DSSD."""

EDGES = ("in-process", "grpc")

_RANGES: dict[str, tuple[float, str]] = {
    "seed": (0, "at least 0"),
    "server_round": (0, "at least 0"),
    "max_new_tokens": (1, "at least 1"),
    "max_error": (0.0, "at least 0"),
    "patience": (0.0, "at least 0 seconds"),
    "timeout": (math.ulp(0.0), "a positive number of seconds"),
}

_OF_GRPC = ("address", "token", "root_certificate", "plaintext")


@dataclass(frozen=True)
class EdgePromptRequest(RequestRecord):
    """One node's part of an EdgePrompt evaluation.

    In a ``ConfigRecord`` every field has its name with hyphens; those that have their
    default may be left out. There is no field for a private prompt: those are the
    node's own, and stay there.

    Parameters
    ----------
    edge : str
        ``"in-process"``: the node has an edge of its own, behind a simulated link.
        ``"grpc"``: segments are fetched from an edge at `address`.
    texts : tuple[str, ...]
        The shared text that goes before every prompt, in pieces; one of them at least
        has a character.
    levels : tuple[str, ...]
        Of each piece, ``"public"`` or ``"group"``, in this order.
    seed : int (default: 0)
        The run seed, at least 0.
    server_round : int (default: 0)
        The round, at least 0.
    max_new_tokens : int (default: 64)
        The most tokens of a text, at least 1.
    precisions : tuple[str, ...] (default: all but "int4")
        What blocks may be fetched in: names of
        :class:`~flower_ext.edgeprompt.Precision`. None: they are all computed.
    max_error : float (default: 0.02)
        The largest relative error of a block that is used, at least 0.
    temperature, top_k, top_p, min_p : float, int, float, float
        As :class:`~flower_ext.speculative.Sampling` has them; greedy by default.
    compare : bool (default: True)
        Whether every text is scored by the whole prompt too, computed on the node.
    model : str (default: "")
        Path or id of the model; empty: the node's own.
    address : str (default: "")
        The edge's, ``host:port``.
    token : str (default: "")
        What the node shows to the edge; empty: nothing.
    root_certificate : bytes (default: b"")
        PEM certificate that the edge's is checked against; empty: the system's.
    plaintext : bool (default: False)
        Whether to talk to the edge without TLS.
    timeout : float (default: 30.0)
        Seconds that one message of the edge may take, above 0.
    patience : float (default: 60.0)
        Seconds to go on trying after the edge was lost, at least 0.

    Raises
    ------
    PrivateSegmentError
        If a piece is private.
    InvalidInputError
        If a field is out of range, or does not go with the edge.

    Examples
    --------
    >>> request = EdgePromptRequest("in-process", ("Be brief.",), ("public",), top_k=40)
    >>> request.to_config()["top-k"]
    40
    >>> EdgePromptRequest.from_config(request.to_config()) == request
    True
    """

    about: ClassVar[str] = "An EdgePrompt evaluation"

    edge: str
    texts: tuple[str, ...]
    levels: tuple[str, ...]
    seed: int = 0
    server_round: int = 0
    max_new_tokens: int = 64
    precisions: tuple[str, ...] = ("exact", "fp16", "bf16", "int8")
    max_error: float = 0.02
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    compare: bool = True
    model: str = ""
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
        for name, (least, wanted) in _RANGES.items():
            value = getattr(self, name)
            if not least <= value < math.inf:
                raise InvalidInputError(
                    f"{key_of(name)} must be {wanted}, got {value}."
                )
        self._check_pieces()
        known = tuple(precision.value for precision in Precision)
        for named in self.precisions:
            check_choice("precisions", named, known)
        _ = self.sampling  # Its own checks name what is wrong.
        remote = [key_of(name) for name in _OF_GRPC if getattr(self, name)]
        if self.edge == "in-process" and remote:
            raise InvalidInputError(
                f"{', '.join(remote)} is of no use with edge='in-process': choose "
                "edge='grpc', or leave it out."
            )
        if self.edge == "grpc" and not self.address:
            raise InvalidInputError("edge='grpc' needs address='host:port'.")
        if self.plaintext and self.root_certificate:
            raise InvalidInputError(
                "plaintext talks without TLS, so root-certificate is of no use: choose "
                "one of them."
            )

    def _check_pieces(self) -> None:
        """Raise unless the shared text is one."""
        if len(self.texts) != len(self.levels) or not any(self.texts):
            raise InvalidInputError(
                "texts must have some text, and levels one level for each of them, got "
                f"{len(self.texts)} texts of {sum(map(len, self.texts))} characters "
                f"and {len(self.levels)} levels."
            )
        for level in self.levels:
            if level == "private":
                raise PrivateSegmentError(
                    "A private text is never sent to a node: it has its own, by "
                    "EdgePromptTask(prompts=...)."
                )
            check_choice("levels", level, ("public", "group"))
        if list(self.levels) != sorted(self.levels, reverse=True):
            raise InvalidInputError(
                f"levels must be public before group, got {list(self.levels)}: the KV "
                "of a public text cannot depend on a group's."
            )

    @property
    def sampling(self) -> Sampling:
        """How tokens are drawn."""
        return Sampling(self.temperature, self.top_k, self.top_p, self.min_p)

    @property
    def pieces(self) -> list[tuple[Level, str]]:
        """The shared text, as ``PromptHierarchy.from_text`` takes it."""
        levels = [Level[level.upper()] for level in self.levels]
        return list(zip(levels, self.texts, strict=True))

    @property
    def fetched_in(self) -> tuple[Precision, ...]:
        """What blocks may be fetched in."""
        return tuple(Precision(named) for named in self.precisions)
