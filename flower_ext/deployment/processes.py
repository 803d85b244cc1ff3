"""The processes of a federation: started with a mark, found and ended by it.

Flower's programs start others, some of them in sessions of their own. What they have in
common is the environment that they inherit, so everything that a federation starts
carries the federation's folder and the name of its part there. Whatever carries it is
found in ``/proc``, whoever its parent is by now.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from flower_ext.errors import FlowerExtError

__all__ = [
    "FEDERATION_MARK",
    "PART_MARK",
    "end_marked",
    "marked",
    "runs_program",
    "send",
    "start",
]

FEDERATION_MARK = "FLOWER_EXT_FEDERATION"
PART_MARK = "FLOWER_EXT_FEDERATION_PART"

_PROC = Path("/proc")
_LOOK_SECONDS = 0.05


def marked(folder: Path, part: str | None = None) -> dict[int, str]:
    """Return the running processes of a federation.

    Parameters
    ----------
    folder : Path
        The federation's folder, absolute.
    part : str | None (default: None)
        Name of the part, for example ``"node-0"``; None: of every part.

    Returns
    -------
    dict[int, str]
        From the process id to the part's name, ascending by id.

    Raises
    ------
    FlowerExtError
        If the system has no ``/proc``.
    """
    if not (_PROC / "self" / "environ").exists():
        raise FlowerExtError(
            "A local federation finds its processes in /proc, which this system "
            f"({sys.platform}) does not have: use Linux, or start flower-superlink and "
            "flower-supernode by hand."
        )
    wanted = f"{FEDERATION_MARK}={folder}".encode()
    prefix = f"{PART_MARK}=".encode()
    found = {}
    for entry in _PROC.iterdir():
        if not entry.name.isdigit():
            continue
        # Ended meanwhile, or somebody else's.
        with suppress(OSError):
            variables = (entry / "environ").read_bytes().split(b"\0")
            if wanted not in variables:
                continue
            name = next((v for v in variables if v.startswith(prefix)), prefix)
            name_text = name.removeprefix(prefix).decode()
            if part is None or name_text == part:
                found[int(entry.name)] = name_text
    return dict(sorted(found.items()))


def start(
    command: Sequence[str],
    *,
    environment: Mapping[str, str],
    log: Path,
) -> subprocess.Popen[bytes]:
    """Start a process in a group of its own, so that a terminal's Ctrl-C spares it.

    Parameters
    ----------
    command : Sequence[str]
        Program and arguments.
    environment : Mapping[str, str]
        All of its environment, marks included.
    log : Path
        File that its output is added to.

    Returns
    -------
    subprocess.Popen[bytes]
        The process.
    """
    with log.open("ab") as output:
        return subprocess.Popen(
            list(command),
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            process_group=0,
        )


def send(folder: Path, number: int, part: str | None = None) -> list[int]:
    """Send a signal to all processes of a federation, or of one part of it.

    Looks again until it finds nobody new: a process may be starting another one.

    Parameters
    ----------
    folder : Path
        The federation's folder, absolute.
    number : int
        The signal.
    part : str | None (default: None)
        Name of the part; None: all of them.

    Returns
    -------
    list[int]
        Ids of the processes that were sent it, ascending.
    """
    reached: set[int] = set()
    while new := set(marked(folder, part)) - reached:
        for process in sorted(new):
            # Ended meanwhile.
            with suppress(ProcessLookupError):
                os.kill(process, number)
        reached |= new
    return sorted(reached)


def end_marked(folder: Path, part: str | None = None, *, patience: float) -> None:
    """End all processes of a federation, or of one part of it.

    They are asked by SIGTERM; those that are left after ``patience`` are killed.

    Parameters
    ----------
    folder : Path
        The federation's folder, absolute.
    part : str | None (default: None)
        Name of the part; None: all of them.
    patience : float
        Seconds, at least 0; 0 kills at once.
    """
    if patience:
        send(folder, signal.SIGTERM, part)
        # What was stopped can only end once it goes on.
        send(folder, signal.SIGCONT, part)
        until = time.monotonic() + patience
        while marked(folder, part) and time.monotonic() < until:
            time.sleep(_LOOK_SECONDS)
    while marked(folder, part):
        send(folder, signal.SIGKILL, part)
        time.sleep(_LOOK_SECONDS)


def runs_program(process: int, name: str) -> bool:
    """Return whether a process runs a program of this name, itself or by a script."""
    try:
        arguments = (_PROC / str(process) / "cmdline").read_bytes().split(b"\0")
    except OSError:
        return False
    return any(Path(os.fsdecode(argument)).name == name for argument in arguments[:2])
