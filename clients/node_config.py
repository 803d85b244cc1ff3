"""Mistyped keys of a node-config."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable

from flower_ext.errors import InvalidInputError

__all__ = ["check_node_config"]

_NEAR = 0.8  # of difflib's ratio


def check_node_config(keys: Iterable[str], known: Collection[str]) -> None:
    """Refuse a node-config key that looks like one that the app reads.

    A SuperNode's config is for every app that the node runs, so keys that this app does
    not know are left alone, unless they resemble one that it reads and that is missing.

    Parameters
    ----------
    keys : Iterable[str]
        Those that the node was started with, e.g. ``context.node_config``.
    known : Collection[str]
        Those that the app reads.

    Raises
    ------
    InvalidInputError
        If one seems to be mistyped; the message names the key that is meant.

    Examples
    --------
    >>> check_node_config({"partition-id": 0, "disk": "/data"}, ["role"])
    >>> check_node_config({"rol": "device"}, ["role"])  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    ...
    flower_ext.errors.InvalidInputError: Unknown node-config key 'rol'. Did you mean ...
    """
    given = set(keys)
    missing = [key for key in known if key not in given]
    for key in sorted(given.difference(known)):
        near = difflib.get_close_matches(key, missing, n=1, cutoff=_NEAR)
        if near:
            raise InvalidInputError(
                f"Unknown node-config key '{key}'. Did you mean '{near[0]}'?"
            )
