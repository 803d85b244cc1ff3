"""Encrypted, with a certificate that is made here."""

from __future__ import annotations

import datetime
import ipaddress
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from flower_ext.errors import InvalidInputError
from flower_ext.speculative import Generation, VerifierUnavailableError
from tests.edge.conftest import Connect, Serve


def certificate(folder: Path) -> tuple[Path, Path]:
    """Write a self-signed certificate of 127.0.0.1 and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "edge")])
    address = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
    now = datetime.datetime.now(datetime.UTC)
    signed = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([address]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    paths = folder / "edge.pem", folder / "edge.key"
    paths[0].write_bytes(signed.public_bytes(pem))
    private = serialization.PrivateFormat.PKCS8
    nothing = serialization.NoEncryption()
    paths[1].write_bytes(key.private_bytes(pem, private, nothing))
    return paths


def test_encrypted_with_tokens(
    serve: Serve,
    connect: Connect,
    generate: Callable[..., Generation],
    prompts: list[list[int]],
    tmp_path: Path,
) -> None:
    cert, key = certificate(tmp_path)
    server = serve(tls_cert=cert, tls_key=key, tokens={"ann": "a-secret"})
    edge = connect(server.address, root_certificates=cert, token="a-secret")

    assert generate(edge, prompts[0]).tokens == generate(None, prompts[0]).tokens
    for options in ({"plaintext": True}, {"root_certificates": other(tmp_path)}):
        with pytest.raises(VerifierUnavailableError, match="both sides have TLS"):
            connect(server.address, token="a-secret", timeout=5, patience=0, **options)


def other(folder: Path) -> Path:
    """Write somebody else's certificate."""
    (folder / "other").mkdir()
    return certificate(folder / "other")[0]


def test_files_that_are_no_pem_are_named(serve: Serve, tmp_path: Path) -> None:
    cert, key = certificate(tmp_path)
    missing = tmp_path / "missing.pem"
    for options, text in (
        ({"tls_cert": missing, "tls_key": key}, "tls_cert=.*missing.pem.*No such file"),
        ({"tls_cert": cert, "tls_key": cert}, "tls_key: .*edge.pem.* no PEM PRIVATE"),
        ({"tls_cert": cert, "tls_key": None}, "needs a certificate and its key"),
        ({"tls_cert": cert, "tls_key": key, "plaintext": True}, "choose one of them"),
    ):
        with pytest.raises(InvalidInputError, match=text):
            serve(**options)
