"""What a run reports: a table, JSON, CSV and a figure."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from flower_ext.report import FORMAT
from flower_ext.strategies.timeline import RoundTimeline

BLUE, ORANGE = "#0b3c8c", "#c44e00"


@dataclass(frozen=True)
class Inference:
    """What DSSD measured of a drafter.

    Parameters
    ----------
    nodes, prompts : int
        How many nodes generated how many texts.
    acceptance : float
        Share of the drafted tokens that the target came to and accepted.
    tokens_per_round : float
        Tokens per verdict.
    tokens_per_second : float
        Over the simulated link, computing included.
    uplink_bytes, downlink_bytes : float
        Per token; the prompt counts as uplink.
    """

    nodes: int
    prompts: int
    acceptance: float
    tokens_per_round: float
    tokens_per_second: float
    uplink_bytes: float
    downlink_bytes: float

    @classmethod
    def from_metrics(cls, metrics: Mapping[str, Any], prefix: str) -> Inference:
        """Read a round's inference metrics.

        Parameters
        ----------
        metrics : Mapping[str, Any]
            An entry of ``WithInference.inference_metrics``.
        prefix : str
            Of the evaluation.
        """
        return cls(
            nodes=int(metrics[f"{prefix}num-nodes"]),
            prompts=int(metrics[f"{prefix}num-prompts"]),
            acceptance=float(metrics[f"{prefix}acceptance-rate"]),
            tokens_per_round=float(metrics[f"{prefix}tokens-per-round"]),
            tokens_per_second=float(metrics[f"{prefix}tokens-per-second"]),
            uplink_bytes=float(metrics[f"{prefix}uplink-bytes-per-token"]),
            downlink_bytes=float(metrics[f"{prefix}downlink-bytes-per-token"]),
        )


@dataclass(frozen=True)
class RoundRecord:
    """A round of training, and the evaluation that followed it.

    Parameters
    ----------
    server_round : int
        The round, from 1.
    round_seconds : float
        How long its training took, on the virtual clock.
    elapsed_seconds : float
        How long that of all rounds so far took.
    train_loss : float
        Mean over the partitions in nats per token, while they were trained on.
    redundancy : float
        How often a partition was assigned, on average; 1 is no redundancy.
    coverage : float
        Share of the texts that the update is made of.
    skipped : int
        1 if too little came back and the drafter was kept, else 0.
    inference : Inference
        Of the new drafter, on the nodes that were not late.
    verified : int, optional
        1 if the whole update is verified, else 0; None if replies are not verified.
    liars : int, optional
        Nodes that were named and left out.
    """

    server_round: int
    round_seconds: float
    elapsed_seconds: float
    train_loss: float
    redundancy: float
    coverage: float
    skipped: int
    inference: Inference
    verified: int | None = None
    liars: int | None = None

    def row(self) -> dict[str, float | None]:
        """Return all of it as named numbers."""
        found = asdict(self)
        return found | found.pop("inference")


@dataclass
class Report:
    """A run.

    Parameters
    ----------
    before : Inference
        Of the drafter that training starts from, on all nodes.
    rounds : list[RoundRecord]
        One record per round, in order.
    after : Inference, optional
        Of the last drafter, on all nodes, with the prompts and random choices of
        ``before``.
    timelines : list[RoundTimeline]
        Of training, by round.
    samples : list[dict[str, Any]]
        Texts on a public prompt, as :func:`device_edge_llm.samples.make_samples` has
        them.
    """

    before: Inference
    rounds: list[RoundRecord] = field(default_factory=list)
    after: Inference | None = None
    timelines: list[RoundTimeline] = field(default_factory=list)
    samples: list[dict[str, Any]] = field(default_factory=list)

    def summary(self, target_acceptance: float) -> dict[str, Any]:
        """Return before, after and the first round that reached an acceptance."""
        assert self.after is not None
        reached = [
            r for r in self.rounds if r.inference.acceptance >= target_acceptance
        ]
        return {
            "before": asdict(self.before),
            "after": asdict(self.after),
            "acceptance_gain": self.after.acceptance - self.before.acceptance,
            "rounds_to_target": reached[0].server_round if reached else None,
            "seconds_to_target": reached[0].elapsed_seconds if reached else None,
        }


def table(report: Report, target_acceptance: float) -> str:
    """Return a run as a table of plain text: before training, and after.

    Parameters
    ----------
    report : Report
        With ``after``.
    target_acceptance : float
        The acceptance whose round is told.
    """
    assert report.after is not None
    heads = (
        "drafter",
        "acceptance",
        "tokens/round",
        "tokens/s",
        "bytes/token up",
        "bytes/token down",
    )
    last = report.rounds[-1].server_round if report.rounds else 0
    rows = [
        (
            name,
            f"{measured.acceptance:.3f}",
            f"{measured.tokens_per_round:.2f}",
            f"{measured.tokens_per_second:.1f}",
            f"{measured.uplink_bytes:.1f}",
            f"{measured.downlink_bytes:.1f}",
        )
        for name, measured in (
            ("before training", report.before),
            (f"after round {last}", report.after),
        )
    ]
    widths = [max(map(len, column)) for column in zip(heads, *rows, strict=True)]
    lines = [heads, tuple("-" * width for width in widths), *rows]
    told = report.summary(target_acceptance)
    reached = "not reached"
    if told["rounds_to_target"] is not None:
        reached = (
            f"reached in round {told['rounds_to_target']}, after "
            f"{told['seconds_to_target']:.1f} s of training on the virtual clock"
        )
    return "\n".join(
        [
            *(
                "  ".join(
                    cell.rjust(width) if i else cell.ljust(width)
                    for i, (cell, width) in enumerate(zip(line, widths, strict=True))
                )
                for line in lines
            ),
            "",
            f"Acceptance changed by {told['acceptance_gain']:+.3f}, on the same "
            f"{report.after.prompts} prompts; {target_acceptance:g} was {reached}.",
        ]
    )


def write_report(
    folder: Path, report: Report, settings: Mapping[str, object]
) -> list[Path]:
    """Write ``results.json``, ``rounds.csv`` and ``acceptance.png``.

    Parameters
    ----------
    folder : Path
        An existing folder; files of an earlier run are overwritten.
    report : Report
        With ``after``, and at least one round.
    settings : Mapping[str, object]
        The run's settings, with ``target_acceptance``.

    Returns
    -------
    list[Path]
        The files written.
    """
    target = float(str(settings["target_acceptance"]))
    rows = [record.row() for record in report.rounds]
    content = {
        "format": FORMAT,
        "kind": "device-edge-llm",
        "settings": dict(settings),
        "summary": report.summary(target),
        "rounds": rows,
        "timelines": {"two-stage": [each.to_json() for each in report.timelines]},
        "samples": report.samples,
    }
    paths = [folder / name for name in ("results.json", "rounds.csv", "acceptance.png")]
    paths[0].write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    names = [f.name for f in (*fields(RoundRecord), *fields(Inference))]
    _write_csv(paths[1], [name for name in names if name != "inference"], rows)
    _write_figure(paths[2], report, target)
    return paths


def _write_csv(
    path: Path, names: Sequence[str], rows: Iterable[Mapping[str, object]]
) -> None:
    """Write rows of named values."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, names)
        writer.writeheader()
        writer.writerows(rows)


