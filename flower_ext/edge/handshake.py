"""What device and edge must have in common, and what they then agree on."""

from __future__ import annotations

from dataclasses import dataclass

from grpc import StatusCode

from flower_ext.edge import edge_pb2 as pb
from flower_ext.edge.refusals import RefusedError

__all__ = ["VERSION", "Terms"]

VERSION = 2  # Of the protocol; edge and device must have the same.


@dataclass(frozen=True)
class Terms:
    """What an edge serves.

    Parameters
    ----------
    tokenizer_fingerprint : str
        As :func:`flower_ext.models.tokenizer_fingerprint` tells it.
    vocab_size : int
        The ids that it verifies.
    max_length : int | None
        The most tokens of a text with its prompt.
    max_message_bytes : int
        The longest message that it takes.
    eos_token_ids : tuple[int, ...]
        What ends the target's texts.
    """

    tokenizer_fingerprint: str
    vocab_size: int
    max_length: int | None
    max_message_bytes: int
    eos_token_ids: tuple[int, ...]

    def check(self, hello: pb.Hello) -> None:
        """Raise unless a device fits; one with more ids is cut to the edge's.

        Raises
        ------
        RefusedError
            If it has another version or tokenizer, or lacks ids.
        """
        if hello.version != VERSION:
            raise _misfit(
                f"The edge speaks version {VERSION} of the protocol and the device "
                f"{hello.version}: install the same version of flower-ext on both."
            )
        if hello.tokenizer_fingerprint != self.tokenizer_fingerprint:
            raise _misfit(
                f"The edge's tokenizer is {self.tokenizer_fingerprint} and the "
                f"device's {hello.tokenizer_fingerprint[:64]!r}: choose a drafter of "
                "the target's family."
            )
        if hello.vocab_size < self.vocab_size:
            raise _misfit(
                f"The edge verifies {self.vocab_size} ids and the drafter has "
                f"{hello.vocab_size}: start the edge with vocab_size="
                f"{hello.vocab_size} (--vocab-size) if the rest is padding."
            )

    def welcome(self) -> pb.EdgeMessage:
        """Return the answer to a device that fits."""
        return pb.EdgeMessage(
            welcome=pb.Welcome(
                version=VERSION,
                vocab_size=self.vocab_size,
                max_length=self.max_length or 0,
                max_message_bytes=self.max_message_bytes,
                eos_token_ids=self.eos_token_ids,
            )
        )


def _misfit(text: str) -> RefusedError:
    return RefusedError(StatusCode.FAILED_PRECONDITION, text)
