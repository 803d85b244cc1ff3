"""Whatever happens, no process is left behind."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from flower_ext.cli import main
from flower_ext.deployment import LocalFederation
from flower_ext.deployment.cli import _check_run_config
from flower_ext.deployment.parts import program
from flower_ext.deployment.processes import end_marked, marked, start
from flower_ext.errors import FlowerExtError, InvalidInputError
from tests.deployment.conftest import EXPERIMENTS
from tests.deployment.lists_flower_ext import write_app


@contextmanager
def command_of(
    *options: str, through: Sequence[str] = (), **environment: str
) -> Iterator[subprocess.Popen[str]]:
    """Run ``flower-ext federation``, and kill it if it has not ended by the end.

    It listens to all signals, though the tests may have been started by ``nohup``.
    """
    for number in (signal.SIGINT, signal.SIGHUP):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, lambda *_: None)  # which programs do not inherit
    with subprocess.Popen(
        [*through, program("flower-ext"), "federation", *options],
        env=os.environ | environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
    ) as command:
        try:
            yield command
        finally:
            command.kill()


def read_until(command: subprocess.Popen[str], words: str) -> str:
    """Return what a command has said when it says these words."""
    assert command.stdout is not None
    said = ""
    while words not in said:
        line = command.stdout.readline()
        assert line, said
        said += line
    return said


def wait_for_any(folder: Path) -> None:
    """Wait until a federation has a process."""
    until = time.monotonic() + 30
    while not marked(folder) and time.monotonic() < until:
        time.sleep(0.05)
    assert marked(folder)


def test_a_failed_start_leaves_nothing(tmp_path: Path) -> None:
    federation = LocalFederation(tmp_path, 1, supernode_options=["--no-such-option"])
    with pytest.raises(FlowerExtError, match=r"node-0 has ended. Its log"), federation:
        pytest.fail("started")

    assert (tmp_path / "superlink.log").stat().st_size > 0
    assert marked(tmp_path) == {}


@pytest.mark.faults
@pytest.mark.parametrize(
    "number",
    [signal.SIGINT, signal.SIGTERM, signal.SIGHUP],
    ids=lambda number: str(number.name),
)
def test_the_command_ends_everything_when_it_is_told_to(
    tmp_path: Path, number: signal.Signals
) -> None:
    with command_of("--nodes", "1", "--tls", TMPDIR=str(tmp_path)) as command:
        said = read_until(command, "Ctrl-C ends")
        [folder] = tmp_path.glob("flower-ext-federation-*")
        try:
            running = marked(folder)
            keys = sorted(f.name for f in (folder / "secrets").glob("*.key"))
            command.send_signal(number)
            assert command.stdout is not None
            rest = command.stdout.read()
            status = command.wait(timeout=30)
            left = marked(folder)
        finally:
            end_marked(folder, patience=0)

    assert {"superlink", "node-0"} <= set(running.values())
    assert keys == ["server.key"]
    assert f"its logs go to {folder}\n" in said
    assert f"FLWR_HOME={folder}/flwr-home flwr run APP federation --stream" in said
    assert (status, rest) == (0, "Ending the federation\n")
    assert left == {}
    assert not folder.exists()


@pytest.mark.faults
def test_an_app_that_ends_leaves_nothing(tmp_path: Path) -> None:
    app = write_app(tmp_path / "app")
    made = tmp_path / "made"
    made.mkdir()
    options = ["--nodes", "1", "--tls", "--run", str(app)]
    with command_of(*options, TMPDIR=str(made)) as command:
        said = read_until(command, "Starting a federation")
        folder = Path(said.partition("its logs go to ")[2].strip())
        try:
            assert command.stdout is not None
            rest = command.stdout.read()
            status = command.wait(timeout=60)
            left = marked(folder)
        finally:
            end_marked(folder, patience=0)

    assert folder.parent == made
    assert "found Uncoded" in rest
    assert re.search(r"^Run \d+ has completed$", rest, re.MULTILINE)
    assert (status, left) == (0, {})
    assert not folder.exists()


def test_an_interrupted_start_leaves_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "federation"
    with command_of("--nodes", "1", "--dir", str(folder)) as command:
        try:
            wait_for_any(folder)
            command.send_signal(signal.SIGINT)
            status = command.wait(timeout=30)
            left = marked(folder)
        finally:
            end_marked(folder, patience=0)

    assert (status, left) == (0, {})
    assert (folder / "superlink.log").exists()  # A chosen folder stays.


def test_a_terminal_that_closes_leaves_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "federation"
    ours, theirs = os.openpty()
    # The first terminal that the leader of a session opens is its own.
    in_terminal = [*("sh", "-c", 'exec "$@" <"$0" >"$0" 2>&1'), os.ttyname(theirs)]
    options = ["--nodes", "1", "--dir", str(folder)]
    command = [program("flower-ext"), "federation", *options]
    with subprocess.Popen([*in_terminal, *command], start_new_session=True) as process:
        os.close(theirs)
        try:
            wait_for_any(folder)
            os.close(ours)
            process.wait(timeout=30)
            left = marked(folder)
        finally:
            end_marked(folder, patience=0)
            process.kill()

    assert left == {}


@pytest.mark.faults
def test_nohup_keeps_a_federation(tmp_path: Path) -> None:
    folder = tmp_path / "federation"
    with command_of("--nodes", "1", "--dir", str(folder), through=["nohup"]) as command:
        try:
            wait_for_any(folder)
            command.send_signal(signal.SIGHUP)
            read_until(command, "Ctrl-C ends")
            running = marked(folder)
            command.send_signal(signal.SIGINT)
            status = command.wait(timeout=30)
        finally:
            end_marked(folder, patience=0)

    assert {"superlink", "node-0"} <= set(running.values())
    assert (status, marked(folder)) == (0, {})


def test_an_error_leaves_logs_and_no_keys(tmp_path: Path) -> None:
    options = ["--nodes", "1", "--tls", "--node-config", "no key=value"]
    with command_of(*options, TMPDIR=str(tmp_path)) as command:
        assert command.wait(timeout=60) == 1

    [folder] = tmp_path.iterdir()
    assert marked(folder) == {}
    assert (folder / "node-0.log").stat().st_size > 0
    assert not (folder / "secrets").exists()


def test_options_that_are_refused_leave_no_folder(tmp_path: Path) -> None:
    with command_of("--nodes", "0", TMPDIR=str(tmp_path)) as command:
        assert command.wait(timeout=60) == 1
    assert list(tmp_path.iterdir()) == []


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


def test_nodes_and_edge_share_out_the_cores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)

    def threads(nodes: int, **options: Any) -> str:
        federation = LocalFederation(tmp_path, nodes, **options)
        return federation.environment["OMP_NUM_THREADS"]

    assert threads(4) == "2"
    assert threads(4, edge="default") == "1"
    assert threads(20) == "1"
    assert threads(4, environment={"OMP_NUM_THREADS": "6"}) == "6"
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    assert threads(4) == "5"


def test_a_federation_needs_a_config_for_each_node(tmp_path: Path) -> None:
    with pytest.raises(
        InvalidInputError, match=r"each of 2 nodes, .*--node-config.* got 1"
    ):
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


@pytest.mark.parametrize(
    ("config", "named"),
    [
        ("num-node=2", "no run-config key 'num-node': did you mean 'num-nodes'?"),
        ('num-nodes=2 strategies="uncoded" clok="wall"', "did you mean 'clock'?"),
        ("xyz=1", "no run-config key 'xyz': it has ['V'"),
    ],
)
def test_a_mistyped_run_config_key_is_named_before_anything_starts(
    config: str, named: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    app = str(EXPERIMENTS / "two_stage_coded")
    command = ["federation", "--run", app, "--run-config", config]
    assert main([*command, "--dir", str(tmp_path / "new")]) == 1

    assert named in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_values_may_look_like_keys() -> None:
    config = "results-dir=\"/a b=1/c\" num-nodes=2 strategies='x=1 y=2'"
    _check_run_config([config, "file.toml"], {"results-dir", "num-nodes", "strategies"})
