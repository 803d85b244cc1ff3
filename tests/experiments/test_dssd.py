"""The experiments on speculative decoding: their models, prompts and command lines."""

from __future__ import annotations

import csv
import importlib
import json
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from flower_ext.errors import InvalidInputError
from flower_ext.models import ModelPair, default_pair
from flower_ext.speculative import Row, Sampling, TransformersModel

EXPERIMENTS = Path(__file__).parents[2] / "experiments"


@pytest.fixture(autouse=True)
def path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(EXPERIMENTS))


def module(name: str) -> ModuleType:
    return importlib.import_module(f"dssd.{name}")


@pytest.fixture(scope="module")
def pair() -> ModelPair:
    return default_pair()


def logits_of(model: object, tokens: list[int]) -> torch.Tensor:
    wrapped = TransformersModel(model)  # type: ignore[arg-type]
    return wrapped.extend([Row(wrapped.new_cache(), tokens, keep=len(tokens))])[0]


def test_a_deepened_model_says_what_it_said(pair: ModelPair) -> None:
    deep = module("models").deepened(pair.draft, 3, 100)

    before, after = (logits_of(model, [1, 2, 3]) for model in (pair.draft, deep))
    assert torch.equal(before, after)
    weights = [
        sum(w.numel() for w in model.parameters()) for model in (pair.draft, deep)
    ]
    # Queries, keys, values, output; gate, up and down; two norms.
    attention = 96 * (96 + 32 + 32) + 96 * 96
    assert weights[1] - weights[0] == 3 * (attention + 3 * 96 * 100 + 2 * 96)
    assert deep.config.num_hidden_layers == pair.draft.config.num_hidden_layers + 3


def test_only_llamas_are_deepened() -> None:
    from transformers import GPT2Config, GPT2LMHeadModel  # noqa: PLC0415

    small = GPT2Config(n_embd=8, n_head=1, n_layer=1, vocab_size=8, n_positions=8)
    with pytest.raises(InvalidInputError, match="type 'gpt2'"):
        module("models").deepened(GPT2LMHeadModel(small), 1)


def test_noise_moves_a_copy_only(pair: ModelPair) -> None:
    before = logits_of(pair.draft, [1, 2])
    noisy = module("models").disturbed(pair.draft, 0.1)

    assert torch.equal(logits_of(pair.draft, [1, 2]), before)
    assert not torch.allclose(logits_of(noisy, [1, 2]), before)


@pytest.mark.parametrize("distance", [0.2, 0.5])
def test_tables_are_as_far_apart_as_they_are_to_be(distance: float) -> None:
    made = module("models").table_pair(500, distance, contexts=16)

    assert made.distances.mean() == pytest.approx(distance, abs=1e-3)
    assert made.distances.std() > 0.02
    cache = made.target.new_cache()
    both = made.target.extend([Row(cache, [3, 7], keep=2)])[0]
    cache.roll_back(1)
    again = made.target.extend([Row(cache, [7 + 16], keep=1)])[0]
    assert cache.length == 2
    assert torch.equal(both[1:], again)


def test_plain_decoding_is_the_target_alone(pair: ModelPair) -> None:
    found = module("baselines").alone(
        TransformersModel(pair.draft), [5, 6], 6, Sampling(temperature=0), seed=0
    )
    model: Any = pair.draft  # Its own types do not know that it can generate.
    wanted = model.generate(
        torch.tensor([[5, 6]]),
        attention_mask=torch.ones(1, 2),
        do_sample=False,
        max_new_tokens=6,
        pad_token_id=0,
    )
    assert found == wanted[0, 2:].tolist()


def test_prompts_of_spec_bench(tmp_path: Path, pair: ModelPair) -> None:
    prompts, file = module("prompts"), tmp_path / "question.jsonl"
    questions = [{"turns": ["To be", "or not"]}, {"turns": ["Hark"]}]
    file.write_text("\n\n".join(map(json.dumps, questions)))

    assert prompts.read_prompts(file) == ["To be", "Hark"]
    ids = pair.tokenizer("To be, or not to be")["input_ids"]
    assert prompts.prompt_ids("To be, or not to be", pair.tokenizer, 3) == ids[-3:]

    file.write_text('{"turns": ["To be"]}\n{"turn": 3}')
    with pytest.raises(InvalidInputError, match="line 2: a question needs turns"):
        prompts.read_prompts(file)
    with pytest.raises(InvalidInputError, match="There is no file"):
        prompts.read_prompts(tmp_path / "absent.jsonl")


@pytest.fixture
def echo() -> Iterator[str]:
    """Answer every message twice over, once."""
    listener = socket.create_server(("127.0.0.1", 0))

    def answer() -> None:
        connection, _ = listener.accept()
        with connection:
            while data := connection.recv(1024):
                connection.sendall(2 * data)

    thread = threading.Thread(target=answer)
    thread.start()
    yield f"127.0.0.1:{listener.getsockname()[1]}"
    thread.join()
    listener.close()


def test_a_proxy_counts_both_ways(echo: str) -> None:
    with module("wire").CountingProxy(echo) as proxy:
        host, port = proxy.address.split(":")
        with socket.create_connection((host, int(port))) as device:
            device.sendall(b"12345")
            received = b""
            while len(received) < 10:
                received += device.recv(1024)
    assert received == b"1234512345"
    assert (proxy.up, proxy.down) == (5, 10)


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """Yield the benchmark's command, run in this process."""
    threads = torch.get_num_threads()

    def run(*arguments: str) -> None:
        monkeypatch.setattr(sys, "argv", ["dssd_benchmark.py", *arguments])
        importlib.import_module("dssd_benchmark").main()

    yield run
    torch.set_num_threads(threads)


def test_a_small_benchmark(
    benchmark: Callable[..., None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small = ["--rtt", "20", "--tokens", "6", "--threads", "1", "--quick"]
    benchmark(*small, "--out", str(tmp_path))

    assert "Shakespeare" in capsys.readouterr().out
    with (tmp_path / "dssd_benchmark.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    systems = {row["system"] for row in rows}
    assert systems >= {"dsd", "dssd", "dssd-candidates", "target alone"}
    assert all(float(row["tokens_per_second"]) > 0 for row in rows)
    assert (tmp_path / "dssd_benchmark.png").stat().st_size > 10_000


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--prompts", "absent.jsonl"], "There is no file 'absent.jsonl'"),
        (["--traces", "absent.gz"], "Traces 'absent.gz' cannot be read"),
        (["--target", "absent/model"], "target='absent/model' is neither a folder"),
        (["--lengths", "0"], "--lengths takes numbers from 1"),
        (["--tokens", "0"], "--tokens must be at least 1, got 0"),
    ],
)
def test_bad_arguments_are_named(
    benchmark: Callable[..., None],
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    with pytest.raises(SystemExit) as stopped:
        benchmark(*arguments)

    assert message in f"{stopped.value} {capsys.readouterr().err}"
