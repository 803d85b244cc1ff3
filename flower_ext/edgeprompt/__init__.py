"""EdgePrompt: one prompt's KV cache over cloud, edge and device, spliced exactly.

Implementation based on https://arxiv.org/abs/2504.11729
"""

from flower_ext.edgeprompt.blocks import SharedPrefix, identity_of
from flower_ext.edgeprompt.completion import Completion
from flower_ext.edgeprompt.detectors import RuleDetector
from flower_ext.edgeprompt.engine import EdgePrompt
from flower_ext.edgeprompt.hierarchy import Level, PromptHierarchy, Segment
from flower_ext.edgeprompt.linked_source import LinkedSource
from flower_ext.edgeprompt.merge import merge_attention
from flower_ext.edgeprompt.plan import plan
from flower_ext.edgeprompt.precision import Precision
from flower_ext.edgeprompt.prefixed_model import PrefixedModel
from flower_ext.edgeprompt.service import SegmentService
from flower_ext.edgeprompt.store import KVStore

__all__ = [
    "Completion",
    "EdgePrompt",
    "KVStore",
    "Level",
    "LinkedSource",
    "Precision",
    "PrefixedModel",
    "PromptHierarchy",
    "RuleDetector",
    "Segment",
    "SegmentService",
    "SharedPrefix",
    "identity_of",
    "merge_attention",
    "plan",
]
