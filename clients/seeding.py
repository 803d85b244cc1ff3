"""Seeding of a partition's training, so that its result has no owner.

A coded round takes the change ``delta_k`` from whichever worker has it, so it must not
depend on who computed it. Before each partition Python, NumPy and torch are seeded
from (run seed, round, partition).

Importing torch takes seconds, and Flower starts a process for every message. So torch
is not imported to be seeded: where training has not imported it yet, it is seeded when
training does.
"""

from __future__ import annotations

import random
import sys
import threading
from collections.abc import Callable, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

import numpy as np

from flower_ext.errors import InvalidInputError

__all__ = ["seed_partition"]


def seed_partition(seed: int, server_round: int, partition: int) -> None:
    """Seed the global generators of Python, NumPy and torch.

    ``torch.manual_seed`` covers every device; it is called at once if torch has been
    imported in this process, or else as soon as it is. The three libraries get
    different words of one ``numpy.random.SeedSequence``. Nodes that share a process
    (threads) share the generators, so the guarantee holds for nodes in processes of
    their own, as in Flower's deployment and simulation engines.

    Parameters
    ----------
    seed : int
        The run seed, at least 0.
    server_round : int
        The round, at least 0.
    partition : int
        The partition, at least 0.

    Raises
    ------
    InvalidInputError
        If a number is negative.

    Examples
    --------
    >>> seed_partition(seed=1, server_round=2, partition=3)
    >>> first = random.random()
    >>> seed_partition(seed=1, server_round=2, partition=3)
    >>> random.random() == first
    True
    """
    if min(seed, server_round, partition) < 0:
        raise InvalidInputError(
            "The run seed, the round and the partition must be at least 0, got "
            f"{seed}, {server_round} and {partition}."
        )
    sequence = np.random.SeedSequence((seed, server_round, partition))
    for_python, for_torch = (int(w) for w in sequence.generate_state(2, np.uint64))
    random.seed(for_python)
    # User code draws from NumPy's global generator, so that is the one to seed.
    np.random.seed(sequence.spawn(1)[0].generate_state(4))  # noqa: NPY002
    _torch_seed.plant(for_torch)


class _TorchSeed(MetaPathFinder):
    """Seeds torch, now or when it is imported."""

    def __init__(self) -> None:
        self._seed = 0
        self._looking = threading.local()

    def plant(self, seed: int) -> None:
        """Seed torch if it is there; else wait for it."""
        self._seed = seed
        if sys.modules.get("torch") is not None:
            # Another thread may be importing it, and is waited for.
            import torch  # noqa: PLC0415

            torch.manual_seed(seed)
        elif self not in sys.meta_path:
            # It stays there: others may be going through the finders.
            sys.meta_path.insert(0, self)

    def find_spec(
        self,
        fullname: str,
        path: Sequence[str] | None,
        target: ModuleType | None = None,
    ) -> ModuleSpec | None:
        """Find torch as others do, and have it seeded once it is loaded."""
        if fullname != "torch" or getattr(self._looking, "now", False):
            return None
        self._looking.now = True
        try:
            found = (
                finder.find_spec(fullname, path, target)
                for finder in list(sys.meta_path)
                if hasattr(finder, "find_spec")
            )
            spec = next((spec for spec in found if spec is not None), None)
        finally:
            self._looking.now = False
        if spec is not None and hasattr(spec.loader, "exec_module"):
            spec.loader = _SeededLoader(spec.loader, self.seed)
        return spec

    def seed(self, module: ModuleType) -> None:
        """Seed torch, which has been loaded."""
        module.manual_seed(self._seed)


class _SeededLoader(Loader):
    """Loads a module as another loader does, and then does something with it."""

    def __init__(self, loader: Any, then: Callable[[ModuleType], None]) -> None:
        self._loader = loader
        self._then = then

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        """Let the other create it."""
        module: ModuleType | None = self._loader.create_module(spec)
        return module

    def exec_module(self, module: ModuleType) -> None:
        """Let the other load it."""
        self._loader.exec_module(module)
        self._then(module)

    def __getattr__(self, name: str) -> Any:
        """Return what else the other can do, as to find sources and resources."""
        return getattr(self.__dict__["_loader"], name)


_torch_seed = _TorchSeed()
