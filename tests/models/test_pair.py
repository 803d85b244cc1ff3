"""Two models fit when one tokenizer serves both; padding is cut off, not guessed."""

from collections.abc import Callable
from dataclasses import FrozenInstanceError
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerBase

from flower_ext.errors import InvalidInputError
from flower_ext.models import load_pair

Save = Callable[..., Path]
Make = Callable[..., PreTrainedTokenizerBase]
WORDS = ("a", "b", "c")  # with "<end>", ids 0 to 3


@pytest.mark.parametrize(
    ("draft_size", "target_size", "shared"), [(4, 4, 4), (6, 9, 6), (9, 4, 4)]
)
def test_padded_vocabularies_are_cut_to_what_both_have(
    save: Save, draft_size: int, target_size: int, shared: int
) -> None:
    pair = load_pair(
        save("draft", draft_size, WORDS), save("target", target_size, WORDS)
    )

    assert pair.vocab_size == shared
    assert pair.draft.config.vocab_size == draft_size
    assert pair.target.config.vocab_size == target_size


@pytest.mark.parametrize(("sizes", "name"), [((3, 9), "draft"), ((9, 3), "target")])
def test_a_model_without_logits_for_every_id_is_refused(
    save: Save, sizes: tuple[int, int], name: str
) -> None:
    draft, target = save("draft", sizes[0], WORDS), save("target", sizes[1], WORDS)

    with pytest.raises(InvalidInputError, match=f"{name} gives 3 logits.* up to 3"):
        load_pair(draft, target)


def test_different_tokenizers_are_refused(save: Save) -> None:
    draft, target = save("draft", 4, WORDS), save("target", 4, ("a", "c", "b"))

    with pytest.raises(InvalidInputError, match=r"draft=.*target=.*tokenizers"):
        load_pair(draft, target)


def test_one_tokenizer_can_be_given_for_both(save: Save, tokenizer_of: Make) -> None:
    draft, target = save("draft", 4), save("target", 5)
    tokenizer = tokenizer_of(*WORDS)

    pair = load_pair(draft, target, tokenizer=tokenizer)

    assert pair.tokenizer is tokenizer
    assert pair.vocab_size == 4


def test_the_tokenizer_can_be_elsewhere(
    save: Save, tokenizer_of: Make, tmp_path: Path
) -> None:
    tokenizer_of(*WORDS).save_pretrained(tmp_path / "words")

    pair = load_pair(
        save("draft", 4), str(save("target", 4)), tokenizer=tmp_path / "words"
    )

    assert pair.tokenizer.get_vocab() == {"<end>": 0, "a": 1, "b": 2, "c": 3}


def test_a_pair_cannot_be_changed(save: Save) -> None:
    pair = load_pair(save("draft", 4, WORDS), save("target", 4, WORDS))

    with pytest.raises(FrozenInstanceError):
        pair.vocab_size = 3  # type: ignore[misc]
