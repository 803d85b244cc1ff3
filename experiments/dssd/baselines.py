"""What speculative decoding over a link is held against: all of it in one place."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from transformers import GenerationConfig, PreTrainedModel

from flower_ext.speculative import KeyedChoices, LanguageModel, Purpose, Row, Sampling

__all__ = ["ASSISTANCE", "Assistance", "alone", "assisted"]


def alone(
    model: LanguageModel,
    prompt: Sequence[int],
    tokens: int,
    sampling: Sampling,
    seed: int,
) -> list[int]:
    """Generate with one model, token by token on its cache; return the new tokens."""
    cache, choices = model.new_cache(), KeyedChoices(seed)
    new, generated = list(prompt), []
    for position in range(tokens):
        logits = model.extend([Row(cache, new, keep=1)])[0]
        weights = sampling.probabilities(logits)[0]
        new = [choices.draw(weights, position, Purpose.BONUS)]
        generated += new
    return generated


@dataclass(frozen=True)
class Assistance:
    """Settings of transformers' assisted generation.

    Parameters
    ----------
    tokens : int
        The longest draft (``num_assistant_tokens``).
    schedule : str
        ``"constant"`` or ``"heuristic"``: longer after an accepted draft, else shorter.
    confidence : float
        The drafter stops below this probability (``assistant_confidence_threshold``);
        0: never.
    """

    tokens: int
    schedule: str
    confidence: float

    def __str__(self) -> str:
        """Return a short name."""
        return f"{self.schedule} {self.tokens}, confidence {self.confidence:g}"


# Transformers' own defaults come first.
ASSISTANCE = (
    Assistance(20, "constant", 0.4),
    Assistance(4, "constant", 0.0),
    Assistance(8, "constant", 0.0),
    Assistance(12, "constant", 0.0),
    Assistance(16, "constant", 0.0),
    Assistance(20, "constant", 0.0),
    Assistance(5, "heuristic", 0.0),
)


def assisted(
    target: PreTrainedModel,
    draft: PreTrainedModel,
    prompt: Sequence[int],
    tokens: int,
    sampling: Sampling,
    seed: int,
    settings: Assistance,
) -> list[int]:
    """Generate with transformers' assisted generation; return the new tokens.

    Both models must be :func:`dssd.models.without_end`.
    """
    config = draft.generation_config
    config.num_assistant_tokens = settings.tokens
    config.num_assistant_tokens_schedule = settings.schedule
    config.assistant_confidence_threshold = settings.confidence
    options: dict[str, object] = {"do_sample": False}
    if not sampling.greedy:
        options = {
            "do_sample": True,
            "temperature": sampling.temperature,
            "top_k": sampling.top_k,
            "top_p": sampling.top_p,
            "min_p": sampling.min_p or None,
        }
    torch.manual_seed(seed)
    ids = torch.tensor([list(prompt)], device=target.device)
    found = target.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        generation_config=GenerationConfig(
            max_new_tokens=tokens, pad_token_id=0, **options
        ),
        assistant_model=draft,
    )
    generated: list[int] = found[0, len(prompt) :].tolist()
    return generated
