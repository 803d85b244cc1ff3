"""EdgePrompt: one prompt's KV cache over cloud, edge and device, spliced exactly.

Implementation based on https://arxiv.org/abs/2504.11729
"""

from flower_ext.edgeprompt.merge import merge_attention

__all__ = ["merge_attention"]
