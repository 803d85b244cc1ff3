"""The client side of flower-ext: apps, mods, evaluation tasks and test delays."""

from flower_ext.clients.client_app import CodedClientApp
from flower_ext.clients.dssd_task import DSSDTask
from flower_ext.clients.edgeprompt_task import EdgePromptTask
from flower_ext.clients.mod import CodedMod, coded_mod
from flower_ext.clients.node_config import check_node_config
from flower_ext.clients.partition_task import PartitionTask, current_partition_task
from flower_ext.clients.straggler import straggler_mod
from flower_ext.network import (
    BernoulliSlowdown,
    DelayModel,
    RecordedDelays,
    ShiftedExponential,
    SpeedProfile,
)

__all__ = [
    "BernoulliSlowdown",
    "CodedClientApp",
    "CodedMod",
    "DSSDTask",
    "DelayModel",
    "EdgePromptTask",
    "PartitionTask",
    "RecordedDelays",
    "ShiftedExponential",
    "SpeedProfile",
    "check_node_config",
    "coded_mod",
    "current_partition_task",
    "straggler_mod",
]
