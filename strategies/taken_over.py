"""Methods of a strategy that another answers while its ``start`` drives the rounds."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from flwr.serverapp.strategy import Strategy

__all__ = ["taken_over"]


@contextmanager
def taken_over(
    strategy: Strategy, methods: Mapping[str, Callable[..., Any]]
) -> Iterator[dict[str, Callable[..., Any]]]:
    """Have a strategy's ``start`` call these methods in place of its own.

    Parameters
    ----------
    strategy : Strategy
        The strategy; as it was when the context ends.
    methods : Mapping[str, Callable]
        What to call, by the method's name.

    Yields
    ------
    dict[str, Callable]
        The strategy's own methods, by name.
    """
    # Not by a subclass of its class: its start may look anything up on itself.
    shadowed = {name: v for name, v in vars(strategy).items() if name in methods}
    own = {name: getattr(strategy, name) for name in methods}
    for name, method in methods.items():
        setattr(strategy, name, method)
    try:
        yield own
    finally:
        for name in methods:
            delattr(strategy, name)
        vars(strategy).update(shadowed)
