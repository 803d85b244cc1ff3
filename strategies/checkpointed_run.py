"""One run between checkpoints: what is done is walked through, the rest saved."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable, Iterable, Mapping
from logging import INFO, WARNING
from types import ModuleType
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy
from flwr.supercore import log

from flower_ext.errors import InvalidInputError
from flower_ext.strategies.checkpoint_codec import State, encode
from flower_ext.strategies.checkpoint_files import Checkpoint, CheckpointFolder

__all__ = ["CheckpointedRun", "Resumable"]

_OURS = "flower_ext."  # What these hold besides is fixed, or theirs to save.

EvaluateFn = Callable[[int, ArrayRecord], MetricRecord | None]


@runtime_checkable
class Resumable(Protocol):
    """A strategy that says itself what it needs to go on."""

    def checkpoint(self) -> State:
        """Return what changes from round to round."""
        ...

    def resume(self, state: State) -> None:
        """Go on from what :meth:`checkpoint` returned, in another process."""
        ...

    def left_behind(self, server_round: int) -> State:
        """Return what a round has left behind, without arrays."""
        ...

    def amended(self) -> set[int]:
        """Return the earlier rounds of which the present one has changed that."""
        ...

    def put_back(self, server_round: int, left: State) -> None:
        """Take back what :meth:`left_behind` returned."""
        ...


class CheckpointedRun:
    """What a strategy's ``start`` calls in place of the strategy's own methods.

    Parameters
    ----------
    folder : CheckpointFolder
        Where checkpoints go.
    strategies : tuple[Strategy, ...]
        Those whose state is saved, by which wraps which.
    saved : Checkpoint, optional
        Where the run goes on.
    due : Callable[[int], bool]
        Whether a round is to have a checkpoint.
    settings : Mapping[str, bool or int or float or str]
        Saved with the checkpoints.
    evaluate_fn : Callable, optional
        The user's.

    Attributes
    ----------
    own : dict[str, Callable]
        The strategies' own methods, by name.
    """

    def __init__(
        self,
        folder: CheckpointFolder,
        strategies: tuple[Strategy, ...],
        saved: Checkpoint | None,
        due: Callable[[int], bool],
        settings: Mapping[str, Any],
        evaluate_fn: EvaluateFn | None,
    ) -> None:
        self.own: dict[str, Callable[..., Any]] = {}
        self._folder = folder
        self._strategies = strategies
        self._saved = saved
        self._due = due
        self._settings = dict(settings)
        self._evaluate_fn = evaluate_fn
        self._done = -1 if saved is None else saved.server_round
        self._metrics: dict[str, dict[int, MetricRecord]] = {
            "train": {},
            "evaluate": {},
            "server": {},
        }
        # What rounds have left behind that the folder does not have yet.
        self._untold = set() if saved is None else set(saved.told)
        self._told = {} if saved is None else dict(saved.told)
        if saved is not None:
            for server_round, left in saved.told.items():
                for name, metrics in self._metrics.items():
                    if left[name] is not None:
                        metrics[server_round] = left[name]
        self._before = [_plain_attributes(strategy) for strategy in strategies]
        for strategy, plain in zip(strategies, self._before, strict=True):
            _warn_of_what_is_lost(strategy, plain)

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Send nothing for a round that is done."""
        if server_round <= self._done:
            return []
        messages: Iterable[Message] = self.own["configure_train"](
            server_round, arrays, config, grid
        )
        return messages

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Return the saved model at the last round that is done."""
        if server_round <= self._done:
            assert self._saved is not None
            last = server_round == self._done
            arrays: ArrayRecord | None = self._saved.state["arrays"] if last else None
            return arrays, self._metrics["train"].get(server_round)
        arrays, metrics = self.own["aggregate_train"](server_round, replies)
        if metrics is not None:
            self._metrics["train"][server_round] = metrics
        return arrays, metrics

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Send nothing for a round that is done."""
        if server_round <= self._done:
            return []
        messages: Iterable[Message] = self.own["configure_evaluate"](
            server_round, arrays, config, grid
        )
        return messages

    def aggregate_evaluate(
        self, server_round: int, replies: Iterable[Message]
    ) -> MetricRecord | None:
        """Return what was saved of a round that is done."""
        if server_round <= self._done:
            return self._metrics["evaluate"].get(server_round)
        metrics: MetricRecord | None = self.own["aggregate_evaluate"](
            server_round, replies
        )
        if metrics is not None:
            self._metrics["evaluate"][server_round] = metrics
        return metrics

    def evaluate(self, server_round: int, arrays: ArrayRecord) -> MetricRecord | None:
        """Save a round, then evaluate its model as the user wants."""
        if server_round == 0 and self._saved is not None:
            self._resume(self._saved)
        if server_round < self._done:
            return self._metrics["server"].get(server_round)
        if server_round > self._done:
            for strategy in self._strategies:
                if isinstance(strategy, Resumable):
                    self._changed(strategy.amended())
            if self._due(server_round):
                self._save(server_round, arrays)
        self._changed({server_round})
        if self._evaluate_fn is None:
            return None
        metrics = self._evaluate_fn(server_round, arrays)
        if metrics is not None:
            self._metrics["server"][server_round] = metrics
        return metrics

    # -- what is saved -----------------------------------------------------------------

    def _changed(self, rounds: set[int]) -> None:
        """Tell anew what rounds have left behind, instead of what was told before."""
        self._untold |= rounds
        for server_round in rounds:
            self._told.pop(server_round, None)

    def _save(self, server_round: int, arrays: ArrayRecord) -> None:
        told_now = sorted(self._untold - {server_round})
        told = {r: self._told.get(r) or self._left_behind(r) for r in told_now}
        self._folder.save(
            Checkpoint(
                server_round,
                {
                    "strategies": [
                        {"name": type(strategy).__name__, "state": state}
                        for strategy, state in zip(
                            self._strategies, self._states(), strict=True
                        )
                    ],
                    "arrays": arrays,
                    "random": _random_states(),
                    "settings": self._settings,
                    # To be told once the user has evaluated it.
                    "left": self._left_behind(server_round),
                },
                told,
            )
        )
        self._untold, self._told = set(), {}

    def _left_behind(self, server_round: int) -> State:
        left: State = {n: m.get(server_round) for n, m in self._metrics.items()}
        left["strategies"] = [
            s.left_behind(server_round) if isinstance(s, Resumable) else None
            for s in self._strategies
        ]
        return left

    def _states(self) -> list[State]:
        states = []
        for strategy, before in zip(self._strategies, self._before, strict=True):
            if isinstance(strategy, Resumable):
                states.append(strategy.checkpoint())
                continue
            now = _plain_attributes(strategy)
            changed = [name for name in now if now[name] != before.get(name)]
            states.append({name: vars(strategy)[name] for name in changed})
        return states

    def _resume(self, saved: Checkpoint) -> None:
        state = saved.state
        for i, strategy in enumerate(self._strategies):
            own = state["strategies"][i]["state"]
            if not isinstance(strategy, Resumable):
                vars(strategy).update(own)
                continue
            strategy.resume(own)
            for server_round, left in sorted(saved.told.items()):
                strategy.put_back(server_round, left["strategies"][i])
        _restore_random_states(state["random"])
        log(INFO, "Resumed: what follows up to round %d is done already", self._done)


