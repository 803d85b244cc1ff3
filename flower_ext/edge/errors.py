"""What an edge may say to a device instead of serving it."""

from __future__ import annotations

from flower_ext.errors import FlowerExtError

__all__ = ["EdgeRefusedError"]


class EdgeRefusedError(FlowerExtError):
    """The edge does not serve this device as it is: trying again is of no use.

    Its token, tokenizer, vocabulary or version is another than the edge's.
    """
