"""The device-edge app end to end, in one process: training raises acceptance."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from device_edge_llm.client_app import app as client_app
from device_edge_llm.report import Inference, Report, RoundRecord, table
from device_edge_llm.server_app import main
from flwr.app import Context, RecordDict
from in_process import InProcessGrid

from flower_ext.errors import FlowerExtError


@pytest.fixture
def make_context(run_config: dict[str, Any], tmp_path: Path) -> Callable[..., Context]:
    """Return a function that makes a ServerApp's context."""

    def make(**changes: Any) -> Context:
        changed = {name.replace("_", "-"): value for name, value in changes.items()}
        results = {"results-dir": str(tmp_path / "results")}
        return Context(1, 0, {}, RecordDict(), run_config | changed | results)

    return make


def make_grid(context: Context, num_nodes: int) -> InProcessGrid:
    """Return a federation in this process."""
    run_config: dict[str, Any] = dict(context.run_config)
    return InProcessGrid(client_app, num_nodes, run_config, num_nodes)


def test_acceptance_rises_with_federated_training(
    make_context: Callable[..., Context],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    context = make_context(
        num_nodes=4,
        num_partitions=4,
        num_server_rounds=2,
        weakening=1.5,
        max_new_tokens=16,
        straggler_probability=0.25,
    )
    main(make_grid(context, 4), context)

    content = json.loads((tmp_path / "results" / "results.json").read_text())
    summary, rounds = content["summary"], content["rounds"]
    assert summary["before"]["prompts"] == summary["after"]["prompts"] == 12
    assert summary["acceptance_gain"] >= 0.1
    assert summary["after"]["uplink_bytes"] < summary["before"]["uplink_bytes"]
    assert [r["server_round"] for r in rounds] == [1, 2]
    assert rounds[1]["train_loss"] < rounds[0]["train_loss"]
    assert all(r["coverage"] == pytest.approx(1.0) for r in rounds)
    with (tmp_path / "results" / "rounds.csv").open(newline="") as file:
        assert len(list(csv.DictReader(file))) == 2
    figure = tmp_path / "results" / "acceptance.png"
    assert figure.read_bytes().startswith(b"\x89PNG")
    told = capsys.readouterr().out
    assert f"Wrote {tmp_path / 'results' / 'report.html'}" in told
    for line in content["timelines"]["two-stage"]:
        assert {d["worker"] for d in line["dispatches"]} <= set(range(4))
    before, *after = content["samples"]
    assert before["drafter"] == "before training"
    assert {each["protocol"] for each in after} == {"dsd", "dssd", "dssd-candidates"}
    for each in content["samples"]:
        origins = [token["origin"] for token in each["tokens"]]
        assert len(origins) - origins.count("rejected") == each["length"]
        assert origins.count("accepted") <= each["accepted"] <= each["examined"]
    assert max(each["accepted"] for each in after) > before["accepted"]
    assert "round  0/2  acceptance" in told
    assert "on the same 12 prompts" in told


def test_replies_are_verified_where_that_is_wanted(
    make_context: Callable[..., Context], tmp_path: Path
) -> None:
    context = make_context(
        verify_replies=1,
        num_nodes=3,
        num_partitions=3,
        num_server_rounds=1,
        max_new_tokens=8,
        prompts_per_node=1,
        local_steps=1,
        straggler_probability=0.0,
    )
    main(make_grid(context, 3), context)

    (found,) = json.loads((tmp_path / "results" / "results.json").read_text())["rounds"]
    assert (found["verified"], found["liars"]) == (1, 0)
    assert found["redundancy"] >= 2


def test_answers_come_faster_once_the_public_text_is_kept(
    make_context: Callable[..., Context],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    context = make_context(
        inference="edgeprompt",
        num_nodes=2,
        num_partitions=2,
        num_server_rounds=2,
        max_new_tokens=8,
        store_dir=str(tmp_path / "store"),
    )
    main(make_grid(context, 2), context)

    content = json.loads((tmp_path / "results" / "edgeprompt.json").read_text())
    first, second = content["rounds"]
    assert (first["nodes"], first["prompts"]) == (2, 6)
    assert (first["cache_hit_rate"], second["cache_hit_rate"]) == (0.0, 1.0)
    assert second["bytes_per_prompt"] == 0
    assert first["greedy_agreement"] > 0.9
    blocks = {name: first[name] for name in first if name.startswith("blocks_")}
    assert len(blocks) == 8
    assert sum(second[name] for name in blocks) == sum(blocks.values()) > 0
    assert first["blocks_in_store"] == 0 < second["blocks_in_store"]
    assert (tmp_path / "results" / "report.html").stat().st_size < 6e6
    assert "in store" in capsys.readouterr().out


def test_both_systems_are_measured_in_one_run(
    make_context: Callable[..., Context], tmp_path: Path
) -> None:
    context = make_context(
        inference="both",
        edge="grpc",
        num_nodes=2,
        num_partitions=2,
        num_server_rounds=1,
        max_new_tokens=8,
        straggler_probability=0.0,
        store_dir=str(tmp_path / "store"),
    )
    main(make_grid(context, 2), context)

    results = tmp_path / "results"
    drafted = json.loads((results / "results.json").read_text())["rounds"]
    answered = json.loads((results / "edgeprompt.json").read_text())["rounds"]
    assert len(drafted) == len(answered) == 1
    assert answered[0]["prompts"] == drafted[0]["prompts"] == 6


def test_the_wrong_number_of_nodes_is_told_with_the_command(
    make_context: Callable[..., Context], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("device_edge_llm.server_app.NODES_TIMEOUT", 0.0)
    context = make_context()
    with pytest.raises(FlowerExtError, match="has 2 nodes, and num-nodes is 8") as told:
        main(make_grid(context, 2), context)
    assert "flwr run experiments/device_edge_llm" in str(told.value)
    assert "num-supernodes=8" in str(told.value)


def test_the_table_tells_before_and_after() -> None:
    def measured(acceptance: float) -> Inference:
        return Inference(2, 6, acceptance, 2.5, 30.0, 20.0, 76.0)

    report = Report(measured(0.6), after=measured(0.85))
    for server_round, acceptance in ((1, 0.7), (2, 0.8)):
        report.rounds.append(
            RoundRecord(
                server_round,
                2.0,
                2.0 * server_round,
                0.5,
                1.0,
                1.0,
                0,
                measured(acceptance),
            )
        )
    heads, _, before, after, _, told = table(report, 0.75).splitlines()
    assert heads.split("  ")[0] == "drafter"
    assert " ".join(before.split()) == "before training 0.600 2.50 30.0 20.0 76.0"
    assert after.split()[:4] == ["after", "round", "2", "0.850"]
    assert "by +0.250, on the same 6 prompts" in told
    assert "reached in round 2, after 4.0 s" in told
    assert "0.95 was not reached" in table(report, 0.95)
