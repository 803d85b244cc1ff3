"""A mod that makes a node as slow as a delay model says.

It turns machines that are all alike into a federation with stragglers: on the wall
clock by sleeping, under a virtual clock by reporting the seconds.
"""

from __future__ import annotations

import time

from flwr.app import Context, Message, MessageType
from flwr.clientapp.typing import ClientAppCallable, Mod

from flower_ext.clients.configs import server_round_of, worker_of
from flower_ext.clients.partition_task import current_partition_task
from flower_ext.errors import InvalidInputError
from flower_ext.network import DelayModel

__all__ = ["straggler_mod"]


def straggler_mod(delay_model: DelayModel) -> Mod:
    """Return a mod that delays train messages.

    Under :class:`flower_ext.clients.CodedClientApp` the mod runs once per partition:
    each is delayed by its own compute time, and the upload once per message. In an app
    without the coded mod it delays each train message by the compute time of the
    node's own partition and the upload. The delay comes on top of the time that
    training really takes; a reply that carries an error is not delayed.

    Parameters
    ----------
    delay_model : DelayModel
        Seconds by worker, round and partition. The worker is the node's own
        ``partition-id``, or its node id if it has none.

    Returns
    -------
    Mod
        The mod, to be listed after the coded mod.

    Raises
    ------
    InvalidInputError
        If ``delay_model`` is no delay model.

    Examples
    --------
    Nodes of which every fifth is ten times slower in a round::

        app = CodedClientApp(
            mods=[straggler_mod(BernoulliSlowdown(probability=0.2, slowdown=10.0))]
        )
    """
    if not isinstance(delay_model, DelayModel):
        raise InvalidInputError(
            "straggler_mod needs a delay model with compute_seconds and "
            f"upload_seconds, got {delay_model!r}."
        )

    def delay_train_messages(
        msg: Message, ctxt: Context, call_next: ClientAppCallable
    ) -> Message:
        """Delay the reply to a train message."""
        if msg.metadata.message_type.split(".")[0] != MessageType.TRAIN:
            return call_next(msg, ctxt)
        task = current_partition_task()
        if task is None:
            worker, server_round = worker_of(ctxt), server_round_of(msg.content)
            partition = worker
        else:
            worker, server_round = task.worker, task.server_round
            partition = task.partition
        compute = delay_model.compute_seconds(worker, server_round, partition)
        upload = delay_model.upload_seconds(worker, server_round)
        reply = call_next(msg, ctxt)
        if reply.has_error():
            return reply
        if task is None:
            time.sleep(compute + upload)
            return reply
        task.report_upload(upload)
        if task.virtual:
            task.report_compute(compute)
        else:
            time.sleep(compute)
        return reply

    return delay_train_messages
