"""How the next token is drawn: one frozen description, applied alike on both sides."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from flower_ext.errors import InvalidInputError

__all__ = ["Probabilities", "Sampling"]

Probabilities = NDArray[np.float32]

_LEAST_TEMPERATURE = 1e-30

_NO_INPUT_IDS: Any = torch.zeros((1, 0), dtype=torch.long)  # Warpers look at none.


@dataclass(frozen=True)
class Sampling:
    """The warping of a model's logits into the distribution that is sampled from.

    Transformers' own warpers, in the order of its ``generate()``: temperature, top-k,
    top-p, min-p. What device and edge call Q and P are the distributions *after* them.

    Parameters
    ----------
    temperature : float (default: 1.0)
        Divides the logits: finite, and 0 or at least 1e-30; 0.5 to 1 for text. 0 is
        greedy: all probability is on the likeliest token, the first of equals.
    top_k : int (default: 0)
        Keep the k likeliest tokens, and those as likely as the last of them; 0 keeps
        all. 20 to 100 for text.
    top_p : float (default: 1.0)
        Keep the fewest tokens that have this probability together, in (0, 1].
    min_p : float (default: 0.0)
        Keep the tokens with at least this share of the likeliest one's probability,
        in [0, 1].

    Raises
    ------
    InvalidInputError
        If a parameter is out of range.

    Examples
    --------
    >>> logits = torch.tensor([[1.0, 2.0, 3.0]])
    >>> Sampling(temperature=0).probabilities(logits)
    array([[0., 0., 1.]], dtype=float32)
    >>> Sampling(top_k=2).probabilities(logits).round(3)
    array([[0.   , 0.269, 0.731]], dtype=float32)
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0

    def __post_init__(self) -> None:
        """Check every field."""
        for name in ("temperature", "top_p", "min_p"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise InvalidInputError(f"{name} must be a number, got {value!r}.")
        if not 0 <= self.temperature < math.inf:
            raise InvalidInputError(
                f"temperature must be finite and at least 0, got {self.temperature}."
            )
        if 0 < self.temperature < _LEAST_TEMPERATURE:
            raise InvalidInputError(
                f"temperature must be 0 (greedy) or at least {_LEAST_TEMPERATURE}, "
                f"below which float32 logits overflow, got {self.temperature}."
            )
        if isinstance(self.top_k, bool) or not isinstance(self.top_k, int):
            raise InvalidInputError(f"top_k must be an int, got {self.top_k!r}.")
        if self.top_k < 0:
            raise InvalidInputError(
                f"top_k must be at least 0 (0 keeps all tokens), got {self.top_k}."
            )
        if not 0 < self.top_p <= 1:
            raise InvalidInputError(f"top_p must lie in (0, 1], got {self.top_p}.")
        if not 0 <= self.min_p <= 1:
            raise InvalidInputError(f"min_p must lie in [0, 1], got {self.min_p}.")

    @property
    def greedy(self) -> bool:
        """Whether the likeliest token is taken, and nothing is drawn."""
        return self.temperature == 0

    @cached_property
    def _warpers(self) -> LogitsProcessorList:
        """The warpers that change anything, in the order of ``generate()``."""
        warpers = LogitsProcessorList()
        if self.temperature not in (0, 1):
            warpers.append(TemperatureLogitsWarper(float(self.temperature)))
        if self.top_k:
            warpers.append(TopKLogitsWarper(self.top_k))
        if self.top_p < 1:
            warpers.append(TopPLogitsWarper(float(self.top_p)))
        if self.min_p > 0:
            warpers.append(MinPLogitsWarper(float(self.min_p)))
        return warpers

    def probabilities(self, logits: torch.Tensor) -> Probabilities:
        """Return the distributions that are sampled from.

        Parameters
        ----------
        logits : torch.Tensor
            Of shape [n, vocabulary], one row per position; computed on in float32.

        Returns
        -------
        numpy.ndarray
            Float32, of the same shape; every row adds up to 1 within rounding, or has
            NaN where a logit is NaN or infinitely large.
        """
        scores = logits.detach().float()
        if self.greedy:
            highest, best = scores.max(dim=-1, keepdim=True)
            # NaN where the highest score is not finite, as softmax has it.
            warped = torch.zeros_like(scores).scatter_(-1, best, highest * 0 + 1)
        else:
            if self._warpers:
                scores = self._warpers(_NO_INPUT_IDS, scores)
            warped = torch.softmax(scores, dim=-1)
        found: Probabilities = warped.cpu().numpy()
        return found
