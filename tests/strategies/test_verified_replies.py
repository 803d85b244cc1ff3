"""Replies that contradict each other: who is named, in time and late."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, Message

from flower_ext.coding.assignment import Assignment
from flower_ext.coding.reply import COMPUTE_SECONDS_KEY
from flower_ext.strategies import CodedFedAvg, TwoStageCoded

if TYPE_CHECKING:
    from tests.strategies.conftest import Federation

AssignmentOf = Callable[[Message], Assignment | None]


def coded_arrays(message: Message) -> ArrayRecord:
    (record,) = message.content.array_records.values()
    return record


def scale(reply: Message, factor: float) -> None:
    """Make a reply false: all its arrays, multiplied."""
    record = coded_arrays(reply)
    for name, array in list(record.items()):
        record[name] = Array(np.asarray(array.numpy() * np.float32(factor)))


def delay(reply: Message, seconds: float) -> None:
    """Let a reply have taken so long on the virtual clock."""
    (record,) = reply.content.metric_records.values()
    taken = record[COMPUTE_SECONDS_KEY]
    assert isinstance(taken, list)
    record[COMPUTE_SECONDS_KEY] = [seconds / len(taken)] * len(taken)


def virtual(**arguments: Any) -> dict[str, Any]:
    return {"clock": "virtual", "fraction_evaluate": 0.0, **arguments}


def test_a_late_lie_is_found_and_named_when_a_third_reply_is_there(
    federation: type[Federation],
    assert_exact: Callable[..., None],
    logged: pytest.LogCaptureFixture,
) -> None:
    """Nodes 1, 3, 5 compute the same; 3 is used, 1 lies late, and 5 comes later."""

    def behave(index: int, message: Message, reply: Message) -> Message:
        if message.content["config"]["server-round"] == 1:
            delay(reply, {1: 15.0, 5: 25.0}.get(index, 2.0))
            if index == 1:
                scale(reply, 1.5)
        else:
            delay(reply, 10.0)
        return reply

    strategy = CodedFedAvg(code="fractional", stragglers=2, **virtual())
    result = federation(6, behave=behave).run(strategy, num_rounds=4)

    assert_exact(result, rounds=4)
    found = {
        r: int(str(m["replies-contradicting"]))
        for r, m in strategy.round_metrics.items()
    }
    assert found == {1: 0, 2: 0, 3: 1, 4: 0}  # rounds 1 and 2 end after 2 and 12 s
    assert strategy.liars == {101: 1}
    assert "node 101 to round 1 contradicts others: at least one of nodes" in (
        logged.text
    )
    assert "the replies of nodes [101] are false" in logged.text


def test_a_used_lie_is_named_by_those_who_come_late(
    federation: type[Federation], logged: pytest.LogCaptureFixture
) -> None:
    def behave(index: int, message: Message, reply: Message) -> Message:
        first = message.content["config"]["server-round"] == 1
        delay(reply, {2: 15.0, 4: 15.5}.get(index, 1.0) if first else 10.0)
        if index == 0 and first:
            scale(reply, -1.0)
        return reply

    strategy = CodedFedAvg(code="fractional", stragglers=2, **virtual())
    federation(6, behave=behave).run(strategy, num_rounds=3)

    assert strategy.liars == {100: 1}
    assert "the replies of nodes [100] are false" in logged.text


@pytest.mark.parametrize("noise", [0.0, 2e-4])
def test_late_honest_replies_raise_no_alarm(
    federation: type[Federation], logged: pytest.LogCaptureFixture, noise: float
) -> None:
    """Machines round in their own way."""
    rng = np.random.default_rng(0)

    def behave(index: int, message: Message, reply: Message) -> Message:
        delay(reply, float(rng.uniform(1.0, 30.0)))
        record = coded_arrays(reply)
        for name, array in list(record.items()):
            value = array.numpy()
            rounding = 1.0 + noise * rng.uniform(-1.0, 1.0, value.shape)
            record[name] = Array(np.asarray((value * rounding).astype(value.dtype)))
        return reply

    for code in ("cyclic", "fractional", "heterogeneity-aware"):
        strategy = CodedFedAvg(code=code, stragglers=2, **virtual())
        federation(6, behave=behave).run(strategy, num_rounds=4)
        late = [int(str(m["replies-late"])) for m in strategy.round_metrics.values()]
        assert sum(late) > 0
        assert not strategy.liars
    assert "contradicts" not in logged.text


def test_sketches_are_kept_only_while_somebody_may_answer(
    federation: type[Federation], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A node that never answers leaves sketches of eight rounds at most, no arrays."""
    kept = []

    def behave(index: int, message: Message, reply: Message) -> Message | None:
        if index == 5 and message.content["config"]["server-round"] == 1:
            return None
        return reply

    strategy = TwoStageCoded(**virtual())
    stage = strategy._stage

    def watched(*args: Any, **kwargs: Any) -> Any:
        kept.append(stage(*args, **kwargs))
        return kept[-1]

    monkeypatch.setattr(strategy, "_stage", watched)
    federation(6, behave=behave).run(strategy, num_rounds=3, timeout=1.0)
    assert list(kept[0].late_checks._rounds) == [1]
