"""Tenants: whose group segments are whose."""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
import stat
from pathlib import Path

from flower_ext.errors import InvalidInputError

__all__ = ["TenantKeys", "load_tenant_secret"]

_SECRET_BYTES = 32


class TenantKeys:
    """The keys that tenants' group segments are addressed under.

    A tenant is a client with a token of its own; where there are no tokens, all are
    one. Its key is an HMAC of its name, so the secret is all that an edge has to keep
    for addresses to stay the same.

    Parameters
    ----------
    secret : bytes | None (default: None)
        At least 32 bytes; None: random, which lasts as long as this object.

    Raises
    ------
    InvalidInputError
        If the secret is too short.
    """

    def __init__(self, secret: bytes | None = None) -> None:
        if secret is not None and len(secret) < _SECRET_BYTES:
            raise InvalidInputError(
                f"The tenants' secret needs {_SECRET_BYTES} bytes at least, got "
                f"{len(secret)}: make it by secrets.token_bytes({_SECRET_BYTES})."
            )
        self._secret = secret or secrets.token_bytes(_SECRET_BYTES)

    def key(self, tenant: str) -> bytes:
        """Return a tenant's key, 32 bytes."""
        name = b"flower-ext tenant " + tenant.encode()
        return hmac.new(self._secret, name, hashlib.sha256).digest()


def load_tenant_secret(path: str | Path) -> bytes:
    """Read the tenants' secret from a file, which is made if there is none.

    Parameters
    ----------
    path : str | Path
        A file that nobody but its owner may read; 32 bytes at least.

    Returns
    -------
    bytes
        The secret.

    Raises
    ------
    InvalidInputError
        If others may read it, it is too short, or it can be neither read nor made.
    """
    place = Path(path).expanduser()
    try:
        _make(place)
        with place.open("rb") as file:
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            secret = file.read()
    except OSError as error:
        raise InvalidInputError(f"tenant secret {str(path)!r}: {error}.") from error
    if os.name == "posix" and mode & 0o077:
        raise InvalidInputError(
            f"tenant secret {str(path)!r}: others may read it (mode {mode:04o}), and "
            "so every tenant's key: chmod 600, or better make a new one."
        )
    if len(secret) < _SECRET_BYTES:
        raise InvalidInputError(
            f"tenant secret {str(path)!r}: it has {len(secret)} bytes and needs "
            f"{_SECRET_BYTES} at least: delete it, and another is made."
        )
    return secret


def _make(place: Path) -> None:
    """Make a secret unless there is one; of several that try, one succeeds."""
    if place.exists():
        return
    # Whole under another name first, so that nobody reads half of it.
    draft = place.with_name(f"{place.name}.{secrets.token_hex(8)}")
    handle = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(secrets.token_bytes(_SECRET_BYTES))
            file.flush()
            os.fsync(file.fileno())
        try:
            os.link(draft, place)
        except FileExistsError:
            return
    finally:
        draft.unlink()
