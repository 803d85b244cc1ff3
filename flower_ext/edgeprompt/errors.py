"""What can go wrong with a prompt that is spread over several machines."""

from flower_ext.errors import FlowerExtError, PrivateSegmentError

__all__ = ["CorruptBlockError", "PrivateSegmentError", "SourceError", "StoreError"]


class CorruptBlockError(FlowerExtError):
    """A block's bytes are not what their digest says: they are not used."""


class StoreError(FlowerExtError):
    """A block could not be kept, as on a full disk; nothing that was kept is lost."""


class SourceError(FlowerExtError):
    """Blocks could not be fetched; what had come before is kept."""
