"""The run-config of the two-stage app: what it accepts, and what it says otherwise."""

from __future__ import annotations

from pathlib import Path

import pytest
from two_stage_coded.settings import Settings

from flower_ext.errors import InvalidInputError

RunConfig = dict[str, str | int | float | bool]


def test_the_apps_own_run_config_is_valid(run_config: RunConfig) -> None:
    settings = Settings.from_run_config(run_config)
    assert (settings.num_nodes, settings.num_partitions) == (12, 24)
    assert settings.names == (
        "two-stage",
        "cyclic",
        "fractional",
        "uncoded",
        "ignore-stragglers",
    )


def test_every_key_is_documented(run_config: RunConfig, app_folder: Path) -> None:
    readme = (app_folder / "README.md").read_text(encoding="utf-8")
    missing = [key for key in run_config if f"| `{key}` |" not in readme]
    assert missing == []


@pytest.mark.parametrize(
    ("key", "value", "named"),
    [
        ("num-server-rounds", 0, "at least 1"),
        ("num-server-rounds", "3", "type int"),
        ("num-server-rounds", True, "type int"),
        ("straggler-probability", 2.0, "at most 1"),
        ("straggler-slowdown", 0.5, "at least 1"),
        ("dirichlet-alpha", 0.0, "at least 0.001"),
        ("stragglers", 12, "less than num-nodes, which is 12"),
        ("stragglers", 4, "one of 0, 1, 2, 3, 5, 11"),
        ("clock", "virtaul", "-c 'clock=\"virtual\"'"),
        ("dataset", "mnits", "-c 'dataset=\"mnist\"'"),
        ("strategies", "two-stage,cylic", "-c 'strategies=\"cyclic\"'"),
        ("strategies", "uncoded, uncoded", "twice"),
        ("strategies", " , ", "choose from two-stage"),
        ("results-dir", " ", "path of a folder"),
        ("download", "yes", "type bool"),
        ("scheduler", "lyapunow", "-c 'scheduler=\"lyapunov\"'"),
        ("V", 0.0, "at least 1e-06"),
        ("V", -1.0, "-c 'V=20.0'"),
        ("link-trace", "traces.jsonl", "an absolute path"),
        ("device-profile", "flash", "an absolute path"),
        ("battery-joules", 100.0, "need a 'device-profile'"),
        ("train-examples", -1, "at least 0"),
        ("verify-replies", 5, "at most 4"),
        (
            "verify-replies",
            1,
            "uncoded and ignore-stragglers compute no partition twice",
        ),
        ("verify-replies", 1, "-c 'strategies=\"two-stage,cyclic,fractional\"'"),
    ],
)
def test_a_bad_value_is_named_with_the_fix(
    run_config: RunConfig, key: str, value: str | int | float | bool, named: str
) -> None:
    with pytest.raises(InvalidInputError) as caught:
        Settings.from_run_config({**run_config, key: value})
    assert f"'{key}'" in str(caught.value)
    assert named in str(caught.value)


def test_single_stage_codes_verify_as_much_as_they_tolerate(
    run_config: RunConfig,
) -> None:
    coded = {**run_config, "strategies": "two-stage,cyclic", "verify-replies": 2}
    assert Settings.from_run_config(coded).verify_replies == 2
    with pytest.raises(InvalidInputError, match="at most stragglers, which is 1"):
        Settings.from_run_config({**coded, "stragglers": 1})
    alone = {**coded, "stragglers": 1, "strategies": "two-stage"}
    assert Settings.from_run_config(alone).verify_replies == 2


def test_an_unknown_key_is_named_with_the_nearest(run_config: RunConfig) -> None:
    with pytest.raises(InvalidInputError, match=r"Did you mean 'learning-rate'\?"):
        Settings.from_run_config({**run_config, "learning_rate": 0.1})


def test_a_missing_key_is_named(run_config: RunConfig) -> None:
    del run_config["seed"]
    with pytest.raises(InvalidInputError, match="lacks 'seed'"):
        Settings.from_run_config(run_config)


@pytest.mark.parametrize("data_dir", ["", "data/mnist"])
def test_other_data_needs_an_absolute_folder(
    run_config: RunConfig, data_dir: str
) -> None:
    with pytest.raises(InvalidInputError, match="absolute path") as caught:
        Settings.from_run_config(
            {**run_config, "dataset": "mnist", "data-dir": data_dir}
        )
    assert "download=true" in str(caught.value)


def test_an_int_stands_for_a_float(run_config: RunConfig) -> None:
    settings = Settings.from_run_config({**run_config, "learning-rate": 1})
    assert settings.learning_rate == 1.0


def test_traced_links_need_the_virtual_clock(run_config: RunConfig) -> None:
    with pytest.raises(InvalidInputError, match=r"'link-trace' .* \"virtual\""):
        Settings.from_run_config(
            {**run_config, "clock": "wall", "link-trace": "synthetic"}
        )
