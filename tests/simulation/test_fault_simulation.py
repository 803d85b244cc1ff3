"""Rounds under faults, each of them checked.

The command for a million: ``python experiments/fault_simulation.py --rounds 1000000``.
"""

from __future__ import annotations

from typing import Any

import pytest
from flwr.app import ArrayRecord

from flower_ext.strategies.averaging import apply_replies
from tests.simulation.campaign import run_campaign
from tests.simulation.faults import CORRUPTIONS, LIES
from tests.simulation.federations import LONG_KINDS, CaseError, run_case


@pytest.mark.parametrize(
    ("seed", "rounds", "long"),
    [(2, 1_000, ()), pytest.param(1, 20_000, LONG_KINDS, marks=pytest.mark.faults)],
)
def test_every_round_is_true_under_faults(
    seed: int, rounds: int, long: tuple[str, ...]
) -> None:
    totals = run_campaign(seed, rounds, workers=2)

    assert totals.rounds >= rounds
    kinds = {f"corrupt: {kind}" for kind in CORRUPTIONS}
    assert kinds | {"dies", "returns", "duplicate", "never answers"} <= {*totals.faults}
    assert totals.faults["time to live over"] > 10
    for outcome in ("exact", "partial", "skipped", "late replies", "evaluations"):
        assert totals.outcomes[outcome] > rounds / 50
    assert {f"flat: {kind}" for kind in long} <= {*totals.outcomes}


@pytest.mark.faults
def test_verified_rounds_are_true_and_name_nobody_honest_where_nodes_lie() -> None:
    totals = run_campaign(3, 1_000, workers=2, lies=True)

    assert totals.rounds >= 1_000
    assert {f"lie: {kind}" for kind in LIES} <= {*totals.faults}
    assert totals.outcomes["liars named"] > 100
    for outcome in ("exact", "partial", "skipped", "late replies"):
        assert totals.outcomes[outcome] > 20
    for kind in ("verified two-stage", "verified one-stage"):
        assert totals.outcomes[f"federations: {kind}"] > 5


def test_a_case_is_the_same_for_the_same_seed() -> None:
    first, again, other = run_case(1, 4), run_case(1, 4), run_case(2, 4)

    assert first == again
    assert first.faults != other.faults


def test_a_failure_says_how_to_see_it_again(monkeypatch: pytest.MonkeyPatch) -> None:
    def halved(
        arrays: ArrayRecord, replies: Any, examples: float, **options: Any
    ) -> ArrayRecord:
        return apply_replies(arrays, replies, 2 * examples, **options)

    monkeypatch.setattr("flower_ext.strategies.coded_strategy.apply_replies", halved)

    with pytest.raises(CaseError) as caught:
        run_case(1, 0)

    told = str(caught.value)
    assert "of case 0: InvariantError" in told
    assert "has answered m" in told
    assert told.endswith("fault_simulation.py --seed 1 --only-case 0")
