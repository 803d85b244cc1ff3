"""A Flower ``Grid`` that knows who is busy and hands out replies as they come.

It wraps the run's own grid. A round of coded training is driven through
:meth:`StagedGrid.push` and :meth:`StagedGrid.receive`; everything else that a strategy
sends (evaluation) goes through :meth:`StagedGrid.send_and_receive`, which ends at a
deadline taken from history where Flower's own would wait an hour for a straggler.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping
from logging import INFO, WARNING
from typing import NamedTuple

from flwr.app import ConfigRecord, Message, MessageType, RecordDict
from flwr.common.constant import ErrorCode
from flwr.proto.node_pb2 import NodeInfo
from flwr.serverapp import Grid
from flwr.supercore import log
from flwr.supercore.run import Run

from flower_ext.coding.assignment import HOLDINGS_KEY, Assignment
from flower_ext.coding.plan import LEAST_DEADLINE, Dispatch
from flower_ext.errors import FlowerExtError, InvalidInputError
from flower_ext.network.edge_network import EdgeNetwork, EnergyLedger
from flower_ext.scheduling.history import CompletionHistory
from flower_ext.strategies.arrivals import (
    Arrival,
    Arrivals,
    NetworkArrivals,
    Sent,
    Transfer,
    VirtualArrivals,
    WallArrivals,
)
from flower_ext.strategies.fleet import Fleet
from flower_ext.strategies.poller import ReplyPoller
from flower_ext.strategies.replies import content_bytes, summary_of

__all__ = ["LateReply", "StagedGrid", "StagedTask"]

_LIST_EVERY = 2.0  # wall seconds between two looks at who is listed
# Nodes that stay silent this many times longer than the first are left out.
_GRACE = 2.0
_TTL = 3600.0  # seconds that a message lives where no deadline is known
_ASK_AGAIN = 5.0  # seconds until a node that failed to say what it holds is asked again
_APP_ERRORS = (
    ErrorCode.LOAD_CLIENT_APP_EXCEPTION,
    ErrorCode.CLIENT_APP_RAISED_EXCEPTION,
    ErrorCode.MOD_FAILED_PRECONDITION,
    ErrorCode.INVALID_FAB,
)
_EXPIRED = (ErrorCode.MESSAGE_UNAVAILABLE, ErrorCode.REPLY_MESSAGE_UNAVAILABLE)


class LateReply(NamedTuple):
    """A usable reply to an assignment whose round was over.

    Its dispatch is known by `server_round` and `key`; it arrived `at`, by the run's
    clock.
    """

    node_id: int
    partitions: int
    overhead: float
    server_round: int
    key: int
    at: float


class StagedTask(list[Message]):
    """What a coded strategy returns in place of messages: a round to be driven.

    Parameters
    ----------
    run : Callable[[StagedGrid, float], Iterable[Message]]
        Drives the round within a number of seconds and returns its replies.
    """

    def __init__(self, run: Callable[[StagedGrid, float], Iterable[Message]]) -> None:
        super().__init__()
        self.run = run


class StagedGrid(Grid):
    """The run's grid, with a memory of its nodes and a clock.

    Parameters
    ----------
    grid : Grid
        The run's own grid.
    virtual : bool
        Whether replies count from their simulated completion times.
    history : CompletionHistory
        Told of late replies.
    num_partitions : int, optional
        Number of partitions; by default what the nodes report.
    deadline : float, optional
        Seconds after which evaluation ends without those that have not answered; by
        default from the history of evaluations.
    timeout : float
        Wall seconds to wait for nodes, and that an answer may take under a virtual
        clock.
    network : EdgeNetwork, optional
        The simulated network, on a virtual clock.
    """

    def __init__(
        self,
        grid: Grid,
        *,
        virtual: bool,
        history: CompletionHistory,
        num_partitions: int | None,
        deadline: float | None,
        timeout: float,
        network: EdgeNetwork | None = None,
    ) -> None:
        self._grid = grid
        self.virtual = virtual
        self.history = history
        self.network = network
        self.ledger = EnergyLedger(network) if network and virtual else None
        self.fleet = Fleet(num_partitions)
        self._late: list[LateReply] = []
        self._first_answer: float | None = None
        self._settled_at = 0.0
        self._num_partitions = num_partitions
        self._deadline = deadline
        self._timeout = timeout
        self._poller = ReplyPoller(grid)
        self._arrivals = self._clock(virtual, timeout)
        self._evaluations = CompletionHistory()
        self._evaluation_round = 0
        self._gone: list[int] = []
        self._listed_at = -_LIST_EVERY
        self._refusals: dict[int, str] = {}
        self._ask_again: dict[int, float] = {}  # node id, wall time

    def _clock(self, virtual: bool, timeout: float) -> Arrivals:
        """Return the run's clock."""
        if not virtual:
            return WallArrivals(self._poller)
        if self.network is None:
            return VirtualArrivals(self._poller, _simulated_seconds, timeout)
        return NetworkArrivals(
            self._poller,
            _simulated_seconds,
            timeout,
            transfer=self._transfer,
            dedicated=not self.network.shared,
        )

    # -- Flower's interface ---------------------------------------------------------

    def set_run(self, run: Run) -> None:
        """Set the run."""
        self._grid.set_run(run)

    @property
    def run(self) -> Run:
        """Run information."""
        return self._grid.run

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        """Create a message (deprecated by Flower)."""
        return self._grid.create_message(
            content, message_type, dst_node_id, group_id, ttl
        )

    def get_node_ids(self) -> Iterable[int]:
        """Get node IDs."""
        return self._grid.get_node_ids()

    def get_nodes(self) -> Iterable[NodeInfo]:
        """Get nodes."""
        return self._grid.get_nodes()

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Push messages; their replies are then the caller's to pull."""
        return self._grid.push_messages(messages)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Pull the replies to messages pushed by :meth:`push_messages`."""
        return self._grid.pull_messages(message_ids)

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """Drive a coded round, or send messages and return the replies in time.

        Parameters
        ----------
        messages : Iterable[Message]
            A :class:`StagedTask`, or messages to push.
        timeout : float, optional
            Seconds after which it returns with what it has.

        Returns
        -------
        Iterable[Message]
            The replies.
        """
        limit = math.inf if timeout is None else timeout
        if isinstance(messages, StagedTask):
            return messages.run(self, limit)
        return self._exchange(list(messages), limit)

    def _exchange(self, messages: list[Message], timeout: float) -> list[Message]:
        self._evaluation_round += 1
        asked = self.push(messages, self._evaluation_round)
        waiting = {s.message_id for s in asked if s}
        start, count = self.now, len(waiting)
        replies: list[Message] = []
        deadline = self._evaluation_deadline([s.node_id for s in asked if s])
        known = deadline < math.inf
        while waiting:
            # Under a virtual clock an evaluation takes no time.
            end = start if self.virtual else start + min(deadline, timeout)
            arrival = self.receive(end)
            if arrival is None:
                if self.virtual or self.now >= end:
                    break
                continue
            if arrival.sent.message_id not in waiting:
                self.note_late(arrival)
                continue
            at = self.now - start
            waiting.discard(arrival.sent.message_id)
            if arrival.message.has_error():
                # Named here: of errors made by the SuperLink, the message has no node.
                log(
                    WARNING,
                    "evaluate: node %d failed (code %d): %s",
                    arrival.sent.node_id,
                    arrival.message.error.code,
                    arrival.message.error.reason,
                )
                continue
            replies.append(arrival.message)
            self._evaluations.completed(
                arrival.sent.node_id, self._evaluation_round, 1, at, at
            )
            if not known:
                patience = 3.0 if 2 * len(replies) >= count else 20.0
                deadline = max(LEAST_DEADLINE, patience * at)
        if waiting:
            log(
                WARNING,
                "evaluate: %d of %d nodes did not answer within %.1f s",
                len(waiting),
                count,
                self.now - start,
            )
        return replies

    def _evaluation_deadline(self, node_ids: list[int]) -> float:
        if self._deadline is not None:
            return self._deadline
        if not len(self._evaluations) or not node_ids:
            return math.inf
        seconds, _ = self._evaluations.typical(node_ids, self._evaluation_round)
        return max(LEAST_DEADLINE, 3 * float(seconds.max()))

    # -- for coded rounds -------------------------------------------------------------

    @property
    def now(self) -> float:
        """Seconds since the run began, by the run's clock."""
        return self._arrivals.now

    def ttl(self, deadline: float | None) -> float:
        """Return how long a message lives, so that it outlives its round."""
        if deadline is None or self.virtual or deadline == math.inf:
            return _TTL
        return max(_TTL, 3 * deadline)

    def push(
        self,
        messages: list[Message],
        server_round: int,
        dispatches: list[tuple[Dispatch, Assignment]] | None = None,
        shares: Mapping[int, float] | None = None,
    ) -> list[Sent | None]:
        """Push messages and expect their replies.

        Parameters
        ----------
        messages : list[Message]
            One per node.
        server_round : int
            The round that they belong to.
        dispatches : list[tuple[Dispatch, Assignment]], optional
            What each message asks for, if they are assignments.
        shares : Mapping[int, float], optional
            The weights, by node, with which the replies share a simulated carrier; 1
            for a node that is not named.

        Returns
        -------
        list[Sent or None]
            In the order of `messages`; None where the node is not known any more.
        """
        if not messages:
            return []
        taken = {i for i in self._grid.push_messages(messages) if i}
        if not taken and len(messages) > 1:  # too large for one request, perhaps
            taken = {i for m in messages for i in self._grid.push_messages([m]) if i}
        sent: list[Sent | None] = []
        for i, message in enumerate(messages):
            message_id = message.metadata.message_id
            node_id = message.metadata.dst_node_id
            if message_id not in taken:
                log(WARNING, "Node %d is not known any more: message lost", node_id)
                self._forget(node_id)
                sent.append(None)
                continue
            dispatch, assignment = dispatches[i] if dispatches else (None, None)
            sent.append(
                Sent(
                    message_id=message_id,
                    node_id=node_id,
                    server_round=server_round,
                    at=self.now,
                    expires=time.monotonic() + message.metadata.ttl,
                    dispatch=dispatch,
                    assignment=assignment,
                    size=content_bytes(message.content) if self.network else 0,
                    share=(shares or {}).get(node_id, 1.0),
                )
            )
            if node_id in self.fleet:
                self.fleet[node_id].jobs.add(message_id)
        self._arrivals.add([s for s in sent if s])
        return sent

    def receive(self, until: float) -> Arrival | None:
        """Return the next reply, having noted what it tells of its node.

        Parameters
        ----------
        until : float
            When to return without one, by the run's clock. On the wall clock it may
            return None a little earlier, to look who is listed.

        Returns
        -------
        Arrival or None
            None where the time is over.
        """
        if not self.virtual:
            self.refresh()
            until = min(until, self.now + _LIST_EVERY)
        asked_until = time.monotonic()
        arrival = self._arrivals.next(until)
        if arrival is not None:
            self._note(arrival)
        elif self.virtual:  # whoever answers at all has answered
            self._settled_at = asked_until
        return arrival

    def gone(self) -> list[int]:
        """Return the nodes that went offline since the last call."""
        gone, self._gone = self._gone, []
        return gone

    def refresh(self) -> None:
        """Look who is listed, at most every two seconds, and ask newcomers."""
        if time.monotonic() - self._listed_at < _LIST_EVERY:
            return
        self._listed_at = time.monotonic()
        joined, gone = self.fleet.listed(self._grid.get_node_ids())
        self._gone += gone
        for node_id in gone:
            self._refusals.pop(node_id, None)
        for sent in self._arrivals.expired():
            if sent.node_id in self.fleet:
                self.fleet[sent.node_id].jobs.discard(sent.message_id)
                joined.append(sent.node_id)
        due = [n for n, at in self._ask_again.items() if at <= self._listed_at]
        for node_id in due:
            del self._ask_again[node_id]
            if node_id in self.fleet:
                self._refusals.pop(node_id, None)
                joined.append(node_id)
        # A node whose message expired may still be at work: only its answer to a
        # question shows that it is not.
        self._ask(sorted(set(joined)))

    def gather(self, least: int, timeout: float | None = None) -> None:
        """Wait until enough nodes have said what they hold.

        Nodes that stay silent much longer than the first to answer are left out; they
        are used as soon as they do answer.

        Parameters
        ----------
        least : int
            Number of nodes needed.
        timeout : float, optional
            Seconds to wait at most; by default those of the run.

        Raises
        ------
        FlowerExtError
            If there are not enough in time; the message says what nodes replied.
        """
        limit = self._timeout if timeout is None else timeout
        start = time.monotonic()
        told = 0.0
        while True:
            if self.virtual:
                self._listed_at = -_LIST_EVERY
            self.refresh()
            known = len(self.fleet.nodes)
            waited = time.monotonic() - start
            if known and self._first_answer is None:
                self._first_answer = waited
            silent = [
                n for n in self.fleet.unanswered if n.node_id not in self._refusals
            ]
            if known >= least and not any(self._hopeful(n.asked) for n in silent):
                return
            if waited > limit or (
                self._refusals and not known and not silent and not self._ask_again
            ):
                raise FlowerExtError(self._too_few(least, known, waited))
            if waited - told > 5:
                told = waited
                log(INFO, "Waiting for nodes: %d of %d are ready", known, least)
            if self.virtual and not silent:
                time.sleep(min(0.2, limit))
            until = self.now if self.virtual else self.now + min(0.1, limit)
            arrival = self.receive(until)
            while arrival is not None:
                self.note_late(arrival)
                arrival = self.receive(self.now) if self.virtual else None

    def _hopeful(self, asked: float) -> bool:
        """Return whether a node asked then may be about to say what it holds."""
        if self.virtual:
            return asked > self._settled_at
        first = self._first_answer or 0.0
        return time.monotonic() - asked <= first + _GRACE * max(first, 1.0)

    def close(self) -> None:
        """Stop looking for replies."""
        self._poller.close()

    # -- what replies tell -----------------------------------------------------------

    def _ask(self, node_ids: list[int]) -> None:
        """Ask nodes what they hold."""
        request = (
            {}
            if self._num_partitions is None
            else {"num-partitions": self._num_partitions}
        )
        messages = [
            Message(
                RecordDict({HOLDINGS_KEY: ConfigRecord(dict(request))}),
                node_id,
                MessageType.TRAIN,
                ttl=_TTL,
            )
            for node_id in node_ids
        ]
        for sent in self.push(messages, 0):
            if sent and sent.node_id in self.fleet:
                node = self.fleet[sent.node_id]
                node.asked = node.asked or time.monotonic()

    def _note(self, arrival: Arrival) -> None:
        """Free the node, and learn from what it says that it holds."""
        sent, message = arrival.sent, arrival.message
        code = message.error.code if message.has_error() else None
        if code == ErrorCode.NODE_UNAVAILABLE:
            self._forget(sent.node_id)
        if sent.node_id not in self.fleet:
            return
        self.fleet[sent.node_id].jobs.discard(sent.message_id)
        if code in _EXPIRED:
            # Says nothing of the node, which may be at work on the message still.
            self._ask([sent.node_id])
        elif sent.server_round == 0:
            self._note_holdings(sent.node_id, message)

    def note_late(self, arrival: Arrival) -> None:
        """Enter the reply to an assignment whose round is over into the history."""
        sent, message = arrival.sent, arrival.message
        if sent.assignment is None or sent.dispatch is None:
            return
        if message.has_error():
            log(
                WARNING,
                "Node %d failed on round %d, which is over (code %d): %s",
                sent.node_id,
                sent.server_round,
                message.error.code,
                message.error.reason,
            )
            return
        try:
            summary = summary_of(message, sent.assignment)
            compute_seconds = sum(summary.compute_seconds)
            self.history.completed(
                sent.node_id,
                sent.server_round,
                len(sent.assignment.partitions),
                compute_seconds,
                arrival.at - sent.at,
            )
            self._late.append(
                LateReply(
                    sent.node_id,
                    len(sent.assignment.partitions),
                    max(arrival.at - sent.at - compute_seconds, 0.0),
                    sent.server_round,
                    sent.dispatch.key,
                    arrival.at,
                )
            )
        except InvalidInputError as error:
            log(WARNING, "Late reply of node %d is of no use: %s", sent.node_id, error)

    def late(self) -> list[LateReply]:
        """Return the late replies since the last call."""
        late, self._late = self._late, []
        return late

    def outdate(self) -> None:
        """Tell that the replies still under way have lost their use."""
        self._arrivals.outdate()

    def place(self, node_id: int) -> int:
        """Return which of the simulated links and devices is a node's."""
        worker = self.fleet[node_id].worker if node_id in self.fleet else -1
        return worker if worker >= 0 else node_id

    def _transfer(self, sent: Sent, message: Message) -> Transfer | None:
        """Charge a node for its reply, and say what the reply needs of the network."""
        if self.ledger is None or sent.assignment is None or message.has_error():
            return None
        try:
            compute_seconds = sum(summary_of(message, sent.assignment).compute_seconds)
        except InvalidInputError:
            return None
        size = content_bytes(message.content)
        worker = self.place(sent.node_id)
        link = self.ledger.network.link(worker)
        if link is None:
            self.ledger.spend(worker, compute_seconds, 0.0)
            return None
        begun = sent.at + link.receive(sent.size, sent.at)
        if begun == math.inf:  # it never heard of the assignment
            return Transfer(link, size, never=True)
        # At the rate that its link has by itself, whoever shares the carrier then.
        airtime = link.seconds_to_send(size, begun + compute_seconds)
        dead = airtime == math.inf
        self.ledger.spend(worker, compute_seconds, 0.0 if dead else airtime)
        return Transfer(link, size, never=dead)

    def _note_holdings(self, node_id: int, message: Message) -> None:
        try:
            if message.has_error():
                if message.error.code not in _APP_ERRORS:  # no fault of the app's
                    self._ask_again[node_id] = time.monotonic() + _ASK_AGAIN
                raise InvalidInputError(message.error.reason)
            if HOLDINGS_KEY not in message.content.config_records:
                raise InvalidInputError(
                    "its reply is an ordinary one: use flower_ext.clients."
                    "CodedClientApp, or coded_mod as the first of the app's mods."
                )
            self.fleet.holds(node_id, message.content.config_records[HOLDINGS_KEY])
            self._refusals.pop(node_id, None)
        except InvalidInputError as error:
            if node_id not in self._refusals:
                log(
                    WARNING,
                    "Node %d did not say which partitions it holds and gets no work. "
                    "Does it run a CodedClientApp? It replied: %s",
                    node_id,
                    error,
                )
            self._refusals[node_id] = str(error)

    def _forget(self, node_id: int) -> None:
        self.fleet.remove(node_id)
        self._gone.append(node_id)

    def _too_few(self, least: int, known: int, waited: float) -> str:
        refusal = next(iter(self._refusals.values()), None)
        if refusal is not None:
            return (
                f"{len(self._refusals)} nodes do not answer a holdings request, "
                f"{known} do, {least} are needed. Coded training needs clients built "
                "with flower_ext.clients.CodedClientApp (or coded_mod first in the "
                f"app's mods). The first of them replied: {refusal}"
            )
        return (
            f"{known} nodes were ready after {waited:.0f} s, {least} are needed: start "
            "more SuperNodes, or lower min_available_nodes and min_train_nodes."
        )


def _simulated_seconds(sent: Sent, message: Message) -> float:
    """Return how long a reply says that it would have taken; 0 if it does not say."""
    if sent.assignment is None or message.has_error():
        return 0.0
    try:
        summary = summary_of(message, sent.assignment)
    except InvalidInputError:
        return 0.0
    return sum(summary.compute_seconds) + summary.upload_seconds
