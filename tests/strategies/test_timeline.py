"""What a coded round's time line says of every dispatch."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest
from flwr.app import Message

from flower_ext.clients import CodedClientApp, SpeedProfile, straggler_mod
from flower_ext.coding.plan import Dispatch, Outcome
from flower_ext.errors import InvalidInputError
from flower_ext.strategies import CodedFedAvg, TwoStageCoded
from flower_ext.strategies.timeline import RoundTimeline, TimelineRecorder

if TYPE_CHECKING:
    from tests.strategies.conftest import Answer, Federation


def test_replies_stand_where_they_arrived_and_the_straggler_is_unfinished(
    federation: type[Federation], coded_client: Callable[..., CodedClientApp]
) -> None:
    seconds = (1.0, 1.1, 1.2, 1.3, 1.4, 50.0)
    app = coded_client(mods=[straggler_mod(SpeedProfile(seconds))])
    strategy = TwoStageCoded(clock="virtual", fraction_evaluate=0.0)
    federation(6, app).run(strategy, num_rounds=3)

    assert list(strategy.timelines) == [1, 2, 3]
    for server_round, line in strategy.timelines.items():
        assert line.server_round == server_round
        metrics = strategy.round_metrics[server_round]
        assert line.end == line.decoded_at == metrics["elapsed-seconds"]
        fates = [d.fate for d in line.dispatches]
        assert fates.count("used") == metrics["replies-used"]
        for d in line.dispatches:
            assert d.node_id == 100 + d.worker
            if d.fate == "used":
                took = len(d.partitions) * seconds[d.worker]
                assert d.answered_at == pytest.approx(d.sent_at + took)
    first = strategy.timelines[1]
    straggler = next(d for d in first.dispatches if d.worker == 5)
    assert (straggler.fate, straggler.answered_at) == ("unfinished", None)
    assert first.stage_two_at is not None
    second = [d for d in first.dispatches if d.stage == 2]
    assert second
    assert all(d.sent_at >= first.stage_two_at for d in second)
    assert any(5 in d.partitions for d in second)


def test_every_fate_is_told_apart(
    federation: type[Federation], error_reply: Callable[..., Message]
) -> None:
    def behave(index: int, message: Message, reply: Message) -> Answer:
        if index == 1:
            return error_reply(message, 2)
        if index == 2:
            del reply.content[next(iter(reply.content.array_records))]
        if index == 3:
            return None
        first = message.content["config"]["server-round"] == 1
        if index == 5:
            return reply, 0.3
        if index == 6 and first:
            return error_reply(message, 2), 1.5
        if index == 7 and first:
            del reply.content[next(iter(reply.content.metric_records))]
            return reply, 1.5
        return reply, 1.5 if index == 4 and first else 0.05

    strategy = CodedFedAvg(
        code="uncoded", fraction_evaluate=0.0, deadline=1.0, min_coverage=0.1
    )
    federation(8, behave=behave).run(strategy, num_rounds=6)

    fates = {d.worker: d.fate for d in strategy.timelines[1].dispatches}
    assert fates == {
        0: "used",
        1: "failed",
        2: "rejected",
        3: "unfinished",
        4: "late",
        5: "used",
        6: "failed",
        7: "rejected",
    }
    line = strategy.timelines[1]
    for late in line.dispatches:
        if late.worker in (4, 6, 7):
            assert late.answered_at is not None
            assert 1.5 <= late.answered_at < 3.0  # by the clock of its own round
    assert line.decoded_at is None
    assert line.end == pytest.approx(1.0, abs=0.3)


def test_replies_to_a_skipped_round_are_not_used(federation: type[Federation]) -> None:
    strategy = CodedFedAvg(
        code="uncoded", fraction_evaluate=0.0, deadline=0.3, min_coverage=1.0
    )
    nodes = federation(3, behave=lambda i, msg, reply: reply if i else None)
    nodes.run(strategy)

    assert strategy.timelines[1].skipped
    assert [d.fate for d in strategy.timelines[1].dispatches] == [
        "unfinished",
        "unused",
        "unused",
    ]


def test_it_survives_json(federation: type[Federation]) -> None:
    strategy = TwoStageCoded(fraction_evaluate=0.0)
    federation(3).run(strategy, num_rounds=2)

    for line in strategy.timelines.values():
        found = json.loads(json.dumps(line.to_json()))
        assert RoundTimeline.from_json(found) == line
        with pytest.raises(InvalidInputError, match="decoded_at"):
            RoundTimeline.from_json({k: v for k, v in found.items() if k != "end"})
        found["dispatches"][0]["fate"] = "lost"
        with pytest.raises(InvalidInputError, match="'lost'"):
            RoundTimeline.from_json(found)


def test_it_takes_about_200_bytes_per_dispatch() -> None:
    outcome = Outcome(dict.fromkeys(range(900), 1.0), {}, True, 0.0)
    nodes = [(1 << 62) + i for i in range(1000)]

    def line(server_round: int) -> RoundTimeline:
        recorder = TimelineRecorder()
        recorder.sent(
            (Dispatch(i, node, 1, (i,), (1.0,)) for i, node in enumerate(nodes)),
            lambda node: node,
            at=0.0,
        )
        for key in range(1000):
            recorder.answered(key, at=1.0 + key)
        return recorder.timeline(server_round, None, 2.0, outcome, skipped=False)

    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        lines = [line(server_round) for server_round in range(1, 6)]
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert (after - before) / (1000 * len(lines)) < 220


@pytest.mark.parametrize("keep", [1, 3])
def test_only_the_last_ones_are_kept(federation: type[Federation], keep: int) -> None:
    """Replies that come late to rounds that have been let go change nothing."""

    def behave(index: int, message: Message, reply: Message) -> Answer:
        first = message.content["config"]["server-round"] == 1
        return (reply, 0.6) if index == 1 and first else (reply, 0.05)

    strategy = CodedFedAvg(
        code="uncoded",
        fraction_evaluate=0.0,
        deadline=0.3,
        min_coverage=0.1,
        keep_timelines=keep,
    )
    federation(3, behave=behave).run(strategy, num_rounds=8)

    assert list(strategy.timelines) == list(range(9 - keep, 9))
    assert len(strategy.round_metrics) == 8
    assert (
        sum(int(str(m["replies-late"])) for m in strategy.round_metrics.values()) == 1
    )


def test_at_least_one_is_kept() -> None:
    with pytest.raises(InvalidInputError, match="'keep_timelines' must be at least 1"):
        TwoStageCoded(keep_timelines=0)
