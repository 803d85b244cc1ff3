"""What happened in a coded round: who was sent what, when, and what became of it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, MutableMapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal, NamedTuple, Self, get_args

from flower_ext.coding.plan import Dispatch, Outcome
from flower_ext.errors import InvalidInputError

__all__ = [
    "DispatchRecord",
    "Fate",
    "LateAnswer",
    "RoundTimeline",
    "TimelineRecorder",
    "mark_late",
]

Fate = Literal["used", "unused", "late", "rejected", "failed", "unfinished"]
"""What became of a dispatch.

``"used"``: its reply has a part in the update. ``"unused"``: it came in time and the
update does without. ``"late"``: it came after its round. ``"rejected"``: it was checked
and refused. ``"failed"``: its node failed, or left. ``"unfinished"``: nothing came.
"""


@dataclass(frozen=True, slots=True)
class DispatchRecord:
    """A dispatch, and what became of it.

    Parameters
    ----------
    key : int
        Identifies it within its round, from 0.
    worker : int
        The node's own partition, by which it is known in a simulation too; its node id
        where it has none.
    node_id : int
        Flower's id of the node.
    stage : int
        1 or 2.
    partitions : tuple[int, ...]
        What the node was asked to compute.
    sent_at : float
        Seconds since the round began.
    answered_at : float | None (default: None)
        Seconds since the round began, of the reply or the failure; None: nothing came.
    fate : str (default: "unfinished")
        One of :data:`Fate`.
    """

    key: int
    worker: int
    node_id: int
    stage: int
    partitions: tuple[int, ...]
    sent_at: float
    answered_at: float | None = None
    fate: Fate = "unfinished"

    def __post_init__(self) -> None:
        """Check the fate."""
        if self.fate not in get_args(Fate):
            raise InvalidInputError(
                f"A dispatch's fate is one of {', '.join(get_args(Fate))}, got "
                f"{self.fate!r}."
            )


@dataclass(frozen=True, slots=True)
class RoundTimeline:
    """A coded round as it went.

    Parameters
    ----------
    server_round : int
        The round, from 1.
    started_at : float
        When it began, seconds on the run's clock.
    stage_two_at : float | None
        When its second stage began; None: it had none. Seconds since the round began,
        as those below.
    decoded_at : float | None
        When its replies first gave the exact update; None: they never did.
    end : float
        When it ended.
    skipped : bool
        Whether too little came back and the model was kept.
    dispatches : tuple[DispatchRecord, ...]
        In the order in which they were sent.
    """

    server_round: int
    started_at: float
    stage_two_at: float | None
    decoded_at: float | None
    end: float
    skipped: bool
    dispatches: tuple[DispatchRecord, ...]

    def to_json(self) -> dict[str, Any]:
        """Return it as what ``json.dumps`` takes."""
        found = asdict(self)
        found["dispatches"] = [
            each | {"partitions": [*each["partitions"]]} for each in found["dispatches"]
        ]
        return found

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> Self:
        """Return what :meth:`to_json` has written.

        Raises
        ------
        InvalidInputError
            If a field is missing or unknown.
        """
        content = _checked(cls, found)
        records = [_checked(DispatchRecord, each) for each in content["dispatches"]]
        content["dispatches"] = tuple(
            DispatchRecord(**each | {"partitions": tuple(each["partitions"])})
            for each in records
        )
        return cls(**content)


class LateAnswer(NamedTuple):
    """What came of a dispatch after its round, `at` a time on the run's clock."""

    server_round: int
    key: int
    at: float
    fate: Fate


class TimelineRecorder:
    """Takes note of a round as it goes."""

    def __init__(self) -> None:
        self._started_at = 0.0
        self._records: dict[int, DispatchRecord] = {}
        self._decoded_at: float | None = None

    def begin(self, now: float) -> None:
        """Take note that the round begins now, seconds on the run's clock."""
        self._started_at = now

    def sent(
        self, dispatches: Iterable[Dispatch], place: Callable[[int], int], at: float
    ) -> None:
        """Take note of dispatches sent at a time; `place` tells a node's partition."""
        for d in dispatches:
            self._records[d.key] = DispatchRecord(
                d.key, place(d.worker), d.worker, d.stage, d.partitions, at
            )

    def answered(self, key: int, at: float, fate: Fate = "unused") -> None:
        """Take note of a reply, or a failure, at a time."""
        self._records[key] = replace(self._records[key], answered_at=at, fate=fate)

    def decoded(self, at: float) -> None:
        """Take note that the replies give the exact update, the first time."""
        if self._decoded_at is None:
            self._decoded_at = at

    def timeline(
        self,
        server_round: int,
        stage_two_at: float | None,
        end: float,
        outcome: Outcome,
        skipped: bool,
        liars: Collection[int] = (),
    ) -> RoundTimeline:
        """Return the round.

        The replies that `outcome` combines are the used ones, those of nodes that are
        known to have lied the rejected ones.
        """
        used = () if skipped else outcome.weights
        fates: dict[int, Fate] = {
            key: "rejected"
            for key, d in self._records.items()
            if d.node_id in liars and d.fate == "unused"
        }
        fates |= dict.fromkeys(used, "used")
        return RoundTimeline(
            server_round,
            self._started_at,
            stage_two_at,
            self._decoded_at,
            end,
            skipped,
            tuple(
                replace(d, fate=fates.get(d.key, d.fate))
                for d in self._records.values()
            ),
        )


def mark_late(
    timelines: MutableMapping[int, RoundTimeline], late: Iterable[LateAnswer]
) -> set[int]:
    """Enter what came late into the rounds that it answers, and return these.

    Parameters
    ----------
    timelines : MutableMapping[int, RoundTimeline]
        The rounds so far, by number; changed in place.
    late : Iterable[LateAnswer]
        What came; what belongs to rounds that are not there is left out.
    """
    changed = set()
    for answer in late:
        line = timelines.get(answer.server_round)
        if line is None:
            continue
        changed.add(answer.server_round)
        answered_at = answer.at - line.started_at
        timelines[answer.server_round] = replace(
            line,
            dispatches=tuple(
                replace(d, answered_at=answered_at, fate=answer.fate)
                if d.key == answer.key and d.fate == "unfinished"
                else d
                for d in line.dispatches
            ),
        )
    return changed


def _checked(kind: type, found: Mapping[str, Any]) -> dict[str, Any]:
    """Return named values; raise unless they are a record's fields."""
    names = {field.name for field in fields(kind)}
    if set(found) != names:
        raise InvalidInputError(
            f"A {kind.__name__} has the fields {', '.join(sorted(names))}, got "
            f"{', '.join(sorted(found))}."
        )
    return dict(found)
