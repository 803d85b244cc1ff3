"""Rounds in which the scheduler can admit few nodes, or none."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast

import pytest
from flwr.app import MetricRecord

from flower_ext.clients import CodedClientApp, SpeedProfile, straggler_mod
from flower_ext.network import Device, EdgeNetwork, Link
from flower_ext.scheduling import LyapunovScheduler, RoundRobin, RoundScheduler
from flower_ext.strategies import TwoStageCoded

if TYPE_CHECKING:
    from tests.strategies.conftest import Federation

Client = Callable[..., CodedClientApp]

FAST = Link(up=1e6, down=1e12)


def scalar(metrics: MetricRecord, name: str) -> float:
    return cast(float, metrics[name])


def scheduled(
    devices: list[Device] | None = None, links: list[Link] | None = None, **kwargs: Any
) -> TwoStageCoded:
    return TwoStageCoded(
        fraction_evaluate=0.0,
        clock="virtual",
        network=EdgeNetwork(links or [FAST], devices),
        scheduler=RoundScheduler(RoundRobin(), **kwargs),
    )


def app(coded_client: Client) -> CodedClientApp:
    return coded_client(mods=[straggler_mod(SpeedProfile((1.0,)))])


def test_a_dead_node_holds_up_no_round(federation: type[Federation]) -> None:
    strategy = TwoStageCoded(
        fraction_evaluate=0.0,
        scheduler=RoundScheduler(RoundRobin(), slot_seconds=0.001),
    )
    nodes = federation(
        4, behave=lambda i, msg, reply: (reply, 3600.0 if i == 0 else 0.01)
    )
    start = time.monotonic()
    nodes.run(strategy, 8, timeout=60.0)

    assert time.monotonic() - start < 20.0
    assert all(m["coverage"] == 1.0 for m in strategy.round_metrics.values())


def test_batteries_are_not_overdrawn_to_complete_a_round(
    federation: type[Federation], coded_client: Client
) -> None:
    # Each battery pays for one partition, and a slot's sending.
    small = Device(1.0, 15.0, 1.0, capacity_joules=18.0)
    strategy = scheduled([small], slot_seconds=0.5, max_load=1.0)
    nodes = federation(4, app=app(coded_client))
    nodes.run(strategy, 1)

    given = [len(row.partitions) for _, row in nodes.grid.assignments()]
    assert given == [1, 1, 1, 1]
    assert strategy.round_metrics[1]["coverage"] == 1.0
    assert scalar(strategy.round_metrics[1], "battery-lowest-joules") >= 0.0


def test_empty_batteries_are_waited_for_and_named(
    federation: type[Federation],
    coded_client: Client,
    logged: pytest.LogCaptureFixture,
    assert_exact: Callable[..., None],
) -> None:
    empty = Device(
        1.0, 1.0, 1.0, capacity_joules=900.0, harvest=2.0, battery_joules=0.0
    )
    strategy = scheduled([empty], slot_seconds=10.0)
    federation(4, app=app(coded_client)).run(strategy, 4)

    assert strategy.round_metrics[1]["skipped"] == 1
    assert strategy.round_metrics[1]["elapsed-seconds"] == pytest.approx(10.0)
    assert "admits no idle node" in logged.text
    assert strategy.round_metrics[4]["skipped"] == 0


def test_dead_links_end_neither_a_round_nor_the_run(
    federation: type[Federation],
    coded_client: Client,
    assert_exact: Callable[..., None],
) -> None:
    for dead in (Link(0.0), Link(1e6, down=0.0)):
        strategy = scheduled(links=[dead, *[FAST] * 5])
        result = federation(6, app=app(coded_client)).run(strategy, 3)
        assert_exact(result, rounds=3)


def test_a_second_run_begins_anew(
    federation: type[Federation], coded_client: Client
) -> None:
    phone = Device(1.0, 2.0, 1.0, capacity_joules=5000.0)
    strategy = TwoStageCoded(
        fraction_evaluate=0.0,
        clock="virtual",
        network=EdgeNetwork([FAST], [phone]),
        scheduler=LyapunovScheduler(v=5.0),
    )
    measured = []
    for _ in range(2):
        federation(6, app=app(coded_client)).run(strategy, 2)
        measured.append(scalar(strategy.round_metrics[1], "battery-lowest-joules"))
    assert measured[0] == pytest.approx(measured[1], abs=20.0)
