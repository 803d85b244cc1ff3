"""Encryption: certificates from files, and when it may be done without."""

from __future__ import annotations

import ipaddress
from pathlib import Path

import grpc

from flower_ext.errors import InvalidInputError

__all__ = ["client_credentials", "is_loopback", "server_credentials"]

Pem = str | Path | bytes


def server_credentials(
    certificate: Pem | None, key: Pem | None, plaintext: bool
) -> grpc.ServerCredentials | None:
    """Return an edge's credentials.

    Parameters
    ----------
    certificate, key : str | Path | bytes | None
        PEM, or the file that it is in.
    plaintext : bool
        Whether to do without.

    Returns
    -------
    grpc.ServerCredentials | None
        None: plaintext.

    Raises
    ------
    InvalidInputError
        If neither or both are asked for, or a file cannot be read.
    """
    if plaintext:
        if certificate is not None or key is not None:
            raise InvalidInputError(
                "plaintext and a certificate were given: choose one of them."
            )
        return None
    if certificate is None or key is None:
        raise InvalidInputError(
            "An edge needs a certificate and its key (tls_cert, tls_key; on the "
            "command line --tls-cert and --tls-key), or plaintext (--plaintext) if "
            "nobody else can listen."
        )
    chain = _read("tls_cert", certificate, b"CERTIFICATE")
    private = _read("tls_key", key, b"PRIVATE KEY")
    return grpc.ssl_server_credentials([(private, chain)])


def client_credentials(
    root_certificates: Pem | None, plaintext: bool
) -> grpc.ChannelCredentials | None:
    """Return a device's credentials.

    Parameters
    ----------
    root_certificates : str | Path | bytes | None
        PEM, or the file that it is in: who is believed; None: the system's.
    plaintext : bool
        Whether to do without.

    Returns
    -------
    grpc.ChannelCredentials | None
        None: plaintext.

    Raises
    ------
    InvalidInputError
        If both are asked for, or a file cannot be read.
    """
    if plaintext:
        if root_certificates is not None:
            raise InvalidInputError(
                "plaintext and root_certificates were given: choose one of them."
            )
        return None
    if root_certificates is None:
        return grpc.ssl_channel_credentials()
    roots = _read("root_certificates", root_certificates, b"CERTIFICATE")
    return grpc.ssl_channel_credentials(roots)


def is_loopback(host: str) -> bool:
    """Return whether a host is this machine."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def _read(name: str, source: Pem, kind: bytes) -> bytes:
    """Return PEM that has a part of that kind."""
    content = source
    if not isinstance(content, bytes):
        try:
            content = Path(content).expanduser().read_bytes()
        except OSError as error:
            raise InvalidInputError(f"{name}={str(source)!r}: {error}.") from error
    if kind + b"-----" not in content:
        shown = "the bytes given" if isinstance(source, bytes) else repr(str(source))
        raise InvalidInputError(f"{name}: {shown} has no PEM {kind.decode()}.")
    return content
