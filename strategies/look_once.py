"""One look for the replies to many messages, and each reply fetched on its own.

The question is asked once for all messages, through a part of Flower's own grid that is
not public, and the fetching is left to Flower's own code, reply by reply. Where another
version of Flower has that part in another form, messages are asked for one by one. A
SuperLink hands out a reply once: those that were being fetched when the other form
showed are answered as lost, and their nodes asked again.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable
from logging import WARNING
from typing import Any, TypeGuard

from flwr.app import Message
from flwr.proto.runtime_pb2 import (
    PullAppMessagesRequest,
    PullAppMessagesResponse,
)
from flwr.serverapp import Grid
from flwr.supercore import log
from flwr.superlink.grid.http_grid import HttpGrid

from flower_ext.strategies.looks import Fetch, LookEach

__all__ = ["LookOnce"]

_ANOTHER_FORM = (AttributeError, TypeError, ValueError)


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
        self._message_by_message = False
        self._switching = threading.Lock()

    @staticmethod
    def fits(grid: Grid) -> TypeGuard[HttpGrid]:
        """Return whether a grid has what this takes."""
        return isinstance(grid, HttpGrid) and hasattr(HttpGrid, "_runtime_client")

    def look(self, message_ids: list[str]) -> list[tuple[str, Fetch]]:
        """Ask once, and return a fetch for every message that has a reply."""
        if not self._message_by_message:
            try:
                return self._ask(message_ids)
            except _ANOTHER_FORM as error:
                self._switch(error)
        return LookEach(self._grid).look(message_ids)

    def _ask(self, message_ids: list[str]) -> list[tuple[str, Fetch]]:
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

        def fetch() -> Iterable[Message]:
            try:
                return list(HttpGrid.pull_messages(answered, [message_id]))
            except _ANOTHER_FORM as error:
                self._switch(error)
                return []

        return fetch

    def _switch(self, error: Exception) -> None:
        """Ask message by message from now on."""
        with self._switching:
            if self._message_by_message:
                return
            self._message_by_message = True
            self.longest_wait = LookEach.longest_wait
        log(
            WARNING,
            "This version of Flower answers in another form (%r): flower-ext looks "
            "for replies message by message, and less often",
            error,
        )


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
