"""Coded training: accuracy and loss, how long rounds took, queues and fairness."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from flower_ext.report.content import Figure, Section, Table, line
from flower_ext.report.timelines import rounds_of

__all__ = ["coded_sections", "coded_summary", "rounds_section"]

Round = Mapping[str, Any]

_SUMMARY = {
    "strategy": "strategy",
    "accuracy": "accuracy",
    "mean_round_seconds": "round, mean (s)",
    "p95_round_seconds": "round, 95th percentile (s)",
    "redundancy": "redundancy",
    "coverage": "coverage",
    "mean_energy_joules": "energy (J per round)",
    "seconds_to_target": "time to target (s)",
}


def coded_summary(found: Mapping[str, Any]) -> Table:
    """Return a line per strategy; columns that no strategy has are left out."""
    lines = found["summary"]
    names = [n for n in _SUMMARY if any(each.get(n) is not None for each in lines)]
    return Table(
        [_SUMMARY[name] for name in names],
        [[each.get(name) for name in names] for each in lines],
    )


def coded_sections(found: Mapping[str, Any]) -> list[Section]:
    """Return what is to be seen of strategies that were compared.

    Parameters
    ----------
    found : Mapping[str, Any]
        ``results.json`` of the app two_stage_coded.
    """
    by_strategy: dict[str, list[Round]] = {}
    for each in found["rounds"]:
        by_strategy.setdefault(each["strategy"], []).append(each)
    clock = found["settings"].get("clock", "run's")
    target = found["settings"].get("target_accuracy")
    time = f"time on the {clock} clock (s)"
    begun = found.get("initial_accuracy", {})

    def over_time(name: str) -> list[dict[str, Any]]:
        traces = []
        for i, (strategy, rounds) in enumerate(by_strategy.items()):
            x = [each["elapsed_seconds"] for each in rounds]
            y = [each[name] for each in rounds]
            if name == "accuracy" and strategy in begun:
                x, y = [0.0, *x], [begun[strategy], *y]
            traces.append(line(strategy, x, y, i))
        return traces

    accuracy_layout: dict[str, Any] = {
        "xaxis": {"title": {"text": time}, "rangemode": "tozero"},
        "yaxis": {"title": {"text": "accuracy on test images"}, "range": [0, 1]},
    }
    if target is not None:
        accuracy_layout["shapes"] = [_level(target)]
    learned = [
        Figure(
            "accuracy",
            "Accuracy",
            "Share of the test images that the global model names rightly, against the "
            "time that its rounds took: further left is faster, higher is better."
            + ("" if target is None else f" The thin line is the target, {target:g}."),
            over_time("accuracy"),
            accuracy_layout,
            _round_table(by_strategy, "accuracy"),
        ),
        Figure(
            "loss",
            "Loss",
            "Mean cross-entropy of the global model on the test images. Lower is "
            "better.",
            over_time("loss"),
            {
                "xaxis": {"title": {"text": time}, "rangemode": "tozero"},
                "yaxis": {"title": {"text": "loss (nats)"}, "rangemode": "tozero"},
            },
            _round_table(by_strategy, "loss"),
        ),
    ]
    took = Figure(
        "round-seconds",
        "How long rounds took",
        "Seconds from the first message of a round until its update was decoded. A "
        "peak is a straggler that the strategy had to wait for.",
        _by_round(by_strategy, "round_seconds"),
        {
            "xaxis": {"title": {"text": "round"}},
            "yaxis": {"title": {"text": "seconds"}, "rangemode": "tozero"},
        },
        _round_table(by_strategy, "round_seconds"),
    )
    sections = [Section("Learning", figures=learned), Section("Time", figures=[took])]
    sections += rounds_section(found.get("timelines", {}))
    scheduled = _scheduling(by_strategy)
    if scheduled:
        sections.append(Section("Scheduling, energy and fairness", figures=scheduled))
    return sections


def rounds_section(timelines: Mapping[str, Sequence[Round]]) -> list[Section]:
    """Return the section with the time line of every round; none: there is none."""
    if not any(timelines.values()):
        return []
    rounds = rounds_of(timelines)
    note = ""
    if rounds.left_out:
        note = (
            f"{rounds.left_out} rounds are left out to keep this page small: of each "
            "strategy, its first rounds are here, and the longest of the others."
        )
    return [Section("Round by round", note, rounds=rounds)]


def _scheduling(by_strategy: Mapping[str, Sequence[Round]]) -> list[Figure]:
    """Return figures of what only schedulers and devices have."""

    def figure(
        name: str, title: str, caption: str, unit: str, *columns: tuple[str, str]
    ) -> list[Figure]:
        known = {
            strategy: rounds
            for strategy, rounds in by_strategy.items()
            if any(each.get(columns[0][0]) is not None for each in rounds)
        }
        if not known:
            return []
        traces, place = [], {s: i for i, s in enumerate(by_strategy)}
        for strategy, rounds in known.items():
            for i, (column, said) in enumerate(columns):
                traces.append(
                    line(
                        f"{strategy}{said}",
                        [each["server_round"] for each in rounds],
                        [each.get(column) for each in rounds],
                        place[strategy] + i,
                    )
                )
        layout = {
            "xaxis": {"title": {"text": "round"}},
            "yaxis": {"title": {"text": unit}, "rangemode": "tozero"},
        }
        table = _round_table(known, *(column for column, _ in columns))
        return [Figure(name, title, caption, traces, layout, table)]

    return [
        *figure(
            "backlog",
            "Backlogs",
            "Replies that were admitted to the nodes' queues and wait to be sent. A "
            "scheduler that is stable keeps them bounded.",
            "replies",
            ("backlog_mean", ", mean"),
            ("backlog_max", ", longest"),
        ),
        *figure(
            "fairness",
            "Fairness",
            "Jain's index of what each node has delivered so far: 1 if all have "
            "delivered alike, 1/n if one of n has delivered everything.",
            "Jain's index",
            ("fairness", ""),
        ),
        *figure(
            "taking-part",
            "Who takes part",
            "How many nodes the scheduler let a round begin with.",
            "nodes",
            ("taking_part", ""),
        ),
        *figure(
            "energy",
            "Energy",
            "What the devices spent on a round, on work that was not needed too.",
            "joules",
            ("energy_joules", ""),
        ),
        *figure(
            "battery",
            "The emptiest battery",
            "What is left in it after a round.",
            "joules",
            ("battery_lowest_joules", ""),
        ),
    ]


def _by_round(
    by_strategy: Mapping[str, Sequence[Round]], name: str
) -> list[dict[str, Any]]:
    return [
        line(
            strategy,
            [each["server_round"] for each in rounds],
            [each[name] for each in rounds],
            i,
        )
        for i, (strategy, rounds) in enumerate(by_strategy.items())
    ]


def _round_table(by_strategy: Mapping[str, Sequence[Round]], *names: str) -> Table:
    """Return a row per round and, per strategy, a column for each name."""
    numbers = sorted({e["server_round"] for r in by_strategy.values() for e in r})
    at: Callable[[str, int], Round] = lambda strategy, number: next(  # noqa: E731
        (e for e in by_strategy[strategy] if e["server_round"] == number), {}
    )
    columns = [(strategy, name) for strategy in by_strategy for name in names]
    several = len(names) > 1
    return Table(
        [
            "round",
            *(f"{s}: {n.replace('_', ' ')}" if several else s for s, n in columns),
        ],
        [[i, *(at(s, i).get(n) for s, n in columns)] for i in numbers],
    )


def _level(height: float) -> dict[str, Any]:
    """Return a thin line across a plot."""
    return {
        "type": "line",
        "xref": "paper",
        "x0": 0,
        "x1": 1,
        "y0": height,
        "y1": height,
        "line": {"color": "var(--quiet)", "width": 1},
    }
