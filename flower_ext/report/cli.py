"""``flower-ext report``: a page of what an app has measured."""

from __future__ import annotations

import argparse

from flower_ext.report.page import write_page

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments to its parser."""
    parser.description = (
        "Make one page of HTML of what lies in a results folder. It has everything in "
        "it, and opens from a disk."
    )
    parser.add_argument(
        "folder", metavar="RESULTS_DIR", help="what the app was given as results-dir"
    )
    parser.add_argument(
        "--output",
        metavar="FILE",
        help="the page (default: report.html in RESULTS_DIR)",
    )


def run(options: argparse.Namespace) -> int:
    """Write the page, and say where."""
    print(f"Wrote {write_page(options.folder, options.output)}")
    return 0
