"""EdgePrompt as an evaluation: beside any training, over gRPC, and beside DSSD."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from flwr.app import ConfigRecord

from flower_ext.clients import CodedClientApp, DSSDTask, EdgePromptTask
from flower_ext.edgeprompt import Level, PrefixedModel
from flower_ext.edgeprompt.evaluation import DSSD_PUBLIC_KEY, EDGEPROMPT_KEY
from flower_ext.edgeprompt.service import SegmentService
from flower_ext.errors import InvalidInputError, PrivateSegmentError
from flower_ext.models import default_pair
from flower_ext.speculative import Sampling
from flower_ext.strategies import (
    DSSDEvaluation,
    EdgePromptEvaluation,
    RunningEdge,
    ServedEdge,
    TwoStageCoded,
    WithInference,
)

if TYPE_CHECKING:
    from tests.strategies.conftest import Federation

PUBLIC = "First Citizen:\nBefore we proceed any further, hear me speak.\n\n" * 12
NODES = 2


@pytest.fixture
def nodes(
    federation: type[Federation],
    coded_client: Callable[..., CodedClientApp],
    tmp_path: Path,
) -> Federation:
    """Return two nodes that do both."""
    app = coded_client()
    app.evaluate("dssd")(DSSDTask(["ROMEO:"]))
    app.evaluate("edgeprompt")(
        EdgePromptTask(
            ["ROMEO:\nWhat", "The king"],
            store=lambda context: tmp_path / str(context.node_config["partition-id"]),
        )
    )
    return federation(NODES, app)


def evaluation(edge: Any, public: Any = PUBLIC, **options: Any) -> EdgePromptEvaluation:
    return EdgePromptEvaluation(public, edge=edge, max_new_tokens=6, **options)


def told(nodes: Federation, *evaluations: Any, rounds: int = 1) -> list[dict[str, Any]]:
    """Return all metrics, by round."""
    strategy = WithInference(TwoStageCoded(clock="virtual"), *evaluations)
    result = nodes.run(strategy, rounds, timeout=60.0)
    return [
        {**result.evaluate_metrics_clientapp[r], **strategy.inference_metrics[r]}
        for r in range(1, rounds + 1)
    ]


def requests(nodes: Federation) -> list[ConfigRecord]:
    return [
        m.content.config_records[EDGEPROMPT_KEY]
        for m in nodes.grid.pushed
        if m.metadata.message_type == "evaluate.edgeprompt"
    ]


def test_blocks_are_kept_from_round_to_round(nodes: Federation) -> None:
    first, second = told(nodes, evaluation("in-process"), rounds=2)

    assert first["accuracy"] == 0.5  # Its own evaluation goes on beside.
    assert first["edgeprompt.num-nodes"] == NODES
    assert first["edgeprompt.num-prompts"] == 2 * NODES
    assert first["edgeprompt.num-tokens"] == 12 * NODES
    assert first["edgeprompt.cache-hit-rate"] == 0.0
    assert second["edgeprompt.cache-hit-rate"] == 1.0
    assert second["edgeprompt.bytes-fetched"] == 0
    for name in ("greedy-agreement", "time-to-first-token-p95", "perplexity"):
        assert first[f"edgeprompt.{name}"] > 0
    assert "edgeprompt.first-token-histogram" in first
    assert all("prompts" not in config for config in requests(nodes))


def test_a_served_edge_has_the_public_text_before_the_first_round(
    nodes: Federation, monkeypatch: pytest.MonkeyPatch
) -> None:
    services: list[SegmentService] = []
    passes: list[int] = []
    begin = SegmentService.__init__

    def noted(self: Any, *args: Any, **options: Any) -> None:
        begin(self, *args, **options)
        services.append(self)

    edge = ServedEdge(plaintext=True)
    access = edge.access

    def asked(node_id: int) -> Any:
        passes.append(services[0].passes)
        return access(node_id)

    monkeypatch.setattr(SegmentService, "__init__", noted)
    monkeypatch.setattr(edge, "access", asked)
    pieces = [(Level.PUBLIC, PUBLIC), (Level.GROUP, "KING HENRY VI:\nMy lord")]
    (metrics,) = told(nodes, evaluation(edge, pieces, model="default"))

    assert len(services) == 1  # No node has one of its own.
    assert passes[0] == 2  # Blocks of the public text, once.
    assert services[0].passes >= 2
    assert metrics["edgeprompt.num-nodes"] == NODES
    assert metrics["edgeprompt.greedy-agreement"] > 0.9
    assert metrics["edgeprompt.blocks"] == 3 * 2 * NODES
    assert len({config["token"] for config in requests(nodes)}) == NODES
    assert all("model" not in config for config in requests(nodes))
    with pytest.raises(InvalidInputError, match="does not run"):
        access(1)


def test_both_systems_evaluate_one_training(
    nodes: Federation, monkeypatch: pytest.MonkeyPatch
) -> None:
    held: list[int] = []
    hold = PrefixedModel.hold

    def noted(self: PrefixedModel, prefix: Any) -> None:
        hold(self, prefix)
        held.append(len(prefix))

    monkeypatch.setattr(PrefixedModel, "hold", noted)
    drafts = DSSDEvaluation(
        edge=ServedEdge(plaintext=True),
        target="default",
        drafter_weights="node",
        max_new_tokens=6,
        sampling=Sampling(temperature=0),
        public=PUBLIC,
    )
    (metrics,) = told(nodes, drafts, evaluation("in-process"))

    assert len(held) == 1  # For the sessions of all nodes.
    assert held[0] > 256
    assert metrics["dssd.num-nodes"] == metrics["edgeprompt.num-nodes"] == NODES
    assert metrics["dssd.num-tokens"] == 6 * NODES


def test_a_public_text_before_drafts_changes_no_text(nodes: Federation) -> None:
    def drafted(public: str) -> dict[str, Any]:
        drafts = DSSDEvaluation(
            edge="in-process",
            drafter_weights="node",
            max_new_tokens=6,
            sampling=Sampling(temperature=0),
            public=public,
        )
        return told(nodes, drafts)[0]

    alone, behind = drafted(""), drafted(PUBLIC)

    assert behind["dssd.greedy-agreement"] == 1.0  # The verifier's own law.
    assert behind["dssd.opening-bytes"] > alone["dssd.opening-bytes"]
    assert behind["dssd.log-likelihood"] != alone["dssd.log-likelihood"]
    sent = [
        m.content.config_records.get(DSSD_PUBLIC_KEY)
        for m in nodes.grid.pushed
        if m.metadata.message_type == "evaluate.dssd"
    ]
    assert sent[:NODES] == [None] * NODES
    assert all(config == {"text": PUBLIC} for config in sent[NODES:])


@pytest.mark.parametrize("served", [False, True], ids=["in-process", "grpc"])
def test_a_public_text_goes_before_the_drafts_for_a_padded_target(
    served: bool, nodes: Federation, tmp_path: Path
) -> None:
    pair = default_pair()
    pair.target.resize_token_embeddings(pair.vocab_size + 64)
    pair.target.save_pretrained(tmp_path / "padded")
    pair.tokenizer.save_pretrained(tmp_path / "padded")
    drafts = DSSDEvaluation(
        edge=ServedEdge(plaintext=True) if served else "in-process",
        target=tmp_path / "padded",
        drafter_weights="node",
        max_new_tokens=6,
        public=PUBLIC,
        if_all_fail="raise",
    )
    (metrics,) = told(nodes, drafts)

    assert metrics["dssd.num-nodes"] == NODES
    assert metrics["dssd.num-tokens"] == 6 * NODES


@pytest.mark.parametrize(
    ("options", "told_of"),
    [
        ({"edge": "cloud"}, "edge must be 'in-process'"),
        ({"edge": ServedEdge(plaintext=True)}, "needs a model"),
        ({"edge": RunningEdge("e:1", plaintext=True), "model": "m"}, "leave it out"),
        ({"precision": ["int8"]}, "did you mean precisions"),
        ({"evry": 2}, "did you mean every"),
        ({"precisions": ["int7"]}, "'int7'"),
        ({"precisions": "int8"}, "into a list"),
        ({"max_error": -1.0}, "max-error"),
        ({"public": ""}, "some text"),
        ({"public": [("grup", "a")]}, "Did you mean 'group'"),
    ],
)
def test_bad_arguments_are_named(options: dict[str, Any], told_of: str) -> None:
    with pytest.raises(InvalidInputError, match=told_of):
        evaluation(**{"edge": "in-process", **options})


@pytest.mark.parametrize("kind", [DSSDEvaluation, EdgePromptEvaluation])
def test_a_mistyped_argument_is_told_its_nearest(kind: type[Any]) -> None:
    with pytest.raises(InvalidInputError, match="'fractoin': did you mean fraction"):
        kind(
            **({"public": "All:"} if kind is EdgePromptEvaluation else {}),
            **({"drafter_weights": "node"} if kind is DSSDEvaluation else {}),
            edge="in-process",
            fractoin=0.5,
        )


def test_a_private_piece_is_refused() -> None:
    with pytest.raises(PrivateSegmentError, match="never sent"):
        evaluation("in-process", [(Level.PUBLIC, "a"), (Level.PRIVATE, "b")])
