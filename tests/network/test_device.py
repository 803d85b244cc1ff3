"""Devices: what work costs them, and their delays."""

import math
from collections.abc import Callable
from dataclasses import replace

import pytest

from flower_ext.errors import InvalidInputError
from flower_ext.network import (
    BernoulliSlowdown,
    ConstantHarvest,
    DelayModel,
    Device,
    DeviceDelays,
    DiurnalHarvest,
)

DEVICE = Device(2.0, compute_watts=3.0, transmit_watts=1.5)


def test_joules_are_watts_times_seconds() -> None:
    assert DEVICE.compute_joules(4.0) == 12.0
    assert DEVICE.transmit_joules(4.0) == 6.0
    assert DEVICE.harvest_joules(0.0, 9.0) == 0.0
    sunny = replace(DEVICE, harvest=DiurnalHarvest(math.pi, 24.0))
    assert sunny.harvest_joules(0.0, 24.0) == pytest.approx(24.0)
    assert Device(2.0, 3.0, 1.5, harvest=2).harvest == ConstantHarvest(2.0)


def test_a_battery_starts_full_unless_told() -> None:
    assert DEVICE.battery_joules == math.inf
    assert Device(1.0, 3.0, 1.5, 50.0).battery_joules == 50.0
    assert Device(1.0, 3.0, 1.5, 50.0, battery_joules=0.0).battery_joules == 0.0
    charged = replace(DEVICE, capacity_joules=9.0, battery_joules=8.0)
    assert (charged.capacity_joules, charged.battery_joules) == (9.0, 8.0)


def test_delays_are_those_of_the_devices_and_a_base_for_slowdowns() -> None:
    delays = DeviceDelays([DEVICE, replace(DEVICE, seconds_per_partition=5.0)], 0.25)
    assert isinstance(delays, DelayModel)
    assert [delays.compute_seconds(w, 1, 7) for w in range(4)] == [2.0, 5.0, 2.0, 5.0]
    slow = BernoulliSlowdown(1.0, 10.0, base=delays)
    assert slow.compute_seconds(3, 1, 0) == 50.0
    assert slow.upload_seconds(3, 1) == 0.25


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: Device(-1.0, 1.0, 1.0), "seconds_per_partition must be .* got -1.0"),
        (lambda: Device(1.0, -1.0, 1.0), "compute_watts must be .* got -1.0"),
        (lambda: Device(1.0, 1.0, math.nan), "transmit_watts must be .* got nan"),
        (lambda: Device(1.0, 1.0, 1.0, -1.0), "capacity_joules must be .* got -1.0"),
        (lambda: Device(1.0, 1.0, 1.0, harvest=-1.0), "watts must be .* got -1.0"),
        (
            lambda: Device(1.0, 1.0, 1.0, 5.0, battery_joules=6.0),
            r"battery_joules must lie in \[0, capacity_joules = 5.0\], got 6.0",
        ),
        (lambda: DEVICE.compute_joules(-1.0), "seconds must be .* got -1.0"),
        (lambda: DEVICE.transmit_joules(math.inf), "seconds must be .* got inf"),
        (lambda: DeviceDelays([]), "at least one device"),
        (lambda: DeviceDelays([DEVICE], -1.0), "upload must be"),
    ],
)
def test_bad_input_is_named(make: Callable[[], object], text: str) -> None:
    with pytest.raises(InvalidInputError, match=text):
        make()
