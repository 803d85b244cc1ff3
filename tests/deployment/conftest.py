"""Lets the tests import the Flower Apps, which are not installed."""

from __future__ import annotations

import sys
from pathlib import Path

EXPERIMENTS = Path(__file__).parents[2] / "experiments"

sys.path[:0] = [
    str(EXPERIMENTS),
    str(EXPERIMENTS / "two_stage_coded"),
    str(EXPERIMENTS / "device_edge_llm"),
]
