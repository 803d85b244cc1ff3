"""Every fault of the matrix against real SuperLinks, SuperNodes and an edge.

Each scenario has a federation of its own, and two of them run at the same time. What is
asserted is order and results, never how long something took.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.faults.conftest import Note
from tests.faults.harness import Outcome
from tests.faults.node_scenarios import frozen_nodes, killed_nodes, spoilt_replies
from tests.faults.service_scenarios import killed_edge, killed_serverapp

pytestmark = pytest.mark.faults

_SCENARIOS: tuple[Callable[[Path, threading.Event], Outcome], ...] = (
    killed_nodes,
    frozen_nodes,
    spoilt_replies,
    killed_serverapp,
    killed_edge,
)
_EXACT = 1e-5
_AT_ONCE = 2  # federations; Flower starts a process for every message

Outcomes = dict[str, Future[Outcome]]


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Outcomes]:
    """Begin all scenarios; a test waits for the one that it is about."""
    cancelled = threading.Event()
    pool = ThreadPoolExecutor(_AT_ONCE)
    try:
        yield {
            scenario.__name__: pool.submit(
                scenario, tmp_path_factory.mktemp(scenario.__name__), cancelled
            )
            for scenario in _SCENARIOS
        }
    finally:
        cancelled.set()
        pool.shutdown(cancel_futures=True)


def check(note: Note, fault: str, outcome: Outcome, *injected: str) -> None:
    """Check that nothing is lost, nothing is done in two ways, and all is exact."""
    count = outcome.injected(*injected)
    assert count >= len(injected)
    lost, two_ways = outcome.lost(), outcome.contradictory()
    error = outcome.largest_error()
    note(fault, count, lost, two_ways, error)
    assert {r["round"] for r in outcome.reports} == set(
        range(1, outcome.num_rounds + 1)
    )
    assert lost == 0
    assert two_ways == 0
    assert error < _EXACT


def test_a_supernode_is_killed_in_stage_one(outcomes: Outcomes, note: Note) -> None:
    outcome = outcomes["killed_nodes"].result()
    victim = outcome.facts["first"]
    taken_over = {p for e in outcome.began(3) if e != victim for p in e["partitions"]}
    assert victim["stage"] == 1
    assert set(victim["partitions"]) <= taken_over
    assert outcome.metric(3, "coverage") == 1.0
    check(note, " 1 SuperNode killed in stage one", outcome, "stage one")


def test_a_supernode_is_killed_in_stage_two(outcomes: Outcomes, note: Note) -> None:
    outcome = outcomes["killed_nodes"].result()
    victim, straggler = outcome.facts["second"], outcome.facts["straggler"]
    assert victim["stage"] == 2
    assert set(victim["partitions"]) & set(straggler["partitions"])
    assert outcome.metric(4, "coverage") == 1.0
    check(
        note,
        " 2 SuperNode killed in stage two, beside a straggler",
        outcome,
        "stage two",
    )


def test_killed_supernodes_come_back_as_others(outcomes: Outcomes, note: Note) -> None:
    outcome = outcomes["killed_nodes"].result()
    before = {e["node_id"] for r in (1, 2, 3) for e in outcome.began(r)}
    last = outcome.began(5)
    assert {e["node"] for e in last} <= outcome.facts["back"]
    assert last
    assert before.isdisjoint(e["node_id"] for e in last)
    check(
        note,
        " 3 killed SuperNodes back with new ids, the only ones left",
        outcome,
        "back",
    )


def test_a_frozen_node_holds_up_no_round(outcomes: Outcomes, note: Note) -> None:
    outcome = outcomes["frozen_nodes"].result()
    thawed = next(i for i, e in enumerate(outcome.events) if e["event"] == "thawed")
    done = [e["round"] for e in outcome.events[:thawed] if e["event"] == "report"]
    assert done == [1, 2, 3]
    assert {e["node"] for e in outcome.began(7)} == {outcome.facts["frozen"]["node"]}
    assert outcome.metric(7, "coverage") == 1.0
    check(note, " 4 node frozen for a minute at work, then thawed", outcome, "frozen")


def test_a_late_and_false_reply_changes_nothing(outcomes: Outcomes, note: Note) -> None:
    outcome = outcomes["frozen_nodes"].result()
    node = outcome.facts["late"]["node"]
    lies = [
        (i, e)
        for i, e in enumerate(outcome.events)
        if e["event"] == "spoilt" and (e["round"], e["node"]) == (4, node)
    ]
    assert [e["how"] for _, e in lies] == ["lie"]
    begun = lies[0][1]
    reported = next(
        i
        for i, e in enumerate(outcome.events)
        if (e["event"], e.get("round")) == ("report", 4)
    )
    late = [
        i
        for i, e in enumerate(outcome.events)
        if e["event"] == "end" and (e["round"], e["pid"]) == (4, begun["pid"])
    ]
    assert len(late) == 1
    assert late[0] > reported
    for name in ("replies-late", "replies-contradicting"):
        assert sum(outcome.metric(r, name) for r in (5, 6, 7)) >= 1, name
    check(note, " 4 late and false reply", outcome, "lie")


def test_a_killed_serverapp_is_resumed(outcomes: Outcomes, note: Note) -> None:
    outcome = outcomes["killed_serverapp"].result()
    between, during, unreported, last = outcome.facts["runs"]
    for result in outcome.facts["results"]:
        assert result.status == "finished:failed", result
    reported = {
        run: [e["round"] for e in outcome.reports if e["run_id"] == run]
        for run in outcome.facts["runs"]
    }
    # What was done when the ServerApp died is reported again, and not done again.
    assert reported == {between: [1], during: [1], unreported: [1], last: [2, 3]}
    check(note, " 5 ServerApp killed between rounds", outcome, "after-report-1")


def test_a_round_is_done_again_if_its_serverapp_is_killed(
    outcomes: Outcomes, note: Note
) -> None:
    outcome = outcomes["killed_serverapp"].result()
    _, during, unreported, last = outcome.facts["runs"]
    by = {e["run_id"] for e in outcome.began(2)}
    assert by == {during, unreported}
    assert {e["run_id"] for e in outcome.began(3)} == {last}
    check(note, " 6 ServerApp killed during a round", outcome, "round-2-stage-1")
    check(
        note,
        " 6 ServerApp killed when a round is saved, not yet reported",
        outcome,
        "before-report-2",
    )


def test_an_edge_comes_back_or_is_done_without(outcomes: Outcomes, note: Note) -> None:
    outcome = outcomes["killed_edge"].result()
    first, second = (report["inference"] for report in outcome.reports)
    assert first["dssd.num-prompts"] == 4
    assert first["dssd.fallback-tokens"] == 0
    for name in ("dssd.num-prompts", "dssd.num-tokens", "dssd.fallback-tokens"):
        assert second[name] == first[name]
    check(note, " 7 edge killed and restarted while two nodes draft", outcome, "edge")


def test_an_edge_stays_away(outcomes: Outcomes, note: Note) -> None:
    outcome = outcomes["killed_edge"].result()
    during, after = (report["inference"] for report in outcome.facts["alone"])
    full = outcome.reports[0]["inference"]
    assert during["dssd.num-prompts"] == full["dssd.num-prompts"]
    assert 0 < during["dssd.fallback-tokens"] < during["dssd.num-tokens"]
    assert after["dssd.num-prompts"] == full["dssd.num-prompts"]
    assert after["dssd.fallback-tokens"] == after["dssd.num-tokens"]
    result = outcome.facts["result"]
    assert result.status == "finished:failed"
    assert "edge" in result.log
    check(
        note,
        " 7 edge killed for good: the drafter goes on, or a clear end",
        outcome,
        "edge for good",
    )


def test_spoilt_replies_are_rejected_by_name(outcomes: Outcomes, note: Note) -> None:
    outcome = outcomes["spoilt_replies"].result()
    spoilt = {e["how"]: e for e in outcome.events if e["event"] == "spoilt"}
    (log,) = outcome.logs.values()
    assert spoilt.keys() == {"nan", "shape", "raise", "lie"}
    for how, name in (("nan", "rejected"), ("shape", "rejected"), ("raise", "failed")):
        told = [
            line for line in log.splitlines() if str(spoilt[how]["node_id"]) in line
        ]
        assert any(name in line for line in told), how
        assert outcome.metric(spoilt[how]["round"], f"replies-{name}") == 1
    check(
        note,
        " 8 NaN, wrong shapes, and an exception as a reply",
        outcome,
        "nan",
        "shape",
        "raise",
    )


def test_a_liar_is_named(outcomes: Outcomes, note: Note) -> None:
    outcome = outcomes["spoilt_replies"].result()
    (liar,) = [e for e in outcome.events if e.get("how") == "lie"]
    assert outcome.reports[-1]["liars"].keys() == {str(liar["node_id"])}
    check(note, " 8 false update that is well formed, verify_replies=1", outcome, "lie")


def test_a_clientapp_is_killed(outcomes: Outcomes, note: Note) -> None:
    outcome = outcomes["killed_nodes"].result()
    victim = outcome.facts["app"]
    taken_over = {p for e in outcome.began(2) if e != victim for p in e["partitions"]}
    assert set(victim["partitions"]) <= taken_over
    assert outcome.metric(2, "coverage") == 1.0
    check(note, " 9 ClientApp killed, its SuperNode not", outcome, "app")
