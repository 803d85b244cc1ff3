"""Completion-time history, and schedulers of a wireless edge."""

from flower_ext.scheduling.baselines import MaxThroughput, Random, RoundRobin
from flower_ext.scheduling.history import CompletionHistory
from flower_ext.scheduling.lyapunov import LyapunovScheduler
from flower_ext.scheduling.round_scheduler import RoundScheduler
from flower_ext.scheduling.scheduler import (
    CARRIERS,
    Decision,
    Observation,
    Scheduler,
    WorkerLimits,
    jains_index,
)
from flower_ext.scheduling.utility import (
    AlphaFair,
    LogUtility,
    MeanVariance,
    Utility,
)

__all__ = [
    "CARRIERS",
    "AlphaFair",
    "CompletionHistory",
    "Decision",
    "LogUtility",
    "LyapunovScheduler",
    "MaxThroughput",
    "MeanVariance",
    "Observation",
    "Random",
    "RoundRobin",
    "RoundScheduler",
    "Scheduler",
    "Utility",
    "WorkerLimits",
    "jains_index",
]
