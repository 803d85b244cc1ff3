"""The server side of flower-ext: strategies whose rounds stragglers cannot hold up."""

from typing import TYPE_CHECKING

from flower_ext.late import late
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


# These need torch and transformers, which take seconds.
__getattr__ = late(
    __name__,
    {
        "DSSDEvaluation": "flower_ext.strategies.dssd_evaluation",
        "EdgePromptEvaluation": "flower_ext.strategies.edgeprompt_evaluation",
        "WithCheckpoints": "flower_ext.strategies.with_checkpoints",
        "WithTensorBoard": "flower_ext.strategies.with_tensorboard",
    },
)
