"""The two-stage app's table and files."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from two_stage_coded.report import RoundRecord, StrategyReport, table, write_report


@pytest.fixture
def reports() -> list[StrategyReport]:
    """Return two strategies' reports; only the first reaches 0.8."""
    found = []
    for name, seconds, accuracies in (
        ("two-stage", 2.0, (0.5, 0.8, 0.9)),
        ("uncoded", 10.0, (0.3, 0.4, 0.5)),
    ):
        report = StrategyReport(name, initial_accuracy=0.1)
        for i, accuracy in enumerate(accuracies, start=1):
            report.rounds.append(
                RoundRecord(
                    strategy=name,
                    server_round=i,
                    round_seconds=seconds,
                    elapsed_seconds=i * seconds,
                    accuracy=accuracy,
                    loss=1.0,
                    redundancy=1.25,
                    coverage=1.0,
                    skipped=0,
                )
            )
        found.append(report)
    return found


def test_the_table_has_one_line_per_strategy(reports: list[StrategyReport]) -> None:
    heads, _, first, second = table(reports, 0.8).splitlines()
    assert heads.split("  ")[0] == "strategy"
    assert " ".join(first.split()) == "two-stage 0.900 2.00 2.00 1.25 1.000 4.0"
    assert second.split()[:3] == ["uncoded", "0.500", "10.00"]
    assert second.endswith("not reached")


def test_the_p95_is_a_quantile_of_the_rounds() -> None:
    report = StrategyReport("uncoded", initial_accuracy=0.1)
    for i in range(101):
        report.rounds.append(
            RoundRecord("uncoded", i + 1, float(i), 0.0, 0.5, 1.0, 1.0, 1.0, 0)
        )
    assert report.summary(0.9)["p95_round_seconds"] == 95.0


def test_the_files_can_be_read_back(
    tmp_path: Path, reports: list[StrategyReport]
) -> None:
    settings = {"target_accuracy": 0.8, "clock": "virtual", "seed": 3}
    paths = write_report(tmp_path, reports, settings)
    assert [path.name for path in paths] == [
        "results.json",
        "summary.csv",
        "rounds.csv",
        "accuracy.png",
        "report.html",
    ]
    content = json.loads(paths[0].read_text(encoding="utf-8"))
    assert content["settings"] == settings
    assert [s["seconds_to_target"] for s in content["summary"]] == [4.0, None]
    assert len(content["rounds"]) == 6
    with paths[1].open(encoding="utf-8", newline="") as file:
        summary = list(csv.DictReader(file))
    assert [row["strategy"] for row in summary] == ["two-stage", "uncoded"]
    assert [row["seconds_to_target"] for row in summary] == ["4.0", ""]
    with paths[2].open(encoding="utf-8", newline="") as file:
        assert len(list(csv.DictReader(file))) == 6
    assert paths[3].read_bytes().startswith(b"\x89PNG")
