"""Drafters that have been compiled, or have an adapter."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, RecordDict
from peft import (
    LoraConfig,
    PromptTuningConfig,
    get_peft_model,
    get_peft_model_state_dict,
    set_peft_model_state_dict,
)
from torch import nn

from flower_ext.clients import DSSDTask
from flower_ext.errors import InvalidInputError
from flower_ext.models import ModelPair, default_pair
from flower_ext.speculative import (
    Drafter,
    Generation,
    Sampling,
    Verifier,
    speculate,
)
from flower_ext.speculative.evaluation import DSSD_KEY, DSSDRequest

# PEFT asks a model for what transformers has given another name.
pytestmark = pytest.mark.filterwarnings(
    "ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"
)

PROMPT = [5, 6, 7]
MakeContext = Callable[..., Context]


@pytest.fixture(scope="module")
def pair() -> ModelPair:
    return default_pair()


def with_adapter(model: nn.Module, seed: int = 1, name: str = "default") -> Any:
    """Return a copy with an adapter that is not the identity."""
    torch.manual_seed(seed)
    lora = LoraConfig(
        task_type="CAUSAL_LM", target_modules=["q_proj"], init_lora_weights=False
    )
    return get_peft_model(copy.deepcopy(model), lora, adapter_name=name)


def text(draft: Any, pair: ModelPair, target: Any = None) -> Generation:
    return speculate(
        Drafter(draft),
        Verifier(pair.target if target is None else target),
        PROMPT,
        24,
        Sampling(),
        "dssd",
        4,
        generator=torch.Generator().manual_seed(3),
    )


def reply(
    task: DSSDTask, arrays: dict[str, torch.Tensor], context: Context
) -> tuple[int, int]:
    """Return what was examined and accepted with the weights of a message."""
    request = DSSDRequest(
        edge="in-process",
        drafter_weights="message",
        max_new_tokens=24,
        server_round=1,
    )
    content = RecordDict(
        {
            DSSD_KEY: ConfigRecord(request.to_config()),
            "arrays": ArrayRecord(arrays),
        }
    )
    message = Message(content, dst_node_id=7, message_type="evaluate.dssd")
    told: Any
    (told,) = task(message, context).content.metric_records.values()
    return told["examined"], told["accepted"]


def test_a_compiled_model_drafts_and_verifies_as_itself(pair: ModelPair) -> None:
    plain = text(pair.draft, pair)
    compiled = text(torch.compile(pair.draft), pair, torch.compile(pair.target))

    assert compiled.tokens == plain.tokens
    assert compiled.accepted == plain.accepted


def test_an_adapter_counts(pair: ModelPair) -> None:
    adapted = with_adapter(pair.draft)
    merged = copy.deepcopy(adapted).merge_and_unload()

    one, other = text(adapted, pair), text(merged, pair)

    assert one.tokens == other.tokens
    assert (one.accepted, one.rounds) == (other.accepted, other.rounds)
    assert one.accepted != text(pair.draft, pair).accepted


def test_tokens_of_an_adapters_own_are_refused(pair: ModelPair) -> None:
    tuned = get_peft_model(
        copy.deepcopy(pair.draft),
        PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4),
    )
    with pytest.raises(InvalidInputError, match="PromptTuningConfig tokens before"):
        Drafter(tuned)


@pytest.mark.parametrize("whole", [True, False])
def test_a_message_brings_a_model_or_its_adapter(
    make_context: MakeContext, pair: ModelPair, whole: bool
) -> None:
    sent, own = with_adapter(pair.draft, seed=1), with_adapter(pair.draft, seed=2)
    weights = sent.state_dict() if whole else get_peft_model_state_dict(sent)
    task = DSSDTask(["ROMEO:"], drafter=own, tokenizer=pair.tokenizer)
    before = {n: w.clone() for n, w in own.state_dict().items()}

    found = reply(task, weights, make_context({"partition-id": 0}))

    set_peft_model_state_dict(
        other := with_adapter(pair.draft, seed=2), get_peft_model_state_dict(sent)
    )
    as_sent = DSSDTask(["ROMEO:"], drafter=other, tokenizer=pair.tokenizer)
    assert found == reply(
        as_sent, other.state_dict(), make_context({"partition-id": 0})
    )
    as_own = DSSDTask(["ROMEO:"], drafter=own, tokenizer=pair.tokenizer)
    assert found != reply(as_own, before, make_context({"partition-id": 0}))
    assert all(torch.equal(before[n], w) for n, w in own.state_dict().items())


def test_an_adapter_may_have_another_name_and_nobody_is_asked_for_it(
    make_context: MakeContext, pair: ModelPair, monkeypatch: pytest.MonkeyPatch
) -> None:
    def asked(*_: Any, **__: Any) -> bool:
        raise AssertionError("The hub was asked.")

    monkeypatch.setattr("peft.utils.save_and_load.check_file_exists_on_hf_hub", asked)
    context = make_context({"partition-id": 0})
    own = with_adapter(pair.draft, seed=2, name="mine")
    sent = with_adapter(pair.draft, seed=1, name="mine")
    weights = get_peft_model_state_dict(
        sent, adapter_name="mine", save_embedding_layers=False
    )
    task = DSSDTask(["ROMEO:"], drafter=own, tokenizer=pair.tokenizer)

    found = reply(task, weights, context)

    as_sent = DSSDTask(["ROMEO:"], drafter=sent, tokenizer=pair.tokenizer)
    assert found == reply(as_sent, sent.state_dict(), context)


def test_weights_of_a_compiled_model_are_taken(
    make_context: MakeContext, pair: ModelPair
) -> None:
    compiled: Any = torch.compile(pair.draft)
    context = make_context({"partition-id": 0})

    found = reply(
        DSSDTask(["ROMEO:"], drafter=compiled, tokenizer=pair.tokenizer),
        compiled.state_dict(),
        context,
    )

    assert found == reply(DSSDTask(["ROMEO:"]), pair.draft.state_dict(), context)


def test_an_adapter_of_another_shape_is_named(
    make_context: MakeContext, pair: ModelPair
) -> None:
    own = with_adapter(pair.draft)
    weights = get_peft_model_state_dict(own)
    name = next(iter(weights))
    task = DSSDTask(["ROMEO:"], drafter=own, tokenizer=pair.tokenizer)

    with pytest.raises(InvalidInputError, match="no state_dict of the drafter"):
        reply(task, {name: weights[name]}, make_context({"partition-id": 0}))
