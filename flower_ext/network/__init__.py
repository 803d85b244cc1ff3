"""Workers of an edge network, as pure models without clocks or sockets.

How long they compute (delay models; devices, with what work costs their batteries),
how fast their links are at every moment (rates, from constants, traces or fading),
how uploads share one carrier, and the clocks that algorithms are given. Time is in
seconds from the start of an experiment, sizes are in bytes, energy is in joules; every
random draw is keyed.
"""

from flower_ext.network.carrier import SharedCarrier
from flower_ext.network.clocks import Clock, VirtualClock, WallClock
from flower_ext.network.delays import DelayModel, RecordedDelays, SpeedProfile
from flower_ext.network.device import Device, DeviceDelays
from flower_ext.network.devices import load_flash, load_flash_links, synthetic_devices
from flower_ext.network.edge_network import EdgeNetwork, EnergyLedger
from flower_ext.network.harvest import (
    BernoulliHarvest,
    ConstantHarvest,
    DiurnalHarvest,
    Harvest,
)
from flower_ext.network.link import Link
from flower_ext.network.random_delays import BernoulliSlowdown, ShiftedExponential
from flower_ext.network.rates import ConstantRate, Rate, TraceRate
from flower_ext.network.rayleigh import RayleighRate
from flower_ext.network.traces import Trace, load_traces, synthetic_traces, trace_links

__all__ = [
    "BernoulliHarvest",
    "BernoulliSlowdown",
    "Clock",
    "ConstantHarvest",
    "ConstantRate",
    "DelayModel",
    "Device",
    "DeviceDelays",
    "DiurnalHarvest",
    "EdgeNetwork",
    "EnergyLedger",
    "Harvest",
    "Link",
    "Rate",
    "RayleighRate",
    "RecordedDelays",
    "SharedCarrier",
    "ShiftedExponential",
    "SpeedProfile",
    "Trace",
    "TraceRate",
    "VirtualClock",
    "WallClock",
    "load_flash",
    "load_flash_links",
    "load_traces",
    "synthetic_devices",
    "synthetic_traces",
    "trace_links",
]
