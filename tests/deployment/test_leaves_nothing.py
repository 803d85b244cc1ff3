"""Whatever happens, no process is left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from flower_ext.deployment import LocalFederation
from flower_ext.deployment.parts import program
from flower_ext.deployment.processes import end_marked, marked, start
from flower_ext.errors import FlowerExtError, InvalidInputError


def test_a_failed_start_leaves_nothing(tmp_path: Path) -> None:
    federation = LocalFederation(tmp_path, 1, supernode_options=["--no-such-option"])
    with pytest.raises(FlowerExtError, match=r"node-0 has ended. Its log"), federation:
        pytest.fail("started")

    assert (tmp_path / "superlink.log").stat().st_size > 0
    assert marked(tmp_path) == {}


def test_the_command_ends_everything_when_it_is_told_to(tmp_path: Path) -> None:
    folder = tmp_path / "federation"
    with subprocess.Popen(
        [program("flower-ext"), "federation", "--nodes", "1", "--dir", str(folder)],
        stdout=subprocess.PIPE,
        text=True,
    ) as command:
        try:
            assert command.stdout is not None
            said = ""
            while "Ctrl-C ends" not in said:
                line = command.stdout.readline()
                assert line, said
                said += line
            running = marked(folder)
            command.send_signal(signal.SIGTERM)
            rest = command.stdout.read()
            status = command.wait(timeout=30)
            left = marked(folder)
        finally:
            end_marked(folder, patience=0)
            command.kill()

    assert {"superlink", "node-0"} <= set(running.values())
    assert f"FLWR_HOME={folder}/flwr-home flwr run APP federation --stream" in said
    assert (status, rest) == (0, "Ending the federation\n")
    assert left == {}


def test_an_interrupted_start_leaves_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "federation"
    with subprocess.Popen(
        [program("flower-ext"), "federation", "--nodes", "1", "--dir", str(folder)],
        stdout=subprocess.PIPE,
        text=True,
    ) as command:
        try:
            until = time.monotonic() + 30
            while not marked(folder) and time.monotonic() < until:
                time.sleep(0.05)
            assert marked(folder)
            command.send_signal(signal.SIGINT)
            status = command.wait(timeout=30)
            left = marked(folder)
        finally:
            end_marked(folder, patience=0)
            command.kill()

    assert (status, left) == (0, {})


def test_who_ignores_being_asked_is_killed_with_what_it_started(tmp_path: Path) -> None:
    stubborn = "trap '' TERM; sleep 100 & setsid sleep 100 & wait; wait; wait"
    marks = {"FLOWER_EXT_FEDERATION": str(tmp_path), "FLOWER_EXT_FEDERATION_PART": "x"}
    process = start(
        ["/bin/bash", "-c", stubborn],
        environment=os.environ | marks,
        log=tmp_path / "l",
    )
    until = time.monotonic() + 10
    while len(marked(tmp_path)) < 3 and time.monotonic() < until:
        time.sleep(0.02)
    assert len(marked(tmp_path, "x")) == 3
    assert marked(tmp_path, "y") == {}

    end_marked(tmp_path, "x", patience=0.2)

    assert marked(tmp_path) == {}
    assert process.wait() == -signal.SIGKILL


def test_a_federation_needs_a_config_for_each_node(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="one for each of 2 nodes, got 1"):
        LocalFederation(tmp_path, 2, node_configs=[{"partition-id": 0}])
    with pytest.raises(InvalidInputError, match="nodes must be at least 1"):
        LocalFederation(tmp_path, 0)


def test_a_folder_without_an_app_is_refused_before_anything_starts(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    done = subprocess.run(
        [program("flower-ext"), "federation", "--run", str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "is no Flower App" in done.stderr
    assert done.stdout == ""
