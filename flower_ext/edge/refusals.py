"""Refusals: what a device is told when its message is not served."""

from __future__ import annotations

from grpc import StatusCode

from flower_ext.edge import edge_pb2 as pb
from flower_ext.errors import FlowerExtError, InvalidInputError
from flower_ext.speculative.errors import MemoryBudgetError, UnknownSessionError

__all__ = ["RefusedError", "busy", "refusal", "unknown_session"]

_RETRY_SECONDS = 0.1
_LONGEST_TEXT = 500  # Characters: a text may repeat what the device itself has sent.


class RefusedError(Exception):
    """A message is not served.

    Parameters
    ----------
    code : grpc.StatusCode
        Why, in gRPC's words.
    text : str
        Why, in ours. It speaks of the device's own message alone.
    retry_seconds : float (default: 0.0)
        After which it may be tried again; 0: that is of no use.
    """

    def __init__(self, code: StatusCode, text: str, retry_seconds: float = 0.0) -> None:
        super().__init__(text)
        self.code = code
        self.text = text[:_LONGEST_TEXT]
        self.retry_seconds = retry_seconds

    def to_wire(self) -> pb.EdgeMessage:
        """Return it in its envelope."""
        return pb.EdgeMessage(
            refusal=pb.Refusal(
                code=self.code.value[0],
                message=self.text,
                retry_seconds=self.retry_seconds,
            )
        )


def refusal(error: FlowerExtError) -> RefusedError:
    """Return what a device is told of an error that its message has raised."""
    if isinstance(error, UnknownSessionError):
        return unknown_session()
    if isinstance(error, InvalidInputError):
        return RefusedError(StatusCode.INVALID_ARGUMENT, str(error))
    if isinstance(error, MemoryBudgetError):
        return RefusedError(StatusCode.RESOURCE_EXHAUSTED, str(error))
    return RefusedError(StatusCode.INTERNAL, "The edge has failed.")


def unknown_session() -> RefusedError:
    """Return the refusal of a session that is unknown, or another client's."""
    return RefusedError(
        StatusCode.NOT_FOUND, "There is no such session, or no longer: open it (again)."
    )


def busy(what: str) -> RefusedError:
    """Return the refusal of an edge that is full."""
    return RefusedError(
        StatusCode.RESOURCE_EXHAUSTED,
        f"The edge is busy ({what}): try again in {_RETRY_SECONDS} s.",
        _RETRY_SECONDS,
    )
