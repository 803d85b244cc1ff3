"""Coded training on a node: an assignment in, one coded reply out.

The user's train function trains one model on one partition. This module calls it for
every partition of an assignment, each time from the received arrays and under that
partition's seed, and replies with the linear combination that the assignment asks for.
"""

from __future__ import annotations

import copy
import time

from flwr.app import (
    ArrayRecord,
    ConfigRecord,
    Context,
    Message,
    MetricRecord,
    RecordDict,
)
from flwr.app.message import make_message
from flwr.clientapp.typing import ClientAppCallable

from flower_ext.clients.coded_reply import CodedReply
from flower_ext.clients.configs import (
    own_partition,
    run_seed,
    server_round_of,
    worker_of,
)
from flower_ext.clients.partition_task import PartitionTask, partition_task
from flower_ext.clients.seeding import seed_partition
from flower_ext.clients.state_watch import StateWatch
from flower_ext.coding.assignment import REPLY_PREFIX, Assignment

__all__ = ["VIRTUAL_SECONDS", "train_assigned", "train_own"]

VIRTUAL_SECONDS = 1.0
"""What a partition takes under a virtual clock if no mod reports its time."""


def train_assigned(
    assignment: Assignment, msg: Message, ctxt: Context, call_next: ClientAppCallable
) -> Message:
    """Train on every assigned partition and form the coded reply.

    Parameters
    ----------
    assignment : Assignment
        The partitions and their coefficients.
    msg : Message
        The train message that carries the assignment.
    ctxt : Context
        The node's context; its node-config is left as it is.
    call_next : ClientAppCallable
        The user's train function within its mods.

    Returns
    -------
    Message
        The coded reply; or the train function's reply, if it carries an error.

    Raises
    ------
    InvalidInputError
        If the train function's replies cannot be combined.
    """
    reply = CodedReply(assignment, msg.content)
    seed = run_seed(ctxt) if assignment.seed is None else assignment.seed
    upload_seconds = 0.0
    for partition in assignment.partitions:
        task = PartitionTask(
            server_round=assignment.server_round,
            partition=partition,
            worker=worker_of(ctxt),
            seed=seed,
            virtual=assignment.virtual,
        )
        partition_ctxt = copy.copy(ctxt)
        partition_ctxt.node_config = {
            **ctxt.node_config,
            "partition-id": partition,
            "num-partitions": assignment.num_partitions,
        }
        watch = StateWatch(ctxt.state)
        start = time.perf_counter()
        trained = _train(task, _without_extras(msg), partition_ctxt, call_next)
        seconds = time.perf_counter() - start
        ctxt.state = partition_ctxt.state
        watch.check(ctxt.state)
        if trained.has_error():
            return trained
        if assignment.virtual:
            reported = task.compute_seconds
            seconds = VIRTUAL_SECONDS if reported is None else reported
        reply.add(trained.content, seconds)
        upload_seconds = max(upload_seconds, task.upload_seconds)
    if not assignment.virtual:
        time.sleep(upload_seconds)
        upload_seconds = 0.0
    return Message(reply.to_content(upload_seconds), reply_to=msg)


def train_own(msg: Message, ctxt: Context, call_next: ClientAppCallable) -> Message:
    """Train on the node's own partition, as for a strategy that knows no coding.

    The training is seeded as in a coded round, so that both train the same model.

    Parameters
    ----------
    msg : Message
        A train message without an assignment.
    ctxt : Context
        The node's context.
    call_next : ClientAppCallable
        The user's train function within its mods.

    Returns
    -------
    Message
        The train function's own reply.

    Raises
    ------
    InvalidInputError
        If the run-config's ``seed``, the message's ``server-round`` or the
        node-config's ``partition-id`` is not an int of at least 0.
    """
    task = PartitionTask(
        server_round=server_round_of(msg.content),
        partition=own_partition(ctxt) or 0,
        worker=worker_of(ctxt),
        seed=run_seed(ctxt),
        virtual=False,
    )
    reply = _train(task, msg, ctxt, call_next)
    time.sleep(task.upload_seconds)
    return reply


def _train(
    task: PartitionTask, msg: Message, ctxt: Context, call_next: ClientAppCallable
) -> Message:
    """Call the train function under the task's seed."""
    seed_partition(task.seed, task.server_round, task.partition)
    with partition_task(task):
        return call_next(msg, ctxt)


def _without_extras(msg: Message) -> Message:
    """Return a copy of a message that training may change, without our records.

    Records and the objects in them are new; an array's bytes are immutable and shared.
    """
    content = RecordDict()
    for name, record in msg.content.items():
        if name.startswith(REPLY_PREFIX):
            continue
        if isinstance(record, ArrayRecord):
            content[name] = ArrayRecord(dict(record))
        elif isinstance(record, ConfigRecord):
            content[name] = ConfigRecord(copy.deepcopy(dict(record)))
        else:
            content[name] = MetricRecord(copy.deepcopy(dict(record)))
    return make_message(metadata=copy.copy(msg.metadata), content=content)
