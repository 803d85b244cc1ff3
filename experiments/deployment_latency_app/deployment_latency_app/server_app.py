"""deployment_latency_app: the ServerApp."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.serverapp import Grid, ServerApp

from flower_ext.strategies.answer_times import AnswerTimes
from flower_ext.strategies.inference_round import Answer, exchange

TIMEOUT = 600.0  # seconds

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Time the first reply, then small and large ones by either loop."""
    config = context.run_config
    found: dict[str, Any] = {"first": time_first(grid)}
    if not config["first-only"]:
        found["replies"] = [
            {"size": size, "loop": loop, **reply}
            for size, megabytes, spacing in (
                ("small", 0, float(config["spacing"])),
                (
                    "large",
                    int(config["large-megabytes"]),
                    float(config["large-spacing"]),
                ),
            )
            for loop in ("flower", "flower-ext")
            for reply in time_replies(
                grid, loop, float(config["reply-after"]), spacing, megabytes
            )
        ]
    Path(str(config["results"])).write_text(json.dumps(found), encoding="utf-8")


def time_first(grid: Grid) -> dict[str, float]:
    """Return when the first messages were pushed and the first reply was there."""
    messages = make_messages(grid, 0.0, 0.0, 0)
    times = {"pushed": time.time()}
    with watched(grid) as pulled:
        ask(grid, messages)
    times["replied"] = min(end for _, _, end in pulled)
    return times


def time_replies(
    grid: Grid, loop: str, after: float, spacing: float, megabytes: int
) -> list[dict[str, float]]:
    """Return, for each reply, when it was sent and when it was looked for and got."""
    messages = make_messages(grid, time.time() + after, spacing, megabytes)
    with watched(grid) as pulled:
        if loop == "flower":
            # What FedAvg's start() calls in every round.
            replies = list(grid.send_and_receive(messages, timeout=TIMEOUT))
        else:
            answers = ask(grid, messages)
            replies = [a.message for a in answers if a.message is not None]
    got = {message_id: (begin, end) for message_id, begin, end in pulled}
    return [
        {
            "node": reply.metadata.src_node_id,
            "number": reply.content["metrics"]["number"],
            "replied-at": reply.content["metrics"]["replied-at"],
            "looked-at": got[reply.metadata.message_id][0],
            "got-at": got[reply.metadata.message_id][1],
        }
        for reply in replies
    ]


def ask(grid: Grid, messages: list[Message]) -> list[Answer]:
    """Send messages and wait for all replies, as flower-ext's strategies do."""
    return exchange(grid, messages, 1, AnswerTimes(TIMEOUT), TIMEOUT)


def make_messages(
    grid: Grid, at: float, spacing: float, megabytes: int
) -> list[Message]:
    """Return a message for every node."""
    asked = ConfigRecord({"at": at, "spacing": spacing, "megabytes": megabytes})
    return [
        Message(RecordDict({"asked": asked}), dst_node_id=node, message_type="query")
        for node in grid.get_node_ids()
    ]


@contextmanager
def watched(grid: Grid) -> Iterator[list[tuple[str, float, float]]]:
    """Note which replies are fetched, when that begins and when it ends."""
    pulled: list[tuple[str, float, float]] = []
    kind = next(c for c in type(grid).__mro__ if "pull_messages" in vars(c))
    pull = vars(kind)["pull_messages"]

    def noting(self: Grid, message_ids: Iterable[str]) -> Iterable[Message]:
        begin = time.time()
        replies = list(pull(self, message_ids))
        end = time.time()
        pulled.extend((r.metadata.message_id, begin, end) for r in replies)
        return replies

    # Both loops fetch by this method alone.
    kind.pull_messages = noting  # type: ignore[method-assign]
    try:
        yield pulled
    finally:
        kind.pull_messages = pull  # type: ignore[method-assign]
