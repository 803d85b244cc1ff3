"""What the coded mod reads from Flower's node-config, run-config and messages."""

from __future__ import annotations

from flwr.app import Context, RecordDict

from flower_ext.errors import InvalidInputError

__all__ = ["own_partition", "run_seed", "server_round_of", "worker_of"]


def own_partition(context: Context) -> int | None:
    """Return the node's own partition.

    Parameters
    ----------
    context : Context
        The node's context.

    Returns
    -------
    int | None
        The node-config's ``partition-id``, or None if it has none.

    Raises
    ------
    InvalidInputError
        If ``partition-id`` is not an int of at least 0.
    """
    return _index(context.node_config.get("partition-id"), "node-config 'partition-id'")


def worker_of(context: Context) -> int:
    """Return the number by which delay models know a node.

    Parameters
    ----------
    context : Context
        The node's context.

    Returns
    -------
    int
        The node's own partition, or its node id if it has none.

    Raises
    ------
    InvalidInputError
        If ``partition-id`` is not an int of at least 0.
    """
    partition = own_partition(context)
    return context.node_id if partition is None else partition


def run_seed(context: Context) -> int:
    """Return the run seed of a message that carries no assignment.

    Parameters
    ----------
    context : Context
        The node's context.

    Returns
    -------
    int
        The run-config's ``seed``, or 0 if it has none.

    Raises
    ------
    InvalidInputError
        If ``seed`` is not an int of at least 0.
    """
    return _index(context.run_config.get("seed"), "run-config 'seed'") or 0


def server_round_of(content: RecordDict) -> int:
    """Return the round that a message belongs to.

    Parameters
    ----------
    content : RecordDict
        The message's content; Flower's strategies write the round into the config.

    Returns
    -------
    int
        The first ``server-round`` of its config records, or 0 if none has one.

    Raises
    ------
    InvalidInputError
        If ``server-round`` is not an int of at least 0.
    """
    for record in content.config_records.values():
        if "server-round" in record:
            return _index(record["server-round"], "config 'server-round'") or 0
    return 0


def _index(value: object, name: str) -> int | None:
    """Return ``value`` if it is None or an int of at least 0."""
    if value is None or (type(value) is int and value >= 0):
        return value
    raise InvalidInputError(f"{name} must be an int of at least 0, got {value!r}.")
