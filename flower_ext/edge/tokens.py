"""Who may talk to an edge: one token per client."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterable, Mapping
from pathlib import Path

from grpc import StatusCode

from flower_ext.edge.refusals import RefusedError
from flower_ext.errors import InvalidInputError

__all__ = ["ANYONE", "Tokens", "load_tokens"]

ANYONE = ""  # The name of every client of an edge without tokens.

_SCHEME = "Bearer "


class Tokens:
    """The clients and their tokens.

    Parameters
    ----------
    tokens : Mapping[str, str] | None
        From the client's name to its token; None: anyone may come.

    Raises
    ------
    InvalidInputError
        If there is none, a token is empty or two are the same.
    """

    def __init__(self, tokens: Mapping[str, str] | None) -> None:
        if tokens is not None and not tokens:
            raise InvalidInputError("tokens must have at least one, or be None.")
        if tokens is not None and len({*tokens.values()}) < len(tokens):
            raise InvalidInputError("tokens must differ from client to client.")
        for name, token in (tokens or {}).items():
            if not name or not token or not token.isascii() or not token.isprintable():
                raise InvalidInputError(
                    f"tokens must have names and printable ASCII tokens, got client "
                    f"{name!r} with a token that has none or other characters."
                )
        self._digests = (
            None if tokens is None else {n: _digest(t) for n, t in tokens.items()}
        )

    @property
    def named(self) -> bool:
        """Whether clients are told apart."""
        return self._digests is not None

    def identify(self, metadata: Iterable[tuple[str, str | bytes]]) -> str:
        """Return the name of the client that has sent this metadata.

        Raises
        ------
        RefusedError
            If its token is missing or of no client.
        """
        if self._digests is None:
            return ANYONE
        sent = [value for key, value in metadata if key == "authorization"]
        if len(sent) != 1 or not isinstance(sent[0], str):
            raise RefusedError(
                StatusCode.UNAUTHENTICATED,
                "The edge wants a token: pass token=..., what follows the colon in "
                "its file.",
            )
        digest = _digest(sent[0].removeprefix(_SCHEME))
        found = None
        # All of them, so that the time taken tells nothing.
        for name, known in self._digests.items():
            if hmac.compare_digest(digest, known):
                found = name
        if found is None or not sent[0].startswith(_SCHEME):
            raise RefusedError(
                StatusCode.UNAUTHENTICATED,
                "The edge does not know this token: ask its operator for one.",
            )
        return found


def load_tokens(path: str | Path) -> dict[str, str]:
    """Read tokens from a file.

    Parameters
    ----------
    path : str | Path
        One ``name:token``, or a token alone, per line; empty lines and those that begin
        with ``#`` are left out, as are blanks around names and tokens.

    Returns
    -------
    dict[str, str]
        From the client's name (for a token alone: the line's number) to its token.

    Raises
    ------
    InvalidInputError
        If the file cannot be read, or a name comes twice.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInputError(f"token file {str(path)!r}: {error}.") from error
    tokens: dict[str, str] = {}
    for number, line in enumerate(lines, start=1):
        text = line.strip()
        if not text or text.startswith("#"):
            continue
        name, colon, token = text.partition(":")
        if not colon:
            name, token = f"line {number}", text
        name, token = name.strip(), token.strip()
        if name in tokens:
            raise InvalidInputError(
                f"token file {str(path)!r}: client {name!r} comes twice, again in line "
                f"{number}."
            )
        tokens[name] = token
    if not tokens:
        raise InvalidInputError(f"token file {str(path)!r} has no tokens.")
    return tokens


def _digest(token: str) -> bytes:
    """Return what tokens are compared by; all are of one length."""
    return hashlib.sha256(token.encode()).digest()
