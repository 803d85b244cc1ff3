"""Lets the tests import the Flower Apps' packages, which are not installed."""

from __future__ import annotations

import sys
import tomllib
from pathlib import Path

import pytest

APP_FOLDER = Path(__file__).parents[2] / "experiments" / "two_stage_coded"

sys.path[:0] = [str(APP_FOLDER), str(APP_FOLDER.parent / "device_edge_llm")]


@pytest.fixture
def app_folder() -> Path:
    """Return the folder of the app."""
    return APP_FOLDER


@pytest.fixture
def run_config() -> dict[str, str | int | float | bool]:
    """Return the app's own run-config."""
    with (APP_FOLDER / "pyproject.toml").open("rb") as file:
        config: dict[str, str | int | float | bool] = tomllib.load(file)["tool"][
            "flwr"
        ]["app"]["config"]
    return config
