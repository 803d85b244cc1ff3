"""Replies that contradict each other: who is named, in time and late."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, Message

from flower_ext.coding.assignment import Assignment
from flower_ext.coding.reply import COMPUTE_SECONDS_KEY
from flower_ext.errors import InvalidInputError
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


def stale_or_false(kind: str, reply: Message, message: Message) -> None:
    """Make a reply false in one of the ways in which nodes go wrong."""
    record = coded_arrays(reply)
    if kind == "scaled":
        scale(reply, 10.0)
    elif kind == "sign-flipped":
        scale(reply, -1.0)
    elif kind == "wrong data":
        rng = np.random.default_rng(5)
        for name, array in list(record.items()):
            value = array.numpy()
            other = value + rng.standard_normal(value.shape)
            record[name] = Array(np.asarray(other.astype(value.dtype)))
    else:  # trained from an older model
        for name, array in list(record.items()):
            received = message.content.array_records["arrays"][name].numpy()
            old = array.numpy() + 3.0 * received
            record[name] = Array(np.asarray(old.astype(array.numpy().dtype)))


KINDS = ("scaled", "sign-flipped", "wrong data", "stale")


@pytest.mark.parametrize("kind", KINDS)
def test_two_stage_rounds_name_the_liar_and_stay_exact(
    federation: type[Federation],
    assert_exact: Callable[..., None],
    logged: pytest.LogCaptureFixture,
    kind: str,
) -> None:
    def behave(index: int, message: Message, reply: Message) -> Message:
        if index == 2:
            stale_or_false(kind, reply, message)
        return reply

    strategy = TwoStageCoded(verify_replies=1, **virtual())
    result = federation(6, behave=behave).run(strategy, num_rounds=2)

    assert_exact(result, rounds=2)
    assert strategy.liars == {102: 2}
    for line in strategy.timelines.values():
        fates = {d.fate for d in line.dispatches if d.node_id == 102}
        assert "rejected" in fates
        assert "used" not in fates
        assert all(d.fate != "rejected" for d in line.dispatches if d.node_id != 102)
    for metrics in strategy.round_metrics.values():
        assert (metrics["liars"], metrics["verified"]) == (1, 1)
        assert (metrics["coverage"], metrics["skipped"]) == (1.0, 0)
    assert "the replies of nodes [102] are false" in logged.text


@pytest.mark.parametrize(
    ("code", "nodes", "stragglers"),
    [("fractional", 6, 2), ("cyclic", 5, 2), ("heterogeneity-aware", 6, 2)],
)
def test_codes_with_two_spare_replies_stay_exact(
    federation: type[Federation],
    assert_exact: Callable[..., None],
    code: str,
    nodes: int,
    stragglers: int,
) -> None:
    def behave(index: int, message: Message, reply: Message) -> Message:
        if index == 1:
            scale(reply, -2.0)
        return reply

    strategy = CodedFedAvg(
        code=code, stragglers=stragglers, verify_replies=1, **virtual()
    )
    result = federation(nodes, behave=behave).run(strategy)

    assert_exact(result, partitions=nodes)
    assert set(strategy.liars) <= {101}
    assert strategy.round_metrics[1]["verified"] == 1


@pytest.mark.parametrize(("seed", "nth"), [(13, 1), (13, 2), (14, 2), (14, 3), (18, 3)])
def test_one_lie_is_named_though_the_round_could_do_without(
    federation: type[Federation],
    assert_exact: Callable[..., None],
    seed: int,
    nth: int,
) -> None:
    """Of four nodes one lies once, in the reply that is the nth of round 2."""
    rng, sent, liars = np.random.default_rng(seed), itertools.count(), []

    def behave(index: int, message: Message, reply: Message) -> Message:
        delay(reply, float(rng.uniform(1.9, 2.1)))
        if message.content["config"]["server-round"] == 2 and next(sent) == nth:
            scale(reply, -2.0)
            liars.append(100 + index)
        return reply

    strategy = TwoStageCoded(verify_replies=1, **virtual())
    result = federation(4, behave=behave).run(strategy, num_rounds=4)

    assert_exact(result, partitions=4, rounds=4)
    asked = strategy.round_metrics[2]
    assert (asked["liars"], asked["replies-unfinished"]) == (0, 1)
    assert strategy.liars == dict.fromkeys(liars, 1)


def test_two_liars_who_agree_with_each_other(
    federation: type[Federation], assert_exact: Callable[..., None]
) -> None:
    """Five copies of everything: the two that agree are outvoted by three."""

    def behave(index: int, message: Message, reply: Message) -> Message:
        if index in (0, 2):
            scale(reply, 3.0)
        return reply

    strategy = CodedFedAvg(
        code="fractional", stragglers=4, verify_replies=2, **virtual()
    )
    result = federation(5, behave=behave).run(strategy)

    assert_exact(result, partitions=5)
    assert strategy.liars == {100: 1, 102: 1}


def test_a_lie_that_cannot_be_named_skips_the_round(
    federation: type[Federation], logged: pytest.LogCaptureFixture
) -> None:
    """Two copies contradict each other, and there is no third."""

    def behave(index: int, message: Message, reply: Message) -> Message:
        if index == 0:
            scale(reply, 3.0)
        return reply

    strategy = CodedFedAvg(
        code="fractional", stragglers=1, verify_replies=1, **virtual()
    )
    result = federation(4, behave=behave).run(strategy)

    metrics = strategy.round_metrics[1]
    assert (metrics["skipped"], metrics["verified"], metrics["liars"]) == (1, 0, 0)
    assert float(str(metrics["coverage"])) < 0.8
    assert not strategy.liars
    assert "at least one of nodes [100, 102] sent a false one" in logged.text
    assert np.isfinite(result.arrays["weight"].numpy()).all()


def test_a_false_count_of_examples_is_the_liars(
    federation: type[Federation],
    assert_exact: Callable[..., None],
    assignment_of: AssignmentOf,
) -> None:
    """The liar answers first, and honest nodes after it are not taken for wrong."""

    def behave(index: int, message: Message, reply: Message) -> Message:
        assignment = assignment_of(message)
        assert assignment is not None
        delay(reply, 0.5 if index == 0 else 1.0)
        if index == 0:
            (record,) = reply.content.metric_records.values()
            counted = [1000.0] * len(assignment.partitions)
            record["flower-ext.examples"] = counted
            record["flower-ext.weighted-examples"] = float(
                np.dot(assignment.coefficients, counted)
            )
        return reply

    strategy = CodedFedAvg(
        code="fractional", stragglers=2, verify_replies=1, **virtual()
    )
    result = federation(6, behave=behave).run(strategy)

    assert_exact(result)
    assert strategy.liars == {100: 1}


def test_no_honest_node_is_ever_named(
    federation: type[Federation], assert_exact: Callable[..., None]
) -> None:
    """Stragglers, a silent node, a liar or none, over random seeds."""
    for seed in range(7):
        rng = np.random.default_rng(seed)
        liar = int(rng.integers(0, 12))  # from 6 on: nobody
        silent = int(rng.integers(0, 12))

        def behave(
            index: int,
            message: Message,
            reply: Message,
            rng: np.random.Generator = rng,
            liar: int = liar,
            silent: int = silent,
        ) -> Message | None:
            delay(reply, float(rng.exponential(1.0)) + 0.2)
            if index == liar and rng.random() < 0.7:
                scale(reply, float(rng.uniform(-2.0, 0.5)))
            return None if index == silent != liar else reply

        strategy = TwoStageCoded(verify_replies=1, **virtual())
        result = federation(6, behave=behave).run(strategy, num_rounds=3, timeout=0.2)
        assert set(strategy.liars) <= {100 + liar}
        assert [m["skipped"] for m in strategy.round_metrics.values()] == [0, 0, 0]
        assert_exact(result, rounds=3)


def test_what_cannot_be_verified_is_refused() -> None:
    with pytest.raises(
        InvalidInputError, match="set stragglers to at least 2, or to 4"
    ):
        CodedFedAvg(stragglers=1, verify_replies=2)
    with pytest.raises(InvalidInputError, match="tolerates 0"):
        CodedFedAvg(code="uncoded", verify_replies=1)
    with pytest.raises(InvalidInputError, match="where stragglers are ignored"):
        CodedFedAvg(ignore_stragglers=1, verify_replies=1)
    with pytest.raises(
        InvalidInputError, match=r"'verify_replies' must be in \[0, 4\]"
    ):
        TwoStageCoded(verify_replies=5)
    with pytest.raises(
        InvalidInputError, match=r"reply_tolerance must lie in \(0, 0.1"
    ):
        TwoStageCoded(reply_tolerance=0.0)
