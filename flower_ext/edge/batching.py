"""The one thread that computes: what waits together is verified together.

Drafts go before openings, whose prompts take long, and before texts to be scored, which
take as long; but after every batch one of these has its turn. So neither starves the
other.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, replace

from grpc import StatusCode

from flower_ext.edge.counters import Counters
from flower_ext.edge.refusals import RefusedError, busy, refusal
from flower_ext.errors import FlowerExtError
from flower_ext.speculative.messages import (
    Ask,
    Draft,
    Opening,
    Score,
    Scored,
    Verdict,
)
from flower_ext.speculative.verifier import Verifier

__all__ = ["Answer", "Batcher"]

Answer = Verdict | Scored | RefusedError | None  # None: an opening is done.

_LOG = logging.getLogger(__name__)


@dataclass(eq=False)
class _Job:
    """A message that waits for the target."""

    key: str
    message: Opening | Draft | Ask | Score
    answer: asyncio.Future[Answer]


class Batcher:
    """A verifier behind a bounded queue.

    Parameters
    ----------
    verifier : Verifier
        Touched by this object's thread alone from :meth:`start` on.
    counters : Counters
        What is counted.
    max_queue : int
        Messages that may wait, at least 1.
    max_batch : int
        Drafts in one pass, at least 1.
    batch_window : float
        Seconds that a draft waits for those of other sessions.
    """

    def __init__(
        self,
        verifier: Verifier,
        counters: Counters,
        max_queue: int,
        max_batch: int,
        batch_window: float,
    ) -> None:
        # How many sessions may send something; waiting for more is of no use.
        self.devices = 0
        self._verifier = verifier
        self._counters = counters
        self._max_queue = max_queue
        self._max_batch = max_batch
        self._window = batch_window
        self._changed = threading.Condition()
        self._rounds: deque[_Job] = deque()
        self._openings: deque[_Job] = deque()
        self._closings: list[str] = []
        self._stopped = False
        self._thread = threading.Thread(
            target=self._work, name="flower-ext verifier", daemon=True
        )

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """Refuse what waits, close all sessions and end the thread."""
        with self._changed:
            self._stopped = True
            self._changed.notify()
        self._thread.join()

    def submit(
        self, key: str, message: Opening | Draft | Ask | Score
    ) -> asyncio.Future[Answer]:
        """Put a message of a session into the queue.

        Returns
        -------
        asyncio.Future[Answer]
            The answer; a refusal is a result too.

        Raises
        ------
        RefusedError
            If the queue is full.
        """
        answer: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        job = _Job(key, message, answer)
        with self._changed:
            if self._waiting >= self._max_queue:
                raise busy(f"{self._max_queue} messages wait")
            long = isinstance(message, Opening | Score)
            queue = self._openings if long else self._rounds
            queue.append(job)
            self._counters.queue_length.set(self._waiting)
            self._changed.notify()
        return answer

    def withdraw(self, key: str) -> None:
        """Refuse what waits of a session that is open: a newer stream has it."""
        with self._changed:
            gone = [job for job in self._rounds if job.key == key]
            self._rounds = deque(job for job in self._rounds if job.key != key)
            for job in list(self._openings):
                if job.key == key and isinstance(job.message, Score):
                    self._openings.remove(job)
                    gone.append(job)
        for job in gone:
            _settle(job, superseded())

    def close(self, key: str) -> None:
        """Forget a session, and refuse what still waits of it."""
        self.withdraw(key)
        with self._changed:
            # An opening that is computed after its closing would be there for good.
            gone = [job for job in self._openings if job.key == key]
            for job in gone:
                self._openings.remove(job)
            self._closings.append(key)
            self._changed.notify()
        for job in gone:
            _settle(job, superseded())

    @property
    def _waiting(self) -> int:
        """Messages in the queue."""
        return len(self._rounds) + len(self._openings)

    def _work(self) -> None:
        """Compute until stopped."""
        while True:
            rounds, opening, closings, stopped = self._take()
            for key in closings:
                self._verifier.close(key)
            if stopped:
                return
            self._answer(job for job in rounds if isinstance(job.message, Ask))
            self._verify([job for job in rounds if isinstance(job.message, Draft)])
            if opening is not None:
                self._open(opening)
            evicted = self._verifier.evictions - self._evictions_counted
            self._counters.caches_evicted.inc(evicted)
            self._evictions_counted += evicted

    _evictions_counted = 0

    def _take(self) -> tuple[list[_Job], _Job | None, list[str], bool]:
        """Wait for something to do, and take it."""
        with self._changed:
            self._changed.wait_for(
                lambda: self._waiting or self._closings or self._stopped
            )
            if self._rounds and not self._openings and self._window:
                self._changed.wait_for(self._full, timeout=self._window)
            closings, self._closings = self._closings, []
            if self._stopped:
                left = [*self._rounds, *self._openings]
                for job in left:
                    gone = RefusedError(StatusCode.UNAVAILABLE, "The edge shuts down.")
                    _settle_from_thread([(job, gone)])
                return [], None, [*closings, *(job.key for job in left)], True
            taken: dict[str, _Job] = {}
            later: deque[_Job] = deque()
            for job in self._rounds:
                if len(taken) < self._max_batch and job.key not in taken:
                    taken[job.key] = job
                else:
                    later.append(job)
            self._rounds = later
            opening = self._openings.popleft() if self._openings else None
            self._counters.queue_length.set(self._waiting)
        return list(taken.values()), opening, closings, False

    def _full(self) -> bool:
        """Return whether waiting for further drafts is of no use."""
        enough = min(self._max_batch, self.devices)
        return len(self._rounds) >= enough or bool(self._openings) or self._stopped

    def _open(self, job: _Job) -> None:
        """Compute a prompt, or score a text."""
        answer: Answer = None
        begin = time.perf_counter()
        try:
            if isinstance(job.message, Score):
                answer = self._verifier.score(job.key, job.message)
                self._counters.scored.inc()
            else:
                assert isinstance(job.message, Opening)
                self._verifier.open(replace(job.message, session=job.key))
        except FlowerExtError as error:
            answer = refusal(error)
        except Exception:
            answer = self._failure([job])
        self._counters.seconds.inc(time.perf_counter() - begin)
        _settle_from_thread([(job, answer)])

    def _answer(self, jobs: Iterable[_Job]) -> None:
        """Answer questions."""
        for job in jobs:
            assert isinstance(job.message, Ask)
            answer: Answer
            try:
                answer = self._verifier.answer(job.key, job.message)
                self._counters.questions.inc()
            except FlowerExtError as error:
                answer = refusal(error)
            except Exception:
                answer = self._failure([job])
            _settle_from_thread([(job, answer)])

    def _verify(self, jobs: list[_Job]) -> None:
        """Verify drafts together."""
        drafts = [(j.key, j.message) for j in jobs if isinstance(j.message, Draft)]
        if not drafts:
            return
        begin = time.perf_counter()
        try:
            found = self._verifier.verify_batch(drafts)
        except Exception:
            failure = self._failure(jobs)
            _settle_from_thread((job, failure) for job in jobs)
            return
        seconds = time.perf_counter() - begin
        self._counters.seconds.inc(seconds)
        self._counters.batch_size.observe(len(drafts))
        settled: list[tuple[_Job, Answer]] = []
        for job, (_, draft), verdict in zip(jobs, drafts, found, strict=True):
            if isinstance(verdict, Verdict):
                self._counters.rounds.inc()
                self._counters.drafted.inc(len(draft.tokens))
                self._counters.accepted.inc(verdict.accepted)
                settled.append((job, replace(verdict, seconds=seconds)))
            else:
                settled.append((job, refusal(verdict)))
        _settle_from_thread(settled)

    def _failure(self, jobs: Iterable[_Job]) -> RefusedError:
        """Log the error being handled, and forget the sessions that it has met.

        Nobody knows what it has left of their caches; their devices open them again.
        """
        _LOG.exception("The target has failed; its sessions are dropped.")
        for job in jobs:
            self._verifier.close(job.key)
        return RefusedError(StatusCode.INTERNAL, "The edge has failed: try again.")


def superseded() -> RefusedError:
    """Return the refusal of a stream whose session goes on on another."""
    return RefusedError(StatusCode.ABORTED, "The session goes on on a newer stream.")


def _settle(job: _Job, answer: Answer) -> None:
    """Give a job its answer, on the event loop's thread."""
    if not job.answer.done():
        job.answer.set_result(answer)


def _settle_from_thread(answers: Iterable[tuple[_Job, Answer]]) -> None:
    """Give jobs their answers, on another thread."""
    for job, answer in answers:
        job.answer.get_loop().call_soon_threadsafe(_settle, job, answer)
