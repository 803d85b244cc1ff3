"""Uploads that share one carrier: generalised processor sharing, exactly.

A pure fluid simulation. The uploads in progress share the airtime in proportion to
their weights, and what one does not need the others get at once (work-conserving):
Parekh and Gallager, "A Generalized Processor Sharing Approach to Flow Control in
Integrated Services Networks: The Single-Node Case" (IEEE/ACM ToN 1993).
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from typing import Any

from flower_ext.errors import InvalidInputError
from flower_ext.network.link import Link
from flower_ext.network.rates import check_size

__all__ = ["SharedCarrier"]

# An upload with a smaller part of it left has ended together with another.
_ROUNDING = 1e-9


@dataclass(eq=False)
class _Upload:
    """An upload: what is left of it, and the airtime it has used so far."""

    job: Hashable
    link: Link
    weight: float
    size: float
    left: float
    airtime: float = 0.0


class SharedCarrier:
    """One carrier whose airtime the uploads in progress share.

    While job i is active with weight w_i among active weights of sum W, it sends
    w_i / W of the useful bytes of its own link. A job is active from its start until
    its last byte is sent, also while its link stands at rate 0; it completes half a
    round-trip time later.

    Parameters
    ----------
    dedicated : bool (default: False)
        True: every job has its link to itself, and nothing is shared.

    Examples
    --------
    Two equal uploads of 100 bytes; the second starts when the first is half done.

    >>> carrier = SharedCarrier()
    >>> carrier.add("first", start=0.0, size=100.0, link=Link(100.0))
    >>> carrier.add("second", start=0.5, size=100.0, link=Link(100.0))
    >>> carrier.next(until=10.0), carrier.next(until=10.0), carrier.next(until=10.0)
    (('first', 1.5), ('second', 2.0), None)
    >>> carrier.airtime("first"), carrier.now
    (1.0, 10.0)
    """

    def __init__(self, dedicated: bool = False) -> None:
        self.dedicated = dedicated
        self._now = 0.0
        self._order = itertools.count()  # Ties complete in the order of events.
        self._jobs: set[Hashable] = set()
        self._airtime: dict[Hashable, float] = {}
        self._waiting: list[tuple[float, int, _Upload]] = []
        self._arriving: list[tuple[float, int, _Upload]] = []
        # What is left of the active ones is known at the time of the last event.
        self._active: list[_Upload] = []
        self._event = 0.0
        self._ending: tuple[float, _Upload] | None = None

    @property
    def now(self) -> float:
        """The time that the simulation has advanced to, in seconds."""
        return self._now

    def add(
        self,
        job: Hashable,
        start: float,
        size: float,
        link: Link,
        weight: float = 1.0,
    ) -> None:
        """Add an upload.

        Parameters
        ----------
        job : Hashable
            Names the upload; no other in progress may have the same name.
        start : float
            When it starts: seconds, finite and not before :attr:`now`.
        size : float
            Bytes, finite and at least 0.
        link : Link
            The uploader's link.
        weight : float (default: 1.0)
            Its weight in the sharing, finite and above 0.

        Raises
        ------
        InvalidInputError
            If a parameter is out of range.
        """
        check_size(size)
        if not self._now <= start < math.inf:
            raise InvalidInputError(
                f"start must be finite and not before now ({self._now}), got {start}."
            )
        if not 0 < weight < math.inf:
            raise InvalidInputError(f"weight must be finite and > 0, got {weight}.")
        if job in self._jobs:
            raise InvalidInputError(
                f"Job {job!r} is in progress; give every upload a name of its own."
            )
        self._jobs.add(job)
        upload = _Upload(job, link, float(weight), float(size), float(size))
        if self.dedicated:
            upload.airtime = link.seconds_to_send(size, start)
            self._sent(upload, start + upload.airtime)
        else:
            heapq.heappush(self._waiting, (float(start), next(self._order), upload))

    def next(self, until: float) -> tuple[Hashable, float] | None:
        """Advance to the next completion, or to ``until`` if that comes first.

        Parameters
        ----------
        until : float
            Seconds, not before :attr:`now`; may be inf.

        Returns
        -------
        tuple[Hashable, float] | None
            The job and when it completed, at most ``until``; None if none did. With
            ``until`` inf, None says that nothing will complete any more, and
            :attr:`now` stays at the last event.

        Raises
        ------
        InvalidInputError
            If ``until`` lies before :attr:`now`.
        """
        if not self._now <= until:
            raise InvalidInputError(
                f"until must not lie before now ({self._now}), got {until}."
            )
        while True:
            starts = self._waiting[0][0] if self._waiting else math.inf
            arrives = self._arriving[0][0] if self._arriving else math.inf
            time = min(starts, arrives, self._next_end())
            if time > until or time == math.inf:
                if until < math.inf:
                    self._now = float(until)
                return None
            self._now = time
            if time == arrives:
                upload = heapq.heappop(self._arriving)[2]
                self._jobs.remove(upload.job)
                self._airtime[upload.job] = upload.airtime
                return upload.job, time
            self._pass_event(time)

    def reweight(self, weights: Mapping[Hashable, float]) -> None:
        """Change the weights of uploads from :attr:`now` on.

        Parameters
        ----------
        weights : Mapping[Hashable, float]
            New weights of uploads in progress, finite and above 0.

        Raises
        ------
        InvalidInputError
            If a weight is out of range, or no such upload is in progress.
        """
        for job, weight in weights.items():
            if not 0 < weight < math.inf:
                raise InvalidInputError(f"weight must be finite and > 0, got {weight}.")
            if job not in self._jobs:
                raise InvalidInputError(f"No upload {job!r} is in progress.")
        if not weights:
            return
        self._pass_event(self._now)
        for upload in itertools.chain(self._active, (w[2] for w in self._waiting)):
            upload.weight = float(weights.get(upload.job, upload.weight))

    def airtime(self, job: Hashable) -> float:
        """Return the seconds of the whole carrier that a completed job used.

        Parameters
        ----------
        job : Hashable
            A job that :meth:`next` has returned.

        Returns
        -------
        float
            The integral of its share while it was active, in seconds; of a dedicated
            carrier, all that time.

        Raises
        ------
        InvalidInputError
            If no such job has completed.
        """
        if job not in self._airtime:
            raise InvalidInputError(f"No job {job!r} has completed yet.")
        return self._airtime[job]

    def state(self) -> dict[str, Any]:
        """Return the uploads in progress, for :meth:`restore` in another process.

        Each is ``[time, job, size, left, airtime, weight]``, in the order of events;
        jobs that have completed are not among them.
        """

        def told(time: float, upload: _Upload) -> list[Any]:
            u = upload
            return [time, u.job, u.size, u.left, u.airtime, u.weight]

        return {
            "now": self._now,
            "event": self._event,
            "waiting": [told(time, u) for time, _, u in sorted(self._waiting)],
            "arriving": [told(time, u) for time, _, u in sorted(self._arriving)],
            "active": [told(self._event, upload) for upload in self._active],
        }

    def restore(
        self, state: Mapping[str, Any], link: Callable[[Hashable], Link]
    ) -> None:
        """Go on from a :meth:`state`; `link` is asked for each job's link."""
        self._now, self._event = state["now"], state["event"]
        self._ending = None
        self._jobs, self._airtime = set(), {}
        self._waiting, self._arriving, self._active = [], [], []
        for name in ("waiting", "arriving", "active"):
            for time, job, size, left, airtime, weight in state[name]:
                upload = _Upload(job, link(job), weight, size, left, airtime)
                self._jobs.add(job)
                if name == "active":
                    self._active.append(upload)
                    continue
                queue = self._waiting if name == "waiting" else self._arriving
                heapq.heappush(queue, (time, next(self._order), upload))

    def _next_end(self) -> float:
        """Return when the next active upload has sent its last byte, if none starts."""
        if self._ending is None and self._active:
            total = sum(upload.weight for upload in self._active)
            self._ending = min(
                (
                    (
                        self._event
                        + upload.link.seconds_to_send(
                            upload.left * (total / upload.weight), self._event
                        ),
                        upload,
                    )
                    for upload in self._active
                ),
                key=lambda ending: ending[0],
            )
        return self._ending[0] if self._ending else math.inf

    def _pass_event(self, time: float) -> None:
        """Advance the active uploads to ``time``, where some of them end or start."""
        ended = self._ending[1] if self._ending and self._ending[0] == time else None
        total = sum(upload.weight for upload in self._active)
        still_active = []
        for upload in self._active:
            share = upload.weight / total
            upload.airtime += share * (time - self._event)
            upload.left -= share * upload.link.sent_between(self._event, time)
            if upload is ended or upload.left <= _ROUNDING * upload.size:
                self._sent(upload, time)
            else:
                still_active.append(upload)
        while self._waiting and self._waiting[0][0] <= time:
            still_active.append(heapq.heappop(self._waiting)[2])
        self._active = still_active
        self._event = time
        self._ending = None

    def _sent(self, upload: _Upload, time: float) -> None:
        """Let an upload that is sent at ``time`` arrive half a round trip later."""
        arrival = time + upload.link.rtt / 2
        heapq.heappush(self._arriving, (arrival, next(self._order), upload))
