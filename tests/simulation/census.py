"""How many things a run holds on to, by where they are."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Mapping
from typing import Any

__all__ = ["census"]

_RECORDS = ("round_metrics", "timelines")  # what a strategy reports, one a round
_SIMULATED = ("tests.", "numpy", "flwr")


def census(root: object) -> Counter[str]:
    """Return the sizes of all containers within an object, by their path.

    Parameters
    ----------
    root : object
        Where to begin; objects of this project are entered, others are not.
    """
    sizes: Counter[str] = Counter()
    seen: set[int] = set()

    def visit(thing: Any, path: str) -> None:
        if id(thing) in seen or isinstance(thing, str | bytes | int | float):
            return
        seen.add(id(thing))
        if isinstance(thing, Mapping):
            sizes[path] += len(thing)
            for value in thing.values():
                visit(value, f"{path}[]")
        elif isinstance(thing, list | tuple | set | frozenset | deque):
            sizes[path] += len(thing)
            for value in thing:
                visit(value, f"{path}[]")
        elif not type(thing).__module__.startswith(_SIMULATED) or thing is root:
            for name, value in getattr(thing, "__dict__", {}).items():
                if name not in _RECORDS:
                    visit(value, f"{path}.{name}")

    visit(root, type(root).__name__)
    return sizes
