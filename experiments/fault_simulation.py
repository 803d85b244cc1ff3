"""Coded rounds under faults, in simulated time, a million of them from one seed.

The strategies, the plans, the history, the scheduler and the staged exchange are the
real ones, on the path that a real federation takes; the nodes, the SuperLink and the
time are simulated, with joins, deaths, delays, duplicates, reorderings, expiries and
corruptions. After every round the model is compared with the true update. See
``tests/simulation``.

    python experiments/fault_simulation.py --rounds 1000000 --seed 1 --workers 2

With ``--lies``, nodes return false updates as well, and replies are verified.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.simulation.campaign import Totals, run_campaign
from tests.simulation.federations import CaseError, run_case


def progress(totals: Totals) -> None:
    """Print how far it is, from time to time."""
    if totals.cases % 500 == 0:
        told = f"{totals.rounds} rounds, {totals.seconds:.0f} s"
        print(told, file=sys.stderr, flush=True)


def main(arguments: list[str] | None = None) -> int:
    """Run it; return 1 where an invariant is broken."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--only-case", type=int, metavar="N")
    parser.add_argument(
        "--lies", action="store_true", help="nodes lie, and replies are verified"
    )
    options = parser.parse_args(arguments)
    try:
        if options.only_case is None:
            totals = run_campaign(
                options.seed, options.rounds, options.workers, progress, options.lies
            )
        else:
            totals = Totals()
            case = run_case(options.seed, options.only_case, lies=options.lies)
            totals.add(case)
    except CaseError as error:
        print(error)
        return 1
    print(totals.report())
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
