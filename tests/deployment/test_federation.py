"""Both apps on a SuperLink with four SuperNodes and an edge, all of it secured."""

from __future__ import annotations

import json
import socket
import subprocess
import time
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from device_edge_llm import client_app as device_client
from device_edge_llm import server_app as device_server
from flwr.app import Context, RecordDict
from in_process import InProcessGrid
from two_stage_coded import client_app as coded_client
from two_stage_coded import server_app as coded_server

from flower_ext.deployment import LocalFederation, make_node_key
from flower_ext.deployment.parts import program
from flower_ext.deployment.settings import Value
from flower_ext.errors import FlowerExtError
from tests.deployment.lists_flower_ext import write_app

pytestmark = pytest.mark.faults

EXPERIMENTS = Path(__file__).parents[2] / "experiments"
NODES = 4
CODED: dict[str, Any] = {
    "num-nodes": NODES,
    "num-partitions": NODES,
    "stragglers": 1,
    "num-server-rounds": 1,
    "strategies": "two-stage",
}
DEVICE: dict[str, Any] = {
    "num-nodes": NODES,
    "num-partitions": NODES,
    "stragglers": 1,
    "num-server-rounds": 1,
    "prompts-per-node": 1,
    "max-new-tokens": 8,
    "local-steps": 1,
    "straggler-probability": 0.0,
}


