"""A prompt's shared part comes over gRPC, its private part stays, the text is right."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

from flower_ext.edge import EdgeServer, RemoteSegments
from flower_ext.edgeprompt import (
    Completion,
    EdgePrompt,
    KVStore,
    Level,
    Precision,
    PromptHierarchy,
    Segment,
    SegmentService,
    identity_of,
)
from flower_ext.edgeprompt.recording import Message, RecordingSource
from flower_ext.models import ModelPair, default_pair, tokenizer_fingerprint

SECRET = bytes(range(32))
TOKENS = {"ann": "a-secret", "bob": "b-secret"}
PUBLIC = [5 + (7 * i) % 1000 for i in range(600)]
GROUP = [5 + (11 * i) % 1000 for i in range(200)]
PRIVATE = [9, 99, 999, 9]


@pytest.fixture(scope="module")
def pair() -> ModelPair:
    return default_pair()


def edge_of(pair: ModelPair, port: int = 0) -> EdgeServer:
    model = copy.deepcopy(pair.draft)
    service = SegmentService(model, KVStore(), tenant_store=lambda name: KVStore())
    return EdgeServer(
        model,
        tokenizer_fingerprint(pair.tokenizer),
        port=port,
        plaintext=True,
        tokens=TOKENS,
        segments=service,
        tenant_secret=SECRET,
    )


def ask(
    pair: ModelPair, edge: EdgeServer, prompt: PromptHierarchy, **options: Any
) -> tuple[Completion, list[bytes]]:
    """Return a slow device's answer, and all the messages that it sent."""
    with RemoteSegments(
        edge.address,
        identity=identity_of(pair.draft),
        token=TOKENS["ann"],
        plaintext=True,
    ) as remote:
        key = remote.tenant_key()
        source = RecordingSource(remote)
        engine = EdgePrompt(
            pair.draft, pair.tokenizer, source=source, tenant_key=key, **options
        )
        # As if it had found out that it is slow: it would rather wait.
        for tokens in (64, 128, 256):
            engine._loader.speed.computed(0, tokens, 0.1 * tokens)
        completion = engine.generate(prompt, 12, do_sample=False)
    sent = [r.data for r in source.transcript if isinstance(r, Message) and r.up]
    return completion, sent


def prompt() -> PromptHierarchy:
    return PromptHierarchy(
        [
            Segment(PUBLIC, Level.PUBLIC),
            Segment(GROUP, Level.GROUP),
            Segment(PRIVATE, Level.PRIVATE),
        ]
    )


@pytest.mark.parametrize("precision", [Precision.EXACT, Precision.INT8])
def test_a_slow_device_fetches_all(pair: ModelPair, precision: Precision) -> None:
    with edge_of(pair) as edge:
        found, sent = ask(pair, edge, prompt(), precisions=[precision])
    assert found.report.fetched[precision] == found.report.blocks == 4
    if precision is Precision.EXACT:
        ids = torch.tensor([[*PUBLIC, *GROUP, *PRIVATE]])
        whole: Any = pair.draft.generate(ids, max_new_tokens=12, do_sample=False)  # type: ignore[operator]
        assert found.tokens == tuple(whole[0, ids.shape[1] :].tolist())
    assert sent
    # Token ids travel as varints; nowhere do the private ones follow each other.
    private = bytes([9, 99, 0xE7, 0x07, 9])
    assert not any(private in message for message in sent)


def test_an_edge_that_is_not_there_costs_time_only(pair: ModelPair) -> None:
    with (
        edge_of(pair) as edge,
        RemoteSegments(
            edge.address,
            identity=identity_of(pair.draft),
            token=TOKENS["ann"],
            plaintext=True,
            patience=0.2,
        ) as remote,
    ):
        key = remote.tenant_key()
        edge.stop()
        engine = EdgePrompt(pair.draft, pair.tokenizer, source=remote, tenant_key=key)
        found = engine.generate(prompt(), 12, do_sample=False)
    assert found.report.computed == 4
    ids = torch.tensor([[*PUBLIC, *GROUP, *PRIVATE]])
    whole: Any = pair.draft.generate(ids, max_new_tokens=12, do_sample=False)  # type: ignore[operator]
    assert found.tokens == tuple(whole[0, ids.shape[1] :].tolist())


def test_what_came_is_kept_for_the_next_process(
    pair: ModelPair, tmp_path: Path
) -> None:
    with edge_of(pair) as edge:
        reports = []
        for _ in range(2):
            store = KVStore(tmp_path / "blocks", key=SECRET)
            found, sent = ask(pair, edge, prompt(), store=store)
            reports.append((found.report.fetched.total(), found.report.in_store))
    assert reports == [(4, 0), (0, 4)]
    assert not sent
