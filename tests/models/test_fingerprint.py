"""A fingerprint tells tokenizers apart, and nothing else."""

from collections.abc import Callable
from pathlib import Path

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from flower_ext.models import tokenizer_fingerprint

Make = Callable[..., PreTrainedTokenizerBase]


def test_it_is_a_sha256_digest(tokenizer_of: Make) -> None:
    digest = tokenizer_fingerprint(tokenizer_of("a", "b"))

    assert len(bytes.fromhex(digest)) == 32


@pytest.mark.parametrize("words", [("b", "a"), ("a", "c"), ("a",), ("a", "b", "c")])
def test_other_words_or_ids_give_another(
    tokenizer_of: Make, words: tuple[str, ...]
) -> None:
    one, other = tokenizer_of("a", "b"), tokenizer_of(*words)

    assert tokenizer_fingerprint(one) != tokenizer_fingerprint(other)


def test_an_added_token_gives_another(tokenizer_of: Make) -> None:
    one, other = tokenizer_of("a", "b"), tokenizer_of("a", "b")
    other.add_tokens(["<tool>"])

    assert tokenizer_fingerprint(one) != tokenizer_fingerprint(other)


def test_another_end_of_text_gives_another(tokenizer_of: Make) -> None:
    one, other = tokenizer_of("a", "b"), tokenizer_of("a", "b")
    other.eos_token = "a"

    assert tokenizer_fingerprint(one) != tokenizer_fingerprint(other)


def test_it_outlives_saving_and_loading(tokenizer_of: Make, tmp_path: Path) -> None:
    tokenizer = tokenizer_of("a", "b")
    tokenizer.save_pretrained(tmp_path / "here")
    loaded = AutoTokenizer.from_pretrained(tmp_path / "here")
    loaded.save_pretrained(tmp_path / "there")
    again = AutoTokenizer.from_pretrained(tmp_path / "there")

    expected = tokenizer_fingerprint(tokenizer)
    assert tokenizer_fingerprint(loaded) == expected
    assert tokenizer_fingerprint(again) == expected


def test_padding_and_truncation_leave_it(tokenizer_of: Make) -> None:
    tokenizer = tokenizer_of("a", "b")
    before = tokenizer_fingerprint(tokenizer)

    tokenizer.pad_token = "<end>"
    tokenizer.padding_side = "left"
    tokenizer(["a", "a b"], padding=True, truncation=True, max_length=2)

    assert tokenizer_fingerprint(tokenizer) == before
