"""A Flower ``Grid`` that knows who is busy and hands out replies as they come.

It wraps the run's own grid. A round of coded training is driven through
:meth:`StagedGrid.push` and :meth:`StagedGrid.receive`; everything else that a strategy
sends (evaluation) goes through :meth:`StagedGrid.send_and_receive`, which ends at a
deadline taken from history where Flower's own would wait an hour for a straggler.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from logging import INFO, WARNING
from typing import Any, NamedTuple

from flwr.app import Message
from flwr.common.constant import ErrorCode
from flwr.serverapp import Grid
from flwr.supercore import log

from flower_ext.coding.assignment import Assignment
from flower_ext.coding.plan import Dispatch
from flower_ext.errors import FlowerExtError, InvalidInputError
from flower_ext.network.clocks import Clock, WallClock
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
from flower_ext.strategies.evaluation_exchange import EvaluationExchange
from flower_ext.strategies.fleet import Fleet
from flower_ext.strategies.grid_wrapper import GridWrapper
from flower_ext.strategies.poller import Poller, ReplyPoller
from flower_ext.strategies.pushing import push
from flower_ext.strategies.replies import content_bytes, summary_of
from flower_ext.strategies.resumption import Resumption, grid_state
from flower_ext.strategies.roll_call import RollCall
from flower_ext.strategies.simulated_replies import (
    simulated_seconds,
    simulated_transfer,
)
from flower_ext.strategies.timeline import Fate, LateAnswer
from flower_ext.strategies.verification import LateChecks

__all__ = ["LateReply", "StagedGrid", "StagedTask"]

_LOUD_EVERY = 15.0  # seconds between two warnings that a run waits in vain
_LIST_EVERY = 2.0  # seconds between two looks at who is listed
# Nodes that stay silent this many times longer than the first are left out.
_GRACE = 2.0
_TTL = 3600.0  # seconds that a message lives where no deadline is known
_EXPIRED = (ErrorCode.MESSAGE_UNAVAILABLE, ErrorCode.REPLY_MESSAGE_UNAVAILABLE)


class LateReply(NamedTuple):
    """A usable reply to an assignment whose round was over."""

    node_id: int
    partitions: int
    overhead: float


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


class StagedGrid(GridWrapper):
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
    clock : Clock, optional
        What tells the time and lets it pass; by default the wall's.
    poller : Poller, optional
        Looks for replies, by the same clock; by default a
        :class:`~flower_ext.strategies.poller.ReplyPoller`.
    late_checks : LateChecks, optional
        Told of late replies, to check them.
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
        clock: Clock | None = None,
        poller: Poller | None = None,
        late_checks: LateChecks | None = None,
    ) -> None:
        super().__init__(grid)
        self.late_checks = late_checks or LateChecks(Counter())
        self._clock = clock or WallClock()
        self.virtual = virtual
        self.history = history
        self.network = network
        self.ledger = EnergyLedger(network) if network and virtual else None
        self.fleet = Fleet(num_partitions)
        self._late: list[LateReply] = []
        self._late_answers: list[LateAnswer] = []
        self._first_answer: float | None = None
        self._settled_at = 0.0
        self._timeout = timeout
        self._poller = poller or ReplyPoller(grid, self._clock)
        self._arrivals = self._by_clock(virtual, timeout)
        self._evaluations = EvaluationExchange(deadline)
        self._roll_call = RollCall(self.fleet, num_partitions)
        self._gone: list[int] = []
        self._listed_at = -math.inf
        self._resumption: Resumption | None = None

    def _by_clock(self, virtual: bool, timeout: float) -> Arrivals:
        """Return what orders the replies."""
        if not virtual:
            return WallArrivals(self._poller, self._clock)
        if self.network is None:
            return VirtualArrivals(
                self._poller, self._clock, simulated_seconds, timeout
            )
        return NetworkArrivals(
            self._poller,
            self._clock,
            simulated_seconds,
            timeout,
            transfer=self._transfer,
            dedicated=not self.network.shared,
        )

    # -- Flower's interface ---------------------------------------------------------

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
        return self._evaluations.run(self, list(messages), limit)

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

        Raises
        ------
        FlowerExtError
            If a message is too large for what it travels through.
        """
        if not messages:
            return []
        taken = push(self._grid, messages)
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
                    expires=self._clock.now() + message.metadata.ttl,
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
        asked_until = self._clock.now()
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
        now = self._clock.now()
        if now - self._listed_at < _LIST_EVERY:
            return
        self._listed_at = now
        joined, gone = self.fleet.listed(self._grid.get_node_ids())
        self._gone += gone
        for node_id in gone:
            self._roll_call.forget(node_id)
        for sent in self._arrivals.expired():
            if sent.node_id in self.fleet:
                self.fleet[sent.node_id].jobs.discard(sent.message_id)
                joined.append(sent.node_id)
        joined += self._roll_call.due(now)
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
        start = self._clock.now()
        told = 0.0
        while True:
            if self.virtual:
                self._listed_at = -math.inf
            self.refresh()
            known = len(self.fleet.nodes)
            waited = self._clock.now() - start
            if known and self._first_answer is None:
                self._first_answer = waited
            silent = [
                n
                for n in self.fleet.unanswered
                if not self._roll_call.refused(n.node_id)
            ]
            if known >= least and not any(self._hopeful(n.asked) for n in silent):
                return
            if waited > limit or (
                self._roll_call.hopeless and not known and not silent
            ):
                raise FlowerExtError(self._roll_call.too_few(least, known, waited))
            refusals = self._roll_call.refusals
            if waited - told > (_LOUD_EVERY if refusals else 5.0):
                told = waited
                log(
                    WARNING if refusals else INFO,
                    "Waiting for nodes: %d of %d are ready%s",
                    known,
                    least,
                    f", {refusals} replied an error (above): end their SuperNodes and "
                    f"start them as they should be; giving up after {limit:.0f} s"
                    if refusals
                    else "",
                )
            if self.virtual and not silent:
                self._clock.sleep_until(self._clock.now() + min(0.2, limit))
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
        return self._clock.now() - asked <= first + _GRACE * max(first, 1.0)

    def checkpoint(self) -> dict[str, Any]:
        """Return what another process needs to go on, for :meth:`resume`."""
        return {
            **grid_state(self.fleet, self._arrivals, self.ledger),
            "evaluations": self._evaluations.state(),
        }

    def resume(self, state: Mapping[str, Any]) -> None:
        """Go on from a :meth:`checkpoint`, before any message is sent."""
        self._resumption = Resumption(state)
        self._resumption.set_clock(self._arrivals, self.ledger)
        self._evaluations.restore(state["evaluations"])

    def rejoin(self) -> Mapping[int, int]:
        """Know nodes again when they have said what they hold.

        Returns
        -------
        Mapping[int, int]
            The new ids of nodes that have one, by their old ones; nothing where no
            run is resumed.
        """
        resumption, self._resumption = self._resumption, None
        if resumption is None:
            return {}
        names = resumption.names(self.fleet)
        self._evaluations.rename(names)
        for arrival in resumption.expect(self._arrivals, names, self.ledger):
            if arrival.sent.node_id in self.fleet:
                jobs = self.fleet[arrival.sent.node_id].jobs
                jobs.add(arrival.sent.message_id)
        return names

    def close(self) -> None:
        """Stop looking for replies."""
        self._poller.close()

    # -- what replies tell -----------------------------------------------------------

    def _ask(self, node_ids: list[int]) -> None:
        """Ask nodes what they hold."""
        messages = self._roll_call.questions(node_ids, _TTL)
        for sent in self.push(messages, 0):
            if sent and sent.node_id in self.fleet:
                node = self.fleet[sent.node_id]
                node.asked = node.asked or self._clock.now()

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
            self._roll_call.answered(sent.node_id, message, self._clock.now())

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
            self.late_checks.unanswered(sent)
            self._note_answer(arrival, "failed")
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
                )
            )
            self.late_checks.arrived(arrival, summary)
            self._note_answer(arrival, "late")
        except InvalidInputError as error:
            self._note_answer(arrival, "rejected")
            log(WARNING, "Late reply of node %d is of no use: %s", sent.node_id, error)

    def _note_answer(self, arrival: Arrival, fate: Fate) -> None:
        if arrival.sent.dispatch is not None:
            key = arrival.sent.dispatch.key
            answer = LateAnswer(arrival.sent.server_round, key, arrival.at, fate)
            self._late_answers.append(answer)

    def late_answers(self) -> list[LateAnswer]:
        """Return what came of late assignments since the last call, useful or not."""
        answers, self._late_answers = self._late_answers, []
        return answers

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
        if self.ledger is None:
            return None
        return simulated_transfer(self.ledger, self.place(sent.node_id), sent, message)

    def _forget(self, node_id: int) -> None:
        self.fleet.remove(node_id)
        self._roll_call.forget(node_id)
        self._gone.append(node_id)
