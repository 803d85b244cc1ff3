"""Controls: engines that leak, which a test of non-interference must notice."""

from __future__ import annotations

from flower_ext.edgeprompt import (
    EdgePrompt,
    Level,
    Precision,
    PromptHierarchy,
    Segment,
)
from flower_ext.edgeprompt.blocks import SharedPrefix


class MovedBorder(EdgePrompt):
    """A control that leaks: half of the private text counts as public."""

    def shared_prefix(self, hierarchy: PromptHierarchy) -> SharedPrefix:
        tokens = hierarchy.private_tokens
        half = Segment(tokens[: max(len(tokens) // 2, 1)], Level.GROUP)
        return SharedPrefix((*hierarchy.shared, half), self.identity, self._tenant_key)


class LengthInThePlan(EdgePrompt):
    """A control that leaks: the precision follows from the private text's length."""

    def shared_prefix(self, hierarchy: PromptHierarchy) -> SharedPrefix:
        long = len(hierarchy.private_tokens) > 30
        self._loader.precisions = (Precision.INT8 if long else Precision.EXACT,)
        return super().shared_prefix(hierarchy)
