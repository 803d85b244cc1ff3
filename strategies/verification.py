"""Replies of a round, checked against each other, in time or late.

A round's replies are sketched (:mod:`flower_ext.coding.sketch`) with a secret that is
drawn for the round and stays here, and the sketches are checked by the parity of the
code (:mod:`flower_ext.coding.parity`).
"""

from __future__ import annotations

import secrets
from collections import Counter, OrderedDict
from collections.abc import Collection, Iterable
from logging import WARNING

import numpy as np
from flwr.app import ArrayRecord
from flwr.supercore import log
from numpy.typing import NDArray

from flower_ext.coding.parity import ParityReport, check
from flower_ext.coding.plan import Dispatch
from flower_ext.coding.reply import ReplySummary
from flower_ext.coding.sketch import Sketcher
from flower_ext.errors import InvalidInputError
from flower_ext.strategies.array_views import view
from flower_ext.strategies.arrivals import Arrival, Sent

__all__ = ["LateChecks", "RoundCheck", "sorted_nodes", "verdict"]

_SAMPLE = 1 << 18  # elements; a millisecond, a tenth of what decoding a reply costs
_MOST_ROUNDS = 8  # rounds whose sketches are kept for stragglers
_EXAMPLES_TOLERANCE = 1e-9  # counts are exact on every machine


class RoundCheck:
    """The sketches of one round's replies, and what they say of each other.

    Parameters
    ----------
    arrays : ArrayRecord
        The global arrays of the round; only their layout is kept.
    tolerance : float
        What honest replies may differ by, relative to their magnitude, in (0, 0.1].
    limit : int
        The most nodes that may lie, at least 1.
    sampled : bool
        Sketch a secret sample of about 260,000 elements in place of all.
    """

    def __init__(
        self, arrays: ArrayRecord, tolerance: float, limit: int, sampled: bool
    ) -> None:
        layout = {n: (tuple(a.shape), np.dtype(a.dtype)) for n, a in arrays.items()}
        self._sketcher = Sketcher(
            layout, secrets.randbits(128), _SAMPLE if sampled else None
        )
        self.limit = limit
        self._tolerances = [tolerance, tolerance, min(tolerance, _EXAMPLES_TOLERANCE)]
        self._rows: dict[int, Dispatch] = {}
        self._sketches: dict[int, NDArray[np.float64]] = {}

    def add(self, dispatch: Dispatch, coded: ArrayRecord, told: ReplySummary) -> None:
        """Sketch a reply.

        Raises
        ------
        InvalidInputError
            If its arrays are not those of the round, or not finite.
        """
        lacking = self._sketcher.layout.keys() ^ coded.keys()
        if lacking:
            raise InvalidInputError(f"Arrays {sorted(lacking)} are missing or too many")
        self._sketches[dispatch.key] = self._sketcher.reply(
            {name: view(name, array) for name, array in coded.items()},
            dispatch.partitions,
            dispatch.coefficients,
            told.examples,
        )
        self._rows[dispatch.key] = dispatch

    def report(self, keys: Iterable[int] | None = None) -> ParityReport:
        """Check replies, by default all; the workers named are nodes."""
        chosen = list(self._rows) if keys is None else list(keys)
        rows = [self._rows[key] for key in chosen]
        columns = {p: i for i, p in enumerate({p for r in rows for p in r.partitions})}
        matrix = np.zeros((len(rows), max(len(columns), 1)))
        for line, row in zip(matrix, rows, strict=True):
            line[[columns[p] for p in row.partitions]] = row.coefficients
        return check(
            matrix,
            np.array([self._sketches[key] for key in chosen]),
            self._tolerances,
            workers=[row.worker for row in rows],
            limit=self.limit,
        )

    def related(self, key: int) -> list[int]:
        """Return the replies that share partitions with one, directly or not."""
        reach = set(self._rows[key].partitions)
        left, related = dict(self._rows), []
        while found := [
            k for k, r in left.items() if not reach.isdisjoint(r.partitions)
        ]:
            for k in found:
                reach.update(left.pop(k).partitions)
            related += found
        return sorted(related)


