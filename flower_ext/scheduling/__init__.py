"""Completion-time history: what the server remembers of its workers."""

from flower_ext.scheduling.history import CompletionHistory

__all__ = ["CompletionHistory"]
