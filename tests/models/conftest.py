"""Tiny models and tokenizers on disk, and a machine without a network."""

import socket
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

Save = Callable[..., Path]


def word_tokenizer(*words: str) -> PreTrainedTokenizerFast:
    """Give ids to "<end>" and then to the words, in their order."""
    ids = {word: id_ for id_, word in enumerate(("<end>", *words))}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token="<end>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer, eos_token="<end>", bos_token="<end>"
    )


@pytest.fixture
def tokenizer_of() -> Callable[..., PreTrainedTokenizerFast]:
    return word_tokenizer


@pytest.fixture
def save(tmp_path: Path) -> Save:
    """Write a Llama of a few parameters, and a tokenizer of these words beside it."""

    def save(name: str, vocab_size: int, words: tuple[str, ...] = ()) -> Path:
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=vocab_size,
            hidden_size=8,
            intermediate_size=8,
            num_hidden_layers=1,
            num_attention_heads=2,
        )
        LlamaForCausalLM(config).save_pretrained(tmp_path / name)
        if words:
            word_tokenizer(*words).save_pretrained(tmp_path / name)
        return tmp_path / name

    return save


@pytest.fixture
def attempts(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Refuse every connection, and list those that were tried."""
    tried: list[object] = []

    def refuse(*args: object, **_: object) -> None:
        tried.append(args)
        raise OSError("no network in this test")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    return tried
