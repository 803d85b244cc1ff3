"""Stragglers sleep on the wall clock and report under a virtual one."""

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from flwr.app import ArrayRecord, Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.clientapp.typing import Mod

from flower_ext.clients import (
    CodedClientApp,
    PartitionTask,
    ShiftedExponential,
    SpeedProfile,
    straggler_mod,
)
from flower_ext.errors import InvalidInputError

DELAYS = SpeedProfile((1.0, 2.0, 4.0), upload=8.0)


@pytest.fixture
def slept(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Make sleeping take no time and note its seconds."""
    seconds: list[float] = []
    monkeypatch.setattr(time, "sleep", lambda s: seconds.append(s) if s else None)
    return seconds


@pytest.fixture
def arrays() -> ArrayRecord:
    return ArrayRecord([np.ones(1)])


@pytest.fixture
def make_app(reply_with: Callable[..., Message]) -> Callable[..., ClientApp]:
    def make(
        app_class: type[ClientApp], mods: list[Mod], **arguments: Any
    ) -> ClientApp:
        app = app_class(mods=mods, **arguments)

        @app.train()
        @app.evaluate()
        def answer(msg: Message, context: Context) -> Message:
            return reply_with(msg, ArrayRecord([np.ones(1)]))

        return app

    return make


def test_wall_clock_sleeps_each_partition_and_one_upload(
    make_app: Callable[..., ClientApp],
    make_context: Callable[..., Context],
    make_train: Callable[..., Message],
    arrays: ArrayRecord,
    slept: list[float],
) -> None:
    app = make_app(CodedClientApp, [straggler_mod(DELAYS)], partitions="all")
    reply = app(make_train(arrays, (0, 1, 2)), make_context({"partition-id": 2}))
    assert slept == [4.0, 4.0, 4.0, 8.0]
    assert reply.content.metric_records["metrics"]["flower-ext.upload-seconds"] == 0.0


def test_virtual_clock_reports_and_never_sleeps(
    make_app: Callable[..., ClientApp],
    make_context: Callable[..., Context],
    make_train: Callable[..., Message],
    arrays: ArrayRecord,
    slept: list[float],
) -> None:
    app = make_app(CodedClientApp, [straggler_mod(DELAYS)], partitions="all")
    message = make_train(arrays, (0, 3), virtual=True)
    reply = app(message, make_context({"partition-id": 1}))
    metrics = reply.content.metric_records["metrics"]
    assert slept == []
    assert metrics["flower-ext.compute-seconds"] == [2.0, 2.0]
    assert metrics["flower-ext.upload-seconds"] == 8.0


def test_virtual_partition_takes_a_second_unless_reported(
    make_app: Callable[..., ClientApp],
    make_context: Callable[..., Context],
    make_train: Callable[..., Message],
    arrays: ArrayRecord,
) -> None:
    app = make_app(CodedClientApp, [], partitions="all")
    message = make_train(arrays, (0, 3), virtual=True)
    metrics = app(message, make_context()).content.metric_records["metrics"]
    assert metrics["flower-ext.compute-seconds"] == [1.0, 1.0]


def test_delays_are_drawn_by_worker_round_and_partition(
    make_app: Callable[..., ClientApp],
    make_context: Callable[..., Context],
    make_train: Callable[..., Message],
    arrays: ArrayRecord,
) -> None:
    delays = ShiftedExponential(1.0, 1.0)
    app = make_app(CodedClientApp, [straggler_mod(delays)], partitions="all")
    message = make_train(arrays, (0, 3), virtual=True)
    reply = app(message, make_context({"partition-id": 5}))
    metrics = reply.content.metric_records["metrics"]
    expected = [delays.compute_seconds(5, 2, p) for p in (0, 3)]
    assert metrics["flower-ext.compute-seconds"] == expected


@pytest.mark.parametrize("app_class", [ClientApp, CodedClientApp])
def test_plain_messages_are_delayed_too(
    make_app: Callable[..., ClientApp],
    make_context: Callable[..., Context],
    make_train: Callable[..., Message],
    arrays: ArrayRecord,
    slept: list[float],
    app_class: type[ClientApp],
) -> None:
    app = make_app(app_class, [straggler_mod(DELAYS)])
    app(make_train(arrays), make_context({"partition-id": 1}))
    assert sum(slept) == 10.0
    slept.clear()
    app(make_train(arrays), make_context())
    assert sum(slept) == DELAYS.compute_seconds(77, 2, 0) + 8.0


def test_only_training_that_worked_is_delayed(
    make_app: Callable[..., ClientApp],
    make_context: Callable[..., Context],
    make_train: Callable[..., Message],
    arrays: ArrayRecord,
    slept: list[float],
) -> None:
    app = make_app(CodedClientApp, [straggler_mod(DELAYS)])
    app(Message(RecordDict(), 1, "evaluate"), make_context({"partition-id": 1}))

    failing = CodedClientApp(mods=[straggler_mod(DELAYS)])
    failing.train()(lambda msg, context: Message(Error(1), reply_to=msg))
    assert failing(make_train(arrays), make_context({"partition-id": 1})).has_error()
    assert slept == []


def test_reports_add_up_and_are_checked() -> None:
    task = PartitionTask(1, 0, worker=0, seed=0, virtual=True)
    task.report_compute(1.5)
    task.report_compute(0.0)
    task.report_upload(2.0)
    assert (task.compute_seconds, task.upload_seconds) == (1.5, 2.0)
    for seconds in (-1.0, float("inf"), float("nan")):
        with pytest.raises(InvalidInputError, match="finite number of seconds"):
            task.report_compute(seconds)
        with pytest.raises(InvalidInputError, match="finite number of seconds"):
            task.report_upload(seconds)


def test_mod_needs_a_delay_model() -> None:
    with pytest.raises(InvalidInputError, match=r"got 3\.0"):
        straggler_mod(3.0)  # type: ignore[arg-type]
