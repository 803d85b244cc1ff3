"""TCP proxies between a device and an edge."""

from __future__ import annotations

import math
import random
import select
import socket
import threading
import time
from typing import Any, Self

__all__ = ["CuttingProxy", "Proxy"]


class Proxy:
    """One that carries all; others derive from it.

    Parameters
    ----------
    target : str
        The edge's address.

    Attributes
    ----------
    address : str
        Its own.
    """

    def __init__(self, target: str) -> None:
        host, port = target.split(":")
        self._target = (host, int(port))
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self._stopped = threading.Event()
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def passes(self, data: bytearray, up: bool, connection: int) -> None:
        """Look at what is about to be carried on, and change it if wanted."""

    def _accept(self) -> None:
        while not self._stopped.is_set():
            if not select.select([self._listener], [], [], 0.05)[0]:
                continue
            device, _ = self._listener.accept()
            number = len(self._threads)
            thread = threading.Thread(target=self._carry, args=(device, number))
            self._threads.append(thread)
            thread.start()

    def _carry(self, device: socket.socket, number: int) -> None:
        with device, socket.create_connection(self._target, timeout=5) as edge:
            both = {device: edge, edge: device}
            while not self._stopped.is_set():
                try:
                    for source in select.select([*both], [], [], 0.05)[0]:
                        data = bytearray(source.recv(8192))
                        if not data:
                            return
                        self.passes(data, source is device, number)
                        both[source].sendall(data)
                except OSError:
                    return

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        for thread in self._threads:
            thread.join()
        self._listener.close()


class CuttingProxy(Proxy):
    """One that cuts connections at random bytes and at random moments.

    Parameters
    ----------
    target : str
        The edge's address.
    seed : int
        Of the cuts.

    Attributes
    ----------
    cuts : int
        How many connections have been cut: half of them after a random number of bytes
        of both directions together, half after a random time.
    cuts_left : int
        How many are to be cut from now on.
    """

    def __init__(self, target: str, seed: int) -> None:
        self._random = random.Random(seed)
        self.cuts_left = 0
        self.cuts = 0
        super().__init__(target)

    def _carry(self, device: socket.socket, number: int) -> None:
        del number
        with device:
            try:
                edge = socket.create_connection(self._target, timeout=5)
            except OSError:
                return
            with edge:
                self._copy(device, edge)

    def _copy(self, device: socket.socket, edge: socket.socket) -> None:
        both = {device: edge, edge: device}
        # A connection lives until that many bytes or seconds from now.
        left: int | None = None
        until = math.inf
        while not self._stopped.is_set():
            if self.cuts_left > 0 and left is None and until == math.inf:
                if self._random.random() < 0.5:
                    left = self._random.randrange(1, 1500)
                else:
                    until = time.monotonic() + self._random.uniform(0.002, 0.08)
            try:
                wait = max(0.0, min(0.05, until - time.monotonic()))
                readable: list[Any] = select.select([*both], [], [], wait)[0]
                for source in readable:
                    data = source.recv(65536)
                    if not data:
                        return
                    both[source].sendall(data[:left])
                    if left is not None:
                        left = max(0, left - len(data))
            except OSError:
                return
            if left == 0 or time.monotonic() >= until:
                self.cuts += 1
                self.cuts_left -= 1
                return
