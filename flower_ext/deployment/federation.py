"""A whole federation on this machine: SuperLink, SuperNodes, and an edge if wanted."""

from __future__ import annotations

import atexit
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Self

from flower_ext.deployment.certificates import (
    Certificates,
    make_certificates,
    make_node_key,
    make_tokens,
)
from flower_ext.deployment.processes import (
    FEDERATION_MARK,
    PART_MARK,
    end_marked,
    marked,
    send,
    start,
)
from flower_ext.deployment.runs import Run, RunResult
from flower_ext.deployment.settings import Value, as_config, write_connection
from flower_ext.errors import FlowerExtError, InvalidInputError

__all__ = ["CONNECTION", "LocalFederation"]

CONNECTION = "federation"
"""Name of the connection, for ``flwr run APP federation``."""

SUPERLINK, EDGE = "superlink", "edge"

_HOST = "127.0.0.1"
_LOOK_SECONDS = 0.1
_NODE_ID = re.compile(r"SuperNode ID: (\d+)")
_EDGE_ADDRESS = re.compile(r"flower-ext edge: .* at (\S+:\d+), ")
_PATIENCE = 10.0  # seconds between SIGTERM and SIGKILL
_LAST_LINES = 20


class LocalFederation:
    """A SuperLink, SuperNodes and an edge on this machine, as processes of their own.

    A context manager: all of it is up inside, and nothing of it is left afterwards.

    Parameters
    ----------
    folder : str | Path
        For logs, Flower's home, certificates, keys and tokens; made if it is not there.
    nodes : int (default: 4)
        SuperNodes, at least 1.
    tls : bool (default: False)
        Whether to use TLS, have SuperNodes prove who they are, and have devices show
        tokens to the edge.
    node_configs : Sequence[Mapping[str, Value] | str] | None (default: None)
        What ``--node-config`` says on each node. None: ``partition-id`` (from 0) and
        ``num-partitions``, as in a simulation.
    edge : str | None (default: None)
        Model that an edge serves, as ``flower-ext edge --model`` takes it, for example
        ``"default"``; None: no edge.
    edge_options : Sequence[str] (default: ())
        Further options of ``flower-ext edge``.
    superlink_options : Sequence[str]
        Further options of ``flower-superlink`` (default: those that keep runs from
        installing packages).
    supernode_options : Sequence[str] (default: ())
        Further options of ``flower-supernode``.
    environment : Mapping[str, str] | None (default: None)
        Variables for all processes, over those of this one.
    timeout : float (default: 60.0)
        Seconds that start-up may take.

    Raises
    ------
    InvalidInputError
        If there is no node, or not a node-config for each.

    Examples
    --------
    A run on three nodes::

        with LocalFederation("federation", nodes=3) as federation:
            result = federation.run("experiments/two_stage_coded", {"num-nodes": 3})
            result.require_completed()
    """

    def __init__(
        self,
        folder: str | Path,
        nodes: int = 4,
        *,
        tls: bool = False,
        node_configs: Sequence[Mapping[str, Value] | str] | None = None,
        edge: str | None = None,
        edge_options: Sequence[str] = (),
        superlink_options: Sequence[str] = (
            "--disable-runtime-dependency-installation",
        ),
        supernode_options: Sequence[str] = (),
        environment: Mapping[str, str] | None = None,
        timeout: float = 60.0,
    ) -> None:
        if nodes < 1:
            raise InvalidInputError(f"nodes must be at least 1, got {nodes}.")
        if node_configs is None:
            node_configs = [
                {"partition-id": i, "num-partitions": nodes} for i in range(nodes)
            ]
        if len(node_configs) != nodes:
            raise InvalidInputError(
                f"node_configs must have one for each of {nodes} nodes, got "
                f"{len(node_configs)}."
            )
        self.folder = Path(folder).absolute()
        self.home = self.folder / "flwr-home"
        self.nodes = nodes
        self._node_configs = [as_config(config) for config in node_configs]
        self._tls = tls
        self._edge = edge
        self._edge_options = tuple(edge_options)
        self._superlink_options = tuple(superlink_options)
        self._supernode_options = tuple(supernode_options)
        self._environment = dict(environment or {})
        self._timeout = timeout
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._log_starts: dict[str, int] = {}
        self._certificates: Certificates | None = None
        self._ports: dict[str, int] = {}

    # Coming up and going down

    def __enter__(self) -> Self:
        """Start everything, and wait until all nodes are online."""
        self.start()
        return self

    def __exit__(
        self,
        exception_type: type[BaseException] | None,
        exception: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """End everything."""
        self.stop()

    def start(self) -> None:
        """Start everything, and wait until all nodes are online.

        Raises
        ------
        FlowerExtError
            If something ends or does not answer in time, with the end of its log; or
            if processes of an earlier federation in the same folder are running.
        """
        if left := marked(self.folder):
            raise FlowerExtError(
                f"A federation is running in {self.folder}: end it (kill "
                f"{' '.join(map(str, left))}), or give another folder."
            )
        atexit.register(self.stop)
        try:
            self._start()
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """End everything that was started here, with all that it has started.

        Nodes take leave before their SuperLink goes. What does not end in time is
        killed. May be called again.
        """
        try:
            for part in {*marked(self.folder).values()} - {SUPERLINK}:
                send(self.folder, signal.SIGTERM, part)
                send(self.folder, signal.SIGCONT, part)
            until = time.monotonic() + _PATIENCE
            while {*marked(self.folder).values()} - {SUPERLINK}:
                if time.monotonic() > until:
                    break
                time.sleep(_LOOK_SECONDS)
            end_marked(self.folder, SUPERLINK, patience=_PATIENCE)
        finally:
            end_marked(self.folder, patience=0)
            for process in self._processes.values():
                process.wait()
            self._processes.clear()
            atexit.unregister(self.stop)

    def _start(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self._take_ports()
        if self._tls:
            self._make_secrets()
        write_connection(
            self.home,
            CONNECTION,
            self.address,
            None if self._certificates is None else self._certificates.authority,
        )
        self._start_superlink()
        if self._edge is not None:
            self.restart_edge(wait=False)
        if self._tls:
            for i in range(self.nodes):
                self._flwr("supernode", "register", str(self._public_key(i)))
        for i in range(self.nodes):
            self._start_node(i)
        for i in range(self.nodes):
            self._wait_for_log(_node(i), _NODE_ID)
        self.wait_online(self.nodes)
        if self._edge is not None:
            self._wait_for_log(EDGE, _EDGE_ADDRESS)

    def _take_ports(self) -> None:
        """Find as many free ports as are needed."""
        parts = [SUPERLINK, EDGE, *(_node(i) for i in range(self.nodes))]
        with ExitStack() as stack:
            for part in parts:
                opened = stack.enter_context(socket.socket())
                opened.bind((_HOST, 0))
                self._ports[part] = opened.getsockname()[1]

    def _make_secrets(self) -> None:
        """Make certificates, node keys and tokens."""
        secrets = self.folder / "secrets"
        self._certificates = make_certificates(secrets)
        for i in range(self.nodes):
            make_node_key(secrets, _node(i))
        make_tokens(secrets / "tokens", [_node(i) for i in range(self.nodes)])

    def _public_key(self, i: int) -> Path:
        return self.folder / "secrets" / f"{_node(i)}.pub"

    def _start_superlink(self) -> None:
        security = ["--insecure"]
        if self._certificates is not None:
            security = [
                *("--ssl-ca-certfile", str(self._certificates.authority)),
                *("--ssl-certfile", str(self._certificates.certificate)),
                *("--ssl-keyfile", str(self._certificates.key)),
                "--enable-supernode-auth",
            ]
        port = self._ports[SUPERLINK]
        self._launch(
            SUPERLINK,
            "flower-superlink",
            *security,
            *("--host", _HOST, "--port", str(port)),
            *self._superlink_options,
        )
        until = time.monotonic() + self._timeout
        while True:
            with socket.socket() as probe:
                if probe.connect_ex((_HOST, port)) == 0:
                    return
            self._check(SUPERLINK, until, f"does not listen at port {port}")
            time.sleep(_LOOK_SECONDS)

    def _start_node(self, i: int) -> None:
        security = ["--insecure"]
        if self._certificates is not None:
            security = [
                *("--root-certificates", str(self._certificates.authority)),
                *(
                    "--auth-supernode-private-key",
                    str(self.folder / "secrets" / _node(i)),
                ),
            ]
        self._launch(
            _node(i),
            "flower-supernode",
            *security,
            *("--superlink", self.address),
            *("--host", _HOST, "--port", str(self._ports[_node(i)])),
            *("--node-config", self._node_configs[i]),
            *self._supernode_options,
        )

    def _launch(self, part: str, *command: str) -> None:
        """Start a part of the federation."""
        log = self.log_file(part)
        self._log_starts[part] = log.stat().st_size if log.exists() else 0
        environment = {**self.environment, PART_MARK: part}
        environment[FEDERATION_MARK] = str(self.folder)
        self._processes[part] = start(
            [str(_bin() / command[0]), *command[1:]], environment=environment, log=log
        )

    def _wait_for_log(self, part: str, pattern: re.Pattern[str]) -> str:
        """Wait until a part says something, and return the pattern's first group."""
        until = time.monotonic() + self._timeout
        while not (found := pattern.search(self.log(part))):
            self._check(part, until, "has not come up")
            time.sleep(_LOOK_SECONDS)
        return found[1]

    def _check(self, part: str, until: float, what: str) -> None:
        """Raise if a part has ended, or should have done something by now."""
        ended = self._processes[part].poll()
        if ended is None and time.monotonic() < until:
            return
        how = f"{what} after {self._timeout:g} s" if ended is None else "has ended"
        last = "\n".join(self.log(part).splitlines()[-_LAST_LINES:])
        raise FlowerExtError(
            f"{part} {how}. Its log {self.log_file(part)} ends:\n\n{last}"
        )

    # Where things are

    @property
    def address(self) -> str:
        """Host and port of the SuperLink."""
        return f"{_HOST}:{self._ports[SUPERLINK]}"

    @property
    def environment(self) -> dict[str, str]:
        """The environment in which ``flwr`` finds this federation."""
        return {
            **os.environ,
            "FLWR_TELEMETRY_ENABLED": "0",
            "FLWR_DISABLE_UPDATE_CHECK": "1",
            **self._environment,
            "FLWR_HOME": str(self.home),
            # Flower starts its own programs by bare name.
            "PATH": os.pathsep.join([str(_bin()), os.environ.get("PATH", os.defpath)]),
        }

    @property
    def edge_config(self) -> dict[str, Value]:
        """The run-config by which experiments/device_edge_llm reaches the edge."""
        if self._edge is None:
            raise InvalidInputError("There is no edge: give edge='default'.")
        address = f"{_HOST}:{self._ports[EDGE]}"
        if self._certificates is None:
            return {"edge": address, "edge-plaintext": True}
        return {
            "edge": address,
            "edge-tokens": str(self.folder / "secrets" / "tokens"),
            "edge-certificate": str(self._certificates.authority),
        }

    def log_file(self, part: str) -> Path:
        """Return the log file of ``"superlink"``, ``"edge"`` or ``"node-0"``."""
        return self.folder / f"{part}.log"

    def log(self, part: str) -> str:
        """Return what a part has said since it was last started."""
        with self.log_file(part).open("rb") as opened:
            opened.seek(self._log_starts.get(part, 0))
            return opened.read().decode(errors="replace")

    def processes(self) -> dict[int, str]:
        """Return all running processes, from process id to the part's name."""
        return marked(self.folder)

    def serverapp_pids(self) -> list[int]:
        """Return the process ids of the ServerApps that are running."""
        return [
            process
            for process in marked(self.folder, SUPERLINK)
            if _runs(process, "flwr-serverapp")
        ]

    # Nodes and edge

    def online(self) -> int:
        """Return how many nodes the SuperLink has online."""
        nodes = self._flwr("supernode", "list")["nodes"]
        assert isinstance(nodes, list)
        return sum(node["status"] == "online" for node in nodes)

    def wait_online(self, count: int, timeout: float | None = None) -> None:
        """Wait until the SuperLink has exactly so many nodes online.

        Parameters
        ----------
        count : int
            Nodes; ones that were killed count for some 45 s more.
        timeout : float | None (default: None)
            Seconds; None: as long as start-up may take.

        Raises
        ------
        FlowerExtError
            If it has not by then.
        """
        limit = self._timeout if timeout is None else timeout
        until = time.monotonic() + limit
        while (found := self.online()) != count:
            if time.monotonic() > until:
                raise FlowerExtError(
                    f"{found} nodes are online after {limit:g} s, and {count} were "
                    f"waited for; see the logs in {self.folder}."
                )
            time.sleep(_LOOK_SECONDS)

    def kill_node(self, i: int, number: int = signal.SIGKILL) -> None:
        """Send a signal to a node's processes, that of its ClientApp included."""
        send(self.folder, number, self._part(i))

    def stop_node(self, i: int) -> None:
        """End a node in good order: the SuperLink has it offline at once."""
        self._end(self._part(i))

    def restart_node(self, i: int) -> None:
        """Start a node again, and wait until it has connected.

        With ``tls`` the SuperLink refuses a node that was killed until its heartbeat
        ends, so this tries again for as long as start-up may take.
        """
        part = self._part(i)
        until = time.monotonic() + self._timeout
        while True:
            self._end(part)
            self._start_node(i)
            try:
                self._wait_for_log(part, _NODE_ID)
            except FlowerExtError:
                if self._processes[part].poll() is None or time.monotonic() > until:
                    raise
                time.sleep(_LOOK_SECONDS)
            else:
                return

    def pause_node(self, i: int) -> None:
        """Stop a node's processes where they are."""
        send(self.folder, signal.SIGSTOP, self._part(i))

    def resume_node(self, i: int) -> None:
        """Let a node's processes go on."""
        send(self.folder, signal.SIGCONT, self._part(i))

    def kill_edge(self) -> None:
        """Kill the edge."""
        send(self.folder, signal.SIGKILL, EDGE)

    def restart_edge(self, *, wait: bool = True) -> None:
        """Start the edge, at the same address as before.

        Parameters
        ----------
        wait : bool (default: True)
            Whether to wait until it serves.
        """
        if self._edge is None:
            raise InvalidInputError("There is no edge: give edge='default'.")
        security = ["--plaintext"]
        if self._certificates is not None:
            security = [
                *("--tls-cert", str(self._certificates.certificate)),
                *("--tls-key", str(self._certificates.key)),
                *("--token-file", str(self.folder / "secrets" / "tokens")),
            ]
        self._end(EDGE)
        self._launch(
            EDGE,
            "flower-ext",
            "edge",
            *("--model", self._edge, "--host", _HOST, "--port", str(self._ports[EDGE])),
            *security,
            *self._edge_options,
        )
        if wait:
            self._wait_for_log(EDGE, _EDGE_ADDRESS)

    def _part(self, i: int) -> str:
        if not 0 <= i < self.nodes:
            raise InvalidInputError(f"Nodes are 0 to {self.nodes - 1}, got {i}.")
        return _node(i)

    def _end(self, part: str) -> None:
        end_marked(self.folder, part, patience=_PATIENCE)
        if part in self._processes:
            self._processes.pop(part).wait()

    # Runs

    def run(
        self,
        app: str | Path,
        run_config: Mapping[str, Value] | str | None = None,
        *,
        stream: bool = True,
        timeout: float = 600.0,
    ) -> RunResult:
        """Run an app to its end.

        Parameters
        ----------
        app : str | Path
            Folder of a Flower App.
        run_config : Mapping[str, Value] | str | None (default: None)
            Over the app's own, as ``flwr run -c`` takes it.
        stream : bool (default: True)
            Whether to print the run's log meanwhile.
        timeout : float (default: 600.0)
            Seconds that the run may take if nothing is printed.

        Returns
        -------
        RunResult
            Its status, of which ``flwr run`` tells nothing, and its log.

        Raises
        ------
        FlowerExtError
            If the run cannot be started, or does not end in time.
        """
        run = self.start_run(app, run_config)
        return run.follow() if stream else run.wait(timeout)

    def start_run(
        self, app: str | Path, run_config: Mapping[str, Value] | str | None = None
    ) -> Run:
        """Start a run, and do not wait for it; arguments as in :meth:`run`."""
        options = [] if run_config is None else ["-c", as_config(run_config)]
        answer = self._flwr("run", str(app), options=options)
        return Run(int(str(answer["run-id"])), self._flwr, self._read_log)

    def _flwr(self, *arguments: str, options: Sequence[str] = ()) -> dict[str, object]:
        """Run ``flwr`` and return its JSON."""
        command = ["flwr", *arguments, CONNECTION, *options, "--format", "json"]
        done = self._flower_command(command)
        try:
            answer = json.loads(done.stdout)
        except json.JSONDecodeError:
            answer = {}
        if not isinstance(answer, dict) or not answer.get("success"):
            said = answer.get("error-message") if isinstance(answer, dict) else None
            raise FlowerExtError(
                f"{' '.join(command)} failed: {said or done.stdout + done.stderr}"
            )
        return answer

    def _read_log(self, run_id: int, follow: bool) -> str:
        command = ["flwr", "log", str(run_id), CONNECTION]
        if not follow:
            return self._flower_command([*command, "--show"]).stdout
        lines = []
        with subprocess.Popen(
            [str(_bin() / command[0]), *command[1:], "--stream"],
            env={**self.environment, "PYTHONUNBUFFERED": "1"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        ) as process:
            assert process.stdout is not None
            for line in process.stdout:
                print(line, end="", flush=True)
                lines.append(line)
        return "".join(lines)

    def _flower_command(
        self, command: Sequence[str]
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(_bin() / command[0]), *command[1:]],
            env=self.environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )


def _node(i: int) -> str:
    """Return the name of a node's part."""
    return f"node-{i}"


def _bin() -> Path:
    """Return where this environment's programs are."""
    return Path(sys.executable).parent


def _runs(process: int, program: str) -> bool:
    """Return whether a process runs a program."""
    try:
        arguments = Path(f"/proc/{process}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return False
    return any(Path(os.fsdecode(a)).name == program for a in arguments[:2])
