"""The two-stage app verifies replies where its run-config says so."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Context, RecordDict

sys.path.insert(0, str(Path(__file__).parents[2] / "experiments"))

from in_process import make_grid
from two_stage_coded.server_app import main
from two_stage_coded.settings import Settings


@pytest.mark.parametrize(("wanted", "verified", "liars"), [(1, 1, 0), (0, None, None)])
def test_every_round_says_whether_it_is_verified(
    run_config: dict[str, Any],
    tmp_path: Path,
    wanted: int,
    verified: int | None,
    liars: int | None,
) -> None:
    config = {
        **run_config,
        "strategies": "two-stage,cyclic",
        "verify-replies": wanted,
        "stragglers": 2,
        "num-nodes": 5,
        "num-partitions": 5,
        "num-server-rounds": 2,
        "results-dir": str(tmp_path),
    }
    main(
        make_grid(Settings.from_run_config(config), config),
        Context(1, 0, {}, RecordDict(), config),
    )

    rounds = json.loads((tmp_path / "results.json").read_text())["rounds"]
    assert len(rounds) == 4
    for found in rounds:
        assert (found["verified"], found["liars"]) == (verified, liars)
        assert found["coverage"] == pytest.approx(1.0)
        assert found["redundancy"] >= 1 + wanted
