"""Prompts as chains of segments, from what all may see down to what stays at home.

Implementation based on https://arxiv.org/abs/2504.11729 (the hierarchy of cloud, edge
and device).
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

from transformers import PreTrainedTokenizerBase

from flower_ext.edgeprompt.detectors import Detector, Span, first_sensitive
from flower_ext.edgeprompt.tokenization import render_chat, tokenize_pieces
from flower_ext.errors import InvalidInputError

__all__ = ["Level", "PromptHierarchy", "Segment"]

_LOGGER = logging.getLogger(__name__)


class Level(IntEnum):
    """Who may see a segment; a prompt's levels only descend."""

    PUBLIC = 0
    """Everybody: the cloud computes its KV once."""
    GROUP = 1
    """The tenant, and the edge that serves it."""
    PRIVATE = 2
    """Nobody but the device."""


@dataclass(frozen=True)
class Segment:
    """A run of tokens of one level.

    Parameters
    ----------
    tokens : Sequence[int]
        Ids of the model's tokenizer, at least one.
    level : Level
        Who may see them.

    Raises
    ------
    InvalidInputError
        If there is no token, or one is negative or no integer.
    """

    tokens: tuple[int, ...]
    level: Level

    def __init__(self, tokens: Iterable[int], level: Level) -> None:
        found = tuple(tokens)
        if not found or not all(isinstance(t, int) and t >= 0 for t in found):
            raise InvalidInputError(
                "A segment needs token ids, at least one and none negative, got "
                f"{len(found)} of them: leave empty segments out."
            )
        object.__setattr__(self, "tokens", found)
        object.__setattr__(self, "level", Level(level))

    def __len__(self) -> int:
        """Return the number of tokens."""
        return len(self.tokens)

    def __repr__(self) -> str:
        """Say what it is, without what a private one holds."""
        return f"Segment({len(self)} tokens, {self.level.name})"


