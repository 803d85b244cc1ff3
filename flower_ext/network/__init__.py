"""Links and delays of an edge network, as pure models without clocks or sockets."""

from flower_ext.network.delays import DelayModel, RecordedDelays, SpeedProfile
from flower_ext.network.random_delays import BernoulliSlowdown, ShiftedExponential

__all__ = [
    "BernoulliSlowdown",
    "DelayModel",
    "RecordedDelays",
    "ShiftedExponential",
    "SpeedProfile",
]
