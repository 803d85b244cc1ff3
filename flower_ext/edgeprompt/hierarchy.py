"""Prompts as chains of segments, from what all may see down to what stays at home.

Implementation based on https://arxiv.org/abs/2504.11729 (the hierarchy of cloud, edge
and device).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import IntEnum

from flower_ext.errors import InvalidInputError

__all__ = ["Level", "PromptHierarchy", "Segment"]


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