@dataclass(frozen=True)
class PromptHierarchy:
    """A prompt: segments in their order, whose levels only descend.

    Parameters
    ----------
    segments : Sequence[Segment]
        At least one.

    Raises
    ------
    InvalidInputError
        If there is none, or one may be seen by more than the one before it.
    """

    segments: tuple[Segment, ...]

    def __init__(self, segments: Sequence[Segment]) -> None:
        found = tuple(segments)
        if not found:
            raise InvalidInputError("A prompt needs a segment at least, got none.")
        for above, below in itertools.pairwise(found):
            if below.level < above.level:
                raise InvalidInputError(
                    f"A {below.level.name} segment cannot follow a {above.level.name} "
                    "one, as its KV depends on all that is before it: order segments "
                    "from PUBLIC over GROUP to PRIVATE."
                )
        object.__setattr__(self, "segments", found)

    @classmethod
    def from_text(
        cls,
        pieces: Sequence[tuple[Level | str, str]],
        tokenizer: PreTrainedTokenizerBase,
        *,
        detector: Detector | Callable[[str], Sequence[Span]] | None = None,
    ) -> PromptHierarchy:
        """Tokenise a prompt that comes as text.

        The tokens of a piece depend on its text and that of the pieces before it, and
        on nothing behind it: no segment's border is inside a token. Special tokens that
        the tokenizer writes before a text belong to the first segment; those that it
        writes behind one are left out. A piece that another one follows, be it empty,
        hands the spaces at its end on to that one, as vocabularies join them with the
        next word; so close a prompt with a private piece even when there is nothing
        private to say, or its last shared tokens tell that.

        Parameters
        ----------
        pieces : Sequence[tuple[Level, str]]
            Levels, or their names, and texts; the levels only descend. Each piece makes
            a segment, but for empty ones.
        tokenizer : PreTrainedTokenizerBase
            The model's.
        detector : Detector or callable | None (default: None)
            What looks for sensitive spans in the public and group pieces' text, put
            together. Everything from the beginning of the first one on becomes private,
            which is logged at INFO with the span's kind and position. It is not shown
            private pieces. How much stays shared follows from all of the shared text.

        Returns
        -------
        PromptHierarchy
            The tokens of its segments, decoded together, are the text (if the
            tokenizer's own are).

        Raises
        ------
        InvalidInputError
            If a level is unknown or out of order, all pieces are empty, a text has
            lone surrogates, or the tokenizer or the detector is none.
        """
        levels = _descending([level for level, _ in pieces], "piece")
        texts = [text for _, text in pieces]
        return cls._from_levels(levels, texts, tokenizer, detector, True)

    @classmethod
    def from_chat(
        cls,
        messages: Sequence[Mapping[str, Any]],
        tokenizer: PreTrainedTokenizerBase,
        *,
        detector: Detector | Callable[[str], Sequence[Span]] | None = None,
        add_generation_prompt: bool = True,
    ) -> PromptHierarchy:
        """Render a chat with the tokenizer's template, and tokenise it.

        A message's piece is what it adds to the rendered messages before it. What opens
        the answer is a piece of the last message's level. No special tokens are added
        to those that the template writes. For the rest see :meth:`from_text`.

        Parameters
        ----------
        messages : Sequence[Mapping[str, Any]]
            As ``tokenizer.apply_chat_template`` takes them, each with a further key
            ``"level"``: a level or its name; a message without one is private.
        tokenizer : PreTrainedTokenizerBase
            The model's, with a chat template.
        detector : Detector or callable | None (default: None)
            As in :meth:`from_text`; it is shown the shared messages as rendered.
        add_generation_prompt : bool (default: True)
            Whether the template opens the answer.

        Returns
        -------
        PromptHierarchy
            Of one segment per message that adds something, and the opened answer.

        Raises
        ------
        InvalidInputError
            As :meth:`from_text`; also if there is no message or no template, or the
            template cannot render the first messages without those behind them, or
            renders them otherwise then.
        """
        levels = _descending(
            [message.get("level", Level.PRIVATE) for message in messages], "message"
        )
        texts = render_chat(
            [{k: v for k, v in m.items() if k != "level"} for m in messages],
            tokenizer,
            add_generation_prompt=add_generation_prompt,
        )
        levels.append(levels[-1])
        return cls._from_levels(levels, texts, tokenizer, detector, False)

    @classmethod
    def _from_levels(
        cls,
        levels: Sequence[Level],
        texts: Sequence[str],
        tokenizer: PreTrainedTokenizerBase,
        detector: Detector | Callable[[str], Sequence[Span]] | None,
        special_tokens: bool,
    ) -> PromptHierarchy:
        """Tokenise pieces whose levels are in order."""
        pieces = list(zip(levels, texts, strict=True))
        if detector is not None:
            pieces = _without_sensitive(pieces, detector)
        tokens = tokenize_pieces(
            [text for _, text in pieces], tokenizer, special_tokens=special_tokens
        )
        segments = [
            Segment(found, level)
            for (level, _), found in zip(pieces, tokens, strict=True)
            if found
        ]
        if not segments:
            raise InvalidInputError(
                f"All {len(pieces)} pieces of the prompt are empty: give it some text."
            )
        return cls(segments)

    @property
    def shared(self) -> tuple[Segment, ...]:
        """The public and group segments."""
        return tuple(s for s in self.segments if s.level < Level.PRIVATE)

    @property
    def private_tokens(self) -> tuple[int, ...]:
        """The tokens of the private segments."""
        return tuple(
            t for s in self.segments if s.level == Level.PRIVATE for t in s.tokens
        )

    @property
    def tokens(self) -> tuple[int, ...]:
        """All tokens."""
        return tuple(t for s in self.segments for t in s.tokens)

    def __len__(self) -> int:
        """Return the number of tokens."""
        return sum(len(s) for s in self.segments)


def _descending(levels: Sequence[Level | str], what: str) -> list[Level]:
    """Read levels, and see that they only descend."""
    found: list[Level] = []
    for index, level in enumerate(levels):
        if isinstance(level, str) and level.upper() in Level.__members__:
            found.append(Level[level.upper()])
        elif isinstance(level, Level):
            found.append(level)
        else:
            raise InvalidInputError(
                f"level={level!r} of {what} {index} is none: choose from "
                f"{', '.join(Level.__members__)}."
            )
        if index and found[index] < found[index - 1]:
            raise InvalidInputError(
                f"{what.capitalize()} {index} is {found[index].name} behind a "
                f"{found[index - 1].name} one, and its KV would depend on that: put it "
                "further up, or make it as private as what is before it."
            )
    return found


def _without_sensitive(
    pieces: Sequence[tuple[Level, str]],
    detector: Detector | Callable[[str], Sequence[Span]],
) -> list[tuple[Level, str]]:
    """Make everything private from the first sensitive span of the shared text on."""
    shared = "".join(text for level, text in pieces if level < Level.PRIVATE)
    span = first_sensitive(shared, detector)
    if span is None:
        return list(pieces)
    _LOGGER.info(
        "The shared text of a prompt holds something sensitive (%s, at characters %d "
        "to %d): it is private from there on.",
        span.kind,
        span.begin,
        span.end,
    )
    cut: list[tuple[Level, str]] = []
    left = span.begin
    for level, text in pieces:
        if left > 0:
            cut.append((level, text[:left]))
        if left < len(text):
            cut.append((Level.PRIVATE, text[max(0, left) :]))
        left -= len(text)
    return cut
