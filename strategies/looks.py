"""One look for the replies to many messages, and each reply fetched on its own.

Flower's ``pull_messages`` asks which of the messages have replies, then fetches the
replies one after the other, and waits for those that are still being uploaded. Asked
for many messages, a large reply holds up the others; asked message by message, it costs
ten milliseconds for each. Here the question is asked once for all, and the fetching is
left to Flower's own code, reply by reply.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Protocol

from flwr.app import Message
from flwr.proto.runtime_pb2 import (
    PullAppMessagesRequest,
    PullAppMessagesResponse,
)
from flwr.serverapp import Grid
from flwr.superlink.grid.http_grid import HttpGrid

__all__ = ["Fetch", "LookEach", "LookOnce", "Looks", "looks_at"]

Fetch = Callable[[], Iterable[Message]]


class Looks(Protocol):
    """A way to look for replies."""

    longest_wait: float
    """Seconds between two looks at most, for up to 32 messages."""

    def look(self, message_ids: list[str]) -> list[tuple[str, Fetch]]:
        """Return what to fetch, by message; a fetch that finds nothing is repeated."""
        ...


class LookEach:
    """Looks of which each is a pull of one message: for any grid.

    Parameters
    ----------
    grid : Grid
        The run's own grid.
    """

    longest_wait = 0.5

    def __init__(self, grid: Grid) -> None:
        self._grid = grid

    def look(self, message_ids: list[str]) -> list[tuple[str, Fetch]]:
        """Return a pull for every message."""
        return [(i, self._fetch(i)) for i in message_ids]

    def _fetch(self, message_id: str) -> Fetch:
        return lambda: self._grid.pull_messages([message_id])


class LookOnce:
    """One question for all messages, to a SuperLink.

    Parameters
    ----------
    grid : HttpGrid
        The run's own grid, in a ServerApp that a SuperLink has started.
    """

    longest_wait = 0.03

    def __init__(self, grid: HttpGrid) -> None:
        self._grid = grid

    def look(self, message_ids: list[str]) -> list[tuple[str, Fetch]]:
        """Ask once, and return a fetch for every message that has a reply."""
        client = self._grid._runtime_client
        response = client.PullMessages(PullAppMessagesRequest(message_ids=message_ids))
        return [
            (
                message.metadata.reply_to_message_id,
                self._fetch(message.metadata.reply_to_message_id, message, tree),
            )
            for message, tree in zip(
                response.messages_list, response.message_object_trees, strict=True
            )
        ]

    def _fetch(self, message_id: str, message: Any, tree: Any) -> Fetch:
        only = PullAppMessagesResponse(
            messages_list=[message], message_object_trees=[tree]
        )
        answered = _AnsweredGrid(self._grid, only)
        return lambda: HttpGrid.pull_messages(answered, [message_id])


class _AnsweredClient:
    """A grid's connection on which the question for replies is answered already."""

    def __init__(self, client: Any, response: PullAppMessagesResponse) -> None:
        self._client = client
        self._response = response

    def PullMessages(self, request: Any) -> PullAppMessagesResponse:  # noqa: N802
        del request
        return self._response

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client, name)


class _AnsweredGrid(HttpGrid):
    """A run's grid that fetches the replies of one response."""

    def __init__(self, grid: HttpGrid, response: PullAppMessagesResponse) -> None:
        vars(self).update(vars(grid))
        self._answered = _AnsweredClient(grid._runtime_client, response)

    @property
    def _runtime_client(self) -> Any:
        return self._answered


def looks_at(grid: Grid) -> Looks:
    """Return the cheapest way to look for replies on a grid."""
    # What it takes is Flower's own affair: another version may have it no more.
    if isinstance(grid, HttpGrid) and hasattr(HttpGrid, "_runtime_client"):
        return LookOnce(grid)
    return LookEach(grid)
