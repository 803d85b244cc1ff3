"""Many cases in a row, and what came of them."""

from __future__ import annotations

import itertools
import multiprocessing
import time
from collections import Counter
from collections.abc import Callable, Generator
from contextlib import closing
from dataclasses import dataclass, field

from tests.simulation.federations import CaseResult, run_case

__all__ = ["Totals", "run_campaign"]


@dataclass
class Totals:
    """What came of all cases so far.

    Parameters
    ----------
    cases, rounds : int
        How many were run.
    seconds : float
        Wall seconds that they took.
    faults : Counter[str]
        Faults that happened, by kind.
    outcomes : Counter[str]
        Rounds that were exact, partial or skipped, and what else was checked.
    """

    cases: int = 0
    rounds: int = 0
    seconds: float = 0.0
    faults: Counter[str] = field(default_factory=Counter)
    outcomes: Counter[str] = field(default_factory=Counter)

    def add(self, result: CaseResult) -> None:
        """Add a case."""
        self.cases += 1
        self.rounds += result.rounds
        self.faults += result.faults
        self.outcomes += result.outcomes

    def report(self) -> str:
        """Return it as text."""
        speed = self.rounds / max(self.seconds, 1e-9)
        lines = [
            f"{self.rounds} rounds of {self.cases} federations in {self.seconds:.0f} s "
            f"({speed:.0f} rounds per second)"
        ]
        for title, counts in (("Outcomes", self.outcomes), ("Faults", self.faults)):
            lines.append(f"{title}:")
            lines += [f"  {n:10d}  {what}" for what, n in counts.most_common()]
        return "\n".join(lines)


def _run(arguments: tuple[int, int, bool]) -> CaseResult:
    seed, case, lies = arguments
    return run_case(seed, case, lies=lies)


def _results(seed: int, workers: int, lies: bool) -> Generator[CaseResult, None, None]:
    """Return the results of one case after the other, without end."""
    cases = ((seed, case, lies) for case in itertools.count())
    if workers == 1:
        yield from map(_run, cases)
        return
    with multiprocessing.get_context("spawn").Pool(workers) as pool:
        while True:  # in blocks: a pool would take all of an endless series at once
            yield from pool.imap(_run, itertools.islice(cases, 64), chunksize=2)


def run_campaign(
    seed: int,
    rounds: int,
    workers: int = 1,
    told: Callable[[Totals], None] | None = None,
    lies: bool = False,
) -> Totals:
    """Run cases until there are as many rounds as wanted.

    Parameters
    ----------
    seed : int
        Of all cases.
    rounds : int
        How many rounds to run at least.
    workers : int
        Number of processes; the cases are the same.
    told : Callable[[Totals], None], optional
        Told of the totals after every case.
    lies : bool (default: False)
        Whether nodes lie and replies are verified.

    Returns
    -------
    Totals
        What came of the cases.

    Raises
    ------
    CaseError
        If an invariant is broken.
    """
    totals, begin = Totals(), time.monotonic()
    with closing(_results(seed, workers, lies)) as results:
        for result in results:
            totals.add(result)
            totals.seconds = time.monotonic() - begin
            if told is not None:
                told(totals)
            if totals.rounds >= rounds:
                break
    return totals
