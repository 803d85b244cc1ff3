"""A Flower grid in simulated time: nodes that work, fail, die, join and come back.

It behaves as Flower's deployment does. A node works on one message at a time and
queues others; a dead node stays listed for a while, and what it has not answered is
answered by the SuperLink when it is missed; a message to an unknown node gets an empty
id; one whose time to live is over is dropped; a process that dies before it pulls its
message never answers; a reply that nobody has pulled is lost with its node; a node
that is started again has a new id, or the same one if it is authenticated.
"""

from __future__ import annotations

import heapq
import itertools
from collections import Counter, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, NoReturn, Protocol

import numpy as np
from flwr.app import ConfigRecord, Error, Message, MessageType, RecordDict
from flwr.serverapp import Grid

from flower_ext.clients.holdings import Holdings
from flower_ext.coding.assignment import ASSIGNMENT_KEY, HOLDINGS_KEY, Assignment
from flower_ext.network.clocks import VirtualClock
from tests.simulation.faults import CORRUPTIONS, LIES, FaultMix, corrupt, lie
from tests.simulation.nodes import Training

__all__ = ["Observer", "SimulatedClock", "SimulatedGrid", "SimulatedNode", "Task"]

_MISSED = 45.0  # seconds until a dead node is no longer listed
_LOST_PROCESS = 66.0  # seconds until the SuperLink reports a process that died
_TRACED = 400  # events that are kept
_LOOK = 0.5  # seconds until a reply that is there is pulled, at most
_MOST_NODES = 12
_FIRST_NEW = 10_000


class SimulatedClock(VirtualClock):
    """Time that passes when somebody waits, and not otherwise."""

    def __init__(self) -> None:
        super().__init__(timer=lambda: 0.0)
        self._now = 0.0

    def now(self) -> float:
        """Return the seconds since the federation began."""
        return self._now

    def sleep_until(self, time: float) -> None:
        """Skip to then, if it is not past."""
        self._now = max(self._now, time)


class Observer(Protocol):
    """Who is told of what passes between the server and its nodes."""

    def listed(self, node_ids: Iterable[int]) -> None:
        """Tell what the server saw when it looked who is listed."""
        ...

    def pushed(self, node: SimulatedNode, task: Task) -> None:
        """Tell that the server pushed a message that the SuperLink took."""
        ...

    def refused(self, task: Task) -> None:
        """Tell that the SuperLink did not know a message's node."""
        ...

    def delivered(self, task: Task, reply: Message) -> None:
        """Tell that the server was handed a reply."""
        ...

    def corrupted(self, task: Task) -> None:
        """Tell that the reply to a message will not be what was asked for."""
        ...

    def lied(self, task: Task) -> None:
        """Tell that the reply to a message will be well formed and false."""
        ...


@dataclass(frozen=True, eq=False)
class Task:
    """A message that was pushed.

    Parameters
    ----------
    message : Message
        The message.
    message_id : str
        Its id.
    node_id : int
        Its destination.
    expires : float
        When its time to live is over, seconds.
    assignment : Assignment, optional
        What it asks to be trained.
    evaluates : bool
        Whether it asks for an evaluation.
    """

    message: Message
    message_id: str
    node_id: int
    expires: float
    assignment: Assignment | None
    evaluates: bool

    @classmethod
    def of(cls, message: Message, message_id: str, now: float) -> Task:
        """Return a message's."""
        told = message.content.get(ASSIGNMENT_KEY)
        return cls(
            message,
            message_id,
            message.metadata.dst_node_id,
            now + message.metadata.ttl,
            Assignment.from_config(told) if isinstance(told, ConfigRecord) else None,
            message.metadata.message_type == MessageType.EVALUATE,
        )

    def __str__(self) -> str:
        """Return what it asks for."""
        asked = "what do you hold?"
        if self.assignment is not None:
            a = self.assignment
            asked = f"train {list(a.partitions)} in round {a.server_round}"
        elif self.evaluates:
            asked = "evaluate"
        return f"{self.message_id} ({asked})"


