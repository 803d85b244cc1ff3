"""Counts what really travels between a device and an edge, framing included."""

from __future__ import annotations

import select
import socket
import threading
from types import TracebackType

__all__ = ["CountingProxy"]

_POLL = 0.05  # Seconds after which a proxy notices that it is to stop.


class CountingProxy:
    """A TCP proxy that counts bytes, HTTP/2 and gRPC framing and control included.

    Parameters
    ----------
    edge : str
        The edge's address, host and port.

    Attributes
    ----------
    address : str
        Where the device is to connect.
    up, down : int
        Bytes from the device to the edge, and back, so far.
    """

    def __init__(self, edge: str) -> None:
        host, _, port = edge.rpartition(":")
        self._edge = (host, int(port))
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self.up = self.down = 0
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._carry)

    def __enter__(self) -> CountingProxy:
        """Begin to carry."""
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close all connections."""
        self._stopped.set()
        self._thread.join()
        self._listener.close()

    def _carry(self) -> None:
        """Pass on what comes, until it is to stop."""
        other: dict[socket.socket, socket.socket] = {}
        devices: set[socket.socket] = set()
        while not self._stopped.is_set():
            ready, _, _ = select.select([self._listener, *other], [], [], _POLL)
            for source in ready:
                if source is self._listener:
                    device, _ = source.accept()
                    edge = socket.create_connection(self._edge)
                    other[device], other[edge] = edge, device
                    devices.add(device)
                    continue
                if source not in other:
                    continue  # Closed with its other side just now.
                data = source.recv(1 << 16)
                if not data:
                    for end in (source, other.pop(source)):
                        other.pop(end, None)
                        end.close()
                    continue
                other[source].sendall(data)
                if source in devices:
                    self.up += len(data)
                else:
                    self.down += len(data)
        for end in other:
            end.close()
