"""Prompts from chats: a message's tokens are settled without those behind it."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
from hypothesis import given, settings
from transformers import PreTrainedTokenizerFast

from flower_ext.edgeprompt.detectors import Span
from flower_ext.edgeprompt.hierarchy import Level, PromptHierarchy
from flower_ext.errors import InvalidInputError
from tests.edgeprompt.texts import BOS, EOS, byte_level, texts, wrapped

PUBLIC, GROUP, PRIVATE = Level

TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}\n"
    "{% endfor %}{% if add_generation_prompt %}<answer>{% endif %}"
)
CHAT: list[dict[str, Any]] = [
    {"role": "system", "content": "the question is", "level": "public"},
    {"role": "user", "content": "where", "level": GROUP},
    {"role": "user", "content": "why"},
]


def chatty(template: str = TEMPLATE) -> PreTrainedTokenizerFast:
    tokenizer = wrapped(byte_level(wrap=True))
    tokenizer.chat_template = template
    return tokenizer


def chat_of(prompt: PromptHierarchy, tokenizer: Any) -> list[tuple[Level, str]]:
    return [(s.level, tokenizer.decode(list(s.tokens))) for s in prompt.segments]


def test_each_message_is_a_segment_and_so_is_what_opens_the_answer() -> None:
    tokenizer = chatty()

    assert chat_of(PromptHierarchy.from_chat(CHAT, tokenizer), tokenizer) == [
        (PUBLIC, "<s><system>the question is\n"),
        (GROUP, "<user>where\n"),
        (PRIVATE, "<user>why\n"),
        (PRIVATE, "<answer>"),
    ]
    closed = PromptHierarchy.from_chat(CHAT, tokenizer, add_generation_prompt=False)
    assert closed.segments == PromptHierarchy.from_chat(CHAT, tokenizer).segments[:-1]


def test_a_chat_begins_with_one_special_token_and_ends_with_none() -> None:
    prompt = PromptHierarchy.from_chat(CHAT, chatty())

    assert prompt.tokens[0] == BOS
    assert prompt.tokens.count(BOS) == 1
    assert EOS not in prompt.tokens


def test_templates_are_not_shown_levels() -> None:
    tokenizer = chatty("{% for m in messages %}{{ m.keys() | list }}{% endfor %}")

    prompt = PromptHierarchy.from_chat(CHAT[:1], tokenizer)

    assert tokenizer.decode(list(prompt.tokens)) == "['role', 'content']"


@settings(max_examples=40, deadline=None)
@given(one=texts, other=texts)
def test_a_chats_shared_tokens_are_the_same_whatever_the_private_message(
    one: str, other: str
) -> None:
    tokenizer = _chatty_once()
    first, second = (
        PromptHierarchy.from_chat(
            [*CHAT[:2], {"role": "user", "content": text}], tokenizer
        )
        for text in (one, other)
    )

    assert first.shared == second.shared
    assert len(first.shared) == 2


@cache
def _chatty_once() -> PreTrainedTokenizerFast:
    return chatty()


def test_a_detector_is_shown_the_shared_messages_as_rendered() -> None:
    tokenizer = chatty()
    shown = []

    def look(text: str) -> list[Span]:
        shown.append(text)
        return [Span(text.index("where"), text.index("where") + 5, "place")]

    prompt = PromptHierarchy.from_chat(CHAT, tokenizer, detector=look)

    assert shown == ["<s><system>the question is\n<user>where\n"]
    assert chat_of(prompt, tokenizer) == [
        (PUBLIC, "<s><system>the question is\n"),
        (GROUP, "<user>"),
        (PRIVATE, "where\n"),
        (PRIVATE, "<user>why\n"),
        (PRIVATE, "<answer>"),
    ]


ENDED = (
    "{% for m in messages %}{{ m.content }}{% if loop.last %}.{% endif %}{% endfor %}"
)
COUNTED = "{{ messages | length }}"
PICKY = "{% if messages[2].content %}ok{% endif %}"
REOPENED = "{% if add_generation_prompt %}?{% else %}!{% endif %}"


@pytest.mark.parametrize(
    ("template", "error"),
    [
        (ENDED, "renders messages 0 to 0 otherwise when others follow"),
        (COUNTED, "renders messages 0 to 0 otherwise when others follow"),
        (PICKY, r"cannot render messages 0 to 0 by themselves \(UndefinedError\)"),
        (REOPENED, "renders messages 0 to 2 otherwise when it opens the answer"),
        ("", "has no chat template"),
    ],
)
def test_templates_that_do_not_render_message_by_message_are_named(
    template: str, error: str
) -> None:
    with pytest.raises(InvalidInputError, match=error):
        PromptHierarchy.from_chat(CHAT, chatty(template))


def test_a_message_without_a_level_is_private() -> None:
    chat = [{"role": "system", "content": "be kind"}, CHAT[0]]

    with pytest.raises(InvalidInputError, match="Message 1 is PUBLIC behind a PRIVATE"):
        PromptHierarchy.from_chat(chat, chatty())
    assert PromptHierarchy.from_chat(chat[:1], chatty()).shared == ()


def test_a_chat_has_a_message() -> None:
    with pytest.raises(InvalidInputError, match="at least, got none"):
        PromptHierarchy.from_chat([], chatty())
