"""One round of coded training: a plan, driven over a grid."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from logging import INFO, WARNING

from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, RecordDict
from flwr.supercore import log

from flower_ext.coding.assignment import ASSIGNMENT_KEY, Assignment
from flower_ext.coding.parity import DEFAULT_TOLERANCE
from flower_ext.coding.plan import Dispatch, Outcome, RoundPlan
from flower_ext.coding.reply import ReplySummary
from flower_ext.errors import InvalidInputError
from flower_ext.strategies.arrivals import Arrival, Sent
from flower_ext.strategies.replies import CodedReply, accept_reply, content_bytes
from flower_ext.strategies.staged_grid import LateReply, StagedGrid
from flower_ext.strategies.timeline import (
    Fate,
    LateAnswer,
    RoundTimeline,
    TimelineRecorder,
)
from flower_ext.strategies.verification import RoundCheck, sorted_nodes, verdict

__all__ = ["CodedRound", "Measured", "RoundReplies"]

Measured = dict[str, int | float | list[int] | list[float]]
"""Metrics of a round, by name."""


class RoundReplies(list[Message]):
    """The replies of a coded round, with the round that they belong to."""

    def __init__(self, coded_round: CodedRound, replies: list[Message]) -> None:
        super().__init__(replies)
        self.coded_round = coded_round


@dataclass
class CodedRound:
    """Drives a plan through a grid and keeps the replies it may decode from.

    Parameters
    ----------
    plan : RoundPlan
        The plan of the round.
    arrays : ArrayRecord
        The global arrays.
    records : Mapping[str, ArrayRecord or ConfigRecord]
        The records of a train message by name, as the user's app expects them.
    num_partitions : int
        Number of partitions in the federation.
    seed : int, optional
        The run seed sent with the assignments.
    weighted_by_key : str
        The metric that holds the number of examples.
    shares : Mapping[int, float]
        Shares of the carrier, by node, where a scheduler gives them out.
    tolerance : float
        What honest replies may differ by, relative to their magnitude, in (0, 0.1].
    verify_replies : int (default: 0)
        As many nodes as may lie.
    """

    plan: RoundPlan
    arrays: ArrayRecord
    records: Mapping[str, ArrayRecord | ConfigRecord]
    num_partitions: int
    seed: int | None
    weighted_by_key: str
    shares: Mapping[int, float] = field(default_factory=dict)
    tolerance: float = DEFAULT_TOLERANCE
    verify_replies: int = 0
    replies: dict[int, CodedReply] = field(default_factory=dict)
    rejected: int = 0
    failed: int = 0
    late: list[LateReply] = field(default_factory=list)
    late_answers: list[LateAnswer] = field(default_factory=list)
    contradicting: int = 0
    liars: set[int] = field(default_factory=set)
    contradiction: str = ""
    _check: RoundCheck | None = None
    overheads: dict[int, float] = field(default_factory=dict)
    elapsed: float = 0.0
    bytes_up: int = 0
    bytes_down: int = 0
    outcome: Outcome | None = None
    measured: Measured = field(default_factory=dict)
    recorder: TimelineRecorder = field(default_factory=TimelineRecorder)
    _examples: dict[int, tuple[float, int]] = field(default_factory=dict)

    def run(self, grid: StagedGrid, timeout: float) -> RoundReplies:
        """Drive the round to its end.

        Parameters
        ----------
        grid : StagedGrid
            Where to push and receive.
        timeout : float
            Seconds, by the grid's clock, after which the round ends in any case.

        Returns
        -------
        RoundReplies
            The messages of the replies that were accepted.
        """
        start, plan = grid.now, self.plan
        grid.gone()  # before the plan was made
        self.recorder.begin(start)
        limit = math.inf if grid.virtual else timeout
        messages: list[Message] = []
        if self.verify_replies:
            plan.verify(self.verify_replies)
            self._check = self._new_check(sampled=False)
        self._push(grid, plan.start(), 0.0)
        at = 0.0
        while True:
            at = max(at, grid.now - start)
            if at >= min(limit, plan.deadline) or not self._worth_waiting(grid, at):
                break
            until = min(plan.wake_at, plan.deadline, limit)
            arrival = grid.receive(start + until)
            at = max(at, grid.now - start)
            if arrival is None and grid.virtual and until < math.inf:
                at = max(at, until)  # start + until - start may round to before it
            for node_id in grid.gone():
                plan.leave(node_id)
            if arrival is not None:
                self._take(grid, arrival, at, messages)
            elif at >= plan.wake_at:
                self._push(grid, plan.wake(at), at)
            elif grid.virtual and until == math.inf:
                break
        self.elapsed = grid.now - start
        self._push(grid, plan.settle(at), at)
        for key, sent_at in plan.outstanding.items():
            dispatch = plan.dispatches[key]
            plan.history.censored(
                dispatch.worker,
                plan.server_round,
                len(dispatch.partitions),
                max(self.elapsed - sent_at, 0.0),
            )
        self.late = grid.late()
        self.late_answers = grid.late_answers()
        self.outcome = plan.outcome()
        self.contradicting = grid.late_checks.take()
        self._remember(grid)
        self._leave_out()
        return RoundReplies(self, messages)

    def _remember(self, grid: StagedGrid) -> None:
        """Keep sketches of the replies, where others are yet to come, to check them."""
        plan = self.plan
        if not plan.outstanding or not self.replies:
            return
        checked = self._check
        if checked is None:
            checked = self._new_check(sampled=True)
            for key, reply in self.replies.items():
                checked.add(plan.dispatches[key], *reply)
        grid.late_checks.remember(
            plan.server_round, checked, plan.outstanding, self.liars
        )

    def _new_check(self, sampled: bool) -> RoundCheck:
        limit = max(self.verify_replies, 1)
        return RoundCheck(self.arrays, self.tolerance, limit, sampled)

    def _leave_out(self) -> None:
        """Where replies are verified, keep none that is not; measure how it went."""
        if not self.verify_replies:
            return
        plan = self.plan
        trusted = set(plan.received if plan.complete else plan.verified())
        for key in self.replies.keys() - trusted:
            coded, _ = self.replies.pop(key)
            coded.clear()
        if not plan.complete and not self.contradiction:
            log(
                WARNING,
                "train: too few nodes computed the same for the replies to be verified "
                "against %d that may lie; only %d of %d partitions are",
                self.verify_replies,
                len({p for k in trusted for p in plan.dispatches[k].partitions}),
                len(plan.partitions),
            )
        self.measured |= {"liars": len(self.liars), "verified": int(plan.complete)}

    def _worth_waiting(self, grid: StagedGrid, at: float) -> bool:
        """Return whether the plan is unfinished, or a busy node may yet help it."""
        if self.plan.outstanding or self.plan.wake_at < math.inf:
            return not self.plan.finished(at)
        if self.plan.complete:
            return False
        if self.plan.closed and not self.plan.dispatches:
            return True  # until the deadline, for batteries to be charged
        return (self.plan.hungry or not self.plan.dispatches) and grid.fleet.busy

    def _push(self, grid: StagedGrid, dispatches: list[Dispatch], at: float) -> None:
        """Push a train message for each dispatch, and for what replaces it if lost."""
        if not dispatches:
            return
        size = sum(len(array.data) for array in self.arrays.values())
        while dispatches:
            self.recorder.sent(dispatches, grid.place, at)
            asked = [(d, self._assignment(d, grid.virtual)) for d in dispatches]
            ttl = grid.ttl(self.plan.deadline)
            messages = [
                Message(
                    self._content(assignment),
                    dispatch.worker,
                    MessageType.TRAIN,
                    ttl=ttl,
                    group_id=str(self.plan.server_round),
                )
                for dispatch, assignment in asked
            ]
            sent = grid.push(messages, self.plan.server_round, asked, self.shares)
            for node_id in grid.gone():
                self.plan.leave(node_id)
            lost = [d for d, s in zip(dispatches, sent, strict=True) if s is None]
            self.bytes_down += (len(sent) - len(lost)) * size
            self.failed += len(lost)
            for dispatch in lost:
                self.recorder.answered(dispatch.key, at, "failed")
            dispatches = [n for d in lost for n in self.plan.failure(d.key, at)]

    def _assignment(self, dispatch: Dispatch, virtual: bool) -> Assignment:
        return Assignment(
            partitions=dispatch.partitions,
            coefficients=dispatch.coefficients,
            num_partitions=self.num_partitions,
            server_round=self.plan.server_round,
            seed=self.seed,
            stage=dispatch.stage,
            virtual=virtual,
            weighted_by_key=self.weighted_by_key,
        )

    def _content(self, assignment: Assignment) -> RecordDict:
        """Return a message's content; config records are copied for each message."""
        content = RecordDict()
        for name, record in self.records.items():
            if isinstance(record, ConfigRecord):
                content[name] = ConfigRecord(dict(record))
            else:
                content[name] = record
        content[ASSIGNMENT_KEY] = ConfigRecord(assignment.to_config())
        return content

    def _take(
        self, grid: StagedGrid, arrival: Arrival, at: float, messages: list[Message]
    ) -> None:
        """Tell the plan of whatever has arrived, and push what it wants then."""
        sent, message = arrival.sent, arrival.message
        dispatch = sent.dispatch
        ours = (
            dispatch is not None
            and sent.server_round == self.plan.server_round
            and dispatch.key in self.plan.outstanding
        )
        if not ours or dispatch is None or sent.assignment is None:
            grid.note_late(arrival)
            self._push(grid, self._freed(grid, sent, at), at)
            return
        reply = self._accepted(dispatch, message, sent.assignment)
        if reply is None:
            fate: Fate = "failed" if message.has_error() else "rejected"
            self.recorder.answered(dispatch.key, at, fate)
            self._push(grid, self.plan.failure(dispatch.key, at), at)
            return
        self.replies[dispatch.key] = reply
        messages.append(message)
        compute_seconds = sum(reply[1].compute_seconds)
        took = arrival.at - sent.at - compute_seconds
        self.overheads[dispatch.key] = max(took, 0.0)
        self.recorder.answered(dispatch.key, at)
        wanted = self.plan.reply(dispatch.key, at, compute_seconds)
        if self.plan.decodable:
            self.recorder.decoded(at)
        self._push(grid, wanted, at)
        self._judge(grid, dispatch, at)

    def _judge(self, grid: StagedGrid, dispatch: Dispatch, at: float) -> None:
        """Check a reply against the others, and tell the plan whom to doubt."""
        if self._check is None:
            return
        if not self.contradiction:
            related = self._check.related(dispatch.key)
            if self._check.report(related).consistent:
                return
        report = self._check.report()
        liars, suspects = sorted_nodes(report.liars), sorted_nodes(report.suspects)
        told = verdict(report, self.verify_replies)
        if told != self.contradiction:
            self.contradiction = told
            log(WARNING, "train: replies contradict each other: %s", told)
        self.liars = set(liars)
        self._push(grid, self.plan.doubt(liars, suspects, report.least, at), at)

    def _freed(self, grid: StagedGrid, sent: Sent, at: float) -> list[Dispatch]:
        """Offer a node to the plan that has answered something else."""
        if sent.node_id not in grid.fleet or not grid.fleet[sent.node_id].idle:
            return []
        node = grid.fleet[sent.node_id]
        held = grid.fleet.holdings(node, self.num_partitions)
        return self.plan.idle(sent.node_id, held, at)

    def _accepted(
        self, dispatch: Dispatch, message: Message, assignment: Assignment
    ) -> CodedReply | None:
        """Check a reply; log why if it is of no use."""
        node_id = dispatch.worker
        if message.has_error():
            self.failed += 1
            log(
                WARNING,
                "train: node %d failed on partitions %s (code %d): %s",
                node_id,
                list(assignment.partitions),
                message.error.code,
                message.error.reason,
            )
            return None
        self.bytes_up += content_bytes(message.content)
        try:
            if node_id in self.liars:
                raise InvalidInputError("it has sent false replies in this round.")
            reply = accept_reply(message, assignment, self.arrays)
            if self._check is None:
                self._agree(node_id, reply[1])
            else:  # which does not take the first to count for right
                self._check.add(dispatch, *reply)
            return reply
        except InvalidInputError as error:
            self.rejected += 1
            log(
                WARNING,
                "train: the reply of node %d was rejected: %s",
                node_id,
                error,
            )
            return None

    def _agree(self, node_id: int, summary: ReplySummary) -> None:
        """Check that nodes agree on how many examples a partition has.

        Different numbers mean different data, and rows over different data do not
        decode to anybody's update.

        Raises
        ------
        InvalidInputError
            If another node reported another number.
        """
        reported = dict(zip(summary.partitions, summary.examples, strict=True))
        for partition, examples in reported.items():
            known, by = self._examples.get(partition, (examples, node_id))
            if known != examples:
                raise InvalidInputError(
                    f"It trained partition {partition} on {examples:g} examples, node "
                    f"{by} on {known:g}: every node must hold the same data for a "
                    "partition."
                )
        for partition, examples in reported.items():
            self._examples.setdefault(partition, (examples, node_id))

    def timeline(self, skipped: bool) -> RoundTimeline:
        """Return the round, which is over, as it went."""
        plan, outcome = self.plan, self.outcome
        assert outcome is not None  # set when the round ended
        return self.recorder.timeline(
            plan.server_round,
            plan.stage_two_at,
            self.elapsed,
            outcome,
            skipped,
            self.liars,
        )

    def release(self) -> None:
        """Let go of all arrays: Flower keeps a round's messages until the next one."""
        for coded, _ in self.replies.values():
            coded.clear()
        self.replies.clear()

    def log_summary(self, coverage: float) -> None:
        """Log how the round went, in one line."""
        outcome = self.outcome
        if outcome is None:
            return
        lost = self.rejected + self.failed
        log(
            INFO,
            "train: %s after %.2f s, %d of %d replies used, redundancy %.2f%s",
            "decoded" if outcome.exact else f"partial ({100 * coverage:.0f} % covered)",
            self.elapsed,
            len(outcome.weights),
            len(self.plan.dispatches),
            self.plan.work / len(self.plan.partitions),
            f", {lost} lost" if lost else "",
        )
