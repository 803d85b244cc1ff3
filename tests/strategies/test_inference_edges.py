"""Nodes verify over gRPC: with a token of their own, for as long as the run lasts."""

from __future__ import annotations

import datetime
import ipaddress
import socket
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from flwr.app import ConfigRecord, Message

from flower_ext.clients import CodedClientApp, DSSDTask
from flower_ext.edge import EdgeServer
from flower_ext.errors import InvalidInputError
from flower_ext.models import default_pair, tokenizer_fingerprint
from flower_ext.speculative import Sampling
from flower_ext.speculative.evaluation import DSSD_KEY
from flower_ext.strategies import (
    DSSDEvaluation,
    RunningEdge,
    ServedEdge,
    TwoStageCoded,
    WithInference,
)

if TYPE_CHECKING:
    from tests.strategies.conftest import Federation

PROMPTS = ["ROMEO:", "The king"]


@pytest.fixture
def nodes(
    federation: type[Federation], coded_client: Callable[..., CodedClientApp]
) -> Federation:
    """Return three nodes that draft."""
    app = coded_client()
    app.evaluate("dssd")(DSSDTask(PROMPTS))
    return federation(3, app)


def evaluation(edge: Any, **options: Any) -> DSSDEvaluation:
    return DSSDEvaluation(
        edge=edge, drafter_weights="node", max_new_tokens=6, **options
    )


def coded() -> TwoStageCoded:
    return TwoStageCoded(clock="virtual")


def told(nodes: Federation, evaluation: DSSDEvaluation) -> dict[str, Any]:
    """Return all metrics of the first round."""
    strategy = WithInference(coded(), evaluation)
    result = nodes.run(strategy)
    own: dict[str, Any] = dict(result.evaluate_metrics_clientapp[1])
    return {**own, **strategy.inference_metrics[1]}


def requests(nodes: Federation) -> list[ConfigRecord]:
    return [
        m.content.config_records[DSSD_KEY]
        for m in nodes.grid.pushed
        if m.metadata.message_type == "evaluate.dssd"
    ]


