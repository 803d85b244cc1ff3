"""The coded mod: what makes a train function answer coded strategies.

A mod is Flower's way to put something around an app's functions. This one answers
holdings requests, trains what an assignment names and passes everything else on.
"""

from __future__ import annotations

from flwr.app import ConfigRecord, Context, Message, MessageType, RecordDict
from flwr.clientapp.typing import ClientAppCallable

from flower_ext.clients.coded_training import train_assigned, train_own
from flower_ext.clients.holdings import Declaration, Holdings, parse_partitions
from flower_ext.clients.partition_task import current_partition_task
from flower_ext.coding.assignment import ASSIGNMENT_KEY, HOLDINGS_KEY, Assignment
from flower_ext.errors import InvalidInputError

__all__ = ["CodedMod", "coded_mod"]


class CodedMod:
    """A mod that lets an app take part in coded training.

    It must be the first in the list: the mods after it run once per partition, as the
    train function does. :class:`flower_ext.clients.CodedClientApp` sees to that.

    A train message with an assignment is answered by the coded reply. One without is
    passed to the train function under the same seeds, so that plain FedAvg trains what
    a coded run trains. Evaluate and query messages are passed on untouched.

    Parameters
    ----------
    partitions : str | int | Iterable[int] | Callable[[Context], ...] (default: None)
        The partitions that this node holds, that is, whose data the train function can
        load: ``"all"``, ``"0-3,7"``, ints, or a function of the context that returns
        one of these. If None, the node-config's ``partitions``, in the same notation;
        without that, the node's own ``partition-id`` alone.

    Raises
    ------
    InvalidInputError
        If ``partitions`` cannot be read.

    Notes
    -----
    Because training is seeded by numbers that the server knows, so is any noise that is
    drawn from Python's, NumPy's or torch's global generator: do not combine the mod
    with Flower's ``LocalDpMod``.

    Examples
    --------
    An app of one's own whose nodes hold the data of every partition::

        app = ClientApp(mods=[CodedMod(partitions="all")])
    """

    def __init__(self, partitions: Declaration | None = None) -> None:
        if partitions is not None and not callable(partitions):
            partitions = parse_partitions(partitions)
        self._declared: Declaration | None = partitions

    def __call__(
        self, msg: Message, ctxt: Context, call_next: ClientAppCallable
    ) -> Message:
        """Answer a message.

        Parameters
        ----------
        msg : Message
            The message received from the ServerApp.
        ctxt : Context
            The context of the ClientApp.
        call_next : ClientAppCallable
            The next mod, or the app's function.

        Returns
        -------
        Message
            The reply.

        Raises
        ------
        InvalidInputError
            If the coded mod runs within itself, the node does not hold an assigned
            partition, or the train function's replies cannot be combined.
        """
        if msg.metadata.message_type.split(".")[0] != MessageType.TRAIN:
            return call_next(msg, ctxt)
        if current_partition_task() is not None:
            raise InvalidInputError(
                "The coded mod runs within itself: list it once, and not in the mods "
                "of a CodedClientApp, which has it already."
            )
        request = _config(msg.content, HOLDINGS_KEY)
        if request is not None:
            num_partitions = request.get("num-partitions")
            holdings = Holdings.of(self._declared, ctxt, num_partitions)
            content = RecordDict({HOLDINGS_KEY: holdings.to_record()})
            return Message(content, reply_to=msg)
        config = _config(msg.content, ASSIGNMENT_KEY)
        if config is None:
            return train_own(msg, ctxt, call_next)
        assignment = Assignment.from_config(config)
        holdings = Holdings.of(self._declared, ctxt, assignment.num_partitions)
        holdings.require(assignment.partitions)
        return train_assigned(assignment, msg, ctxt, call_next)


_OWN_PARTITION_MOD = CodedMod()


def coded_mod(msg: Message, ctxt: Context, call_next: ClientAppCallable) -> Message:
    """Let an app take part in coded training; :class:`CodedMod` without arguments.

    It must be the first in the list of mods. The node holds what its node-config's
    ``partitions`` declares, or its own ``partition-id`` alone.

    Parameters
    ----------
    msg : Message
        The message received from the ServerApp.
    ctxt : Context
        The context of the ClientApp.
    call_next : ClientAppCallable
        The next mod, or the app's function.

    Returns
    -------
    Message
        The reply.

    Raises
    ------
    InvalidInputError
        As :meth:`CodedMod.__call__`.

    Examples
    --------
    ::

        app = ClientApp(mods=[coded_mod])
    """
    return _OWN_PARTITION_MOD(msg, ctxt, call_next)


def _config(content: RecordDict, name: str) -> ConfigRecord | None:
    """Return the config record ``name``, if the message has it."""
    record = content.get(name)
    return record if isinstance(record, ConfigRecord) else None
