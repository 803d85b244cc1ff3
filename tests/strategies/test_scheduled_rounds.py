"""Two-stage rounds under a scheduler, over a simulated network."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast

import pytest
from flwr.app import Message, MetricRecord

from flower_ext.clients import CodedClientApp, SpeedProfile, straggler_mod
from flower_ext.errors import InvalidInputError
from flower_ext.network import ConstantRate, Device, EdgeNetwork, Link, TraceRate
from flower_ext.scheduling import (
    LyapunovScheduler,
    MaxThroughput,
    RoundRobin,
    RoundScheduler,
)
from flower_ext.scheduling.admission import Admission
from flower_ext.strategies import CodedFedAvg, TwoStageCoded
from flower_ext.strategies.arrivals import NetworkArrivals

if TYPE_CHECKING:
    from tests.strategies.conftest import Answer, Federation

Client = Callable[..., CodedClientApp]

REPLY = 12 * 4 + 5 * 4 + 8  # bytes of the payload: float32, widened half, float64
PHONE = Device(
    seconds_per_partition=1.0,
    compute_watts=2.0,
    transmit_watts=1.0,
    capacity_joules=5000.0,
)


def scalar(metrics: MetricRecord, name: str) -> float:
    return cast(float, metrics[name])


def virtual(**kwargs: Any) -> TwoStageCoded:
    return TwoStageCoded(fraction_evaluate=0.0, clock="virtual", **kwargs)


def steady(coded_client: Client) -> CodedClientApp:
    """Clients that take a second per partition."""
    return coded_client(mods=[straggler_mod(SpeedProfile((1.0,)))])


def links(seconds: float, count: int = 6) -> list[Link]:
    """Links that carry a reply in so many seconds, downloads in next to none."""
    return [Link(up=2 * REPLY / seconds, down=1e12)] * count


def test_uploads_take_the_time_of_their_links(
    federation: type[Federation],
    coded_client: Client,
    assert_exact: Callable[..., None],
) -> None:
    # A reply is serialised with a header per array, so it is larger than its payload.
    strategy = CodedFedAvg(
        code="uncoded",
        fraction_evaluate=0.0,
        clock="virtual",
        network=EdgeNetwork(links=links(5.0), shared=False),
    )
    nodes = federation(6, app=steady(coded_client))

    assert_exact(nodes.run(strategy))
    metrics = strategy.round_metrics[1]
    each = scalar(metrics, "bytes-up") / 6 / (2 * REPLY / 5.0)
    assert scalar(metrics, "elapsed-seconds") == pytest.approx(1.0 + each)
    assert scalar(metrics, "airtime-seconds") == pytest.approx(6 * each)
    assert scalar(metrics, "compute-seconds") == 6.0


def test_uploads_share_one_carrier(
    federation: type[Federation], coded_client: Client
) -> None:
    strategy = CodedFedAvg(
        code="uncoded",
        fraction_evaluate=0.0,
        clock="virtual",
        network=EdgeNetwork(links=links(5.0)),
    )
    federation(6, app=steady(coded_client)).run(strategy)

    metrics = strategy.round_metrics[1]
    each = scalar(metrics, "bytes-up") / 6 / (2 * REPLY / 5.0)
    assert scalar(metrics, "elapsed-seconds") == pytest.approx(1.0 + 6 * each)


def test_downloads_come_first(
    federation: type[Federation], coded_client: Client
) -> None:
    network = EdgeNetwork(links=[Link(up=1e12, down=10.0, rtt=4.0)])
    strategy = CodedFedAvg(
        code="uncoded", fraction_evaluate=0.0, clock="virtual", network=network
    )
    federation(3, app=steady(coded_client)).run(strategy)

    metrics = strategy.round_metrics[1]
    down = scalar(metrics, "bytes-down") / 3 / 10.0
    assert scalar(metrics, "elapsed-seconds") == pytest.approx(1.0 + down + 4.0)


def test_rounds_under_a_scheduler_are_exact_and_measured(
    federation: type[Federation],
    coded_client: Client,
    assert_exact: Callable[..., None],
) -> None:
    strategy = virtual(
        scheduler=LyapunovScheduler(v=10.0),
        network=EdgeNetwork(links=links(0.5), devices=[PHONE]),
    )
    assert_exact(federation(6, app=steady(coded_client)).run(strategy, 5), rounds=5)

    for server_round in range(1, 6):
        metrics = strategy.round_metrics[server_round]
        admitted = cast(list[float], metrics["admitted-per-worker"])
        assert len(admitted) == 6
        assert sum(admitted) == scalar(metrics, "admitted")
        assert 0 <= scalar(metrics, "backlog-mean") <= scalar(metrics, "backlog-max")
        assert scalar(metrics, "backlog-max") <= 10.0 + 2 * 1.0  # Vφ′(0) + 2 A_max
        assert 1 / 6 <= scalar(metrics, "fairness") <= 1
    last = strategy.round_metrics[5]
    spent = sum(scalar(m, "energy-joules") for m in strategy.round_metrics.values())
    assert 5000.0 - spent <= scalar(last, "battery-lowest-joules") < 5000.0
    work = sum(scalar(m, "compute-seconds") for m in strategy.round_metrics.values())
    airtime = sum(scalar(m, "airtime-seconds") for m in strategy.round_metrics.values())
    assert spent == pytest.approx(2.0 * work + 1.0 * airtime)


def test_a_node_whose_link_is_dead_takes_no_part(
    federation: type[Federation],
    coded_client: Client,
    assert_exact: Callable[..., None],
) -> None:
    dead_later = Link(
        TraceRate([0.0, 40.0, 1e6], [2 * REPLY / 0.5, 1e-3, 1e-3]), down=1e12
    )
    strategy = virtual(
        scheduler=LyapunovScheduler(v=10.0),
        network=EdgeNetwork(links=[dead_later, *links(0.5, 5)]),
    )
    nodes = federation(6, app=steady(coded_client))
    assert_exact(nodes.run(strategy, 30), rounds=30)

    late = [
        m["admitted-per-worker"] for m in list(strategy.round_metrics.values())[15:]
    ]
    asked = [node for node, row in nodes.grid.assignments() if row.server_round > 20]
    assert len(late) == 15
    assert asked
    assert 100 not in asked


def test_an_empty_battery_takes_no_part(
    federation: type[Federation],
    coded_client: Client,
    assert_exact: Callable[..., None],
) -> None:
    empty = Device(1.0, 2.0, 1.0, capacity_joules=5000.0, battery_joules=5.0)
    strategy = virtual(
        scheduler=RoundScheduler(LyapunovScheduler(v=10.0), slot_seconds=10.0),
        network=EdgeNetwork(links=links(0.5), devices=[empty, *[PHONE] * 5]),
    )
    nodes = federation(6, app=steady(coded_client))
    assert_exact(nodes.run(strategy, 4), rounds=4)

    assert 100 not in [node for node, _ in nodes.grid.assignments()]
    assert scalar(strategy.round_metrics[4], "battery-lowest-joules") == 5.0


def test_the_scheduler_bounds_partitions_in_both_stages(
    federation: type[Federation],
    coded_client: Client,
    assert_exact: Callable[..., None],
) -> None:
    mods = [straggler_mod(SpeedProfile((0.2, 1.0, 1.0, 1.0, 1.0, 1.0)))]
    fastest = {}
    for name, scheduler in (
        ("alone", None),
        ("bounded", RoundScheduler(LyapunovScheduler(v=5.0), max_load=2.0)),
    ):
        strategy = virtual(
            scheduler=scheduler,
            network=EdgeNetwork(links=links(0.01)),
            redundancy_price=2.0,
        )
        nodes = federation(6, app=coded_client(mods=mods))
        assert_exact(nodes.run(strategy, 12), rounds=12)
        fastest[name] = [
            sum(
                len(row.partitions)
                for node, row in nodes.grid.assignments()
                if node == 100 and row.server_round == server_round
            )
            for server_round in range(4, 13)
        ]
    assert min(fastest["alone"]) >= 3
    assert max(fastest["bounded"]) <= 2


def test_shares_add_up_and_airtime_is_that_of_the_links(
    federation: type[Federation], coded_client: Client
) -> None:
    strategy = virtual(
        scheduler=RoundScheduler(RoundRobin(), slot_seconds=10.0),
        network=EdgeNetwork(links=links(1.0)),
    )
    admissions: list[Admission] = []
    begin = strategy.scheduler.begin_round  # type: ignore[union-attr]

    def recorded(*args: Any) -> Any:
        admission = begin(*args)
        assert admission is not None
        admissions.append(admission)
        return admission

    strategy.scheduler.begin_round = recorded  # type: ignore[union-attr, method-assign]
    federation(6, app=steady(coded_client)).run(strategy, 6)

    for admission in admissions:
        assert sum(admission.shares.values()) == pytest.approx(1.0)
        for seconds in admission.airtime.values():
            assert seconds == pytest.approx(REPLY / (2 * REPLY / 1.0))


@pytest.mark.parametrize("scheduler", [MaxThroughput, RoundRobin])
def test_any_scheduler_keeps_rounds_exact(
    scheduler: Callable[[], Any],
    federation: type[Federation],
    coded_client: Client,
    assert_exact: Callable[..., None],
) -> None:
    strategy = virtual(
        scheduler=scheduler(), network=EdgeNetwork(links=links(20.0), devices=[PHONE])
    )
    assert_exact(federation(6, app=steady(coded_client)).run(strategy, 6), rounds=6)


def test_on_the_wall_clock_rates_are_measured_and_batteries_reported(
    federation: type[Federation], assert_exact: Callable[..., None]
) -> None:
    def behave(index: int, message: Message, reply: Message) -> Answer:
        record = reply.content.metric_records["metrics"]
        for partition in range(6):
            if f"flower-ext.partition.{partition}.loss" in record:
                record[f"flower-ext.partition.{partition}.battery-joules"] = (
                    900.0 + index
                )
        return reply, 0.4 if index == 0 else 0.1

    strategy = TwoStageCoded(
        fraction_evaluate=0.0,
        scheduler=LyapunovScheduler(v=1.0),
        network=EdgeNetwork(devices=[PHONE]),
    )
    assert_exact(federation(6, behave=behave).run(strategy, 4), rounds=4)

    scheduler = strategy.scheduler
    assert scheduler is not None
    rates = {node: known.rate for node, known in scheduler._known.items()}
    assert rates[100] < min(rates[n] for n in range(101, 106))
    lowest = scalar(strategy.round_metrics[4], "battery-lowest-joules")
    assert 850.0 <= lowest <= 905.0  # spent since it was last measured, at most


def test_a_battery_too_small_for_a_round_is_named(
    federation: type[Federation], coded_client: Client
) -> None:
    tiny = Device(1.0, 2.0, 1.0, capacity_joules=10.0)  # a round may take 17 J
    strategy = virtual(
        scheduler=RoundScheduler(LyapunovScheduler(v=1000.0), slot_seconds=1.0),
        network=EdgeNetwork(links=links(0.5), devices=[tiny]),
    )
    with pytest.raises(
        InvalidInputError, match=r"10 J.*v = 1000.*below one transmission"
    ):
        federation(6, app=steady(coded_client)).run(strategy)


def test_replies_to_a_round_that_is_over_come_last(
    federation: type[Federation],
    coded_client: Client,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # The first node's link all but dies while it computes: its upload goes on for ever.
    dying = Link(TraceRate([0.0, 0.9, 1e6], [2 * REPLY / 0.5, 1e-3, 1e-3]), down=1e12)

    def seconds() -> list[float]:
        strategy = virtual(
            scheduler=RoundScheduler(LyapunovScheduler(v=5.0), slot_seconds=10.0),
            network=EdgeNetwork(links=[dying, *links(0.5, 5)]),
        )
        federation(6, app=steady(coded_client)).run(strategy, 4)
        first, *others = strategy.round_metrics.values()
        assert scalar(first, "replies-unfinished") >= 1
        return [scalar(metrics, "elapsed-seconds") for metrics in others]

    outdated = seconds()
    monkeypatch.setattr(NetworkArrivals, "outdate", lambda self: None)
    assert sum(outdated) < 0.8 * sum(seconds())


def test_work_after_decoding_is_paid_for(
    federation: type[Federation], coded_client: Client
) -> None:
    mods = [straggler_mod(SpeedProfile((50.0, 1.0, 1.0, 1.0, 1.0, 1.0)))]
    strategy = virtual(network=EdgeNetwork(links=links(0.01), devices=[PHONE]))
    nodes = federation(6, app=coded_client(mods=mods))
    nodes.run(strategy)

    metrics = strategy.round_metrics[1]
    assert scalar(metrics, "replies-unfinished") >= 1
    assert scalar(metrics, "elapsed-seconds") < 50.0
    work = sum(
        len(row.partitions) * (50.0 if node == 100 else 1.0)
        for node, row in nodes.grid.assignments()
    )
    assert scalar(metrics, "compute-seconds") == work >= 55.0
    airtime = scalar(metrics, "airtime-seconds")
    assert scalar(metrics, "energy-joules") == pytest.approx(2.0 * work + airtime)
    assert scalar(metrics, "battery-lowest-joules") < 5000.0 - 2.0 * 50.0


def test_bad_schedulers_and_networks_are_refused() -> None:
    with pytest.raises(InvalidInputError, match="scheduler must be an instance"):
        TwoStageCoded(scheduler=cast(Any, "lyapunov"))
    with pytest.raises(InvalidInputError, match="time-shared"):
        TwoStageCoded(scheduler=LyapunovScheduler(carrier="ofdma"))
    with pytest.raises(InvalidInputError, match=r"slot_seconds .* got -1"):
        RoundScheduler(LyapunovScheduler(), slot_seconds=-1)
    with pytest.raises(InvalidInputError, match=r"max_load .* got 0\.5"):
        RoundScheduler(LyapunovScheduler(), max_load=0.5)
    with pytest.raises(InvalidInputError, match="network must be"):
        TwoStageCoded(network=cast(Any, [Link(1.0)]))
    with pytest.raises(InvalidInputError, match="clock='virtual'"):
        TwoStageCoded(network=EdgeNetwork(links=[Link(ConstantRate(1.0))]))
    with pytest.raises(InvalidInputError, match="links, devices or both"):
        EdgeNetwork()
    with pytest.raises(InvalidInputError, match="links must hold"):
        EdgeNetwork(links=[])
