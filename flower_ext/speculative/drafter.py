"""The device's side: a small model that drafts, and takes back what is rejected."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from transformers import PreTrainedModel

from flower_ext.errors import FlowerExtError, InvalidInputError
from flower_ext.speculative.choices import Choices, Purpose
from flower_ext.speculative.language_model import (
    LanguageModel,
    Row,
    TransformersModel,
    as_language_model,
)
from flower_ext.speculative.sampling import Probabilities, Sampling

__all__ = ["Drafter", "Drafting", "check_prompt"]


class Drafter:
    """A model that drafts.

    Parameters
    ----------
    model : PreTrainedModel | LanguageModel
        The small model.
    vocab_size : int | None (default: None)
        The ids that the verifier's model has too, where one of the two is padded to a
        larger vocabulary; None: all of the model's.

    Raises
    ------
    InvalidInputError
        If the model's cache cannot be rolled back.
    """

    def __init__(
        self, model: PreTrainedModel | LanguageModel, vocab_size: int | None = None
    ) -> None:
        self.model = as_language_model(model, vocab_size)

    @property
    def vocab_size(self) -> int:
        """The ids it drafts from."""
        return self.model.vocab_size

    @property
    def positions_processed(self) -> int:
        """The positions its model has computed so far."""
        return self.model.positions_processed

    @property
    def max_length(self) -> int | None:
        """The most tokens of a text with its prompt, if the model has a limit."""
        model = self.model
        return model.max_length if isinstance(model, TransformersModel) else None

    @property
    def eos_token_ids(self) -> tuple[int, ...]:
        """The tokens that end a text, by the model's own configuration."""
        model = self.model
        return model.eos_token_ids if isinstance(model, TransformersModel) else ()

    def start(
        self, prompt_ids: Sequence[int], sampling: Sampling, choices: Choices
    ) -> Drafting:
        """Return the drafting of one text.

        Parameters
        ----------
        prompt_ids : Sequence[int]
            At least one id, each below ``vocab_size``.
        sampling : Sampling
            As the verifier's.
        choices : Choices
            As the verifier's.

        Raises
        ------
        InvalidInputError
            If an id is out of range.
        """
        return Drafting(
            self.model,
            check_prompt(prompt_ids, self.vocab_size),
            sampling,
            choices,
        )


class Drafting:
    """The drafting of one text: what is confirmed, and the draft that follows it.

    Attributes
    ----------
    prompt_length : int
        Tokens of the prompt.
    tokens : list[int]
        The prompt and the tokens confirmed.
    draft : list[int]
        Tokens drafted after them.
    drafted_from : list[numpy.ndarray]
        The distributions that they were drawn from, each of shape [vocabulary].
    """

    def __init__(
        self,
        model: LanguageModel,
        prompt: list[int],
        sampling: Sampling,
        choices: Choices,
    ) -> None:
        self._model = model
        self._cache = model.new_cache()
        self._sampling = sampling
        self._choices = choices
        self.prompt_length = len(prompt)
        self.tokens = prompt
        self.draft: list[int] = []
        self.drafted_from: list[Probabilities] = []

    @property
    def generated(self) -> int:
        """Tokens confirmed after the prompt: the position of the draft's first."""
        return len(self.tokens) - self.prompt_length

    def extend(self) -> int:
        """Draft one token more, and return it.

        The model computes the positions that it has not seen yet: one, as a rule.

        Raises
        ------
        FlowerExtError
            If what the model gives is not finite.
        """
        cached = self._cache.length
        confirmed = len(self.tokens)
        new = self.tokens[cached:] + self.draft[max(0, cached - confirmed) :]
        logits = self._model.extend([Row(self._cache, new, keep=1)])[0]
        drafted_from = self._sampling.probabilities(logits)[0]
        if not np.isfinite(drafted_from).all():
            raise FlowerExtError(
                "The drafter's logits are not finite: its weights are broken, as by a "
                "training that diverged, or its precision is too low for this text."
            )
        position = self.generated + len(self.draft)
        token = self._choices.draw(drafted_from, position, Purpose.DRAFT)
        self.draft.append(token)
        self.drafted_from.append(drafted_from)
        return token

    def confirm(self, count: int, token: int | None = None) -> None:
        """Confirm the first ``count`` drafted tokens.

        Parameters
        ----------
        count : int
            How many, at most all of the draft.
        token : int | None (default: None)
            What follows them instead of the rest of the draft, which is taken back;
            None: the rest stays drafted.
        """
        self.tokens += self.draft[:count]
        if token is None:
            self.draft = self.draft[count:]
            self.drafted_from = self.drafted_from[count:]
            return
        self._cache.roll_back(len(self.tokens))
        self.tokens.append(token)
        self.draft.clear()
        self.drafted_from.clear()


def check_prompt(prompt_ids: Sequence[int], vocab_size: int) -> list[int]:
    """Return the prompt as a list of ints.

    Raises
    ------
    InvalidInputError
        If it is empty or an id is out of range.
    """
    try:
        prompt = [int(token) for token in prompt_ids]
    except (TypeError, ValueError) as error:
        raise InvalidInputError(
            f"prompt_ids must be one list of token ids, without a batch dimension, got "
            f'{prompt_ids!r:.80}: tokenizer(text)["input_ids"] is one.'
        ) from error
    if not prompt:
        raise InvalidInputError(
            "prompt_ids must have at least one token: begin with the tokenizer's "
            "bos_token_id, or its eos_token_id where it has none."
        )
    for token in prompt:
        if not 0 <= token < vocab_size:
            raise InvalidInputError(
                f"prompt_ids must lie in [0, {vocab_size}), the vocabulary that both "
                f"models have, got {token}."
            )
    return prompt
