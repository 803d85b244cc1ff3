"""The server side of flower-ext: strategies whose rounds stragglers cannot hold up."""

import importlib
from typing import TYPE_CHECKING

from flower_ext.strategies.coded_fedavg import CodedFedAvg
from flower_ext.strategies.inference_edges import RunningEdge, ServedEdge
from flower_ext.strategies.inference_evaluation import InferenceEvaluation
from flower_ext.strategies.two_stage_coded import TwoStageCoded
from flower_ext.strategies.with_inference import WithInference

if TYPE_CHECKING:
    from flower_ext.strategies.dssd_evaluation import DSSDEvaluation
    from flower_ext.strategies.edgeprompt_evaluation import EdgePromptEvaluation
    from flower_ext.strategies.with_checkpoints import WithCheckpoints
    from flower_ext.strategies.with_tensorboard import WithTensorBoard

__all__ = [
    "CodedFedAvg",
    "DSSDEvaluation",
    "EdgePromptEvaluation",
    "InferenceEvaluation",
    "RunningEdge",
    "ServedEdge",
    "TwoStageCoded",
    "WithCheckpoints",
    "WithInference",
    "WithTensorBoard",
]


_LATE = {
    "DSSDEvaluation": "flower_ext.strategies.dssd_evaluation",
    "EdgePromptEvaluation": "flower_ext.strategies.edgeprompt_evaluation",
    "WithCheckpoints": "flower_ext.strategies.with_checkpoints",
    "WithTensorBoard": "flower_ext.strategies.with_tensorboard",
}


def __getattr__(name: str) -> object:
    """Import what needs torch and transformers, which takes seconds, when asked for."""
    if name not in _LATE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_LATE[name]), name)
