"""What a reply takes by a virtual clock: its computation, its upload, its energy."""

from __future__ import annotations

import math

from flwr.app import Message

from flower_ext.errors import InvalidInputError
from flower_ext.network.edge_network import EnergyLedger
from flower_ext.strategies.arrivals import Sent, Transfer
from flower_ext.strategies.replies import content_bytes, summary_of

__all__ = ["simulated_seconds", "simulated_transfer"]


def simulated_seconds(sent: Sent, message: Message) -> float:
    """Return how long a reply says that it would have taken; 0 if it does not say."""
    if sent.assignment is None or message.has_error():
        return 0.0
    try:
        summary = summary_of(message, sent.assignment)
    except InvalidInputError:
        return 0.0
    return sum(summary.compute_seconds) + summary.upload_seconds


def simulated_transfer(
    ledger: EnergyLedger, worker: int, sent: Sent, message: Message
) -> Transfer | None:
    """Charge a worker for its reply, and say what the reply needs of the network.

    Parameters
    ----------
    ledger : EnergyLedger
        The simulated network and what its devices have spent.
    worker : int
        Which of the links and devices is the node's.
    sent : Sent
        The message.
    message : Message
        The reply.

    Returns
    -------
    Transfer or None
        None for a reply that takes no time on the network.
    """
    if sent.assignment is None or message.has_error():
        return None
    try:
        compute_seconds = sum(summary_of(message, sent.assignment).compute_seconds)
    except InvalidInputError:
        return None
    size = content_bytes(message.content)
    link = ledger.network.link(worker)
    if link is None:
        ledger.spend(worker, compute_seconds, 0.0)
        return None
    begun = sent.at + link.receive(sent.size, sent.at)
    if begun == math.inf:  # it never heard of the assignment
        return Transfer(link, size, never=True)
    # At the rate that its link has by itself, whoever shares the carrier then.
    airtime = link.seconds_to_send(size, begun + compute_seconds)
    dead = airtime == math.inf
    ledger.spend(worker, compute_seconds, 0.0 if dead else airtime)
    return Transfer(link, size, never=dead)
