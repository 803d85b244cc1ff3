"""Tokens of a text that comes in pieces, none of which can change those before it.

A tokenizer looks ahead: it may join the last letters of one piece with the first of the
next. Here the tokens of a piece are settled by the text up to its end alone, so that
those of a shared piece tell nothing of what follows it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from flower_ext.errors import InvalidInputError

__all__ = ["render_chat", "tokenize_pieces"]

# What a piece is put behind where it cannot be read together with the text before it:
# tokenizers that write a space before a text's first word then write none before the
# piece. None of these suits every vocabulary, as it may hold their joins with a piece.
_ANCHORS = ("\n", "a\n", "0", ":", "a")

# Any text that no special token is part of.
_PROBE = "a"


def tokenize_pieces(
    texts: Sequence[str],
    tokenizer: PreTrainedTokenizerBase,
    *,
    special_tokens: bool = True,
) -> list[tuple[int, ...]]:
    """Tokenise a text piece by piece.

    The text up to a piece's end is tokenised as a whole; the tokens behind those of the
    pieces before it are the piece's own. Where the whole does not begin with them, as
    some token would cross the border, the piece is tokenised by itself. Either way no
    token depends on a piece after its own. Spaces at the end of a piece that another
    one follows, be it empty, go to the following one: vocabularies join a space with
    the word behind it.

    Parameters
    ----------
    texts : Sequence[str]
        The pieces in their order; any may be empty.
    tokenizer : PreTrainedTokenizerBase
        The model's.
    special_tokens : bool (default: True)
        Whether the special tokens that the tokenizer writes before a text come before
        the first piece that is not empty. Those that it writes behind one are left out.

    Returns
    -------
    list[tuple[int, ...]]
        The tokens of each piece; none where it is empty.

    Raises
    ------
    InvalidInputError
        If a piece cannot be written in UTF-8, or it cannot be told which special tokens
        the tokenizer writes before a text.
    """
    opening = _opening(tokenizer) if special_tokens else ()
    context = ""
    tokens: list[tuple[int, ...]] = []
    spaces = ""
    for index, text in enumerate(texts):
        _check_text(index, text)
        piece = spaces + text
        spaces = ""
        if index < len(texts) - 1:
            kept = piece.rstrip(" ")
            spaces = piece[len(kept) :]
            piece = kept
        if not piece:
            tokens.append(())
            continue
        context, found = _following(tokenizer, context, piece)
        tokens.append((*opening, *found))
        opening = ()
    return tokens


def render_chat(
    messages: Sequence[Mapping[str, Any]],
    tokenizer: PreTrainedTokenizerBase,
    *,
    add_generation_prompt: bool = True,
) -> list[str]:
    """Render a chat with the tokenizer's template, message by message.

    Parameters
    ----------
    messages : Sequence[Mapping[str, Any]]
        As ``apply_chat_template`` takes them, without further keys.
    tokenizer : PreTrainedTokenizerBase
        One that has a chat template.
    add_generation_prompt : bool (default: True)
        Whether the template opens the answer.

    Returns
    -------
    list[str]
        What each message adds to the text, and last what opens the answer (maybe
        empty).

    Raises
    ------
    InvalidInputError
        If there is no message or no template, the template cannot render the first
        messages without the others, or it renders them otherwise then.
    """
    if not messages:
        raise InvalidInputError("A chat needs a message at least, got none.")
    if not tokenizer.chat_template:
        raise InvalidInputError(
            f"{type(tokenizer).__name__} has no chat template: set "
            "tokenizer.chat_template, or use PromptHierarchy.from_text."
        )
    rendered = [
        _render(messages[:count], tokenizer, add_generation_prompt=False)
        for count in range(1, len(messages) + 1)
    ]
    rendered.append(
        _render(messages, tokenizer, add_generation_prompt=add_generation_prompt)
    )
    before = ""
    pieces = []
    for index, text in enumerate(rendered):
        if not text.startswith(before):
            raise InvalidInputError(
                f"The chat template renders messages 0 to {index - 1} otherwise when "
                f"{'others follow' if index < len(messages) else 'it opens the answer'}"
                ", so their tokens would depend on what comes after them: use another "
                "template, or PromptHierarchy.from_text."
            )
        pieces.append(text[len(before) :])
        before = text
    return pieces


def _render(
    messages: Sequence[Mapping[str, Any]],
    tokenizer: PreTrainedTokenizerBase,
    *,
    add_generation_prompt: bool,
) -> str:
    """Return a chat as text."""
    try:
        text = tokenizer.apply_chat_template(
            [dict(m) for m in messages],
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
        )
    except Exception as error:  # A template is a program, and may raise anything.
        raise InvalidInputError(
            f"The chat template cannot render messages 0 to {len(messages) - 1} by "
            f"themselves ({type(error).__name__}): see to what it asks of roles and "
            "their order, use another template, or PromptHierarchy.from_text."
        ) from error
    return str(text)


def _following(
    tokenizer: PreTrainedTokenizerBase, context: str, piece: str
) -> tuple[str, list[int]]:
    """Return the tokens of a piece, and the context that the next one is read in."""
    for before in (context, *_ANCHORS):
        settled = _encode(tokenizer, before)
        whole = _encode(tokenizer, before + piece)
        if whole[: len(settled)] != settled:
            continue
        # One unknown token may stand for letters on both sides of the border.
        if settled and settled[-1] == tokenizer.unk_token_id:
            continue
        return before + piece, whole[len(settled) :]
    return piece, _encode(tokenizer, piece)


def _encode(
    tokenizer: PreTrainedTokenizerBase, text: str, *, special_tokens: bool = False
) -> list[int]:
    """Return all tokens of a text, however the tokenizer was told to cut and pad."""
    if not text and not special_tokens:
        return []
    ids: list[int] = tokenizer(
        text,
        add_special_tokens=special_tokens,
        padding=False,
        truncation=False,
        verbose=False,
    )["input_ids"]
    return ids


def _opening(tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """Return the special tokens that a tokenizer writes before a text."""
    bare = _encode(tokenizer, _PROBE)
    whole = _encode(tokenizer, _PROBE, special_tokens=True)
    for begin in range(len(whole) - len(bare) + 1):
        if whole[begin : begin + len(bare)] == bare:
            return tuple(whole[:begin])
    raise InvalidInputError(
        f"{type(tokenizer).__name__} tokenises a text otherwise when it adds special "
        "tokens, so it cannot be told which come before the text: set "
        "tokenizer.add_bos_token and add_eos_token to False, or write them out."
    )


def _check_text(index: int, text: str) -> None:
    """Refuse what has no UTF-8, without repeating it."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        # The error holds the text, and must not be chained.
        where = error.start
    else:
        return
    raise InvalidInputError(
        f"Piece {index} has a lone surrogate at character {where}, which no UTF-8 text "
        "can: decode the text with errors='replace' where it is read."
    )
