"""A node answers private prompts behind a shared text, and tells sums alone."""

from __future__ import annotations

import math
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.common.serde import message_from_proto, message_to_proto
from flwr.proto.message_pb2 import Message as ProtoMessage

from flower_ext.clients import EdgePromptTask
from flower_ext.edgeprompt import EdgePrompt, KVStore, Level, PromptHierarchy
from flower_ext.edgeprompt.evaluation import EDGEPROMPT_KEY, EdgePromptRequest
from flower_ext.edgeprompt.linked_source import LinkedSource
from flower_ext.edgeprompt.loader import PrefixLoader
from flower_ext.edgeprompt.prefill import prefill
from flower_ext.edgeprompt.totals import EdgePromptTotals
from flower_ext.errors import FlowerExtError, InvalidInputError
from flower_ext.models import ModelPair, default_pair
from flower_ext.network.link import Link

PUBLIC = "First Citizen:\nBefore we proceed any further, hear me speak.\n\n" * 24
PROMPTS = ["ROMEO:\nWhat is", "The king shall never"]
BLOCKS = 3  # Of at most 256 tokens, in the public text.
TOO_LONG = "swordfish " * 600  # For the model.
NO_TOKENS = "\ud800"  # For any tokenizer.
MakeContext = Callable[..., Context]
MakeTask = Callable[..., EdgePromptTask]


@pytest.fixture(scope="module")
def pair() -> ModelPair:
    return default_pair()


@pytest.fixture
def make_task(tmp_path: Path) -> MakeTask:
    """Return a function that makes a task with a store of its own."""

    def make(prompts: Any = PROMPTS, **options: Any) -> EdgePromptTask:
        return EdgePromptTask(prompts, **{"store": tmp_path / "store", **options})

    return make


