"""The edge that the nodes stand on: links, devices, and who schedules them."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import numpy as np

from flower_ext.errors import InvalidInputError
from flower_ext.network import (
    Device,
    EdgeNetwork,
    Link,
    Trace,
    load_flash,
    load_traces,
    synthetic_devices,
    synthetic_traces,
    trace_links,
)
from flower_ext.scheduling import (
    LyapunovScheduler,
    MaxThroughput,
    Random,
    RoundRobin,
    RoundScheduler,
    Scheduler,
)
from two_stage_coded.settings import SYNTHETIC, Settings

RTT = 0.05  # seconds, of every traced link


@lru_cache(maxsize=1)
def make_devices(settings: Settings) -> list[Device] | None:
    """Return a device per node, or None where no device profile is set."""
    if not settings.device_profile:
        return None
    energy = {
        "seconds_per_partition": settings.partition_seconds,
        "capacity_joules": settings.battery_joules or float("inf"),
        "harvest": settings.harvest_watts,
    }
    if settings.device_profile == SYNTHETIC:
        return synthetic_devices(settings.num_nodes, settings.seed, **energy)
    try:
        return load_flash(
            settings.device_profile, settings.num_nodes, settings.seed, **energy
        )
    except FileNotFoundError as error:
        raise InvalidInputError(
            f"Run-config key 'device-profile' is {settings.device_profile!r}, and "
            f"there is no {error.filename}: give the folder of FLASH's "
            'benchmark2score.json, or "synthetic".'
        ) from error


def make_links(settings: Settings) -> list[Link] | None:
    """Return a link per node, or None where no link trace is set."""
    if not settings.link_trace:
        return None
    if settings.link_trace == SYNTHETIC:
        traces: list[Trace] = synthetic_traces(settings.num_nodes, settings.seed)
    else:
        traces = []
        for path in settings.link_trace.split(","):
            if not Path(path.strip()).is_file():
                raise InvalidInputError(
                    f"Run-config key 'link-trace' names {path.strip()!r}, which is no "
                    "file: give absolute paths of .jsonl or .jsonl.gz traces, or "
                    '"synthetic".'
                )
            traces += load_traces(path.strip())
    return trace_links(traces, settings.num_nodes, settings.seed, rtt=RTT)


def make_network(settings: Settings) -> EdgeNetwork | None:
    """Return the network, the same for every strategy; None if nothing is set."""
    links, devices = make_links(settings), make_devices(settings)
    if links is None and devices is None:
        return None
    return EdgeNetwork(links, devices, shared=settings.shared_carrier)


def make_scheduler(settings: Settings) -> RoundScheduler | None:
    """Return the scheduler of the two-stage strategy, fresh."""
    schedulers: dict[str, Scheduler] = {
        "lyapunov": LyapunovScheduler(v=settings.V),
        "max-throughput": MaxThroughput(),
        "round-robin": RoundRobin(),
        "random": Random(np.random.default_rng(settings.seed)),
    }
    if settings.scheduler == "none":
        return None
    return RoundScheduler(schedulers[settings.scheduler])
