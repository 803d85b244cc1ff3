"""The figures: the cheap ones, drawn small, and what the command refuses."""

from __future__ import annotations

import csv
import importlib.util
import math
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

EXPERIMENTS = Path(__file__).parents[2] / "experiments"

# Columns that each figure's table must have, units and all.
COLUMNS = {
    "backlog_utility": (
        "V (units²)",
        "backlog per worker mean (units)",
        "backlog per worker sd (units)",
        "utility mean (sum of log(1+y))",
        "gap bound B/V (sum of log(1+y))",
    ),
    "battery": ("scheduler", "level", "time (h)", "battery mean (J)"),
    "fairness": (
        "scheduler",
        "Jain's index sd (1)",
        "throughput mean (replies per slot)",
    ),
}


@pytest.fixture(scope="module")
def figures() -> ModuleType:
    sys.path.insert(0, str(EXPERIMENTS))
    spec = importlib.util.spec_from_file_location(
        "experiments_figures", EXPERIMENTS / "figures.py"
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def drawn(figures: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("figures")
    names = ",".join(COLUMNS)
    arguments = ["--quick", "--seeds", "2", "--workers", "1", "--only", names]
    figures.main(["--out", str(out), *arguments])
    return out


def table(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("name", COLUMNS)
def test_a_figure_is_a_png_and_a_table_of_finite_numbers(
    drawn: Path, name: str
) -> None:
    png = (drawn / f"{name}.png").read_bytes()
    assert png.startswith(b"\x89PNG\r\n\x1a\n")
    assert len(png) > 10_000
    rows = table(drawn / f"{name}.csv")
    assert set(COLUMNS[name]) <= set(rows[0])
    numbers = [
        float(value)
        for row in rows
        for column, value in row.items()
        if column.endswith(")") and value
    ]
    assert len(numbers) > len(rows)
    assert all(map(math.isfinite, numbers))


def test_no_backlog_exceeds_its_bound(drawn: Path) -> None:
    for row in table(drawn / "backlog_utility.csv"):
        assert float(row["longest backlog (units)"]) <= float(
            row["backlog bound (units)"]
        )


def test_no_battery_is_overdrawn(drawn: Path) -> None:
    rows = table(drawn / "battery.csv")
    assert {row["scheduler"] for row in rows} == {
        "lyapunov",
        "max-throughput",
        "round-robin",
        "random",
    }
    assert all(float(row["lowest in any slot (J)"]) >= 0 for row in rows)


def test_the_best_static_utility_of_two_alike(figures: ModuleType) -> None:
    backlog = sys.modules[figures.backlog_utility.__module__]
    # Each carries 1 in half of the time: Σ log(1 + 1/2).
    best = backlog.optimum(np.ones((1000, 2)))
    assert best == pytest.approx(2 * math.log(1.5), abs=3e-4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--only", "nonsense"], "no figure 'nonsense'"),
        (["--seeds", "0"], "--seeds"),
        (["--traces", "nowhere.jsonl"], "nowhere.jsonl"),
        (["--data-dir", "nowhere"], "nowhere"),
    ],
)
def test_bad_arguments_are_refused(
    figures: ModuleType,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    with pytest.raises(SystemExit):
        figures.main(["--out", str(tmp_path / "out"), *arguments])
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
