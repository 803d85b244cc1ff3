"""The command ``flower-ext federation``."""

from __future__ import annotations

import argparse
import difflib
import math
import re
import shlex
import shutil
import signal
import tempfile
import threading
import tomllib
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import FrameType

from flower_ext.deployment.federation import (
    CONNECTION,
    SECRETS,
    WITHOUT_INSTALLATION,
    LocalFederation,
)
from flower_ext.deployment.settings import Value, as_config
from flower_ext.errors import InvalidInputError

__all__ = ["add_arguments", "run"]

_QUOTED = re.compile(r"\"(?:[^\"\\]|\\.)*\"|'[^']*'")
_INTERRUPTED = 130  # What shells report of a program that Ctrl-C has ended.


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what the command takes."""
    add = parser.add_argument
    add("--nodes", type=int, default=4, help="SuperNodes (default: 4)")
    add(
        "--tls",
        action="store_true",
        help="TLS, SuperNode authentication, and tokens at the edge",
    )
    add("--edge", metavar="MODEL", help="also run an edge with this target")
    add(
        "--run",
        dest="app",
        metavar="APP",
        help="run this app, and end everything after it",
    )
    add(
        "--run-config",
        metavar="CONFIG",
        action="append",
        default=[],
        help="over the app's own, as flwr run -c takes it; may be given again",
    )
    add(
        "--node-config",
        metavar="CONFIG",
        action="append",
        help="of one node; give it as often as there are nodes, in their order "
        "(default: partition-id and num-partitions of each)",
    )
    add(
        "--dir",
        metavar="FOLDER",
        help="for logs, certificates, keys and tokens (default: a new one, which is "
        "removed at the end; after an error its logs stay)",
    )
    add(
        "--install-dependencies",
        action="store_true",
        help="let Flower install the app's dependencies anew for every run",
    )


def run(options: argparse.Namespace) -> int:
    """Bring a federation up; run an app on it, or wait for a signal."""
    app = None if options.app is None else Path(options.app)
    app_keys = set() if app is None else _config_keys(app)
    if app is not None:
        _check_run_config(options.run_config, app_keys)
    over = threading.Event()

    def end(number: int, frame: FrameType | None) -> None:
        """Interrupt what is under way, once: ending is not to be interrupted."""
        del number, frame
        if not over.is_set():
            over.set()
            raise KeyboardInterrupt

    with ExitStack() as stack:
        for number in _ending_signals():
            stack.callback(signal.signal, number, signal.signal(number, end))
        try:
            folder = stack.enter_context(_folder(options.dir))
            federation = LocalFederation(
                folder,
                options.nodes,
                tls=options.tls,
                node_configs=options.node_config,
                edge=options.edge,
                superlink_options=()
                if options.install_dependencies
                else (WITHOUT_INSTALLATION,),
            )
            print(f"Starting a federation; its logs go to {folder}", flush=True)
            stack.enter_context(federation)
            stack.callback(over.set)
            edge = {} if options.edge is None else federation.edge_config
            if app is None:
                _tell(federation, edge)
                over.wait()
            asked = {key: value for key, value in edge.items() if key in app_keys}
            configs = [as_config(asked), *options.run_config]
            config = " ".join(filter(None, configs)) or None
            result = federation.run(str(app), config, timeout=math.inf)
        except KeyboardInterrupt:
            with suppress(OSError):  # The terminal may be closed.
                print("Ending the federation", flush=True)
            return 0 if app is None else _INTERRUPTED
        result.require_completed()
        print(f"Run {result.run_id} has completed", flush=True)
    return 0


def _ending_signals() -> list[signal.Signals]:
    """Return the signals that end the command."""
    ending = [signal.SIGINT, signal.SIGTERM]
    # A terminal that closes hangs up, on systems that know of it; nohup ignores that.
    hangup = getattr(signal, "SIGHUP", None)
    if hangup is not None and signal.getsignal(hangup) != signal.SIG_IGN:
        ending.append(hangup)
    return ending


@contextmanager
def _folder(chosen: str | None) -> Iterator[Path]:
    """Give the chosen folder, or a new one that goes when its federation has ended.

    After an error the logs in a new one stay, and keys and tokens go.
    """
    if chosen is not None:
        yield Path(chosen)
        return
    folder = Path(tempfile.mkdtemp(prefix="flower-ext-federation-"))
    try:
        yield folder
    except BaseException:
        shutil.rmtree(folder / SECRETS, ignore_errors=True)
        with suppress(OSError):  # There are logs.
            folder.rmdir()
        raise
    shutil.rmtree(folder, ignore_errors=True)


def _config_keys(app: Path) -> set[str]:
    """Return the keys of an app's own run-config."""
    file = app / "pyproject.toml"
    try:
        project = tomllib.loads(file.read_text(encoding="utf-8"))
        return set(project["tool"]["flwr"]["app"].get("config", {}))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError, KeyError) as error:
        raise InvalidInputError(
            f"--run {str(app)!r} is no Flower App: {file} must have [tool.flwr.app] "
            f"({error!r})."
        ) from error


def _check_run_config(configs: Sequence[str], keys: set[str]) -> None:
    """Raise for a key that the app has not, before anything is started."""
    for config in configs:
        if config.endswith(".toml"):  # flwr run takes files, too
            continue
        # As flwr does: values in quotes may have blanks.
        for key in re.findall(r"(?:^|\s)([^\s=\"']+)\s*=", _QUOTED.sub('""', config)):
            if key not in keys:
                near = difflib.get_close_matches(key, keys, n=1)
                hint = (
                    f"did you mean '{near[0]}'?" if near else f"it has {sorted(keys)}."
                )
                raise InvalidInputError(
                    f"--run-config {config!r}: the app has no run-config key '{key}': "
                    f"{hint}"
                )


def _tell(federation: LocalFederation, edge: dict[str, Value]) -> None:
    """Print how to use a federation from another terminal."""
    print(
        f"SuperLink at {federation.address}, {federation.nodes} SuperNodes online. "
        "Run an app from another terminal:\n\n"
        f"    FLWR_HOME={shlex.quote(str(federation.home))} flwr run APP {CONNECTION} "
        "--stream\n"
    )
    if edge:
        print(
            "and experiments/device_edge_llm on the edge by adding\n\n"
            f"    -c {shlex.quote(as_config(edge))}\n"
        )
    print("Ctrl-C ends the federation.", flush=True)
