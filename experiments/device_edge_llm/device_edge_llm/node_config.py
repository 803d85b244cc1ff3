"""The keys of this app's node-config, so that a mistyped one is not taken for none."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from flower_ext.errors import InvalidInputError

NODE_KEYS = (
    "partition-id",
    "num-partitions",
    "partitions",
    "role",
    "drafter",
    "target",
)


def check_node_keys(keys: Iterable[str]) -> None:
    """Check the keys of a node's config.

    Parameters
    ----------
    keys : Iterable[str]
        Those that the node was started with.

    Raises
    ------
    InvalidInputError
        If one is unknown; the message names the nearest.
    """
    for key in keys:
        if key not in NODE_KEYS:
            near = difflib.get_close_matches(key, NODE_KEYS, n=1)
            hint = f" Did you mean '{near[0]}'?" if near else ""
            raise InvalidInputError(
                f"Unknown node-config key '{key}'.{hint} "
                f"The keys are: {', '.join(NODE_KEYS)}."
            )
