"""Prompts from text: what is shared is settled without what is private."""

from __future__ import annotations

import itertools
import logging
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from tokenizers import normalizers

from flower_ext.edgeprompt.detectors import RuleDetector, Span
from flower_ext.edgeprompt.hierarchy import Level, PromptHierarchy, Segment
from flower_ext.errors import InvalidInputError
from tests.edgeprompt.texts import (
    BOS,
    EOS,
    NAMES,
    byte_level,
    decoded,
    made,
    texts,
    wrapped,
)

PUBLIC, GROUP, PRIVATE = Level


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=60, deadline=None)
@given(public=texts, group=texts, one=texts, other=texts)
def test_shared_tokens_are_the_same_whatever_the_private_text(
    name: str, public: str, group: str, one: str, other: str
) -> None:
    tokenizer = made(name)
    shared = [(PUBLIC, public), (GROUP, group)]

    assume(public + group)

    empty, first, second = (
        PromptHierarchy.from_text([*shared, (PRIVATE, text)], tokenizer).shared
        for text in ("", one, other)
    )

    assert empty == first == second


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=60, deadline=None)
@given(pieces=st.lists(texts, min_size=1, max_size=4))
def test_the_tokens_up_to_each_piece_decode_to_the_text_up_to_it(
    name: str, pieces: list[str]
) -> None:
    tokenizer = made(name)
    text = "".join(pieces)
    assume(text and text[0] != " ")
    whole = PromptHierarchy.from_text([(PRIVATE, p) for p in pieces], tokenizer)

    assert decoded(name, whole.tokens) == text
    for count in range(1, len(pieces)):
        above = "".join(pieces[:count])
        prompt = PromptHierarchy.from_text(
            [
                *((PUBLIC, p) for p in pieces[:count]),
                *((PRIVATE, p) for p in pieces[count:]),
            ],
            tokenizer,
        )
        shared = [t for s in prompt.shared for t in s.tokens]
        assert prompt.tokens == whole.tokens
        assert whole.tokens[: len(shared)] == tuple(shared)
        assert decoded(name, shared) == above.rstrip(" ")


@pytest.mark.parametrize("name", NAMES)
def test_a_word_that_a_border_cuts_is_written_without_a_space_before_its_rest(
    name: str,
) -> None:
    encode = made(name)
    crossed = 0
    for above, below in itertools.product(
        ["Ques", "wh", "capit", "e", "\n", "is\n"], ["tion", "at", "al", "s?", "\n"]
    ):
        alone, both = (
            encode(text, add_special_tokens=False)["input_ids"]
            for text in (above, above + below)
        )
        crossed += both[: len(alone)] != alone
        prompt = PromptHierarchy.from_text(
            [(PUBLIC, above), (PRIVATE, below)], made(name)
        )
        assert decoded(name, prompt.tokens) == above + below

    assert crossed  # Or this test shows nothing.


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=30, deadline=None)
@given(public=texts, one=texts, other=texts)
def test_public_tokens_are_the_same_whatever_the_group_text(
    name: str, public: str, one: str, other: str
) -> None:
    first, second = (
        PromptHierarchy.from_text(
            [(PUBLIC, public), (GROUP, text), (PRIVATE, "what?")], made(name)
        )
        for text in (one, other)
    )

    assert _public(first) == _public(second)


def _public(prompt: PromptHierarchy) -> list[Segment]:
    return [s for s in prompt.segments if s.level == PUBLIC]


def test_one_piece_has_the_tokens_that_the_tokenizer_gives_it() -> None:
    for name in NAMES:
        text = "Question: what is the capital?\nAnswer: "
        prompt = PromptHierarchy.from_text([(PUBLIC, text)], made(name))

        ids = made(name)(text)["input_ids"]
        assert prompt.tokens == tuple(ids[:-1] if "wrapped" in name else ids)


def test_a_space_goes_to_the_word_behind_it() -> None:
    for name in NAMES:
        prompt = PromptHierarchy.from_text(
            [(PUBLIC, "Question: "), (GROUP, ""), (PRIVATE, "what is")], made(name)
        )

        assert decoded(name, prompt.segments[0].tokens) == "Question:"
        ids = made(name)("Question: what is")["input_ids"]
        assert prompt.tokens == tuple(ids[:-1] if "wrapped" in name else ids)
        assert [s.level for s in prompt.segments] == [PUBLIC, PRIVATE]