class LateChecks:
    """Checks replies that come when their round is over against those that were used.

    Of a round with assignments that are still out, the rows and sketches are kept, of
    eight rounds at most.

    Parameters
    ----------
    liars : Counter[int]
        Told of the nodes that are named, once for every round that they lied in.
    """

    def __init__(self, liars: Counter[int]) -> None:
        self._liars = liars
        self._found = 0
        self._rounds: OrderedDict[int, tuple[RoundCheck, set[int], set[int]]] = (
            OrderedDict()
        )

    def remember(
        self,
        server_round: int,
        checked: RoundCheck,
        outstanding: Collection[int],
        named: Collection[int],
    ) -> None:
        """Keep the sketches of a round that is over.

        Parameters
        ----------
        server_round : int
            The round.
        checked : RoundCheck
            With the replies that were used.
        outstanding : Collection[int]
            The keys of the dispatches that have not been answered.
        named : Collection[int]
            The nodes that are known to have lied in it.
        """
        self._rounds[server_round] = (checked, set(outstanding), set(named))
        while len(self._rounds) > _MOST_ROUNDS:
            self._rounds.popitem(last=False)

    def take(self) -> int:
        """Return how many late replies proved contradictory since the last call."""
        found, self._found = self._found, 0
        return found

    def unanswered(self, sent: Sent) -> None:
        """Tell that an assignment has failed."""
        self._answered(sent)

    def arrived(self, arrival: Arrival, told: ReplySummary) -> None:
        """Check a late reply; log whom it contradicts.

        Raises
        ------
        InvalidInputError
            If its arrays are not those of the round, or not finite.
        """
        sent, records = arrival.sent, arrival.message.content.array_records
        known = self._answered(sent)
        if known is None or sent.dispatch is None or not records:
            return
        checked, named = known
        checked.add(sent.dispatch, next(iter(records.values())), told)
        report = checked.report(checked.related(sent.dispatch.key))
        fresh = [n for n in report.liars if isinstance(n, int) and n not in named]
        self._liars.update(fresh)
        named.update(fresh)
        doubted = sent.node_id in report.liars + report.suspects
        self._found += doubted
        if fresh or doubted:
            log(
                WARNING,
                "train: a late reply of node %d to round %d %s: %s",
                sent.node_id,
                sent.server_round,
                "contradicts others" if doubted else "tells who lied",
                verdict(report, checked.limit),
            )

    def _answered(self, sent: Sent) -> tuple[RoundCheck, set[int]] | None:
        """Return the check of an assignment's round; forget it with the last one."""
        key = None if sent.dispatch is None else sent.dispatch.key
        known = self._rounds.get(sent.server_round)
        if known is None or key not in known[1]:
            return None
        checked, outstanding, named = known
        outstanding.discard(key)
        if not outstanding:
            del self._rounds[sent.server_round]
        return checked, named


def verdict(report: ParityReport, limit: int) -> str:
    """Say in words whose replies are false."""
    if report.consistent:
        return ""
    told = []
    if report.liars:
        told.append(f"the replies of nodes {sorted_nodes(report.liars)} are false")
    if report.suspects and not report.least:
        told.append(
            f"those of nodes {sorted_nodes(report.suspects)} do, and no {limit} of "
            "them can be to blame for it all: does training a partition give the same "
            "on every node?"
        )
    elif report.suspects:
        told.append(
            f"at least one of nodes {sorted_nodes(report.suspects)} sent a false one, "
            "there are too few replies to tell which"
        )
    return (
        "; ".join(told) + f" (if at most {limit} lied, and training a partition gives "
        "the same on every node)"
    )


def sorted_nodes(nodes: Iterable[object]) -> list[int]:
    """Return node ids in order."""
    return sorted(node for node in nodes if isinstance(node, int))
