"""The command line ``flower-ext``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import NamedTuple

from flower_ext.errors import FlowerExtError

__all__ = ["main"]


class _Command(NamedTuple):
    """A command: where it is, and what it does in a few words.

    Its module has ``add_arguments(parser)`` and ``run(options) -> int``; it is imported
    when the command is called, as what edges need takes seconds.
    """

    module: str
    summary: str


_COMMANDS = {
    "edge": _Command("flower_ext.edge.cli", "serve a target to drafting devices"),
    "federation": _Command(
        "flower_ext.deployment.cli", "run a federation on this machine"
    ),
    "report": _Command("flower_ext.report.cli", "make a page of a run's results"),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command.

    Parameters
    ----------
    arguments : Sequence[str] | None (default: None)
        Those after the program's name; None: the process's own.

    Returns
    -------
    int
        The exit status: 0, or 1 after an error that has been printed.
    """
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    parser = argparse.ArgumentParser(
        prog="flower-ext",
        description="Coded training and device-edge inference for Flower federations.",
    )
    commands = parser.add_subparsers(dest="command", required=True)
    for name, command in _COMMANDS.items():
        added = commands.add_parser(name, help=command.summary)
        if arguments[:1] == [name]:
            module = import_module(command.module)
            module.add_arguments(added)
            added.set_defaults(run=module.run)
    options = parser.parse_args(arguments)
    try:
        status: int = options.run(options)
    except FlowerExtError as error:
        print(f"flower-ext {options.command}: {error}", file=sys.stderr)
        return 1
    return status
