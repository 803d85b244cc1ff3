"""How soon replies reach a ServerApp, on a SuperLink with four SuperNodes.

Measured are the start of a second run on a federation that is up; how long after a
reply is at the SuperLink the ServerApp has it, in Flower's own loop
(``grid.send_and_receive``, as FedAvg calls it) and in that of flower-ext's strategies;
and the same for three small replies while a fourth node sends 100 MB. Run

    python experiments/deployment_latency.py

from an environment with flower-ext, on an idle machine; it takes some 4 minutes.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from flower_ext.deployment import LocalFederation

APP = Path(__file__).with_name("deployment_latency_app")
NODES = 4

_PUSHED_BY = re.compile(r"\[Fleet\.PushMessages\] Push replies from node_id=(\d+)")
_ACCESS = re.compile(
    r"^(\S+Z) \w+ \[uvicorn\.access\] \S+?:(\d+) - \"POST /v1/fleet/(push-\w+)"
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print a table and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--megabytes", type=int, default=100)
    parser.add_argument("--out", help="file for the figures, as JSON")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        # Only then does the SuperLink log when each part of a reply came.
        debug = {"FLWR_LOG_LEVEL": "DEBUG"}
        with LocalFederation(
            folder / "federation", NODES, environment=debug
        ) as federation:
            starts = []
            for i in range(3):
                results = folder / f"{i}.json"
                begin = time.time()
                federation.run(
                    APP,
                    {
                        "results": str(results),
                        "first-only": i < 2,
                        "large-megabytes": options.megabytes,
                    },
                ).require_completed()
                found = json.loads(results.read_text())
                starts.append({k: at - begin for k, at in found["first"].items()})
            arrived = arrivals(federation.log("superlink"))
    figures = {"starts": starts, "replies": delays(found["replies"], arrived)}
    print(table(figures))
    if options.out:
        Path(options.out).write_text(json.dumps(figures, indent=1), encoding="utf-8")
    return 0


def arrivals(log: str) -> dict[int, list[float]]:
    """Return when each node's replies were complete at the SuperLink, by its log.

    A reply is pushed first and its parts after it, over the same connection; it is
    there with the last of them.
    """
    found: dict[int, list[float]] = {}
    node_of: dict[str, int] = {}
    pushing: list[int] = []
    for line in log.splitlines():
        if pushed := _PUSHED_BY.search(line):
            pushing.append(int(pushed[1]))
        elif access := _ACCESS.search(line):
            at = datetime.fromisoformat(access[1]).timestamp()
            if access[3] == "push-messages" and pushing:
                node_of[access[2]] = pushing.pop(0)
                found.setdefault(node_of[access[2]], []).append(at)
            elif access[3] == "push-object" and access[2] in node_of:
                found[node_of[access[2]]][-1] = at
    return found


def delays(
    replies: Sequence[Mapping[str, Any]], arrived: Mapping[int, Sequence[float]]
) -> list[dict[str, Any]]:
    """Return each reply with its delays in seconds, from its arrival on."""
    found = []
    for reply in replies:
        # The first to be complete after the node has sent it.
        at = min(a for a in arrived[int(reply["node"])] if a > reply["replied-at"])
        found.append(
            {
                "size": reply["size"],
                "loop": reply["loop"],
                "number": int(reply["number"]),
                "under-way": at - reply["replied-at"],
                "noticed-after": max(reply["looked-at"] - at, 0.0),
                "got-after": reply["got-at"] - at,
            }
        )
    return found


def table(figures: Mapping[str, Any]) -> str:
    """Return the figures as text."""
    lines = ["run  first message after (s)  first reply after (s)"]
    lines += [
        f"{i:>3}  {start['pushed']:23.1f}  {start['replied']:21.1f}"
        for i, start in enumerate(figures["starts"], start=1)
    ]
    lines += [
        "",
        "replies  loop        node  to the SuperLink (s)  noticed after (ms)  "
        "in the ServerApp after (ms)",
    ]
    lines += [
        f"{r['size']:<7}  {r['loop']:<10}  {r['number']:>4}  {r['under-way']:20.2f}  "
        f"{1e3 * r['noticed-after']:18.0f}  {1e3 * r['got-after']:27.0f}"
        for r in sorted(
            figures["replies"], key=lambda r: (r["size"], r["loop"], r["number"])
        )
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
