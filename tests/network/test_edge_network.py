"""The network of a federation, and the joules that its devices have left."""

import math
from typing import Any

import pytest

from flower_ext.errors import InvalidInputError
from flower_ext.network import Device, EdgeNetwork, EnergyLedger, Link


def phone(**values: Any) -> Device:
    """2 W to compute, 1 W to send, 100 J."""
    given: dict[str, Any] = {"capacity_joules": 100.0} | values
    return Device(1.0, compute_watts=2.0, transmit_watts=1.0, **given)


def test_links_and_devices_are_taken_in_turn() -> None:
    links = [Link(1.0), Link(2.0)]
    devices = [phone(), phone(battery_joules=5.0), phone(battery_joules=7.0)]
    network = EdgeNetwork(links, devices)
    links.clear()
    assert [network.link(w) for w in (0, 3)] == [Link(1.0), Link(2.0)]
    assert [network.device(w) for w in (3, 4, 8)] == devices
    assert EdgeNetwork(devices=devices).link(0) is None
    assert EdgeNetwork(links=[Link(1.0)]).device(0) is None


def test_a_shared_device_is_a_battery_each() -> None:
    ledger = EnergyLedger(EdgeNetwork(devices=[phone(), phone(battery_joules=5.0)]))
    ledger.spend(0, compute_seconds=10.0, airtime=3.0)
    assert [ledger.level(w) for w in range(4)] == [77.0, 5.0, 100.0, 5.0]
    assert (ledger.spent, ledger.compute_seconds, ledger.airtime) == (23.0, 10.0, 3.0)


def test_a_battery_that_was_asked_for_more_than_it_held_shows_it() -> None:
    ledger = EnergyLedger(EdgeNetwork(devices=[phone(battery_joules=5.0)]))
    assert ledger.lowest == math.inf  # none was looked at yet
    ledger.spend(0, compute_seconds=4.0, airtime=1.0)
    assert ledger.level(0) == ledger.lowest == -4.0
    assert ledger.level(1) == 5.0
    assert ledger.lowest == -4.0


def test_harvests_fill_batteries_up_to_their_capacity() -> None:
    ledger = EnergyLedger(
        EdgeNetwork(
            devices=[
                phone(battery_joules=95.0, harvest=1.0),
                phone(battery_joules=50.0, harvest=1.0),
            ]
        )
    )
    ledger.harvest([0, 1], until=4.0)
    assert [ledger.level(0), ledger.level(1)] == [99.0, 54.0]
    ledger.harvest([0, 1], until=4.0)  # no time has passed
    assert [ledger.level(0), ledger.level(1)] == [99.0, 54.0]
    ledger.harvest([0, 1], until=10.0)
    assert [ledger.level(0), ledger.level(1)] == [100.0, 60.0]
    ledger.spend(0, compute_seconds=1.0, airtime=0.0)
    assert ledger.level(0) == 98.0  # what did not fit is lost


def test_mains_last_for_ever_and_are_counted() -> None:
    ledger = EnergyLedger(EdgeNetwork(devices=[phone(capacity_joules=math.inf)]))
    ledger.spend(0, compute_seconds=1.0, airtime=2.0)
    ledger.harvest([0], until=5.0)
    assert (ledger.level(0), ledger.spent) == (math.inf, 4.0)
    without = EnergyLedger(EdgeNetwork(links=[Link(1.0)]))
    without.spend(0, compute_seconds=1.0, airtime=2.0)
    without.harvest([0], until=5.0)
    assert (without.level(0), without.lowest) == (math.inf, math.inf)
    assert (without.spent, without.compute_seconds, without.airtime) == (0.0, 1.0, 2.0)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "needs links, devices or both"),
        ({"links": []}, "links must hold at least one Link"),
        ({"devices": []}, "devices must hold at least one Device"),
        ({"links": [1e6]}, "links must hold .* got .1000000.0"),
        ({"devices": [Link(1.0)]}, "devices must hold at least one Device"),
    ],
)
def test_bad_networks_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        EdgeNetwork(**values)


@pytest.mark.parametrize("seconds", [-1.0, math.nan, math.inf])
def test_bad_seconds_are_refused_and_leave_the_battery_alone(seconds: float) -> None:
    ledger = EnergyLedger(EdgeNetwork(devices=[phone()]))
    with pytest.raises(InvalidInputError, match="seconds"):
        ledger.spend(0, compute_seconds=seconds, airtime=0.0)
    with pytest.raises(InvalidInputError, match="seconds"):
        ledger.spend(0, compute_seconds=1.0, airtime=seconds)
    assert ledger.level(0) == 100.0
    assert (ledger.spent, ledger.compute_seconds, ledger.airtime) == (0.0, 0.0, 0.0)
