"""The two-stage app goes on from a checkpoint, by its run-config."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Context, RecordDict

from flower_ext.errors import InvalidInputError

sys.path.insert(0, str(Path(__file__).parents[2] / "experiments"))

from in_process import make_grid
from two_stage_coded.server_app import main
from two_stage_coded.settings import Settings


def test_it_goes_on_to_the_same_results(
    run_config: dict[str, Any], tmp_path: Path
) -> None:
    def run(name: str, **changes: Any) -> list[dict[str, Any]]:
        changed = {key.replace("_", "-"): value for key, value in changes.items()}
        config = {
            **run_config,
            "strategies": "two-stage,uncoded",
            "num-nodes": 4,
            "num-partitions": 6,
            "stragglers": 1,
            "straggler-probability": 0.4,
            "results-dir": str(tmp_path / name),
            **changed,
        }
        grid = make_grid(Settings.from_run_config(config), config)
        main(grid, Context(1, 0, {}, RecordDict(), config))
        content = json.loads((tmp_path / name / "results.json").read_text())
        rounds: list[dict[str, Any]] = content["rounds"]
        return rounds

    whole = run("whole", num_server_rounds=4)
    folder = str(tmp_path / "checkpoints")
    begun = run("begun", num_server_rounds=2, checkpoint_dir=folder)
    rest = run("rest", num_server_rounds=4, resume_from=folder)

    assert len(whole) == 8
    assert begun == [row for row in whole if row["server_round"] <= 2]
    assert rest == whole

    with pytest.raises(InvalidInputError, match="where no checkpoint is"):
        run("typo", resume_from=str(tmp_path / "checkpoint"))
    with pytest.raises(InvalidInputError, match="of another run"):
        run("again", checkpoint_dir=folder)
