"""The server side of flower-ext: strategies whose rounds stragglers cannot hold up."""

from flower_ext.strategies.coded_fedavg import CodedFedAvg
from flower_ext.strategies.two_stage_coded import TwoStageCoded

__all__ = ["CodedFedAvg", "TwoStageCoded"]
