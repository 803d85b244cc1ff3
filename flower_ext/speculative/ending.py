"""When a text is over: its length, a token that ends it, or a string."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch
from transformers import PreTrainedTokenizerBase, StopStringCriteria

from flower_ext.errors import InvalidInputError
from flower_ext.speculative.generation import FinishReason

__all__ = ["Ending"]

_WINDOW = 64  # Tokens looked at: what a stop string may span.


class Ending:
    """Tells when a text is over.

    Parameters
    ----------
    max_new_tokens : int
        The most tokens, at least 1.
    eos_token_ids : Collection[int]
        Tokens that end it; they belong to the text.
    stop_strings : str | Sequence[str]
        Strings that end it, with the token that completes them (as transformers'
        ``stop_strings``).
    tokenizer : PreTrainedTokenizerBase | None
        Needed for stop strings.

    Raises
    ------
    InvalidInputError
        If ``max_new_tokens`` is below 1, a stop string is empty or there is no
        tokenizer for them.
    """

    def __init__(
        self,
        max_new_tokens: int,
        eos_token_ids: Collection[int],
        stop_strings: str | Sequence[str],
        tokenizer: PreTrainedTokenizerBase | None,
    ) -> None:
        if isinstance(max_new_tokens, bool) or not isinstance(max_new_tokens, int):
            raise InvalidInputError(
                f"max_new_tokens must be an int, got {max_new_tokens!r}."
            )
        if max_new_tokens < 1:
            raise InvalidInputError(
                f"max_new_tokens must be at least 1, got {max_new_tokens}."
            )
        self.max_new_tokens = max_new_tokens
        self.eos_token_ids = frozenset(eos_token_ids)
        strings = [stop_strings] if isinstance(stop_strings, str) else [*stop_strings]
        self._criteria: StopStringCriteria | None = None
        if strings:
            if not all(strings):
                raise InvalidInputError("stop_strings must not be empty strings.")
            if tokenizer is None:
                raise InvalidInputError(
                    f"stop_strings {strings} need the tokenizer: pass tokenizer=..."
                )
            self._criteria = StopStringCriteria(tokenizer, strings)

    def reason(self, generated: Sequence[int]) -> FinishReason | None:
        """Return why a text is over with its last token, if it is.

        Parameters
        ----------
        generated : Sequence[int]
            The generated tokens, at least one.
        """
        if generated[-1] in self.eos_token_ids:
            return "eos"
        if self._criteria is not None:
            ids = torch.tensor([list(generated[-_WINDOW:])])
            if bool(self._criteria(ids, None)):
                return "stop-string"
        if len(generated) >= self.max_new_tokens:
            return "length"
        return None
