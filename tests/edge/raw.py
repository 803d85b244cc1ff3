"""A device that sends whatever bytes it is told to."""

from __future__ import annotations

import queue
from collections.abc import Iterator

import grpc

from flower_ext.edge import edge_pb2 as pb
from flower_ext.edge.handshake import VERSION

__all__ = ["Conversation", "hello"]

_SECONDS = 60.0  # Nothing takes that long.


def hello(fingerprint: str, vocab_size: int = 1024) -> pb.DeviceMessage:
    return pb.DeviceMessage(
        hello=pb.Hello(
            version=VERSION, tokenizer_fingerprint=fingerprint, vocab_size=vocab_size
        )
    )


class Conversation:
    """One stream of bytes."""

    def __init__(self, address: str, token: str | None = None) -> None:
        # Channels to one address would share a connection otherwise.
        options = [("grpc.use_local_subchannel_pool", 1)]
        self._channel = grpc.insecure_channel(address, options)
        self._sent: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        metadata = () if token is None else (("authorization", f"Bearer {token}"),)
        self._call = self._channel.stream_stream("/flower_ext.edge.Edge/Verify")(
            self._sending(), timeout=_SECONDS, metadata=metadata
        )

    def _sending(self) -> Iterator[bytes]:
        while (data := self._sent.get()) is not None:
            yield data

    def send(self, message: pb.DeviceMessage | bytes) -> None:
        data = message if isinstance(message, bytes) else message.SerializeToString()
        self._sent.put(data)

    def finish(self) -> None:
        """Send nothing more."""
        self._sent.put(None)

    def read(self) -> pb.EdgeMessage:
        """Return the next reply."""
        message: pb.EdgeMessage = pb.EdgeMessage.FromString(next(self._call))
        return message

    def read_all(self) -> tuple[list[bytes], grpc.StatusCode]:
        """Return all replies and the status that ends them."""
        replies = []
        try:
            for reply in self._call:
                replies.append(reply)
        except grpc.RpcError:
            pass
        return replies, self._call.code()

    def status(self) -> grpc.StatusCode:
        """Return the status that ends the stream, without any further reply."""
        replies, code = self.read_all()
        assert not replies
        return code

    def close(self) -> None:
        self.finish()
        self._call.cancel()
        self._channel.close()

    def __enter__(self) -> Conversation:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
