"""Models that are tables, and the exact law of whatever makes random choices."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from flower_ext.speculative import Purpose, Row, Sampling
from flower_ext.speculative.sampling import Probabilities

Law = dict[tuple[int, ...], float]


@dataclass
class TableCache:
    tokens: list[int] = field(default_factory=list)

    @property
    def length(self) -> int:
        return len(self.tokens)

    @property
    def nbytes(self) -> int:
        return 8 * len(self.tokens)

    def roll_back(self, length: int) -> None:
        del self.tokens[length:]


class TableModel:
    """Context → logits, drawn once per context."""

    def __init__(self, vocab_size: int, seed: int, spread: float = 1.5) -> None:
        self.vocab_size = vocab_size
        self.positions_processed = 0
        self._seed = seed
        self._spread = spread
        self._table: dict[tuple[int, ...], torch.Tensor] = {}

    def logits(self, context: Sequence[int]) -> torch.Tensor:
        key = tuple(context)
        if key not in self._table:
            rng = np.random.default_rng([self._seed, len(key), *key])
            drawn = self._spread * rng.standard_normal(self.vocab_size)
            self._table[key] = torch.tensor(drawn, dtype=torch.float32)
        return self._table[key]

    def new_cache(self) -> TableCache:
        return TableCache()

    def extend(self, rows: Sequence[Row]) -> list[torch.Tensor]:
        found = []
        for row in rows:
            assert row.tokens
            assert 1 <= row.keep <= len(row.tokens)
            self.positions_processed += len(row.tokens)
            row.cache.tokens += row.tokens
            end = row.cache.length
            contexts = range(end - row.keep + 1, end + 1)
            found.append(
                torch.stack([self.logits(row.cache.tokens[:n]) for n in contexts])
            )
        return found


class BranchingChoices:
    """Choices that follow a script, and note the ways not taken after it.

    ``probability`` is that of the choices from number ``start`` on.
    """

    def __init__(self, script: Sequence[int], start: int) -> None:
        self._script = script
        self._start = start
        self.taken: list[int] = []
        self._last_purpose: dict[int, Purpose] = {}  # By position.
        self._drafted: dict[int, int] = {}
        self.probability = 1.0
        self.others: list[list[int]] = []

    def draw(self, weights: Probabilities, position: int, purpose: Purpose) -> int:
        exact = np.asarray(weights, dtype=np.float64)
        taken = self._branch(exact, position, purpose)
        if purpose is Purpose.DRAFT:
            self._drafted[position] = taken
        return taken

    def draws(
        self, weights: Probabilities, position: int, first: int, count: int
    ) -> list[int]:
        exact = np.asarray(weights, dtype=np.float64)
        return [self._branch(exact, position, Purpose.CANDIDATE) for _ in range(count)]

    def happens(
        self, probability: float, position: int, purpose: Purpose, index: int = 0
    ) -> bool:
        probability = min(max(probability, 0.0), 1.0)
        weights = np.array([1 - probability, probability])
        return bool(self._branch(weights, position, purpose))

    def state(self, tokens: Sequence[int]) -> object:
        """Return what the rest depends on, once a round has confirmed ``tokens``."""
        last = self._last_purpose[len(tokens) - 1]
        ahead: tuple[int, ...] = ()
        if last in (Purpose.DRAFT, Purpose.ACCEPT):  # Else it is thrown away.
            drafted = self._drafted.items()
            ahead = tuple(x for position, x in drafted if position >= len(tokens))
        return (*tokens,), last, ahead

    def _branch(self, weights: np.ndarray, position: int, purpose: Purpose) -> int:
        depth = len(self.taken)
        if depth < len(self._script):
            taken = self._script[depth]
        else:
            taken, *others = np.flatnonzero(weights).tolist()
            self.others += [[*self.taken, other] for other in others]
        if depth >= self._start:
            self.probability *= float(weights[taken] / weights.sum())
        self.taken.append(taken)
        self._last_purpose[position] = purpose
        return taken


class RoundOverError(Exception):
    """A round more than wanted would begin."""


class StopAfter:
    """A streamer that ends a generation after so many rounds."""

    def __init__(self, rounds: int) -> None:
        self._left = rounds + 1  # The prompt comes first.
        self.tokens: list[int] = []

    def put(self, value: torch.Tensor) -> None:
        if value.ndim == 1:
            self.tokens += value.tolist()
        self._left -= 1
        if not self._left:
            raise RoundOverError

    def end(self) -> None:
        pass


def law_of(run: Callable[[BranchingChoices, StopAfter], tuple[int, ...]]) -> Law:
    """Return the exact law of what ``run`` returns, over all choices it makes.

    Every branch is run through, round by round; those that have come to the same state
    go on as one.
    """
    law: Law = defaultdict(float)
    states: dict[object, tuple[float, list[int]]] = {(): (1.0, [])}
    rounds = 0
    while states:
        rounds += 1
        following: dict[object, tuple[float, list[int]]] = {}
        for mass, prefix in states.values():
            scripts = [prefix]
            while scripts:
                choices = BranchingChoices(scripts.pop(), start=len(prefix))
                stop = StopAfter(rounds)
                try:
                    tokens = run(choices, stop)
                    law[tokens] += mass * choices.probability
                except RoundOverError:
                    key = choices.state(stop.tokens)
                    before, script = following.get(key, (0.0, choices.taken))
                    following[key] = before + mass * choices.probability, script
                scripts += choices.others
        states = following
    return dict(law)


def target_law(
    model: TableModel, prompt: Sequence[int], count: int, sampling: Sampling
) -> Law:
    """Return the law of the first ``count`` tokens that the model alone gives."""
    law: Law = {(): 1.0}
    for _ in range(count):
        longer: Law = {}
        for tokens, probability in law.items():
            logits = model.logits([*prompt, *tokens])[None]
            row = sampling.probabilities(logits)[0].astype(np.float64)
            for token in np.flatnonzero(row).tolist():
                longer[*tokens, token] = probability * row[token] / row.sum()
        law = longer
    return law


def largest_difference(one: Law, other: Law) -> float:
    return max(abs(one.get(k, 0.0) - other.get(k, 0.0)) for k in one | other)


def tiny_llama(
    seed: int, hidden: int = 32, layers: int = 2, vocab_size: int = 64
) -> LlamaForCausalLM:
    """Return a small random model whose distributions are far from flat."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        initializer_range=0.3,
        bos_token_id=None,
        eos_token_id=None,
    )
    return LlamaForCausalLM(config)


@pytest.fixture(scope="session")
def llamas() -> tuple[LlamaForCausalLM, LlamaForCausalLM]:
    """Return a drafter and a target."""
    return tiny_llama(1, hidden=16, layers=1), tiny_llama(2)
