"""Asking nodes which partitions they hold, and what their answers tell."""

from __future__ import annotations

from collections.abc import Iterable
from logging import WARNING

from flwr.app import ConfigRecord, Message, MessageType, RecordDict
from flwr.common.constant import ErrorCode
from flwr.supercore import log

from flower_ext.coding.assignment import HOLDINGS_KEY
from flower_ext.errors import InvalidInputError
from flower_ext.strategies.fleet import Fleet

__all__ = ["RollCall"]

_ASK_AGAIN = 5.0  # seconds until a node that failed to say what it holds is asked again
_OUR_ERROR = InvalidInputError.__name__  # in a reply: it says what is wrong
_APP_ERRORS = (
    ErrorCode.LOAD_CLIENT_APP_EXCEPTION,
    ErrorCode.CLIENT_APP_RAISED_EXCEPTION,
    ErrorCode.MOD_FAILED_PRECONDITION,
    ErrorCode.INVALID_FAB,
)


class RollCall:
    """Who is to be asked what it holds, and who would not say.

    Parameters
    ----------
    fleet : Fleet
        Told of what nodes hold.
    num_partitions : int, optional
        Number of partitions, if the server knows it.
    """

    def __init__(self, fleet: Fleet, num_partitions: int | None) -> None:
        self._fleet = fleet
        self._request: dict[str, int] = {}
        if num_partitions is not None:
            self._request["num-partitions"] = num_partitions
        self._refusals: dict[int, str] = {}
        self._ask_again: dict[int, float] = {}  # node id, when

    def questions(self, node_ids: Iterable[int], ttl: float) -> list[Message]:
        """Return the messages that ask these nodes what they hold."""
        return [
            Message(
                RecordDict({HOLDINGS_KEY: ConfigRecord({**self._request})}),
                node_id,
                MessageType.TRAIN,
                ttl=ttl,
            )
            for node_id in node_ids
        ]

    def answered(self, node_id: int, message: Message, now: float) -> None:
        """Take note of an answer.

        Parameters
        ----------
        node_id : int
            Who answered, a node of the fleet.
        message : Message
            The answer, or an error.
        now : float
            Seconds by the clock that :meth:`due` is asked by.
        """
        try:
            if message.has_error():
                if message.error.code not in _APP_ERRORS:  # no fault of the app's
                    if self._fleet[node_id].partitions is not None:
                        return  # An answer all the same: it is not at work.
                    self._ask_again[node_id] = now + _ASK_AGAIN
                raise InvalidInputError(message.error.reason)
            if HOLDINGS_KEY not in message.content.config_records:
                raise InvalidInputError(
                    "its reply is an ordinary one: use flower_ext.clients."
                    "CodedClientApp, or coded_mod as the first of the app's mods."
                )
            self._fleet.holds(node_id, message.content.config_records[HOLDINGS_KEY])
            self._refusals.pop(node_id, None)
        except InvalidInputError as error:
            if node_id not in self._refusals:
                log(
                    WARNING,
                    "Node %d did not say which partitions it holds and gets no work. "
                    "%sIt replied: %s",
                    node_id,
                    "" if _OUR_ERROR in str(error) else "Is it a CodedClientApp? ",
                    error,
                )
            self._refusals[node_id] = str(error)

    def due(self, now: float) -> list[int]:
        """Return the nodes whose answer failed for a passing reason, to be asked."""
        due = [node_id for node_id, at in self._ask_again.items() if at <= now]
        for node_id in due:
            del self._ask_again[node_id]
            self._refusals.pop(node_id, None)
        return [node_id for node_id in due if node_id in self._fleet]

    def forget(self, node_id: int) -> None:
        """Forget a node that is gone."""
        self._refusals.pop(node_id, None)
        self._ask_again.pop(node_id, None)

    def refused(self, node_id: int) -> bool:
        """Return whether a node has answered, but did not say what it holds."""
        return node_id in self._refusals

    @property
    def refusals(self) -> int:
        """How many nodes have answered without saying what they hold."""
        return len(self._refusals)

    @property
    def hopeless(self) -> bool:
        """Whether nodes have refused, and none of them will be asked again."""
        return bool(self._refusals) and not self._ask_again

    def too_few(self, least: int, known: int, waited: float) -> str:
        """Return what to say where too few nodes have said what they hold.

        Parameters
        ----------
        least, known : int
            The number of nodes that are needed, and that have.
        waited : float
            Seconds.
        """
        refusal = next(iter(self._refusals.values()), None)
        if refusal is not None:
            needed = (
                ""
                if _OUR_ERROR in refusal
                else "Coded training needs clients built with flower_ext.clients."
                "CodedClientApp (or coded_mod first in the app's mods). "
            )
            return (
                f"{len(self._refusals)} nodes do not answer a holdings request, "
                f"{known} do, {least} are needed. {needed}The first of them replied: "
                f"{refusal}"
            )
        return (
            f"{known} nodes were ready after {waited:.0f} s, {least} are needed: start "
            "more SuperNodes, or lower min_available_nodes and min_train_nodes."
        )
