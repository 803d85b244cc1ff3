"""The two-stage app's edge: links, devices and schedulers from its run-config."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from two_stage_coded.edge import make_devices, make_links, make_network, make_scheduler
from two_stage_coded.settings import Settings
from two_stage_coded.task import delay_model

from flower_ext.errors import InvalidInputError
from flower_ext.scheduling import LyapunovScheduler

RunConfig = dict[str, str | int | float | bool]


def settings(run_config: RunConfig, **changes: str | float | bool) -> Settings:
    named = {name.replace("_", "-"): value for name, value in changes.items()}
    return Settings.from_run_config({**run_config, **named})


def test_by_default_there_is_no_edge(run_config: RunConfig) -> None:
    assert make_network(settings(run_config)) is None
    assert make_scheduler(settings(run_config)) is None


def test_an_edge_without_data(run_config: RunConfig) -> None:
    chosen = settings(
        run_config,
        link_trace="synthetic",
        device_profile="synthetic",
        battery_joules=900.0,
        shared_carrier=False,
        scheduler="lyapunov",
        V=7.0,
    )
    network, scheduler = make_network(chosen), make_scheduler(chosen)
    assert network is not None
    assert scheduler is not None
    assert network.links is not None
    assert len(network.links) == chosen.num_nodes
    assert not network.shared
    device = network.device(3)
    assert device is not None
    assert device.capacity_joules == 900.0
    assert isinstance(scheduler.scheduler, LyapunovScheduler)
    assert scheduler.scheduler.v == 7.0


def test_training_takes_as_long_as_the_devices_do(run_config: RunConfig) -> None:
    chosen = settings(run_config, device_profile="synthetic", straggler_probability=0.0)
    devices, delays = make_devices(chosen), delay_model(chosen)
    assert devices is not None
    assert delays.compute_seconds(2, 1, 5) == devices[2].seconds_per_partition
    assert devices[2].capacity_joules == math.inf


def test_links_from_traces(run_config: RunConfig, tmp_path: Path) -> None:
    trace = tmp_path / "traces.jsonl"
    line = {"name": "bus", "t": [0.0, 1.0, 2.0], "mbps": [8.0, 8.0, 8.0]}
    trace.write_text(json.dumps(line) + "\n")
    links = make_links(settings(run_config, link_trace=str(trace)))
    assert links is not None
    assert [link.up.at(5.0) for link in links] == [1e6] * 12


def test_paths_that_are_not_there_are_named(
    run_config: RunConfig, tmp_path: Path
) -> None:
    absent = str(tmp_path / "absent")
    with pytest.raises(InvalidInputError, match=r"'link-trace' names .*absent"):
        make_links(settings(run_config, link_trace=absent))
    with pytest.raises(InvalidInputError, match=r"'device-profile' is .*absent"):
        make_devices(settings(run_config, device_profile=absent))


@pytest.mark.parametrize("name", ["max-throughput", "round-robin", "random"])
def test_every_scheduler_can_be_named(run_config: RunConfig, name: str) -> None:
    assert make_scheduler(settings(run_config, scheduler=name)) is not None