@pytest.fixture
def completions(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Return the texts as they are generated."""
    found: list[tuple[int, ...]] = []
    generate = EdgePrompt.generate

    def recorded(*args: Any, **options: Any) -> Any:
        completion = generate(*args, **options)
        found.append(completion.tokens)
        return completion

    monkeypatch.setattr(EdgePrompt, "generate", recorded)
    return found


def ask(*pieces: tuple[str, str], **fields: Any) -> Message:
    levels, texts = zip(*pieces or (("public", PUBLIC),), strict=True)
    request = EdgePromptRequest(
        **{
            "edge": "in-process",
            "texts": texts,
            "levels": levels,
            "max_new_tokens": 8,
            "server_round": 1,
            **fields,
        }
    )
    content = RecordDict({EDGEPROMPT_KEY: ConfigRecord(request.to_config())})
    return Message(content, dst_node_id=77, message_type="evaluate.edgeprompt")


def told(reply: Message) -> dict[str, Any]:
    assert set(reply.content) == {"metrics"}
    return dict(reply.content.metric_records["metrics"])


def test_sums_and_scores_are_those_of_the_texts(
    make_task: MakeTask, make_context: MakeContext, pair: ModelPair
) -> None:
    metrics = told(make_task()(ask(precisions=("exact",)), make_context()))

    log_likelihood = 0.0
    for prompt in PROMPTS:
        pieces = [(Level.PUBLIC, PUBLIC), (Level.PRIVATE, prompt)]
        ids = list(PromptHierarchy.from_text(pieces, pair.tokenizer).tokens)
        own: Any = pair.target.generate(  # type: ignore[operator]
            torch.tensor([ids]), max_new_tokens=8, do_sample=False, pad_token_id=0
        )
        with torch.no_grad():
            logits: Any = pair.target(own).logits[0]
        logs = torch.log_softmax(logits[len(ids) - 1 : -1].double(), -1)
        log_likelihood += float(logs.gather(1, own[0, len(ids) :, None]).sum())
    assert metrics["num-prompts"] == 2
    assert metrics["num-tokens"] == metrics["scored-tokens"] == 16
    assert metrics["greedy-agreement"] == 1.0
    assert metrics["log-likelihood"] == pytest.approx(log_likelihood, rel=1e-4)
    assert metrics["whole-log-likelihood"] == pytest.approx(log_likelihood, rel=1e-5)
    assert abs(metrics["perplexity-difference"]) < 1e-3 * metrics["perplexity"]
    assert metrics["blocks"] == 2 * BLOCKS
    assert metrics["blocks-in-memory"] == BLOCKS  # The second prompt's.
    assert 0 < metrics["first-token-seconds"] < metrics["seconds"]
    assert EdgePromptTotals.from_metrics(metrics).num_prompts == 2


def test_blocks_outlive_the_message_in_a_folder(
    make_task: MakeTask, make_context: MakeContext, tmp_path: Path
) -> None:
    slow = Link(up=1e3, rtt=10.0)  # On which a block takes minutes.
    first = told(make_task(link=slow)(ask(), make_context()))
    second = told(make_task(link=slow)(ask(), make_context()))
    other = told(make_task(store=tmp_path / "other")(ask(), make_context()))

    assert first["cache-hit-rate"] == other["cache-hit-rate"] == 0.0
    assert first["blocks-computed"] == BLOCKS
    assert first["time-to-first-token-p95"] < 10
    assert second["cache-hit-rate"] == 1.0
    assert second["blocks-in-store"] == second["blocks-in-memory"] == BLOCKS
    assert second["bytes-fetched"] == second["blocks-computed"] == 0


def test_what_is_fetched_is_told_by_precision(
    make_task: MakeTask, make_context: MakeContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    def slowly(*args: Any) -> Any:
        time.sleep(0.3)
        return prefill(*args)

    # On the device alone, which is left with the block that it begins with.
    monkeypatch.setattr("flower_ext.edgeprompt.loading.prefill", slowly)
    link = Link(up=1e9, rtt=0.0)
    asked = ask(precisions=("int8",), max_error=0.1)
    metrics = told(make_task(link=lambda context: link)(asked, make_context()))

    fetched = metrics["blocks-fetched-int8"]
    assert fetched >= BLOCKS - 1
    assert fetched + metrics["blocks-computed"] == BLOCKS
    assert metrics["blocks-fetched-exact"] == metrics["cache-hit-rate"] == 0
    assert metrics["bytes-fetched"] > 0
    assert 0 < metrics["largest-error"] <= 0.1
    assert metrics["perplexity"] != metrics["whole-perplexity"]


def test_group_text_is_for_all_nodes_of_the_federation(
    make_task: MakeTask, make_context: MakeContext
) -> None:
    asked = ask(("public", PUBLIC), ("group", "KING HENRY VI:\nMy lord"))
    first = told(make_task()(asked, make_context()))
    second = told(make_task()(asked, make_context()))

    assert first["blocks"] == 2 * (BLOCKS + 1)
    assert second["cache-hit-rate"] == 1.0


def test_runs_repeat_and_rounds_nodes_prompts_and_seeds_differ(
    make_task: MakeTask, make_context: MakeContext, completions: list[tuple[int, ...]]
) -> None:
    task = make_task(["ROMEO:", "ROMEO:"])
    node = make_context({"partition-id": 3})
    fields: dict[str, Any] = {"temperature": 1.0, "compare": False}
    task(ask(**fields), node)
    task(ask(**fields), node)
    task(ask(server_round=2, **fields), node)
    task(ask(**fields), make_context({"partition-id": 4}))
    task(ask(seed=1, **fields), node)

    assert completions[0:2] == completions[2:4]
    assert len(set(completions)) == len(completions) - 2


def test_without_comparing_no_likelihood_is_told(
    make_task: MakeTask, make_context: MakeContext
) -> None:
    metrics = told(make_task()(ask(compare=False), make_context()))

    assert metrics["log-likelihood"] == metrics["scored-tokens"] == 0
    assert math.isnan(metrics["perplexity-difference"])
    assert math.isnan(metrics["greedy-agreement"])


@pytest.mark.parametrize("private", ["", "x", "My PIN is 4711. " * 20])
def test_names_of_metrics_say_nothing_of_private_text(
    private: str, make_task: MakeTask, make_context: MakeContext
) -> None:
    expected = told(make_task(["ROMEO:"])(ask(), make_context()))
    metrics = told(make_task([private])(ask(), make_context()))

    assert metrics.keys() == expected.keys()
    for name in ("num-prompts", "num-tokens", "blocks", "scored-tokens"):
        assert metrics[name] == expected[name]
    assert len(metrics["first-token-histogram"]) == len(
        expected["first-token-histogram"]
    )


def test_prompts_that_the_model_does_not_take_cost_no_other_its_answer(
    make_task: MakeTask,
    make_context: MakeContext,
    completions: list[tuple[int, ...]],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    fields: dict[str, Any] = {"temperature": 1.0, "precisions": ("exact",)}
    five = [PROMPTS[0], PROMPTS[0], PROMPTS[1], "", PROMPTS[0]]
    make_task(five)(ask(**fields), make_context())
    expected = [completions[i] for i in (1, 2, 4)]  # Drawn by the prompt's number.
    completions.clear()
    five[0], five[3] = TOO_LONG, NO_TOKENS
    task = make_task(five, store=tmp_path / "other")
    with caplog.at_level("WARNING", logger="flower_ext.clients"):
        metrics = told(task(ask(**fields), make_context()))

    assert [tokens for tokens in completions if len(tokens) > 1] == expected
    assert metrics["num-prompts"] == 3
    assert metrics["num-tokens"] == metrics["scored-tokens"] == 24
    assert metrics["prompts-refused"] == 2
    assert metrics["blocks"] == 5 * BLOCKS
    assert EdgePromptTotals.from_metrics(metrics).prompts_refused == 2
    long, none = caplog.messages
    assert "Prompt 1 of 5 is refused: it has" in long
    assert "new ones are more than the model's" in long
    assert "Prompt 4 of 5 is refused: it cannot be put into tokens" in none
    assert "swordfish" not in caplog.text


def test_an_edge_cannot_tell_that_a_prompt_was_refused(
    make_task: MakeTask, make_context: MakeContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[bytes] = []
    begin, put = LinkedSource.__init__, KVStore.put

    def watched(self: LinkedSource, *args: Any, **options: Any) -> None:
        begin(self, *args, **options)
        self.observer = lambda up, message, at: sent.append(message) if up else None

    def put_at_the_edge(self: KVStore, *args: Any) -> None:
        if self._directory is None:
            put(self, *args)

    # Nothing stays on the device, as after a stalled link: every load asks again.
    monkeypatch.setattr(LinkedSource, "__init__", watched)
    monkeypatch.setattr(KVStore, "put", put_at_the_edge)
    monkeypatch.setattr(PrefixLoader, "remember", lambda *args: None)
    asked = ask(("public", PUBLIC[:400]), precisions=("exact",))
    seen = []
    for prompt in ("ROMEO:", TOO_LONG, NO_TOKENS):
        task = make_task([prompt, "JULIET:"], link=Link(up=1e12, rtt=0.0))
        told(task(asked, make_context()))
        seen.append(sent.copy())
        sent.clear()

    assert len(seen[0]) == 2 * 2  # To generate and to compare, of two prompts.
    assert seen[1] == seen[2] == seen[0]


def test_an_error_does_not_tell_of_a_prompt(
    make_task: MakeTask, make_context: MakeContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: Any, **options: Any) -> None:
        raise RuntimeError("swordfish")

    with pytest.raises(FlowerExtError, match="all are refused") as caught:
        make_task([TOO_LONG, NO_TOKENS])(ask(), make_context())
    assert "swordfish" not in str(caught.value)
    assert "ud800" not in repr(caught.value)
    assert not any(c.isdigit() for c in str(caught.value))
    monkeypatch.setattr(EdgePrompt, "generate", fail)
    with pytest.raises(FlowerExtError, match="the node's log says why") as caught:
        make_task(["swordfish"])(ask(), make_context())
    assert "swordfish" not in str(caught.value)
    assert caught.value.__cause__ is None
    for wrong in ("swordfish", ["a", ("swordfish",)], 4711):
        with pytest.raises(InvalidInputError, match="into a list") as caught:
            make_task(lambda context, wrong=wrong: wrong)(ask(), make_context())
        assert "swordfish" not in str(caught.value)
        assert "4711" not in str(caught.value)


def test_prompts_are_never_the_messages(
    make_task: MakeTask, make_context: MakeContext
) -> None:
    message = ask()
    record: Any = message.content[EDGEPROMPT_KEY]
    record["prompts"] = ["One."]

    with pytest.raises(InvalidInputError, match="no config key 'prompts'"):
        make_task()(message, make_context())
    with pytest.raises(InvalidInputError, match="nothing to generate from"):
        make_task(lambda context: [])(ask(), make_context())
    with pytest.raises(InvalidInputError, match="into a list"):
        EdgePromptTask("One.")


def test_what_cannot_be_answered_says_why(
    make_task: MakeTask, make_context: MakeContext, pair: ModelPair
) -> None:
    nothing = Message(RecordDict(), dst_node_id=77, message_type="evaluate.edgeprompt")
    with pytest.raises(InvalidInputError, match="WithInference"):
        make_task()(nothing, make_context())
    with pytest.raises(InvalidInputError, match="leaves no room for a prompt in the"):
        make_task()(ask(("public", PUBLIC * 2)), make_context())
    with pytest.raises(InvalidInputError, match="EdgePromptTask\\(tokenizer="):
        make_task(model=pair.target)(ask(), make_context())


def test_a_model_of_ones_own_answers_too(
    make_task: MakeTask, make_context: MakeContext, pair: ModelPair
) -> None:
    by_name = told(make_task()(ask(), make_context()))
    task = make_task(model=lambda ctxt: pair.target, tokenizer=pair.tokenizer)
    metrics = told(task(ask(), make_context()))

    assert metrics["log-likelihood"] == pytest.approx(by_name["log-likelihood"])
    assert metrics["cache-hit-rate"] == 1.0  # The same weights have the same blocks.


def test_nodes_without_a_folder_have_one_each_in_the_users_cache(
    make_context: MakeContext, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "platformdirs.user_cache_path", lambda name: tmp_path / "cache" / name
    )
    told(EdgePromptTask(PROMPTS)(ask(), make_context({"partition-id": 3})))
    told(EdgePromptTask(PROMPTS)(ask(), make_context()))

    folder = tmp_path / "cache" / "flower-ext" / "edgeprompt"
    assert sorted(p.name for p in folder.iterdir()) == ["node-77", "partition-3"]


def test_nothing_private_is_kept(
    make_task: MakeTask, make_context: MakeContext, tmp_path: Path
) -> None:
    make_task(["ROMEO:"])(ask(), make_context())
    before = {p.name for p in (tmp_path / "store").rglob("*") if p.is_file()}
    make_task(["JULIET:\nWherefore art thou Romeo?" * 4])(ask(), make_context())

    assert before == {p.name for p in (tmp_path / "store").rglob("*") if p.is_file()}


def test_messages_travel_as_bytes(
    make_task: MakeTask, make_context: MakeContext
) -> None:
    def through_bytes(message: Message) -> Message:
        data = message_to_proto(message).SerializeToString()
        return message_from_proto(ProtoMessage.FromString(data))

    message = ask(("public", PUBLIC), ("group", "Enter"), temperature=1.0, top_k=20)
    message.metadata.__dict__["_message_id"] = "the-message"
    metrics = told(through_bytes(make_task()(through_bytes(message), make_context())))

    assert EdgePromptTotals.from_metrics(metrics).num_tokens == 16
    assert math.isnan(metrics["greedy-agreement"])


def test_totals_that_cannot_be_are_refused(
    make_task: MakeTask, make_context: MakeContext
) -> None:
    metrics = told(make_task()(ask(), make_context()))

    for key, value, told_of in (
        ("agreeing-tokens", 17, "more than compared-tokens"),
        ("blocks-computed", 99, "blocks came from somewhere"),
        ("num-prompts", 3, "counts 2 first tokens"),
        ("largest-error", math.nan, "out of range"),
        ("log-likelihood", 1.0, "out of range"),
        ("blocks", 1.5, "must be int"),
    ):
        with pytest.raises(InvalidInputError, match=told_of):
            EdgePromptTotals.from_metrics({**metrics, key: value})
    del metrics["seconds"]
    with pytest.raises(InvalidInputError, match="'seconds' is lacking"):
        EdgePromptTotals.from_metrics(metrics)


def test_totals_add_up_exactly(make_task: MakeTask, make_context: MakeContext) -> None:
    one = EdgePromptTotals.from_metrics(told(make_task()(ask(), make_context())))
    other = replace(one, largest_error=0.5, seconds=2.0, num_tokens=30)
    both = one + other

    assert both.num_tokens == one.num_tokens + 30
    assert both.seconds == one.seconds + 2.0
    assert both.largest_error == 0.5  # The largest, no sum.
    assert both.first_token_histogram.total == 4
    assert EdgePromptTotals.from_metrics(both.to_metrics()) == both


@pytest.mark.parametrize(
    ("fields", "told_of"),
    [
        ({"edge": "cloud"}, "'in-process' or 'grpc'"),
        ({"levels": ("group", "public"), "texts": ("a", "b")}, "public before group"),
        ({"levels": ("private",), "texts": ("a",)}, "never sent"),
        ({"texts": ("",), "levels": ("public",)}, "some text"),
        ({"texts": ("a",), "levels": ()}, "one level for each"),
        ({"texts": "a"}, "list of str"),
        ({"precisions": ("int88",)}, "Did you mean 'int8'"),
        ({"max_error": math.nan}, "max-error must be at least 0"),
        ({"max_new_tokens": 0}, "at least 1"),
        ({"compare": 1}, "compare must be bool"),
        ({"temperature": -1.0}, "temperature"),
        ({"timeout": 0.0}, "positive number"),
        ({"address": "edge:1"}, "of no use with edge='in-process'"),
        ({"edge": "grpc"}, "needs address"),
    ],
)
def test_a_request_out_of_range_is_refused(
    fields: dict[str, Any], told_of: str
) -> None:
    request = {"edge": "in-process", "texts": ("a",), "levels": ("public",), **fields}

    with pytest.raises(InvalidInputError, match=told_of):
        EdgePromptRequest(**request)


def test_a_mistyped_key_is_named() -> None:
    config = EdgePromptRequest("in-process", ("a",), ("public",)).to_config()

    with pytest.raises(InvalidInputError, match="did you mean 'max-new-tokens'"):
        EdgePromptRequest.from_config({**config, "max-new-token": 4})
    with pytest.raises(InvalidInputError, match="needs the config key 'texts'"):
        EdgePromptRequest.from_config({"edge": "in-process"})


def test_declaring_the_task_loads_no_torch() -> None:
    code = (
        "import sys; from flower_ext.clients import EdgePromptTask; "
        "EdgePromptTask(['a']); print('torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )

    assert done.stdout.strip() == "False"
