"""Certificates, keys and tokens for a federation, by an authority of its own.

They suit a federation on one machine and a first one on several. Where an organisation
has an authority already, use its certificates instead.
"""

from __future__ import annotations

import datetime
import ipaddress
import os
import secrets
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from flower_ext.errors import InvalidInputError

__all__ = ["Certificates", "make_certificates", "make_node_key", "make_tokens"]

_LOCAL = ("localhost", "127.0.0.1")
_DAY = datetime.timedelta(days=1)


@dataclass(frozen=True)
class Certificates:
    """Files of PEM certificates.

    Parameters
    ----------
    authority : Path
        The authority's certificate: what clients check servers' against.
    certificate : Path
        The servers' certificate.
    key : Path
        Its private key.
    """

    authority: Path
    certificate: Path
    key: Path


def make_certificates(
    folder: Path, names: Sequence[str] = (), *, days: int = 365
) -> Certificates:
    """Make an authority and a server certificate that it has signed.

    The authority's own key is not kept: nothing else can ever be signed by it.

    Parameters
    ----------
    folder : Path
        Where the files go: ``ca.pem``, ``server.pem`` and ``server.key``.
    names : Sequence[str] (default: ())
        Host names and addresses by which clients know the servers, besides
        ``localhost`` and ``127.0.0.1``.
    days : int (default: 365)
        How long they are valid, at least 1.

    Returns
    -------
    Certificates
        The files.

    Raises
    ------
    InvalidInputError
        If a name is empty or no host name, or ``days`` is less than 1.
    """
    if days < 1:
        raise InvalidInputError(f"days must be at least 1, got {days}.")
    alternatives = x509.SubjectAlternativeName(
        [_general_name(name) for name in dict.fromkeys((*_LOCAL, *names))]
    )
    folder.mkdir(parents=True, exist_ok=True)
    authority_key = ec.generate_private_key(ec.SECP384R1())
    authority_name = _subject("flower-ext federation authority")
    server_key = ec.generate_private_key(ec.SECP384R1())
    usage = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH])
    authority = (
        _builder(authority_name, authority_name, authority_key.public_key(), days)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(signs=True), critical=True)
        .sign(authority_key, hashes.SHA384())
    )
    server = (
        _builder(
            _subject("flower-ext federation"),
            authority_name,
            server_key.public_key(),
            days,
        )
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(signs=False), critical=True)
        .add_extension(usage, critical=False)
        .add_extension(alternatives, critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(
                authority_key.public_key()
            ),
            critical=False,
        )
        .sign(authority_key, hashes.SHA384())
    )
    files = Certificates(
        folder / "ca.pem", folder / "server.pem", folder / "server.key"
    )
    files.authority.write_bytes(authority.public_bytes(serialization.Encoding.PEM))
    files.certificate.write_bytes(server.public_bytes(serialization.Encoding.PEM))
    _write_secret(
        files.key,
        server_key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        ),
    )
    return files


def make_node_key(folder: Path, name: str) -> Path:
    """Make a key pair by which a SuperNode proves who it is.

    Parameters
    ----------
    folder : Path
        Where the files go: ``NAME``, and ``NAME.pub`` for ``flwr supernode register``.
    name : str
        Of the files.

    Returns
    -------
    Path
        The private key's file, in OpenSSH's format, the only one that Flower reads.
    """
    folder.mkdir(parents=True, exist_ok=True)
    key = ec.generate_private_key(ec.SECP384R1())
    private = folder / name
    _write_secret(
        private,
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.OpenSSH,
            serialization.NoEncryption(),
        ),
    )
    public = key.public_key().public_bytes(
        serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH
    )
    (folder / f"{name}.pub").write_bytes(public + b"\n")
    return private


def make_tokens(file: Path, clients: Iterable[str]) -> Path:
    """Make a token for every client of an edge.

    Parameters
    ----------
    file : Path
        Where they go, one ``name:token`` in a line, as ``flower-ext edge
        --token-file`` reads it.
    clients : Iterable[str]
        The clients' names.

    Returns
    -------
    Path
        The file.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    lines = [f"{client}:{secrets.token_hex(16)}\n" for client in clients]
    _write_secret(file, "".join(lines).encode())
    return file


def _write_secret(file: Path, content: bytes) -> None:
    """Write a file that only its owner can read, from the first byte on."""
    file.unlink(missing_ok=True)
    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with open(descriptor, "wb") as opened:
        opened.write(content)


def _subject(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def _general_name(name: str) -> x509.GeneralName:
    """Return a host name or an address as certificates have it."""
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        pass
    if not name or not name.isascii() or any(c in name for c in " /:"):
        raise InvalidInputError(
            f"names must be host names or addresses, got {name!r}: give "
            "'edge.example' or '10.0.0.7', without port."
        )
    return x509.DNSName(name)


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, days: int
) -> x509.CertificateBuilder:
    """Return a certificate to be, valid from yesterday: clocks differ."""
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _DAY)
        .not_valid_after(now + days * _DAY)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def _key_usage(*, signs: bool) -> x509.KeyUsage:
    """Return what a key is for: signing certificates, or proving who a server is."""
    return x509.KeyUsage(
        digital_signature=not signs,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs,
        crl_sign=signs,
        encipher_only=False,
        decipher_only=False,
    )
