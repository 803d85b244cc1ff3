"""A mistyped key of a node-config is refused, and the nearest one named."""

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
def test_a_mistyped_key_is_refused(app: str) -> None:
    with pytest.raises(InvalidInputError, match=r"'partition'. Did you mean 'partit"):
        holdings(app, {"partition-id": 0, "partition": "0-3"})
    with pytest.raises(InvalidInputError, match="The keys are: partition-id, num-part"):
        holdings(app, {"partition-id": 0, "xyz": 1})


@pytest.mark.parametrize("app", APPS)
def test_the_keys_of_the_page_are_taken(app: str) -> None:
    everywhere: dict[str, UserConfigValue] = {"partition-id": 0, "num-partitions": 4}
    assert holdings(app, everywhere) == "all"
    assert holdings(app, everywhere | {"partitions": "0-3"}) == "0-3"


def test_the_keys_of_devices_are_taken() -> None:
    device: dict[str, UserConfigValue] = {
        "partition-id": 0,
        "role": "device",
        "drafter": "/models/draft",
        "target": "/models/target",
    }
    assert holdings("device_edge_llm", device) == "all"
    with pytest.raises(InvalidInputError, match="Unknown node-config key 'role'"):
        holdings("two_stage_coded", device)
