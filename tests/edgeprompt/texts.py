"""Tokenizers of several kinds, trained on the spot, and texts for them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache

from hypothesis import strategies as st
from tokenizers import (
    Tokenizer,
    decoders,
    models,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from flower_ext.models import default_pair

CORPUS = [
    "Question: what is the capital of France?\nAnswer: Paris.\n\nQuestion: why?\n",
    "Question: where is what the question asks for?\n\n\nAnswer: there, in Athens.",
    "for i in range(12):\n    print(i)\n        # the capital question, é and ü",
] * 8
ALPHABET = sorted(set("".join(CORPUS)))
SPECIAL = ["<unk>", "<s>", "</s>"]
BOS, EOS = 1, 2


def wrapped(tokenizer: Tokenizer) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
    )


def byte_level(*, add_prefix_space: bool = False, wrap: bool = False) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(
        add_prefix_space=add_prefix_space
    )
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        CORPUS,
        trainers.BpeTrainer(
            vocab_size=400,
            special_tokens=SPECIAL,
            initial_alphabet=alphabet,
            show_progress=False,
        ),
    )
    if wrap:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A </s>", special_tokens=[("<s>", BOS), ("</s>", EOS)]
        )
    return tokenizer


def _unigram(scheme: str) -> Tokenizer:
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme)
    tokenizer.decoder = decoders.Metaspace(prepend_scheme=scheme)
    tokenizer.train_from_iterator(
        CORPUS,
        trainers.UnigramTrainer(
            vocab_size=150,
            special_tokens=SPECIAL,
            unk_token="<unk>",
            show_progress=False,
        ),
    )
    return tokenizer


MADE: dict[str, Callable[[], Tokenizer]] = {
    "byte-level": byte_level,
    "byte-level, space before the first word": lambda: byte_level(
        add_prefix_space=True
    ),
    "byte-level, wrapped": lambda: byte_level(wrap=True),
    "unigram": lambda: _unigram("always"),
    "unigram, first word only": lambda: _unigram("first"),
}
NAMES = ("shipped", *MADE)


@cache
def made(name: str) -> PreTrainedTokenizerBase:
    return default_pair().tokenizer if name == "shipped" else wrapped(MADE[name]())


def decoded(name: str, tokens: Sequence[int]) -> str:
    text = made(name).decode(
        list(tokens), skip_special_tokens=True, clean_up_tokenization_spaces=False
    )
    assert isinstance(text, str)
    # This one's decoder keeps the space that it writes before the first word.
    return text.removeprefix(" ") if "space before" in name else text


texts = st.one_of(
    st.text(ALPHABET, max_size=12),
    st.lists(
        st.sampled_from(
            ["Question", ":", " ", "  ", "\n", "\n\n", "what", " is", "e", "é", ""]
        ),
        max_size=5,
    ).map("".join),
)