def listens(address: str) -> bool:
    host, _, port = address.rpartition(":")
    with socket.socket() as tried:
        return tried.connect_ex((host, int(port))) == 0


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Return the files of a certificate of this machine, and of its key."""
    folder = tmp_path_factory.mktemp("tls")
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "edge")])
    now = datetime.datetime.now(datetime.UTC)
    address = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
    signed = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([address]), critical=False)
        .sign(key, hashes.SHA256())
    )
    (folder / "cert.pem").write_bytes(signed.public_bytes(serialization.Encoding.PEM))
    (folder / "key.pem").write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    return folder / "cert.pem", folder / "key.pem"


def test_a_served_edge_verifies_what_one_in_process_does(
    nodes: Federation, certificate: tuple[Path, Path]
) -> None:
    cert, key = certificate
    edge = ServedEdge(tls_cert=cert, tls_key=key, root_certificates=cert)
    over_grpc = told(nodes, evaluation(edge, target="default"))
    sent = requests(nodes)
    in_process = told(nodes, evaluation("in-process"))

    assert over_grpc["dssd.num-nodes"] == 3
    for name in ("rounds", "drafted", "examined", "accepted", "scored-tokens"):
        assert over_grpc[f"dssd.{name}"] == in_process[f"dssd.{name}"]
    assert over_grpc["dssd.scored-tokens"] == over_grpc["dssd.num-tokens"]
    for name in ("perplexity", "log-likelihood"):
        assert over_grpc[f"dssd.{name}"] == pytest.approx(
            in_process[f"dssd.{name}"], abs=1e-4
        )
    assert len({config["token"] for config in sent}) == 3
    assert all(config["root-certificate"] == cert.read_bytes() for config in sent)
    assert not listens(str(sent[0]["address"]))


def test_greedy_agreement_is_told_over_grpc_too(nodes: Federation) -> None:
    greedy = Sampling(temperature=0)
    edge = ServedEdge(plaintext=True)
    metrics = told(nodes, evaluation(edge, target="default", sampling=greedy))

    assert metrics["dssd.compared-tokens"] == metrics["dssd.num-tokens"] > 0
    assert metrics["dssd.greedy-agreement"] == 1.0


def test_a_wrong_token_fails_that_node_alone(
    nodes: Federation, logged: pytest.LogCaptureFixture
) -> None:
    answer = nodes.grid.handler

    def handler(message: Message) -> tuple[Message | None, float]:
        config = message.content.config_records.get(DSSD_KEY)
        if config is not None and message.metadata.dst_node_id == 101:
            config["token"] = "stolen"
        return answer(message)

    nodes.grid.handler = handler
    metrics = told(nodes, evaluation(ServedEdge(plaintext=True), target="default"))

    assert metrics["dssd.num-nodes"] == 2
    assert metrics["dssd.num-failures"] == 1
    assert "node 101 failed: code 2" in logged.text
    for config in requests(nodes):
        assert str(config["token"]) not in logged.text


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_the_edge_ends_with_the_run_whatever_happens(
    error: type[BaseException], nodes: Federation
) -> None:
    up: list[str] = []

    def train_metrics(contents: Any, key: str) -> Any:
        up.append(edge.access(100).address)
        assert listens(up[0])
        raise error("training broke")

    edge = ServedEdge(plaintext=True)
    inner = TwoStageCoded(clock="virtual", train_metrics_aggr_fn=train_metrics)
    with pytest.raises(error, match="training broke"):
        nodes.run(WithInference(inner, evaluation(edge, target="default")))

    assert not listens(up[0])
    assert "configure_evaluate" not in vars(inner)


def test_a_served_edge_is_of_one_evaluation(nodes: Federation) -> None:
    edge = ServedEdge(plaintext=True)
    twice = [evaluation(edge, target="default", prefix=prefix) for prefix in "ab"]

    with pytest.raises(InvalidInputError, match="one of its own"):
        nodes.run(WithInference(coded(), *twice))
    with pytest.raises(InvalidInputError, match="does not run"):
        edge.access(1)


def test_a_running_edge_is_used_and_left_running(nodes: Federation) -> None:
    pair = default_pair()
    tokens = {"a": "token-a", "b": "token-b"}
    with EdgeServer(
        pair.target,
        tokenizer_fingerprint(pair.tokenizer),
        tokens=tokens,
        plaintext=True,
    ) as server:
        edge = RunningEdge(server.address, tokens=list(tokens.values()), plaintext=True)
        metrics = told(nodes, evaluation(edge))
        assert listens(server.address)

    # There were two tokens for three nodes.
    assert metrics["dssd.num-nodes"] == 2
    assert metrics["dssd.num-failures"] == 1
    assert {config["token"] for config in requests(nodes)} == {"token-a", "token-b"}


def test_an_edge_that_is_not_there_is_a_failure_of_all(
    nodes: Federation, logged: pytest.LogCaptureFixture
) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    edge = RunningEdge(f"127.0.0.1:{port}", plaintext=True, patience=0.0)
    metrics = told(nodes, evaluation(edge))

    assert metrics["dssd.num-failures"] == 3
    assert metrics["accuracy"] == 0.5
    assert f"no answer from an edge at 127.0.0.1:{port}" in logged.text


def test_a_token_stays_with_its_node() -> None:
    edge = RunningEdge("edge:1", tokens=["a", "b"], plaintext=True)

    assert [edge.access(n).token for n in (7, 8, 7)] == ["a", "b", "a"]
    with pytest.raises(InvalidInputError, match="All 2 tokens are with other nodes"):
        edge.access(9)
    assert RunningEdge("edge:1", tokens="all").access(9).token == "all"
    assert RunningEdge("edge:1").access(9).token == ""
    assert "all" not in repr(RunningEdge("edge:1", tokens="all").access(9))
    assert RunningEdge("edge:1", patience=5).access(9).patience == 5


@pytest.mark.parametrize(
    ("make", "problem"),
    [
        (ServedEdge, "needs tls_cert and tls_key, or plaintext=True"),
        (lambda: ServedEdge(tls_cert="c"), "needs tls_cert and tls_key"),
        (
            lambda: ServedEdge(plaintext=True, root_certificates=b"pem"),
            "plaintext and root_certificates",
        ),
        (lambda: ServedEdge(host="0.0.0.0", plaintext=True), "give reached_at"),
        (lambda: ServedEdge(plaintext=True, max_nodes=0), "max_nodes"),
        (lambda: RunningEdge("edge:1", timeout=0), "timeout must be above 0"),
        (lambda: ServedEdge(plaintext=True, patience=-1), "patience must be"),
        (
            lambda: ServedEdge(plaintext=True, max_sesions=3),
            "no parameter 'max_sesions': did you mean max_sessions?",
        ),
        (lambda: ServedEdge(plaintext=True, tokens={}), "no parameter 'tokens'"),
        (lambda: RunningEdge("edge"), "must be 'host:port'"),
        (
            lambda: RunningEdge("edge:1", root_certificates="/no/such/file"),
            "/no/such/file",
        ),
        (lambda: evaluation("grpc"), "ServedEdge(...) or RunningEdge"),
    ],
)
def test_what_is_wrong_is_named(make: Callable[[], object], problem: str) -> None:
    with pytest.raises(InvalidInputError) as raised:
        make()
    assert problem in str(raised.value)


@pytest.mark.parametrize(
    ("edge", "target", "problem"),
    [
        (ServedEdge(plaintext=True), None, "needs a target"),
        (RunningEdge("edge:1"), "default", "of no use with a RunningEdge"),
    ],
)
def test_a_target_is_named_where_it_is_needed(
    edge: ServedEdge | RunningEdge, target: str | None, problem: str
) -> None:
    with pytest.raises(InvalidInputError, match=problem):
        evaluation(edge, target=target)
