"""The run-config of the device-edge app: what it accepts, and what it says else."""

from __future__ import annotations

from pathlib import Path

import pytest
from device_edge_llm.settings import Settings

from flower_ext.errors import InvalidInputError

RunConfig = dict[str, str | int | float | bool]


def test_the_apps_own_run_config_is_valid(run_config: RunConfig) -> None:
    settings = Settings.from_run_config(run_config)
    assert (settings.num_nodes, settings.num_partitions) == (8, 12)
    assert (settings.data, settings.edge) == ("generated", "in-process")


def test_every_key_is_documented(run_config: RunConfig, app_folder: Path) -> None:
    readme = (app_folder / "README.md").read_text(encoding="utf-8")
    assert [key for key in run_config if f"| `{key}` |" not in readme] == []


@pytest.mark.parametrize(
    ("key", "value", "named"),
    [
        ("num-server-rounds", 0, "at least 1"),
        ("num-server-rounds", "3", "type int"),
        ("drafting-ahead", 1, "type bool"),
        ("stragglers", 8, "less than num-nodes, which is 8"),
        ("straggler-probability", 2.0, "at most 1"),
        ("verify-replies", -1, "at least 0 and at most 4"),
        ("start", "weak", "-c 'start=\"weakened\"'"),
        ("loss", "nexttoken", "-c 'loss=\"next-token\"'"),
        ("data", "shakespeare", "-c 'data=\"tinyshakespeare\"'"),
        ("protocol", "dsdd", "dssd-candidates, dssd, dsd"),
        ("draft-length", 300, "at most 256"),
        ("top-p", 0.0, "at least 1e-06"),
        ("temperature", -1.0, "at least 0"),
        ("mbps", 0.0, "-c 'mbps=10.0'"),
        ("learning-rate", float("nan"), "a finite number"),
        ("edge", "edge.example", '"host:port"'),
        ("edge-tokens", "tokens.txt", "absolute path"),
        ("edge-plaintext", True, "an edge that runs already"),
        ("inference", "edge-prompt", "-c 'inference=\"edgeprompt\"'"),
        ("public-tokens", 2, "at least 16"),
        ("precisions", "exact,int9", "exact, fp16, bf16, int8, int4"),
        ("max-error", -1.0, "at least 0"),
        ("store-dir", "kv", "absolute path"),
        ("results-dir", " ", "path of a folder"),
        ("data-dir", "/data", 'data="tinyshakespeare" data-dir="/data"'),
    ],
)
def test_a_bad_value_is_named_with_the_fix(
    run_config: RunConfig, key: str, value: str | int | float | bool, named: str
) -> None:
    with pytest.raises(InvalidInputError) as caught:
        Settings.from_run_config({**run_config, key: value})
    assert f"'{key}'" in str(caught.value)
    assert named in str(caught.value)


def test_what_trains_nothing_verifies_nothing(run_config: RunConfig) -> None:
    verified = {**run_config, "verify-replies": 1}
    assert Settings.from_run_config(verified).verify_replies == 1
    with pytest.raises(InvalidInputError, match="'verify-replies' is for training"):
        Settings.from_run_config({**verified, "inference": "edgeprompt"})


def test_an_unknown_key_is_named_with_the_nearest(run_config: RunConfig) -> None:
    with pytest.raises(InvalidInputError, match=r"Did you mean 'draft-length'\?"):
        Settings.from_run_config({**run_config, "draft_length": 4})


def test_a_missing_key_is_named(run_config: RunConfig) -> None:
    del run_config["seed"]
    with pytest.raises(InvalidInputError, match="lacks 'seed'"):
        Settings.from_run_config(run_config)


def test_real_text_needs_an_absolute_folder(run_config: RunConfig) -> None:
    with pytest.raises(InvalidInputError, match="absolute path"):
        Settings.from_run_config({**run_config, "data": "tinyshakespeare"})


def test_an_edge_that_runs_is_reached_by_tls_or_without(run_config: RunConfig) -> None:
    there = {**run_config, "edge": "edge.example:7000", "edge-certificate": "/c.pem"}
    assert Settings.from_run_config(there).edge == "edge.example:7000"
    with pytest.raises(InvalidInputError, match="exclude each other"):
        Settings.from_run_config({**there, "edge-plaintext": True})
