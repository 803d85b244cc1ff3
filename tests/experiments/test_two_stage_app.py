"""The two-stage app end to end: `flwr run` on a SuperLink of its own."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("ray", reason="needs flower-ext[simulation]")

SETTINGS = (
    'strategies="two-stage,uncoded" num-server-rounds=2 num-nodes=4 num-partitions=6 '
    "stragglers=1 straggler-probability=0.5"
)


def free_port() -> int:
    """Return a port that nobody uses."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def environment(tmp_path: Path) -> Iterator[dict[str, str]]:
    """Return an environment in which `flwr run` finds a SuperLink of this test's own.

    The SuperLink that `flwr run` starts by itself would stay behind.
    """
    port, control_port = str(free_port()), str(free_port())
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "FLWR_HOME": str(tmp_path / "flwr"),
        "FLWR_LOCAL_SUPERLINK_HTTP_API_PORT": port,
        "FLWR_LOCAL_CONTROL_API_PORT": control_port,
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
    }
    command = (
        "flower-superlink --insecure --simulation --isolation subprocess "
        f"--host 127.0.0.1 --port {port} "
        f"--control-api-address 127.0.0.1:{control_port}"
    )
    with (tmp_path / "superlink.log").open("wb") as log:
        superlink = subprocess.Popen(
            command.split(),
            cwd=tmp_path,
            env=environment,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        await_health(f"http://127.0.0.1:{port}/health")
        yield environment
    finally:
        superlink.terminate()
        try:
            superlink.wait(timeout=10)
        except subprocess.TimeoutExpired:
            os.killpg(superlink.pid, signal.SIGKILL)
            superlink.wait()


def await_health(url: str) -> None:
    """Wait until a SuperLink answers."""
    until = time.monotonic() + 30.0
    while True:
        try:
            with urllib.request.urlopen(url, timeout=1.0):
                return
        except (urllib.error.URLError, TimeoutError):
            if time.monotonic() > until:
                raise
            time.sleep(0.2)


@pytest.mark.faults
def test_flwr_run_compares_strategies(
    environment: dict[str, str], app_folder: Path, tmp_path: Path
) -> None:
    run = subprocess.run(
        [
            "flwr",
            "run",
            str(app_folder),
            "--stream",
            "--run-config",
            f'{SETTINGS} results-dir="{tmp_path / "results"}" '
            f'tensorboard-dir="{tmp_path / "events"}"',
            "--federation-config",
            "num-supernodes=4 client-resources-num-cpus=1",
        ],
        cwd=tmp_path,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=120,
        check=False,
    )
    assert run.returncode == 0, run.stdout
    written = tmp_path / "results" / "results.json"
    assert written.exists(), run.stdout
    assert f"Wrote {written}" in run.stdout
    content = json.loads(written.read_text(encoding="utf-8"))
    assert content["settings"]["num_nodes"] == 4
    assert [s["strategy"] for s in content["summary"]] == ["two-stage", "uncoded"]
    assert all(s["coverage"] == pytest.approx(1.0) for s in content["summary"])
    coded, uncoded = (
        [r for r in content["rounds"] if r["strategy"] == name]
        for name in ("two-stage", "uncoded")
    )
    assert len(coded) == len(uncoded) == 2
    # Both are FedAvg, exactly: only the time differs.
    for one, other in zip(coded, uncoded, strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-4)
        assert one["round_seconds"] > 0
    for name in ("two-stage", "uncoded"):
        seconds = [line["end"] for line in content["timelines"][name]]
        found = [r["round_seconds"] for r in content["rounds"] if r["strategy"] == name]
        assert seconds == found
    assert f"Wrote {tmp_path / 'results' / 'report.html'}" in run.stdout
    events = [path.parent.name for path in tmp_path.glob("events/*/events.out.*")]
    assert sorted(events) == ["two-stage", "uncoded"]
    assert (tmp_path / "results" / "accuracy.png").stat().st_size > 1000
