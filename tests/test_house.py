"""The rooms import only from floors below, and the public names are what they are."""

import ast
import importlib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PURE = ("coding", "scheduling", "network", "models", "speculative", "edgeprompt")
CLOCKS = ROOT / "flower_ext" / "network" / "clocks.py"  # Handed in, never held.


def imported(source: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(source.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
    return found


@pytest.mark.parametrize("room", PURE)
def test_pure_rooms_know_neither_flower_nor_clocks_nor_sockets(room: str) -> None:
    for source in (ROOT / "flower_ext" / room).rglob("*.py"):
        if source == CLOCKS:
            continue
        for name in imported(source):
            top = name.split(".")[0]
            assert top not in {"flwr", "time", "threading", "socket", "asyncio"}, source
            assert not name.startswith("flower_ext.strategies"), source
            assert not name.startswith("flower_ext.clients"), source
            assert name != "flower_ext.edge", source
            assert not name.startswith("flower_ext.edge."), source


@pytest.mark.parametrize(("room", "other"), [("strategies", "clients")])
def test_server_and_client_do_not_import_each_other(room: str, other: str) -> None:
    for here, there in ((room, other), (other, room)):
        for source in (ROOT / here).rglob("*.py"):
            assert not any(
                name.startswith(f"flower_ext.{there}") for name in imported(source)
            ), source


@pytest.mark.parametrize(
    ("module", "names"),
    [
        (
            "flower_ext.coding",
            "CyclicRepetition FractionalRepetition HeterogeneityAware Uncoded decode "
            "decode_least_squares UndecodableError",
        ),
        (
            "flower_ext.edge",
            "EdgeServer RemoteVerifier RemoteSegments EdgeRefusedError load_tokens",
        ),
        (
            "flower_ext.models",
            "DEFAULT_DRAFT DEFAULT_TARGET LoadedModel ModelPair default_pair "
            "load_model load_pair tokenizer_fingerprint",
        ),
        (
            "flower_ext.speculative",
            "Sampling Drafter Verifier speculate Generation Adaptive PROTOCOLS",
        ),
        (
            "flower_ext.edgeprompt",
            "PromptHierarchy Segment Level KVStore EdgePrompt merge_attention plan "
            "Precision PrefixedModel RuleDetector identity_of",
        ),
        ("flower_ext.strategies", "TwoStageCoded CodedFedAvg"),
        ("flower_ext.clients", "CodedClientApp coded_mod straggler_mod"),
    ],
)
def test_public_names_are_exported(module: str, names: str) -> None:
    room = importlib.import_module(module)

    assert set(names.split()) <= set(room.__all__)
    assert all(hasattr(room, name) for name in room.__all__)
