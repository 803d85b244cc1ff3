"""What the authority signs is what a TLS client and Flower accept."""

from __future__ import annotations

import ssl
import stat
import tomllib
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from flower_ext.deployment import make_certificates, make_node_key, make_tokens
from flower_ext.deployment.settings import Value, as_config, write_connection
from flower_ext.edge import load_tokens
from flower_ext.errors import InvalidInputError


def shake_hands(
    server: ssl.SSLContext, client: ssl.SSLContext, name: str
) -> str | None:
    """Return the version that both agree on, in memory."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = [
        client.wrap_bio(to_client, to_server, server_hostname=name),
        server.wrap_bio(to_server, to_client, server_side=True),
    ]
    for _ in range(4):
        for end in ends:
            try:
                end.do_handshake()
            except ssl.SSLWantReadError:
                continue
    return ends[0].version()


@pytest.mark.parametrize("name", ["localhost", "127.0.0.1", "edge.example", "10.0.0.7"])
def test_a_client_trusts_the_server_by_every_name(tmp_path: Path, name: str) -> None:
    made = make_certificates(tmp_path, ["edge.example", "10.0.0.7"])
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(made.certificate, made.key)
    client = ssl.create_default_context(cafile=str(made.authority))
    client.verify_flags |= ssl.VERIFY_X509_STRICT

    assert shake_hands(server, client, name) == "TLSv1.3"
    with pytest.raises(ssl.SSLCertVerificationError):
        shake_hands(server, client, "elsewhere.example")


def test_a_node_key_is_of_a_curve_and_a_format_that_flower_reads(
    tmp_path: Path,
) -> None:
    private = make_node_key(tmp_path, "node-0")
    key = serialization.load_ssh_private_key(private.read_bytes(), None)
    public = serialization.load_ssh_public_key((tmp_path / "node-0.pub").read_bytes())

    assert isinstance(key, ec.EllipticCurvePrivateKey)
    assert isinstance(public, ec.EllipticCurvePublicKey)
    assert key.curve.name == "secp384r1"
    assert key.public_key() == public


def test_secrets_are_their_owners_alone(tmp_path: Path) -> None:
    made = make_certificates(tmp_path)
    node_key = make_node_key(tmp_path, "node-0")
    tokens = make_tokens(tmp_path / "tokens", ["node-0", "node-1"])

    for file in (made.key, node_key, tokens):
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
    found = load_tokens(tokens)
    assert [*found] == ["node-0", "node-1"]
    assert len({*found.values()}) == 2


@pytest.mark.parametrize("name", ["", "edge.example:9200", "https://edge", "é.example"])
def test_what_is_no_host_name_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(InvalidInputError, match="without port"):
        make_certificates(tmp_path, [name])


def test_configs_are_toml_that_says_the_same(tmp_path: Path) -> None:
    values: dict[str, Value] = {
        "role": 'a "device"\\',
        "partitions": "0-3",
        "n": 3,
        "x": 0.5,
        "ok": True,
    }
    pairs = as_config(values)

    read = tomllib.loads(
        pairs.replace(' partitions="', '\npartitions="')
        .replace(" n=", "\nn=")
        .replace(" x=", "\nx=")
        .replace(" ok=", "\nok=")
    )
    assert read == values
    assert as_config("partition-id=0") == "partition-id=0"
    with pytest.raises(InvalidInputError, match="'partitions' must be"):
        as_config({"partitions": [0, 1]})  # type: ignore[dict-item]

    plain = tomllib.loads(
        write_connection(tmp_path / "a", "here", "127.0.0.1:8000", None).read_text()
    )
    assert plain["superlink"] == {
        "default": "here",
        "here": {"address": "127.0.0.1:8000", "insecure": True},
    }
    secured = tomllib.loads(
        write_connection(tmp_path / "b", "here", "x:1", Path("ca.pem")).read_text()
    )
    assert secured["superlink"]["here"] == {
        "address": "x:1",
        "root-certificates": str(Path("ca.pem").absolute()),
    }
