"""Names that a package imports when they are asked for.

Flower starts a process for every message, and each pays for what its packages import.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping

__all__ = ["late"]


def late(package: str, modules: Mapping[str, str]) -> Callable[[str], object]:
    """Return a package's ``__getattr__`` for names that it imports late.

    Parameters
    ----------
    package : str
        The package's ``__name__``.
    modules : Mapping[str, str]
        The module of each name, in full.
    """

    def find(name: str) -> object:
        if name not in modules:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(importlib.import_module(modules[name]), name)

    return find
