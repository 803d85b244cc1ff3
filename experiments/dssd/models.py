"""Pairs of a wanted cost and acceptance, without training: real layers, real tables."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

from flower_ext.errors import InvalidInputError
from flower_ext.speculative import Row

__all__ = ["TablePair", "deepened", "disturbed", "table_pair", "without_end"]


def without_end(model: PreTrainedModel) -> PreTrainedModel:
    """Let no token end a text, so that all systems generate as many; return the model.

    The drafter of :func:`flower_ext.speculative.speculate` is told by its argument.
    """
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 0
    return model


def deepened(
    model: PreTrainedModel, layers: int, intermediate_size: int | None = None
) -> PreTrainedModel:
    """Return a copy of a Llama with layers on top that add nothing.

    Their attention and feed-forward network are computed as those of any layer, with
    random weights; the projections back to the residual stream are zero. So the model
    costs more and says exactly what it said.

    Parameters
    ----------
    model : PreTrainedModel
        A Llama.
    layers : int
        How many to add, at least 0.
    intermediate_size : int | None (default: None)
        The width of their feed-forward networks; None: as the model's own.

    Raises
    ------
    InvalidInputError
        If the model is no Llama, or ``layers`` is below 0.
    """
    if model.config.model_type != "llama":
        raise InvalidInputError(
            "Only Llamas can be deepened by layers that add nothing, got a model of "
            f"type {model.config.model_type!r}: choose a Llama, or do not deepen it."
        )
    if layers < 0:
        raise InvalidInputError(f"layers must be at least 0, got {layers}.")
    deep = copy.deepcopy(model)
    config = copy.deepcopy(deep.config)
    if intermediate_size is not None:
        config.intermediate_size = intermediate_size
    kind = next(deep.parameters())
    for _ in range(layers):
        layer = LlamaDecoderLayer(config, len(deep.model.layers))
        torch.nn.init.zeros_(layer.self_attn.o_proj.weight)
        torch.nn.init.zeros_(layer.mlp.down_proj.weight)
        layer.to(device=kind.device, dtype=kind.dtype).requires_grad_(False)
        deep.model.layers.append(layer.train(False))
    deep.config.num_hidden_layers = len(deep.model.layers)
    return deep


def disturbed(model: PreTrainedModel, noise: float, seed: int = 0) -> PreTrainedModel:
    """Return a copy with Gaussian noise on every matrix: a drafter of high acceptance.

    Parameters
    ----------
    model : PreTrainedModel
        The target.
    noise : float
        Standard deviation of the noise over that of the matrix it is added to; 0.03 to
        0.2.
    seed : int (default: 0)
        Of the noise.
    """
    generator = torch.Generator().manual_seed(seed)
    copied = copy.deepcopy(model)
    with torch.no_grad():
        for weight in copied.parameters():
            if weight.dim() > 1:
                drawn = torch.randn(weight.shape, generator=generator)
                weight.add_(drawn.to(weight), alpha=noise * float(weight.std()))
    return copied


@dataclass
class _TableCache:
    """The tokens of one sequence; a table needs nothing else."""

    tokens: list[int]

    @property
    def length(self) -> int:
        """How many tokens it has."""
        return len(self.tokens)

    @property
    def nbytes(self) -> int:
        """What the ids take."""
        return 8 * len(self.tokens)

    def roll_back(self, length: int) -> None:
        """Keep the first ``length`` tokens."""
        del self.tokens[length:]


class _Table:
    """A language model whose next token depends on the last one, modulo the rows."""

    def __init__(self, logits: torch.Tensor) -> None:
        self.rows, self.vocab_size = logits.shape
        self.positions_processed = 0
        self._logits = logits

    def new_cache(self) -> _TableCache:
        """Return the cache of an empty sequence."""
        return _TableCache([])

    def extend(self, rows: Sequence[Row]) -> list[torch.Tensor]:
        """Look up the logits after each row's last tokens."""
        found = []
        for row in rows:
            row.cache.tokens += row.tokens
            self.positions_processed += len(row.tokens)
            last = torch.tensor(row.cache.tokens[-row.keep :])
            found.append(self._logits[last % self.rows])
        return found


@dataclass(frozen=True)
class TablePair:
    """Two tables, and how far apart they are.

    Parameters
    ----------
    draft, target : LanguageModel
        The models.
    distances : numpy.ndarray
        TV(P, Q) in each context, of shape [contexts].
    """

    draft: _Table
    target: _Table
    distances: NDArray[np.float64]


def table_pair(
    vocab_size: int, mean_distance: float, contexts: int = 32, seed: int = 0
) -> TablePair:
    """Make up a pair with a mean total variation between drafter and target.

    The target's logits are normal with standard deviation 2.5 (its likeliest tokens
    have some percent, and all of the vocabulary has some probability). The drafter's
    are disturbed: more in some contexts than in others, by a log-normal factor, and by
    as much overall as gives the mean.

    Parameters
    ----------
    vocab_size : int
        The vocabulary.
    mean_distance : float
        The mean of TV(P, Q) over the contexts, in (0, 0.9).
    contexts : int (default: 32)
        Number of contexts.
    seed : int (default: 0)
        Of the draws.

    Raises
    ------
    InvalidInputError
        If ``mean_distance`` is out of range.
    """
    if not 0 < mean_distance < 0.9:
        raise InvalidInputError(
            f"mean_distance must lie in (0, 0.9), got {mean_distance}."
        )
    generator = torch.Generator().manual_seed(seed)
    shape = (contexts, vocab_size)
    target = 2.5 * torch.randn(shape, generator=generator)
    factor = torch.exp(0.5 * torch.randn((contexts, 1), generator=generator))
    noise = factor * torch.randn(shape, generator=generator)
    low, high = 0.0, 8.0
    for _ in range(16):
        middle = (low + high) / 2
        distances = _distances(target, target + middle * noise)
        if float(distances.mean()) < mean_distance:
            low = middle
        else:
            high = middle
    draft = target + high * noise
    distances = _distances(target, draft).double().numpy()
    return TablePair(_Table(draft), _Table(target), distances)


def _distances(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Return the total variation between rows of logits."""
    apart = torch.softmax(first, -1) - torch.softmax(second, -1)
    return apart.abs().sum(-1) / 2
