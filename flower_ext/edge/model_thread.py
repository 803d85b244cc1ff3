"""The thread that verifies also computes segments: a model is used by one thread."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from grpc import StatusCode

from flower_ext.edge.batching import Answer, Batcher, _Job, _settle_from_thread
from flower_ext.edge.refusals import RefusedError, busy, refusal
from flower_ext.errors import FlowerExtError
from flower_ext.speculative.messages import Ask

__all__ = ["ModelThread"]

T = TypeVar("T")


@dataclass(eq=False)
class _Errand(_Job):
    """A function that waits for the thread."""

    function: Callable[[], None]


class ModelThread(Batcher):
    """A batcher that runs functions too, each in the place of an opening.

    So they take turns with drafts, which wait for one of them at most.
    """

    async def run(self, function: Callable[[], T]) -> T:
        """Run a function in the thread, and return its result.

        A caller that goes away does not stop it.

        Raises
        ------
        RefusedError
            If the queue is full, the thread ends or the function fails.
        """
        results: list[T] = []
        answer: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        # It belongs to no session, and so no key or message of one.
        errand = _Errand("", Ask(0, 0, 0), answer, lambda: results.append(function()))
        with self._changed:
            if self._stopped:
                raise RefusedError(StatusCode.UNAVAILABLE, "The edge shuts down.")
            if self._waiting >= self._max_queue:
                raise busy(f"{self._max_queue} messages wait")
            self._openings.append(errand)
            self._counters.queue_length.set(self._waiting)
            self._changed.notify()
        refused = await answer
        if isinstance(refused, RefusedError):
            raise refused
        return results[0]

    def _open(self, job: _Job) -> None:
        """Compute a prompt, or run a function."""
        if not isinstance(job, _Errand):
            super()._open(job)
            return
        answer: Answer = None
        begin = time.perf_counter()
        try:
            job.function()
        except FlowerExtError as error:
            answer = refusal(error)
        except Exception:
            answer = self._failure([])
        self._counters.segment_seconds.inc(time.perf_counter() - begin)
        _settle_from_thread([(job, answer)])
