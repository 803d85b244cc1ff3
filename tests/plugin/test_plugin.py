"""An ordinary Flower app becomes a coded one by two lines in each of its two halves.

`stock_app` is that app: FedAvg, a convolutional network with batch normalisation, the
digits of scikit-learn. The changed app is made from its sources here, so that nothing
else can differ, and both are run in Flower's simulation. No node straggles: this test
is about the code that changes, and the model that must not.
"""

import difflib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

HERE = Path(__file__).parent
CHANGES = {
    "client_app.py": {
        "from flwr.clientapp import ClientApp": (
            "from flower_ext.clients import CodedClientApp"
        ),
        "app = ClientApp()": 'app = CodedClientApp(partitions="all")',
    },
    "server_app.py": {
        "from flwr.serverapp.strategy import FedAvg": (
            "from flower_ext.strategies import TwoStageCoded"
        ),
        "    strategy = FedAvg(fraction_evaluate=0.5)": (
            "    strategy = TwoStageCoded(fraction_evaluate=0.5)"
        ),
    },
}
NODES = 4


@pytest.fixture
def changed_app(tmp_path: Path) -> Path:
    """Return the folder of the stock app with the four lines changed."""
    app = tmp_path / "changed_app"
    shutil.copytree(HERE / "stock_app", app, ignore=shutil.ignore_patterns("__py*"))
    for name, lines in CHANGES.items():
        source = app / "digits" / name
        changed = [lines.get(line, line) for line in source.read_text().splitlines()]
        source.write_text("\n".join(changed) + "\n")
    return app


def changed_lines(stock: Path, changed: Path) -> list[tuple[str, str, str]]:
    """Return (file, line before, line after) of all that differs between two apps."""
    found = []
    for before in sorted(stock.rglob("*.*")):
        if "__pycache__" in before.parts or before.is_dir():
            continue
        after = changed / before.relative_to(stock)
        diff = list(
            difflib.ndiff(
                before.read_text().splitlines(), after.read_text().splitlines()
            )
        )
        removed = [line[2:] for line in diff if line.startswith("- ")]
        added = [line[2:] for line in diff if line.startswith("+ ")]
        found += [(before.name, *pair) for pair in zip(removed, added, strict=True)]
    return found


def simulate(app: Path, final_model: Path) -> dict[str, torch.Tensor]:
    """Run an app in a process of its own and return its final model."""
    environment = {
        **os.environ,
        "PYTHONPATH": str(app),  # for Ray's workers
        "FLWR_TELEMETRY_ENABLED": "0",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_worker_niceness": "0",  # or a busy machine lets the workers starve
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run(
        [sys.executable, HERE / "simulate.py", app, final_model, str(NODES)],
        env=environment,
        cwd=final_model.parent,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert final_model.exists(), done.stderr[-4000:]
    model: dict[str, torch.Tensor] = torch.load(final_model)
    return model


def test_two_lines_change_in_each_half(changed_app: Path) -> None:
    assert changed_lines(HERE / "stock_app", changed_app) == [
        (name, before, after)
        for name, lines in CHANGES.items()
        for before, after in lines.items()
    ]


@pytest.mark.faults
def test_changed_app_trains_the_model_of_the_stock_app(
    changed_app: Path, tmp_path: Path
) -> None:
    stock = simulate(HERE / "stock_app", tmp_path / "stock.pt")
    coded = simulate(changed_app, tmp_path / "coded.pt")

    assert coded.keys() == stock.keys()
    for name, value in coded.items():
        # FedAvg leaves integer buffers as floats; the coded one keeps them integers.
        expected = stock[name].to(value.dtype).double()
        difference = (value.double() - expected).abs().max()
        assert difference <= 1e-4 * expected.abs().max(), name