@pytest.fixture(scope="module")
def federation(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[LocalFederation]:
    """Return a federation that all of these tests share."""
    configs: list[dict[str, Value] | str] = [
        {"partition-id": i, "partitions": "0-3", "role": "device"} for i in range(NODES)
    ]
    secured = LocalFederation(
        tmp_path_factory.mktemp("federation"),
        NODES,
        tls=True,
        node_configs=configs,
        edge="default",
        environment={"OMP_NUM_THREADS": "1", "UV_OFFLINE": "1"},
    )
    with secured:
        yield secured
    assert secured.processes() == {}


def results_in_process(
    app: str, server: Any, client: Any, config: dict[str, Any], folder: Path
) -> dict[str, Any]:
    """Return what an app writes when its nodes are threads of this process."""
    project = tomllib.loads((EXPERIMENTS / app / "pyproject.toml").read_text())
    run_config = project["tool"]["flwr"]["app"]["config"] | config
    run_config["results-dir"] = str(folder)
    grid = InProcessGrid(client.app, NODES, run_config, NODES)
    server.main(grid, Context(1, 0, {}, RecordDict(), run_config))
    results: dict[str, Any] = json.loads((folder / "results.json").read_text())
    return results


def test_coded_training_comes_to_what_it_does_in_one_process(
    federation: LocalFederation, tmp_path: Path
) -> None:
    there = tmp_path / "there"
    federation.run(
        EXPERIMENTS / "two_stage_coded", CODED | {"results-dir": str(there)}
    ).require_completed()

    found = json.loads((there / "results.json").read_text())["rounds"]
    here = results_in_process(
        "two_stage_coded", coded_server, coded_client, CODED, tmp_path / "here"
    )
    assert [r["coverage"] for r in found] == [pytest.approx(1.0)]
    for record, expected in zip(found, here["rounds"], strict=True):
        assert record["accuracy"] == expected["accuracy"]
        assert record["loss"] == pytest.approx(expected["loss"], rel=1e-5)


def test_devices_draft_against_the_secured_edge_as_in_one_process(
    federation: LocalFederation, tmp_path: Path
) -> None:
    there = tmp_path / "there"
    config = DEVICE | federation.edge_config
    assert {"edge-tokens", "edge-certificate"} <= set(config)
    federation.run(
        EXPERIMENTS / "device_edge_llm", config | {"results-dir": str(there)}
    ).require_completed()

    found = json.loads((there / "results.json").read_text())["summary"]
    here = results_in_process(
        "device_edge_llm", device_server, device_client, DEVICE, tmp_path / "here"
    )["summary"]
    for when in ("before", "after"):
        assert found[when]["prompts"] == NODES
        assert found[when]["acceptance"] == pytest.approx(here[when]["acceptance"])


def test_an_app_that_lists_flower_ext_runs_where_nothing_is_installed(
    federation: LocalFederation, tmp_path: Path
) -> None:
    result = federation.run(write_app(tmp_path / "app"), stream=False)

    assert "found Uncoded" in result.require_completed().log


def test_a_failed_run_is_told_with_its_log(federation: LocalFederation) -> None:
    result = federation.run(
        EXPERIMENTS / "two_stage_coded", {"num-nodes": 0}, stream=False
    )

    assert result.status == "finished:failed"
    with pytest.raises(FlowerExtError, match="'num-nodes' must be"):
        result.require_completed()


def test_a_run_that_flower_refuses_says_why(federation: LocalFederation) -> None:
    with pytest.raises(FlowerExtError, match="Invalid run configuration"):
        federation.run(EXPERIMENTS / "two_stage_coded", {"no-such-key": 1})


def test_a_run_that_takes_too_long_is_told_and_can_be_stopped(
    federation: LocalFederation, tmp_path: Path
) -> None:
    app = write_app(tmp_path / "app")
    with (app / "lists" / "app.py").open("a") as file:
        file.write("    import time\n    time.sleep(600)\n")
    run = federation.start_run(app)
    until = time.monotonic() + 60
    while "found Uncoded" not in run.log() and time.monotonic() < until:
        time.sleep(0.5)

    for wait in (run.follow, run.wait):
        with pytest.raises(
            FlowerExtError, match=f"Run {run.run_id} is running after 1 s"
        ):
            wait(1.0)
    assert "flwr" not in federation.processes().values()
    assert federation.serverapp_pids()
    run.stop()
    assert run.follow().status == "finished:stopped"


def test_an_unregistered_node_is_refused(
    federation: LocalFederation, tmp_path: Path
) -> None:
    key = make_node_key(tmp_path, "stranger")
    authority = federation.folder / "secrets" / "ca.pem"
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    # Into a file: what the node has started would keep a pipe open.
    log = tmp_path / "stranger.log"
    with log.open("wb") as opened:
        refused = subprocess.run(
            [
                program("flower-supernode"),
                *("--root-certificates", str(authority)),
                *("--auth-supernode-private-key", str(key)),
                *("--superlink", federation.address, "--port", port),
            ],
            env=federation.environment,
            stdout=opened,
            stderr=opened,
            check=False,
            timeout=60,
        )

    assert refused.returncode == 1
    assert "Exit Code: 305" in log.read_text(encoding="utf-8")
    assert federation.online() == NODES


def test_a_node_is_paused_with_all_its_processes(federation: LocalFederation) -> None:
    def states() -> set[str]:
        return {
            Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
            for process, part in federation.processes().items()
            if part == "node-1"
        }

    federation.pause_node(1)
    paused = states()
    federation.resume_node(1)

    assert paused == {"T"}
    assert "T" not in states()


def test_the_edge_comes_back_where_it_was(federation: LocalFederation) -> None:
    before = federation.edge_config["edge"]
    federation.kill_edge()
    assert "edge" not in federation.processes().values()
    federation.restart_edge()

    assert federation.edge_config["edge"] == before
    assert f"at {before}, TLS, {NODES} tokens" in federation.log("edge")


def test_a_node_that_is_stopped_is_offline_at_once(
    federation: LocalFederation,
) -> None:
    federation.stop_node(3)
    federation.wait_online(NODES - 1, timeout=20)
    assert "node-3" not in federation.processes().values()
    federation.restart_node(3)
    federation.wait_online(NODES, timeout=20)


def test_two_federations_do_not_share_a_folder(federation: LocalFederation) -> None:
    other = LocalFederation(federation.folder, 1)
    with pytest.raises(FlowerExtError, match="is running in"), other:
        pytest.fail("started")

    assert "superlink" in federation.processes().values()
