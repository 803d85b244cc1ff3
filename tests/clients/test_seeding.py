"""Every partition, round and run has generators of its own, and always the same."""

import random
import subprocess
import sys

import numpy as np
import pytest
import torch

from flower_ext.clients.seeding import seed_partition
from flower_ext.errors import InvalidInputError


def draws(*key: int) -> tuple[float, float, float]:
    seed_partition(*key)
    drawn_by_numpy = np.random.random()  # noqa: NPY002
    return random.random(), drawn_by_numpy, torch.rand(1).item()


def test_draws_are_a_function_of_the_key() -> None:
    keys = [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (2**63 - 1, 10**6, 10**4)]
    first = {key: draws(*key) for key in keys}
    assert {key: draws(*key) for key in reversed(keys)} == first
    assert len({value for drawn in first.values() for value in drawn}) == 15


@pytest.mark.parametrize("key", [(-1, 0, 0), (0, -1, 0), (0, 0, -1)])
def test_negative_numbers_are_named(key: tuple[int, int, int]) -> None:
    with pytest.raises(InvalidInputError, match=r"at least 0, got .*-1"):
        seed_partition(*key)


def test_torch_is_seeded_when_training_imports_it_and_not_before() -> None:
    """In a process of its own, as a ClientApp's."""
    lines = [
        "import importlib, importlib.util, random, sys",
        "from flower_ext.clients.seeding import seed_partition",
        "seed_partition(0, 0, 0)",
        "assert importlib.util.find_spec('torch') is not None",
        "importlib.reload(sys.modules['flower_ext.clients.seeding'])",
        "from flower_ext.clients.seeding import seed_partition",
        "seed_partition(3, 2, 1)",
        "import flower_ext.clients",
        "assert not {'torch', 'scipy', 'transformers'} & sys.modules.keys()",
        "import torch",
        "first = torch.rand(1).item(), random.random()",
        "seed_partition(3, 2, 1)",
        "assert first == (torch.rand(1).item(), random.random())",
        "import inspect, importlib.resources",
        "assert importlib.util.find_spec('torch') is torch.__spec__",
        "assert 'def manual_seed' in inspect.getsource(torch.random)",
        "assert 'Tensor' in inspect.getsource(torch)",
        "assert importlib.resources.files('torch').joinpath('version.py').is_file()",
    ]
    subprocess.run([sys.executable, "-c", "\n".join(lines)], check=True)


def test_where_torch_is_kept_out_the_others_are_seeded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    seed_partition(0, 1, 2)
    first = random.random()
    seed_partition(0, 1, 2)
    assert random.random() == first
