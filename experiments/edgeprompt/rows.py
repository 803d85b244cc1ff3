"""The rows of the benchmark of spliced prompts: printed, written, drawn."""

from __future__ import annotations

import csv
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from edgeprompt.systems import Timing
from flower_ext.edgeprompt import PromptHierarchy

__all__ = ["Row", "draw", "show", "summary", "write_csv"]

NAN = float("nan")


@dataclass(frozen=True)
class Row:
    """One line of the table: medians over repeats, or over traces and documents.

    ``computed``, ``fetched`` and ``received_bytes`` are of the prefix's blocks over a
    link, and nan elsewhere; so are rate and memory there.
    """

    part: str
    case: str
    system: str
    prefix: int
    private: int
    batch: int
    first_token_seconds: float
    tokens_per_second: float = NAN
    kv_bytes: float = NAN
    mbps: float = NAN
    computed: float = NAN
    fetched: float = NAN
    received_bytes: float = NAN


def summary(
    part: str,
    case: str,
    system: str,
    prompts: Sequence[PromptHierarchy],
    found: Sequence[Timing],
) -> Row:
    """Return the row of one system's timings."""
    private = len(prompts[0].private_tokens)
    return Row(
        part,
        case,
        system,
        len(prompts[0]) - private,
        private,
        len(prompts),
        statistics.median(timing.first for timing in found),
        statistics.median(timing.rate for timing in found),
        statistics.median(timing.kv_bytes for timing in found),
    )


def show(rows: Sequence[Row], part: str) -> None:
    """Print the table of a part."""
    over_links = part == "links"
    print(
        f"{part:<38} {'system':<28} {'first s':>8} "
        + (f"{'comp.':>6} {'fetch':>6} {'MB':>8}" if over_links else "")
        + ("" if over_links else f"{'tokens/s':>9} {'KV MiB':>9}")
    )
    for row in rows:
        found = f"{row.case:<38} {row.system:<28} {row.first_token_seconds:>8.3f} "
        if over_links:
            megabytes = row.received_bytes / 1e6
            found += f"{row.computed:>6.1f} {row.fetched:>6.1f} {megabytes:>8.2f}"
        else:
            found += f"{row.tokens_per_second:>9.1f} {row.kv_bytes / 2**20:>9.1f}"
        print(found, flush=True)


def draw(path: Path, rows: Sequence[Row]) -> None:
    """Draw a panel for each part and what matters in it."""
    from matplotlib.figure import Figure  # noqa: PLC0415 - a second, once per run

    panels = [
        (part, name, label)
        for part, name, label in (
            ("grid", "first_token_seconds", "seconds to first token"),
            ("grid", "tokens_per_second", "tokens per second, all rows"),
            ("grid", "kv_bytes", "bytes of keys and values"),
            ("documents", "first_token_seconds", "seconds to first token"),
            ("links", "first_token_seconds", "seconds to first token"),
        )
        if any(row.part == part for row in rows)
    ]
    figure = Figure(figsize=(1 + 4.6 * len(panels), 5.0), layout="constrained")
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    for panel, (part, name, label) in zip(axes, panels, strict=True):
        own = [row for row in rows if row.part == part]
        cases = list(dict.fromkeys(row.case for row in own))
        for system in dict.fromkeys(row.system for row in own):
            values = {
                row.case: getattr(row, name) for row in own if row.system == system
            }
            places = [index for index, case in enumerate(cases) if case in values]
            heights = [values[cases[index]] for index in places]
            panel.plot(places, heights, marker="o", label=system)
        names = [
            case.replace("prefix ", "")
            .replace(" private ", " ")
            .replace(" batch ", " ")
            for case in cases
        ]
        panel.set_xticks(range(len(cases)), names, rotation=60, ha="right")
        panel.set_yscale("log")
        panel.set_ylabel(label)
        if part == "grid":
            panel.set_xlabel("prefix, private, batch")
        panel.set_title(part)
        panel.grid(color="0.9")
        panel.legend(fontsize="small")
    figure.savefig(path, dpi=120)


def write_csv(path: Path, rows: Sequence[Row]) -> None:
    """Write every row."""
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, [field.name for field in fields(Row)])
        table.writeheader()
        table.writerows(map(asdict, rows))
