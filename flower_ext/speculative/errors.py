"""What can go wrong between device and edge."""

from __future__ import annotations

from flower_ext.errors import FlowerExtError, InvalidInputError

__all__ = ["MemoryBudgetError", "UnknownSessionError", "VerifierUnavailableError"]


class VerifierUnavailableError(FlowerExtError):
    """The edge does not answer, and trying again is of no use now."""


class UnknownSessionError(InvalidInputError):
    """The verifier has no such session, or no longer: open it again."""


class MemoryBudgetError(FlowerExtError):
    """A sequence's cache does not fit into the verifier's memory budget by itself."""
