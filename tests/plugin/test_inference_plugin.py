"""An ordinary Flower app infers by one line in each half, and its import.

The app is `stock_app` with FedAdam in FedAvg's place. It goes on training its own
convolutional network; the nodes draft with the small model that ships with the package.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
NODES = 2
# What each line of the app is followed by, once it infers.
ADDED = {
    "client_app.py": {
        "from flwr.clientapp import ClientApp": (
            "from flower_ext.clients import DSSDTask, EdgePromptTask"
        ),
        "app = ClientApp()": (
            'app.evaluate("dssd")(DSSDTask(prompts=["ROMEO:", "The king"]))\n'
            'app.evaluate("edgeprompt")(EdgePromptTask(prompts=["ROMEO:"]))'
        ),
    },
    "server_app.py": {
        "from flwr.serverapp.strategy import FedAdam": (
            "from flower_ext.strategies import DSSDEvaluation, WithInference\n"
            "from flower_ext.strategies import EdgePromptEvaluation"
        ),
        "    strategy = FedAdam(fraction_evaluate=0.5)": (
            "    strategy = WithInference(strategy, DSSDEvaluation("
            'edge="in-process", drafter_weights="node", max_new_tokens=16), '
            'EdgePromptEvaluation("Before we proceed any further, hear me speak. " * 9,'
            ' edge="in-process", max_new_tokens=8))'
        ),
    },
}


@pytest.fixture
def app(tmp_path: Path) -> Path:
    """Return the folder of the app with the lines added, to be run for one round."""
    app = tmp_path / "inferring_app"
    shutil.copytree(HERE / "stock_app", app, ignore=shutil.ignore_patterns("__py*"))
    server = app / "digits" / "server_app.py"
    server.write_text(server.read_text().replace("FedAvg", "FedAdam"))
    project = app / "pyproject.toml"
    project.write_text(
        project.read_text().replace("num-server-rounds = 3", "num-server-rounds = 1")
    )
    for name, lines in ADDED.items():
        source = app / "digits" / name
        changed: list[str] = []
        for line in source.read_text().splitlines():
            changed += [line, lines[line]] if line in lines else [line]
        assert len(changed) == len(source.read_text().splitlines()) + len(lines)
        source.write_text("\n".join(changed) + "\n")
    return app


@pytest.mark.faults
def test_an_ordinary_app_infers(app: Path, tmp_path: Path) -> None:
    environment = {
        **os.environ,
        "PYTHONPATH": str(app),  # for Ray's workers
        "FLWR_TELEMETRY_ENABLED": "0",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_worker_niceness": "0",  # or a busy machine lets the workers starve
        "OMP_NUM_THREADS": "1",
        "XDG_CACHE_HOME": str(tmp_path / "cache"),  # Where nodes keep blocks.
    }
    final_model = tmp_path / "final.pt"
    done = subprocess.run(
        [sys.executable, HERE / "simulate.py", app, final_model, str(NODES)],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    printed = done.stdout + done.stderr

    assert final_model.exists(), printed[-4000:]
    assert f"'dssd.num-nodes': '{NODES}'" in printed
    assert f"'dssd.num-tokens': '{NODES * 2 * 16}'" in printed
    assert "'dssd.acceptance-rate': " in printed
    assert f"'edgeprompt.num-nodes': '{NODES}'" in printed
    assert f"'edgeprompt.num-tokens': '{NODES * 8}'" in printed
    assert "'edgeprompt.cache-hit-rate': '0.0" in printed
    kept = tmp_path / "cache" / "flower-ext" / "edgeprompt"
    assert {node.name for node in kept.iterdir()} == {"partition-0", "partition-1"}
    assert "'eval_acc': " in printed  # Its own evaluation goes on beside.