@dataclass
class SimulatedNode:
    """A node.

    Parameters
    ----------
    node_id : int
        Flower's id.
    partition : int
        Its own partition.
    declared : frozenset[int], optional
        The partitions that it declares to hold; None for all.
    seconds : float
        What a partition takes it.
    startup : float
        The longest time until a message is pulled and its process has started.
    """

    node_id: int
    partition: int
    declared: frozenset[int] | None
    seconds: float
    startup: float
    alive: bool = True
    life: int = 0  # how often it has died
    queue: deque[Task] = field(default_factory=deque)
    working: Task | None = None

    def holdings(self, num_partitions: int) -> frozenset[int]:
        """Return the partitions that it holds."""
        if self.declared is None:
            return frozenset(range(num_partitions))
        return self.declared

    @property
    def busy(self) -> bool:
        """Whether it works on a message, or has one to work on."""
        return self.working is not None or bool(self.queue)


class SimulatedGrid(Grid):
    """The nodes and the SuperLink, as the server sees them.

    Parameters
    ----------
    clock : SimulatedClock
        The time.
    rng : numpy.random.Generator
        Source of every delay and every fault.
    faults : FaultMix
        How often faults happen.
    num_partitions : int
        Number of partitions.
    training : Training
        What nodes train.
    observer : Observer
        Told of what passes.
    least_alive : int
        Nobody dies while no more nodes than this are alive.
    """

    def __init__(
        self,
        clock: SimulatedClock,
        rng: np.random.Generator,
        faults: FaultMix,
        num_partitions: int,
        training: Training,
        observer: Observer,
        least_alive: int,
    ) -> None:
        self.clock = clock
        self.counts: Counter[str] = Counter()
        self.trace: deque[tuple[float, str, int, Task | None]] = deque(maxlen=_TRACED)
        self.nodes: dict[int, SimulatedNode] = {}  # those that the SuperLink knows
        self._listed: dict[int, None] = {}
        self._rng = rng
        self._faults = faults
        self._num_partitions = num_partitions
        self._training = training
        self._observer = observer
        self._least_alive = least_alive
        self._events: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._order = itertools.count()
        self._ids = itertools.count()
        self._unanswered: dict[str, Task] = {}
        self._ready: dict[str, Message] = {}  # uploaded, not pulled
        self._pulled: dict[str, Task] = {}  # or answered once already
        self._next_id = _FIRST_NEW
        self._liars: dict[int, set[int]] = {}  # by round
        # Ids of messages whose reply would be found by the next look.
        self.arrived: deque[str] = deque()

    # -- for who sets it up ---------------------------------------------------------

    def add_node(self, node: SimulatedNode) -> None:
        """Let a node join, and be listed at some time within the lag."""
        self.nodes[node.node_id] = node
        self._note("joins", node.node_id)
        self._after(self._lag(), self._list, node.node_id, node.life)

    def start_faults(self, make: Callable[[int], SimulatedNode]) -> None:
        """Let nodes die and join from now on; `make` is given a new node's id."""
        self._make = make
        if self._faults.deaths:
            self._after(self._exponential(self._death_rate()), self._someone_dies)
        if self._faults.joins:
            self._after(self._exponential(self._faults.joins), self._someone_joins)

    def advance(self, until: float) -> None:
        """Let happen what happens until then."""
        while self._events and self._events[0][0] <= until:
            at, _, event, arguments = heapq.heappop(self._events)
            self.clock.sleep_until(at)
            event(*arguments)
        self.clock.sleep_until(until)

    @property
    def next_event(self) -> float:
        """When something happens next, or inf."""
        return self._events[0][0] if self._events else float("inf")

    # -- Flower's interface ----------------------------------------------------------

    def set_run(self, run: Any) -> NoReturn:
        """Not simulated."""
        raise NotImplementedError

    @property
    def run(self) -> Any:
        """Not simulated."""
        raise NotImplementedError

    def create_message(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Not simulated."""
        raise NotImplementedError

    def get_nodes(self) -> NoReturn:
        """Not simulated."""
        raise NotImplementedError

    def send_and_receive(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Fail: a coded strategy does not wait as Flower does."""
        raise AssertionError("Flower's own exchange was used.")

    def get_node_ids(self) -> list[int]:
        """Return who is listed."""
        self.advance(self.clock.now())
        listed = list(self._listed)
        self._observer.listed(listed)
        return listed

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        """Take messages; the id is empty where the node is unknown."""
        self.advance(self.clock.now())
        ids = []
        for message in messages:
            message_id = f"m{next(self._ids)}"
            message.metadata.__dict__["_message_id"] = message_id
            task = Task.of(message, message_id, self.clock.now())
            node = self.nodes.get(task.node_id)
            if node is None:
                self._note("unknown node", task.node_id)
                self._observer.refused(task)
                ids.append("")
                continue
            self._trace("is sent", task)
            self._observer.pushed(node, task)
            ids.append(message_id)
            self._unanswered[message_id] = task
            self._after(message.metadata.ttl, self._expire, message_id)
            if node.alive:
                node.queue.append(task)
                if node.working is None:
                    self._next_job(node)
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        """Return replies that are there, once each."""
        self.advance(self.clock.now())
        if not self._ready:
            return []
        found = []
        for message_id in message_ids:
            reply = self._ready.pop(message_id, None)
            if reply is None:
                continue
            found.append(reply)
            if message_id in self._unanswered:
                self._pulled[message_id] = self._unanswered.pop(message_id)
        return found

    def hand_out(self, message_id: str, reply: Message) -> None:
        """Take note that the server has a reply that was pulled."""
        task = self._pulled.pop(message_id)
        self._trace("has answered", task)
        self._observer.delivered(task, reply)

    # -- what happens ----------------------------------------------------------------

    def _after(self, seconds: float, event: Callable[..., None], *args: Any) -> None:
        at = self.clock.now() + seconds
        heapq.heappush(self._events, (at, next(self._order), event, args))

    def _exponential(self, rate: float) -> float:
        return float(self._rng.exponential(1.0 / rate))

    def _lag(self) -> float:
        return float(self._rng.random()) * self._faults.lag

    def _happens(self, probability: float) -> bool:
        return probability > 0 and bool(self._rng.random() < probability)

    def _note(self, what: str, node_id: int) -> None:
        self.trace.append((self.clock.now(), what, node_id, None))
        self.counts[what] += 1

    def _trace(self, what: str, task: Task) -> None:
        self.trace.append((self.clock.now(), what, task.node_id, task))

    # ... of a node's life

    def _list(self, node_id: int, life: int) -> None:
        node = self.nodes.get(node_id)
        if node is not None and node.alive and node.life == life:
            self._listed[node_id] = None

    def _death_rate(self) -> float:
        return self._faults.deaths * max(len(self.nodes), 1)

    def _alive(self) -> list[SimulatedNode]:
        return [node for node in self.nodes.values() if node.alive]

    def _someone_dies(self) -> None:
        alive = self._alive()
        if len(alive) > self._least_alive:
            self._die(alive[int(self._rng.integers(len(alive)))])
        self._after(self._exponential(self._death_rate()), self._someone_dies)

    def _someone_joins(self) -> None:
        if len(self.nodes) < _MOST_NODES:
            self._next_id += 1
            self.add_node(self._make(self._next_id))
        self._after(self._exponential(self._faults.joins), self._someone_joins)

    def _die(self, node: SimulatedNode) -> None:
        node.alive = False
        node.life += 1
        node.queue.clear()
        node.working = None
        ended = self._happens(0.3)  # in good order: it says that it leaves
        self._note("ends" if ended else "dies", node.node_id)
        missed = 0.0 if ended else _MISSED * (0.8 + 0.4 * float(self._rng.random()))
        again = missed + self._exponential(0.05)
        fate = float(self._rng.random())
        same_id = 0.5 <= fate < 0.8
        # What an authenticated node has not answered when it returns is never answered.
        told = not same_id or self._happens(0.5)
        self._after(missed, self._miss, node.node_id, node.life, told)
        if fate < 0.8:
            self._after(again, self._restart, node, same_id)

    def _miss(self, node_id: int, life: int, told: bool) -> None:
        """Let the SuperLink find that a node is offline."""
        node = self.nodes.get(node_id)
        if node is None or node.life != life or node.alive:
            return
        self._note("missed", node_id)
        del self.nodes[node_id]
        self._after(self._lag(), self._unlist, node_id)
        for message_id, task in list(self._unanswered.items()):
            if task.node_id == node_id:
                if self._ready.pop(message_id, None):
                    self.counts["reply lost with its node"] += 1
                if told:
                    self.counts["node offline (code 5)"] += 1
                    self._answer(task, Error(5, "Node is offline."))

    def _unlist(self, node_id: int) -> None:
        if node_id not in self.nodes:
            self._listed.pop(node_id, None)

    def _restart(self, node: SimulatedNode, same_id: bool) -> None:
        if len(self.nodes) >= _MOST_NODES:
            return
        if same_id:
            node.alive = True
            self._note("returns", node.node_id)
            self.add_node(node)
            return
        self._next_id += 1
        fresh = SimulatedNode(
            self._next_id, node.partition, node.declared, node.seconds, node.startup
        )
        self.add_node(fresh)

    # ... of a message's

    def _next_job(self, node: SimulatedNode) -> None:
        """Let a node pull its next message, if there is one."""
        while node.queue and node.queue[0].expires <= self.clock.now():
            node.queue.popleft()  # dropped when its time to live was over
        if not node.queue:
            return
        node.working = task = node.queue.popleft()
        wait = node.startup * float(self._rng.random())
        if task.assignment is None:
            self._after(wait + 0.05, self._finish, node, node.life, task, 0.0)
            return
        if self._happens(self._faults.silent):
            self._trace("dies before it pulls", task)
            self.counts["never answers"] += 1
            self._after(wait, self._skip, node, node.life)
            return
        seconds = node.seconds * (0.9 + 0.2 * float(self._rng.random()))
        if self._happens(self._faults.straggle):
            self.counts["straggles"] += 1
            seconds *= 5.0 * 10.0 ** float(self._rng.random())
        took = wait + seconds * len(task.assignment.partitions)
        if self._happens(self._faults.unavailable):
            self.counts["unavailable (code 3)"] += 1
            early = took * float(self._rng.random())
            self._after(early, self._answer, task, Error(3, "Unavailable."))
        if self._happens(self._faults.lost_process):
            self.counts["process died (code 8)"] += 1
            broke = took * float(self._rng.random())
            self._after(broke, self._skip, node, node.life)
            late = broke + _LOST_PROCESS
            self._after(late, self._answer, task, Error(8, "Process died."))
            return
        self._after(took, self._finish, node, node.life, task, seconds)

    def _next(self, node: SimulatedNode) -> None:
        node.working = None
        self._next_job(node)

    def _skip(self, node: SimulatedNode, life: int) -> None:
        """Let a node go on to its next message without an answer."""
        if node.life == life:
            self._next(node)

    def _finish(
        self, node: SimulatedNode, life: int, task: Task, seconds: float
    ) -> None:
        """Let a node answer."""
        if node.life != life:
            return
        if task.message_id in self._unanswered:  # else the SuperLink discards it
            answer = self._made(node, task, seconds)
            upload = 0.01 + 0.3 * float(self._rng.random())
            if self._happens(self._faults.slow_upload):
                self.counts["slow upload"] += 1
                upload = 1.0 + 39.0 * float(self._rng.random())
            self._after(upload, self._upload, node, life, task, answer)
        self._next(node)

    def _made(
        self, node: SimulatedNode, task: Task, seconds: float
    ) -> RecordDict | Error:
        """Return what a node answers."""
        if task.assignment is None and not task.evaluates:
            return self._holdings(node, task)
        if self._happens(self._faults.crash):
            self.counts["raised (code 2)"] += 1
            return Error(2, "ValueError: simulated")
        if task.assignment is None:
            return self._training.evaluation(task.message)
        content = self._training.reply(task.message, task.assignment, seconds)
        if self._happens(self._faults.corrupt):
            lies = LIES if self._faults.liars else ()
            kinds = [kind for kind in CORRUPTIONS if kind not in lies]
            kind = str(self._rng.choice(kinds))
            self.counts[f"corrupt: {kind}"] += 1
            self._observer.corrupted(task)
            return corrupt(kind, content)
        if self._lies(node, task.assignment):
            kind = str(self._rng.choice(LIES))
            self.counts[f"lie: {kind}"] += 1
            self._trace("will lie", task)
            self._observer.lied(task)
            return lie(kind, content, self._rng)
        return content

    def _lies(self, node: SimulatedNode, assignment: Assignment) -> bool:
        """Return whether a node lies; in a round, only so many may."""
        liars = self._liars.setdefault(assignment.server_round, set())
        may = node.node_id in liars or len(liars) < self._faults.liars
        if not may or not self._happens(self._faults.lies):
            return False
        liars.add(node.node_id)
        return True

    def _holdings(self, node: SimulatedNode, task: Task) -> RecordDict | Error:
        """Return the answer to the question what a node holds."""
        if self._happens(self._faults.lost_process):
            self.counts["holdings request failed (code 8)"] += 1
            return Error(8, "Process died.")
        request = task.message.content[HOLDINGS_KEY]
        assert isinstance(request, ConfigRecord)
        held = Holdings(
            tuple(sorted(node.holdings(self._num_partitions))),
            node.declared is None,
            int(str(request.get("num-partitions", self._num_partitions))),
            node.partition,
        )
        return RecordDict({HOLDINGS_KEY: held.to_record()})

    def _upload(
        self, node: SimulatedNode, life: int, task: Task, answer: RecordDict | Error
    ) -> None:
        if node.life == life:
            self._answer(task, answer)
            if self._happens(self._faults.duplicate):
                later = 20.0 * float(self._rng.random())
                self._after(later, self._repeat, task, answer)

    def _answer(self, task: Task, answer: RecordDict | Error) -> None:
        """Put a reply where it can be pulled, once."""
        message_id = task.message_id
        if message_id in self._unanswered and message_id not in self._ready:
            self._ready[message_id] = _reply(task, answer)
            look = _LOOK * float(self._rng.random())
            self._after(look, self.arrived.append, message_id)

    def _repeat(self, task: Task, answer: RecordDict | Error) -> None:
        """Let a reply that the server has come once more."""
        message_id = task.message_id
        if message_id not in self._unanswered and message_id not in self._pulled:
            self.counts["duplicate"] += 1
            self._pulled[message_id] = task
            self._ready[message_id] = _reply(task, answer)
            self.arrived.append(message_id)

    def _expire(self, message_id: str) -> None:
        """Drop a message whose time to live is over."""
        if message_id in self._unanswered:
            self.counts["time to live over"] += 1
            self._trace("is not heard of in time", self._unanswered.pop(message_id))
            self._ready.pop(message_id, None)


def _reply(task: Task, answer: RecordDict | Error) -> Message:
    if isinstance(answer, Error):
        return Message(error=answer, reply_to=task.message)
    return Message(content=answer, reply_to=task.message)
