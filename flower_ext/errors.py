"""The errors of flower-ext, under one base class."""

__all__ = ["FlowerExtError", "InvalidInputError", "PrivateSegmentError"]


class FlowerExtError(Exception):
    """Base class of every error that flower-ext raises itself."""


class InvalidInputError(FlowerExtError, ValueError):
    """A value given by the caller is out of range; the message names it and the fix."""


class PrivateSegmentError(InvalidInputError):
    """Something private was about to be named, kept or sent."""
