"""The experiment on fairness: its frontier by hand, its simulation, what it refuses."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from flower_ext.errors import InvalidInputError
from flower_ext.scheduling import (
    LyapunovScheduler,
    MaxThroughput,
    MeanVariance,
    WorkerLimits,
    jains_index,
)

SCRIPT = Path(__file__).parents[2] / "experiments" / "fairness.py"


@pytest.fixture(scope="module")
def fairness() -> ModuleType:
    spec = importlib.util.spec_from_file_location("experiments_fairness", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def static(
    fairness: ModuleType, energy: float, joules: float = np.inf, slots: int = 2000
) -> object:
    """Return two workers of rates 2 and 1; the first can spend so much a slot."""
    rates = np.array([2.0, 1.0])
    on_mains = np.isinf(joules)
    limits = WorkerLimits(
        max_rate=rates,
        max_admission=np.full(2, 3.0),
        transmit_energy=np.full(2, energy),
        compute_energy=np.zeros(2),
        capacity=np.array([np.inf if on_mains else slots * joules, np.inf]),
        battery=np.array([np.inf if on_mains else slots * joules, np.inf]),
    )
    fleet: object = fairness.Fleet(
        np.tile(rates, (slots, 1)), np.zeros((slots, 2)), limits
    )
    return fleet


def test_the_frontier_of_two_constant_rates(fairness: ModuleType) -> None:
    frontier = fairness.Frontier(static(fairness, 0.0))
    indices = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 1.0)
    values = [frontier.throughput(index) for index in indices]
    assert values == sorted(values, reverse=True)
    assert values[0] == pytest.approx(2.0, rel=5e-4)
    assert values[-1] == pytest.approx(4 / 3, rel=5e-4)
    # y = (2x, 1 − x) with index 0.9 is in the ratio 2 to 1: x = 1/2.
    assert values[4] == pytest.approx(1.5, rel=5e-4)


def test_the_frontier_keeps_within_the_energy(fairness: ModuleType) -> None:
    # The first can send a quarter of the time: y = (0.5, 0.75).
    frontier = fairness.Frontier(static(fairness, 1.0, 0.25))
    best = jains_index(np.array([0.5, 0.75]))
    assert frontier.throughput(0.5) == pytest.approx(1.25, rel=5e-4)
    assert frontier.throughput(best) == pytest.approx(1.25, rel=5e-4)
    assert frontier.throughput(1.0) == pytest.approx(1.0, rel=5e-4)


def test_the_scheduler_comes_near_the_frontier(fairness: ModuleType) -> None:
    fleet = static(fairness, 0.0, slots=4000)
    run = fairness.simulate(LyapunovScheduler(20.0, MeanVariance(2.0)), fleet)
    rates = run.served / 4000
    best = fairness.Frontier(fleet).throughput(jains_index(rates))
    assert 0.97 * best <= rates.sum() <= best


def test_what_is_served_was_admitted_and_had_airtime(fairness: ModuleType) -> None:
    fleet = fairness.make_fleet(4, 300, seed=1)
    for scheduler in (LyapunovScheduler(20.0), MaxThroughput()):
        run = fairness.simulate(scheduler, fleet)
        assert run.served.sum() > 0
        np.testing.assert_allclose(run.served + run.backlog, run.admitted)
        assert run.airtime.sum() <= 300 * (1 + 1e-9)
        assert (run.served <= fleet.limits.max_rate * run.airtime + 1e-9).all()


def test_a_tiny_run_writes_table_and_figure(
    fairness: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fairness.main(
        ["--workers", "3", "--slots", "120", "--seeds", "4", "--out", str(tmp_path)]
    )
    printed = capsys.readouterr().out
    assert "promised 0.97" in printed
    assert (tmp_path / "fairness.png").stat().st_size > 1000
    lines = (tmp_path / "fairness.csv").read_text().splitlines()
    assert sum(line.startswith("4,frontier") for line in lines) == len(fairness.GRID)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--workers", "1"], "at least 2 workers"),
        (["--slots", "0"], "1 slot"),
        (["--harvest", "-1"], "harvest must be at least 0"),
        (["--traces", "nowhere.jsonl"], "nowhere.jsonl"),
        (["--seeds", "-1"], "seed"),
    ],
)
def test_bad_arguments_are_refused(
    fairness: ModuleType,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    with pytest.raises(SystemExit):
        fairness.main(arguments)
    assert message in capsys.readouterr().err


def test_an_index_that_is_none_is_refused(fairness: ModuleType) -> None:
    frontier = fairness.Frontier(static(fairness, 0.0, slots=2))
    with pytest.raises(InvalidInputError, match=r"must lie in \(0, 1\]"):
        frontier.throughput(1.5)