def test_a_newline_stays_where_it_is() -> None:
    for name in NAMES:
        prompt = PromptHierarchy.from_text(
            [(PUBLIC, "Question:\n"), (PRIVATE, "\nwhat")], made(name)
        )

        assert decoded(name, prompt.segments[0].tokens) == "Question:\n"


def test_special_tokens_open_the_first_segment_and_close_none() -> None:
    tokenizer = made("byte-level, wrapped")
    pieces = [(PUBLIC, ""), (PUBLIC, "Question"), (GROUP, ": why"), (PRIVATE, "?")]

    prompt = PromptHierarchy.from_text(pieces, tokenizer)

    assert prompt.segments[0].tokens[0] == BOS
    assert prompt.tokens.count(BOS) == 1
    assert EOS not in prompt.tokens
    assert [s.level for s in prompt.segments] == [PUBLIC, GROUP, PRIVATE]


def test_a_first_word_that_is_special_itself_is_kept() -> None:
    prompt = PromptHierarchy.from_text(
        [(PUBLIC, "<s>"), (PRIVATE, "</s>")], made("byte-level, wrapped")
    )

    assert [s.tokens for s in prompt.segments] == [(BOS, BOS), (EOS,)]


def test_an_unknown_token_does_not_swallow_what_is_behind_the_border() -> None:
    tokenizer = made("unigram")
    joined = tokenizer("why☃☃", add_special_tokens=False)["input_ids"]
    assert joined.count(tokenizer.unk_token_id) == 1

    prompt = PromptHierarchy.from_text([(PUBLIC, "why☃"), (PRIVATE, "☃")], tokenizer)

    assert [s.level for s in prompt.segments] == [PUBLIC, PRIVATE]
    assert prompt.private_tokens[-1] == tokenizer.unk_token_id


def test_a_combining_letter_does_not_change_the_one_before_it() -> None:
    backend = byte_level()
    backend.normalizer = normalizers.NFC()
    tokenizer = wrapped(backend)
    accents = [
        PromptHierarchy.from_text([(PUBLIC, "e"), (PRIVATE, text)], tokenizer)
        for text in ("\u0301", "\u0300")
    ]

    assert accents[0].shared == accents[1].shared
    assert decoded("byte-level", accents[0].shared[0].tokens) == "e"
    assert accents[0].private_tokens != accents[1].private_tokens


def test_a_tokenizer_that_was_told_to_cut_and_pad_cuts_and_pads_nothing() -> None:
    tokenizer = wrapped(byte_level())
    tokenizer.backend_tokenizer.enable_truncation(3)
    tokenizer.backend_tokenizer.enable_padding(length=64)

    prompt = PromptHierarchy.from_text(
        [(PUBLIC, "Zebra\nZoo"), (GROUP, "?")], tokenizer
    )

    assert decoded("byte-level", prompt.tokens) == "Zebra\nZoo?"
    assert 3 < len(prompt) < 64


def test_levels_may_be_named() -> None:
    prompt = PromptHierarchy.from_text(
        [("public", "a"), ("GROUP", "b"), (GROUP, "b"), ("Private", "c")],
        made("shipped"),
    )

    assert [s.level for s in prompt.segments] == [PUBLIC, GROUP, GROUP, PRIVATE]


@pytest.mark.parametrize(
    ("pieces", "error"),
    [
        ([(PUBLIC, "a"), (PRIVATE, "b"), (GROUP, "c")], "Piece 2 is GROUP behind a P"),
        ([("secret", "a")], "level='secret' of piece 0 .* PUBLIC, GROUP, PRIVATE"),
        ([(3, "a")], "level=3 of piece 0"),
        ([(PUBLIC, ""), (PRIVATE, "")], "All 2 pieces of the prompt are empty"),
        ([], "All 0 pieces"),
        (
            [(PUBLIC, "ok"), (PRIVATE, "ab\ud800c")],
            "Piece 1 .* surrogate at character 2",
        ),
    ],
)
def test_bad_pieces_are_named(pieces: list[tuple[Any, str]], error: str) -> None:
    with pytest.raises(InvalidInputError, match=error) as raised:
        PromptHierarchy.from_text(pieces, made("shipped"))

    assert raised.value.__cause__ is raised.value.__context__ is None