def _plain_attributes(strategy: Strategy) -> dict[str, str]:
    """Return a digest of each attribute that a checkpoint can hold."""
    found = {}
    for name, value in vars(strategy).items():
        tensors: dict[str, Any] = {}
        try:
            told = json.dumps(encode(value, tensors))
        except InvalidInputError:  # see _warn_of_what_is_lost
            continue
        digest = hashlib.sha256(told.encode())
        for tensor in tensors.values():
            digest.update(np.ascontiguousarray(tensor).data)
        found[name] = digest.hexdigest()
    return found


def _warn_of_what_is_lost(strategy: Strategy, plain: Mapping[str, str]) -> None:
    """Name the attributes that may change and that a checkpoint cannot hold."""
    if isinstance(strategy, Resumable) or type(strategy).__module__.startswith(_OURS):
        return
    for name, value in vars(strategy).items():
        # Functions and classes do not change; strategies are saved by themselves.
        fixed = callable(value) or isinstance(value, ModuleType | Strategy)
        if name not in plain and not fixed:
            log(
                WARNING,
                "A checkpoint cannot hold %s.%s (%s): a run that is resumed begins "
                "with it as it is made. Keep numbers, lists, dictionaries or arrays "
                "there",
                type(strategy).__name__,
                name,
                type(value).__name__,
            )


def _random_states() -> State:
    """Return the states of the global random generators."""
    # The generator that users' code draws from, not one of our own.
    kind, keys, *rest = np.random.get_state(legacy=True)  # noqa: NPY002
    return {
        "python": random.getstate(),
        "numpy": [kind, keys, *rest],
        "torch": torch.get_rng_state().numpy(),
    }


def _restore_random_states(state: State) -> None:
    version, numbers, following = state["python"]
    random.setstate((version, tuple(numbers), following))
    np.random.set_state(tuple(state["numpy"]))  # noqa: NPY002
    torch.set_rng_state(torch.from_numpy(state["torch"].copy()))
