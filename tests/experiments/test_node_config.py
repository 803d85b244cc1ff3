"""A mistyped key of a node-config is refused; one for another app is not."""

from __future__ import annotations

from importlib import import_module

import pytest
from flwr.app import Context, RecordDict, UserConfigValue

from flower_ext.errors import InvalidInputError

APPS = ("two_stage_coded", "device_edge_llm")


def holdings(app: str, node_config: dict[str, UserConfigValue]) -> object:
    """Return what a node with this config says it holds."""
    context = Context(
        run_id=1, node_id=2, node_config=node_config, state=RecordDict(), run_config={}
    )
    return import_module(f"{app}.client_app").own_partitions(context)


@pytest.mark.parametrize("app", APPS)
@pytest.mark.parametrize("mistyped", ["partition", "Partitions", "partitons"])
def test_a_mistyped_key_is_refused(app: str, mistyped: str) -> None:
    with pytest.raises(InvalidInputError, match=rf"'{mistyped}'\. Did you mean 'part"):
        holdings(app, {"partition-id": 0, mistyped: "0-3"})


def test_a_mistyped_role_is_refused() -> None:
    with pytest.raises(InvalidInputError, match=r"'roles'\. Did you mean 'role'"):
        holdings("device_edge_llm", {"partition-id": 0, "roles": "device"})


@pytest.mark.parametrize("app", APPS)
def test_keys_of_other_apps_are_left_alone(app: str) -> None:
    config: dict[str, UserConfigValue] = {
        "partition-id": 0,
        "partitions": "0-3",
        "role": "device",
        "drafter": "/models/draft",
        "control": "/tmp",
    }
    assert holdings(app, config) == "0-3"


@pytest.mark.parametrize("app", APPS)
def test_a_simulated_nodes_keys_are_taken(app: str) -> None:
    assert holdings(app, {"partition-id": 0, "num-partitions": 4}) == "all"