# What a detector moves.


def from_sensitive(
    pieces: list[tuple[Level | str, str]], detector: Any
) -> list[tuple[Level, str]]:
    prompt = PromptHierarchy.from_text(pieces, made("shipped"), detector=detector)
    return [(s.level, decoded("shipped", s.tokens)) for s in prompt.segments]


def test_from_a_sensitive_span_on_all_is_private() -> None:
    assert from_sensitive(
        [
            (PUBLIC, "Dear "),
            (GROUP, "write to a@b.io or"),
            (GROUP, " not"),
            (PRIVATE, "!"),
        ],
        RuleDetector(),
    ) == [
        (PUBLIC, "Dear"),
        (GROUP, " write to"),
        (PRIVATE, " a@b.io or"),
        (PRIVATE, " not"),
        (PRIVATE, "!"),
    ]


def test_a_span_across_two_pieces_is_found() -> None:
    assert from_sensitive(
        [(PUBLIC, "card 4111 1111"), (GROUP, " 1111 1111"), (GROUP, ".")],
        RuleDetector(),
    ) == [
        (PUBLIC, "card"),
        (PRIVATE, " 4111 1111"),
        (PRIVATE, " 1111 1111"),
        (PRIVATE, "."),
    ]


@pytest.mark.parametrize(
    ("begin", "levels"),
    [(0, [PRIVATE] * 2), (2, [PUBLIC, PRIVATE]), (3, [PUBLIC, GROUP, PRIVATE])],
)
def test_a_span_may_begin_where_a_piece_does(begin: int, levels: list[Level]) -> None:
    found = from_sensitive(
        [(PUBLIC, "ab"), (GROUP, "cd")], lambda _: [Span(begin, begin + 1, "x")]
    )

    assert [level for level, _ in found] == levels
    assert "".join(text for _, text in found) == "abcd"


def test_nothing_found_changes_nothing() -> None:
    pieces: list[tuple[Level | str, str]] = [(PUBLIC, "a "), (PRIVATE, "b")]

    assert from_sensitive(pieces, RuleDetector()) == from_sensitive(pieces, None)


def test_a_detector_is_not_shown_what_is_private() -> None:
    shown = []

    def look(text: str) -> list[Span]:
        shown.append(text)
        return []

    from_sensitive([(PUBLIC, "see "), (GROUP, "here"), (PRIVATE, "a@b.io")], look)

    assert shown == ["see here"]


def test_what_was_moved_is_logged_without_its_text(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.INFO, "flower_ext"):
        from_sensitive([(PUBLIC, "write to jane@doe.example")], RuleDetector())

    assert "(email, at characters 9 to 25)" in caplog.text
    assert "jane" not in caplog.text


# Segments and prompts as such.


@pytest.mark.parametrize("tokens", [(), (3, -1), (1.0,), ("a",)])
def test_a_segment_has_token_ids(tokens: tuple[Any, ...]) -> None:
    with pytest.raises(InvalidInputError, match="at least one and none negative"):
        Segment(tokens, PUBLIC)


def test_levels_only_descend() -> None:
    with pytest.raises(InvalidInputError, match="A PUBLIC segment cannot follow a GRO"):
        PromptHierarchy([Segment([1], GROUP), Segment([2], PUBLIC)])
    with pytest.raises(InvalidInputError, match="got none"):
        PromptHierarchy([])


def test_a_prompt_knows_its_parts() -> None:
    prompt = PromptHierarchy(
        [Segment([1, 2], PUBLIC), Segment([3], GROUP), Segment([4, 5], PRIVATE)]
    )

    assert prompt.shared == prompt.segments[:2]
    assert prompt.private_tokens == (4, 5)
    assert prompt.tokens == (1, 2, 3, 4, 5)
    assert len(prompt) == 5


def test_a_private_segment_does_not_show_its_tokens() -> None:
    assert repr(Segment([70707], PRIVATE)) == "Segment(1 tokens, PRIVATE)"
    prompt = PromptHierarchy([Segment([70707], PRIVATE)])
    assert "70707" not in repr(prompt)
