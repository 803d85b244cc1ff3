"""A whole federation on this machine: SuperLink, SuperNodes, and an edge if wanted."""

from __future__ import annotations

import atexit
import os
import re
import signal
import socket
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Self

from flower_ext.deployment.flwr_command import FlwrCommand
from flower_ext.deployment.parts import LOOK_SECONDS, Parts
from flower_ext.deployment.processes import marked, runs_program, send
from flower_ext.deployment.runs import Run, RunResult
from flower_ext.deployment.security import Plaintext, Secured
from flower_ext.deployment.settings import Value, as_config, write_connection
from flower_ext.errors import FlowerExtError, InvalidInputError

__all__ = ["CONNECTION", "SECRETS", "WITHOUT_INSTALLATION", "LocalFederation"]

CONNECTION = "federation"
"""Name of the connection, for ``flwr run APP federation``."""

SECRETS = "secrets"
"""Name of the folder, in the federation's own, with certificates, keys and tokens."""

WITHOUT_INSTALLATION = "--disable-runtime-dependency-installation"
"""The SuperLink's option that keeps runs from installing packages."""

_SUPERLINK, _EDGE, _FLWR = "superlink", "edge", "flwr"

_HOST = "127.0.0.1"
_NODE_ID = re.compile(r"SuperNode ID: \d+")
_EDGE_READY = re.compile(r"flower-ext edge: .* at \S+:\d+, ")
_PATIENCE = 10.0  # seconds between SIGTERM and SIGKILL
_THREADS = "OMP_NUM_THREADS"
_QUIET = {"FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1"}


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
        Variables for all processes, over those of this one. Where neither has
        ``OMP_NUM_THREADS``, the nodes and the edge share out the cores: processes that
        each compute on all of them mostly wait for each other.
    timeout : float (default: 120.0)
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
        superlink_options: Sequence[str] = (WITHOUT_INSTALLATION,),
        supernode_options: Sequence[str] = (),
        environment: Mapping[str, str] | None = None,
        timeout: float = 120.0,
    ) -> None:
        if nodes < 1:
            raise InvalidInputError(f"nodes must be at least 1, got {nodes}.")
        if node_configs is None:
            node_configs = [
                {"partition-id": i, "num-partitions": nodes} for i in range(nodes)
            ]
        if len(node_configs) != nodes:
            raise InvalidInputError(
                f"node_configs must have one for each of {nodes} nodes, in their order "
                f"(--node-config given {nodes} times), got {len(node_configs)}."
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
        self._timeout = timeout
        variables = {
            **_QUIET,
            **_share_of_cores(nodes + (edge is not None)),
            **(environment or {}),
            "FLWR_HOME": str(self.home),
        }
        self._parts = Parts(self.folder, variables, timeout, _PATIENCE)
        # Marked as well, so that stop() ends a command that is still under way.
        self._flwr = FlwrCommand(self._parts.marked_environment(_FLWR), CONNECTION)
        self._security: Plaintext | Secured = Plaintext()
        self._started = False
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
        self._started = True
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
        if not self._started:
            return
        try:
            for part in {*marked(self.folder).values()} - {_SUPERLINK}:
                send(self.folder, signal.SIGTERM, part)
                send(self.folder, signal.SIGCONT, part)
            until = time.monotonic() + _PATIENCE
            while {*marked(self.folder).values()} - {_SUPERLINK}:
                if time.monotonic() > until:
                    break
                time.sleep(LOOK_SECONDS)
            self._parts.end(_SUPERLINK)
        finally:
            self._parts.kill_all()
            self._started = False
            atexit.unregister(self.stop)

    def _start(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self._take_ports()
        if self._tls:
            self._security = Secured(self.folder / SECRETS, self.nodes)
        write_connection(
            self.home,
            CONNECTION,
            self.address,
            self._security.root_certificates,
        )
        self._start_superlink()
        if self._edge is not None:
            self.restart_edge(wait=False)
        for key in self._security.node_keys:
            self._flwr.call("supernode", "register", str(key))
        for i in range(self.nodes):
            self._start_node(i)
        for i in range(self.nodes):
            self._parts.wait_for_log(_node(i), _NODE_ID)
        self.wait_online(self.nodes)
        if self._edge is not None:
            self._parts.wait_for_log(_EDGE, _EDGE_READY)

    def _take_ports(self) -> None:
        """Find as many free ports as are needed."""
        parts = [_SUPERLINK, _EDGE, *(_node(i) for i in range(self.nodes))]
        with ExitStack() as stack:
            for part in parts:
                opened = stack.enter_context(socket.socket())
                opened.bind((_HOST, 0))
                self._ports[part] = opened.getsockname()[1]

    def _start_superlink(self) -> None:
        port = self._ports[_SUPERLINK]
        self._parts.launch(
            _SUPERLINK,
            "flower-superlink",
            *self._security.superlink,
            *("--host", _HOST, "--port", str(port)),
            *self._superlink_options,
        )
        until = time.monotonic() + self._timeout
        while True:
            with socket.socket() as probe:
                if probe.connect_ex((_HOST, port)) == 0:
                    return
            self._parts.check(_SUPERLINK, until)
            time.sleep(LOOK_SECONDS)

    def _start_node(self, i: int) -> None:
        self._parts.launch(
            _node(i),
            "flower-supernode",
            *self._security.node(i),
            *("--superlink", self.address),
            *("--host", _HOST, "--port", str(self._ports[_node(i)])),
            *("--node-config", self._node_configs[i]),
            *self._supernode_options,
        )

    # Where things are

    @property
    def address(self) -> str:
        """Host and port of the SuperLink."""
        return f"{_HOST}:{self._ports[_SUPERLINK]}"

    @property
    def environment(self) -> dict[str, str]:
        """The environment in which ``flwr`` finds this federation."""
        return dict(self._parts.environment)

    @property
    def edge_config(self) -> dict[str, Value]:
        """The run-config by which experiments/device_edge_llm reaches the edge."""
        if self._edge is None:
            raise InvalidInputError("There is no edge: give edge='default'.")
        address = f"{_HOST}:{self._ports[_EDGE]}"
        return {"edge": address, **self._security.edge_config}

    def log_file(self, part: str) -> Path:
        """Return the log file of ``"superlink"``, ``"edge"`` or ``"node-0"``."""
        return self._parts.log_file(part)

    def log(self, part: str) -> str:
        """Return what a part has said since it was last started."""
        return self._parts.log(part)

    def processes(self) -> dict[int, str]:
        """Return all running processes, from process id to the part's name."""
        return marked(self.folder)

    def serverapp_pids(self) -> list[int]:
        """Return the process ids of the ServerApps that are running."""
        return [
            process
            for process in marked(self.folder, _SUPERLINK)
            if runs_program(process, "flwr-serverapp")
        ]

    # Nodes and edge

    def online(self) -> int:
        """Return how many nodes the SuperLink has online."""
        nodes = self._flwr.call("supernode", "list")["nodes"]
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
            time.sleep(LOOK_SECONDS)

    def kill_node(self, i: int, number: int = signal.SIGKILL) -> None:
        """Send a signal to a node's processes, that of its ClientApp included."""
        send(self.folder, number, self._part(i))

    def stop_node(self, i: int) -> None:
        """End a node in good order: the SuperLink has it offline at once."""
        self._parts.end(self._part(i))

    def restart_node(self, i: int) -> None:
        """Start a node again, and wait until it has connected.

        With ``tls`` the SuperLink refuses a node that was killed until its heartbeat
        ends, so this tries again for as long as start-up may take.
        """
        part = self._part(i)
        until = time.monotonic() + self._timeout
        while True:
            self._parts.end(part)
            self._start_node(i)
            try:
                self._parts.wait_for_log(part, _NODE_ID)
            except FlowerExtError:
                if not self._parts.has_ended(part) or time.monotonic() > until:
                    raise
                time.sleep(LOOK_SECONDS)
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
        send(self.folder, signal.SIGKILL, _EDGE)

    def restart_edge(self, *, wait: bool = True) -> None:
        """Start the edge, at the same address as before.

        Parameters
        ----------
        wait : bool (default: True)
            Whether to wait until it serves.
        """
        if self._edge is None:
            raise InvalidInputError("There is no edge: give edge='default'.")
        self._parts.end(_EDGE)
        self._parts.launch(
            _EDGE,
            "flower-ext",
            "edge",
            *(
                "--model",
                self._edge,
                "--host",
                _HOST,
                "--port",
                str(self._ports[_EDGE]),
            ),
            *self._security.edge,
            *self._edge_options,
        )
        if wait:
            self._parts.wait_for_log(_EDGE, _EDGE_READY)

    def _part(self, i: int) -> str:
        if not 0 <= i < self.nodes:
            raise InvalidInputError(f"Nodes are 0 to {self.nodes - 1}, got {i}.")
        return _node(i)

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
            Seconds that the run may take; ``math.inf``: as long as it takes.

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
        return run.follow(timeout) if stream else run.wait(timeout)

    def start_run(
        self, app: str | Path, run_config: Mapping[str, Value] | str | None = None
    ) -> Run:
        """Start a run, and do not wait for it; arguments as in :meth:`run`."""
        options = [] if run_config is None else ["-c", as_config(run_config)]
        answer = self._flwr.call("run", str(app), options=options)
        return Run(int(answer["run-id"]), self._flwr)


def _node(i: int) -> str:
    """Return the name of a node's part."""
    return f"node-{i}"


def _share_of_cores(processes: int) -> dict[str, str]:
    """Return on how many threads each may compute, unless that is said already."""
    if _THREADS in os.environ:
        return {}
    # What this process may use, which in a container is less than what there is.
    affinity = getattr(os, "sched_getaffinity", None)
    cores = len(affinity(0)) if affinity else os.cpu_count() or 1
    return {_THREADS: str(max(1, cores // processes))}
