"""An edge that returns with other verdicts than it gave is found out."""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from flower_ext.edge import RemoteVerifier, patience
from flower_ext.edge import edge_pb2 as pb
from flower_ext.edge.conversation import Conversation
from flower_ext.errors import FlowerExtError
from flower_ext.models import ModelPair
from flower_ext.speculative import (
    Ask,
    Draft,
    DSSDCandidates,
    Generation,
    UnknownSessionError,
    Verdict,
    Verifier,
)
from flower_ext.speculative.language_model import as_language_model
from tests.edge.conftest import Connect, Serve

Generate = Callable[..., Generation]


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patience, "_FIRST_WAIT", 0.005)


class Replaced(Verifier):
    """Forgets a session when it is first asked about it, and has another model then."""

    def __init__(self, model: PreTrainedModel, other: PreTrainedModel) -> None:
        super().__init__(model)
        self.other = as_language_model(other, None)
        self.forgotten = False
        # By round, of all verdicts on its draft.
        self.told: dict[int, list[tuple[int, int | None]]] = defaultdict(list)

    def answer(self, session: str, ask: Ask) -> Verdict:
        if not self.forgotten:
            self.forgotten = True
            self.model = self.other
            raise UnknownSessionError("forgotten")
        return super().answer(session, ask)

    def verify_batch(
        self, requests: Sequence[tuple[str, Draft]]
    ) -> list[Verdict | FlowerExtError]:
        found = super().verify_batch(requests)
        for verdict in found:
            assert isinstance(verdict, Verdict)
            self.told[verdict.round].append((verdict.accepted, verdict.token))
        return found


def test_a_question_is_not_answered_about_another_position(
    serve: Serve,
    connect: Connect,
    generate: Generate,
    prompts: list[list[int]],
    pair: ModelPair,
) -> None:
    other = copy.deepcopy(pair.target)
    torch.manual_seed(0)
    with torch.no_grad():
        for weights in other.parameters():
            weights.add_(0.3 * weights.std() * torch.randn_like(weights))
    options: dict[str, Any] = {
        "protocol": DSSDCandidates(1),
        "draft_length": 8,
        "max_new_tokens": 40,
    }
    disagreed = 0

    def generated(edge: RemoteVerifier, seed: int) -> Generation | FlowerExtError:
        try:
            return generate(edge, prompts[0], seed, **options)
        except FlowerExtError as error:
            return error

    for seed in range(6):
        for model in (pair.target, other):
            verifier = Replaced(pair.target, model)
            edge = connect(serve(model=verifier).address)
            found = generated(edge, seed)

            assert verifier.forgotten
            twice = [told for told in verifier.told.values() if len(told) > 1]
            assert len(twice) == 1
            if isinstance(found, Generation):
                assert twice[0][0] == twice[0][1]
            else:
                assert twice[0][0] != twice[0][1]
                assert "had accepted" in str(found)
                disagreed += 1
            if model is pair.target:
                assert isinstance(found, Generation)
                here = generate(None, prompts[0], seed, **options)
                assert found.tokens == here.tokens
    assert disagreed > 1


def test_a_verdict_on_another_round_is_found_out(
    serve: Serve,
    connect: Connect,
    generate: Generate,
    prompts: list[list[int]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    verify = Conversation._verify

    async def mix_up(self: Conversation, message: Any) -> pb.EdgeMessage:
        reply = await verify(self, message)
        reply.verdict.round += reply.verdict.round == 2
        return reply

    monkeypatch.setattr(Conversation, "_verify", mix_up)
    edge = connect(serve().address)
    with pytest.raises(FlowerExtError, match="of round 3 where round 2 was due"):
        generate(edge, prompts[0])