def _write_figure(path: Path, report: Report, target: float) -> None:
    """Draw acceptance and training loss against rounds."""
    from matplotlib.figure import Figure  # noqa: PLC0415 - a second, once per run

    figure = Figure(figsize=(7.0, 4.3), layout="constrained")
    axes = figure.add_subplot()
    rounds = [record.server_round for record in report.rounds]
    acceptance = [record.inference.acceptance for record in report.rounds]
    accepted = axes.plot(
        [0, *rounds],
        [report.before.acceptance, *acceptance],
        color=BLUE,
        marker="o",
        label="acceptance rate",
    )
    axes.axhline(target, color="0.6", linewidth=0.8, zorder=0)
    axes.annotate(
        f"target {target:g}",
        (1.0, target),
        xycoords=("axes fraction", "data"),
        xytext=(-4, 3),
        textcoords="offset points",
        ha="right",
        color="0.4",
        fontsize=8,
    )
    axes.set_xlabel("rounds of federated training")
    axes.set_ylabel("accepted of examined drafts (share of tokens)")
    axes.set_ylim(0.0, 1.0)
    axes.grid(color="0.9")
    losses = axes.twinx()
    lost = losses.plot(
        rounds,
        [record.train_loss for record in report.rounds],
        color=ORANGE,
        linestyle="--",
        marker="s",
        label="training loss (right)",
    )
    losses.set_ylabel("training loss (nats per token)")
    losses.set_ylim(bottom=0.0)
    axes.legend(handles=[*accepted, *lost], loc="lower right", handlelength=4)
    figure.savefig(path, dpi=150)
