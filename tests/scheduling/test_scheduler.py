"""What schedulers are told: limits that make sense."""

from typing import Any

import numpy as np
import pytest

from flower_ext.errors import InvalidInputError
from flower_ext.scheduling import WorkerLimits, jains_index

GOOD: dict[str, Any] = {
    "max_rate": np.array([1.0, 2.0]),
    "max_admission": np.array([1.0, 1.0]),
    "transmit_energy": np.array([0.0, 1.0]),
    "compute_energy": np.array([0.0, 1.0]),
    "capacity": np.array([5.0, np.inf]),
    "battery": np.array([5.0, np.inf]),
    "max_snr": np.array([1.0, 10.0]),
}


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("max_rate", [1.0, 0.0], r"max_rate of worker 1 must be positive .* got 0\.0"),
        ("max_admission", [1.0], r"max_admission .* 2 workers .* \(1,\)"),
        ("transmit_energy", [-1.0, 0.0], r"transmit_energy of worker 0 .* got -1\.0"),
        ("compute_energy", [0.0, np.inf], "compute_energy of worker 1 .* got inf"),
        ("capacity", [0.0, np.inf], r"capacity of worker 0 .* got 0\.0"),
        ("battery", [6.0, np.inf], "battery of worker 0 is 6 J, more than .* 5 J"),
        ("battery", [5.0, 7.0], "Worker 1 has an infinite capacity .* 7 J"),
        ("max_snr", [1.0, np.nan], "max_snr of worker 1 .* got nan"),
    ],
)
def test_limits_out_of_range_are_named(name: str, value: Any, message: str) -> None:
    assert len(WorkerLimits(**GOOD)) == 2
    with pytest.raises(InvalidInputError, match=message):
        WorkerLimits(**{**GOOD, name: np.array(value)})


def test_jains_index() -> None:
    assert jains_index(np.array([2.0, 2.0, 2.0])) == 1.0
    assert jains_index(np.array([4.0, 0.0, 0.0, 0.0])) == 0.25
    assert jains_index(np.array([1.0, 2.0, 3.0])) == pytest.approx(36 / 42)
    assert jains_index(np.zeros(3)) == 1.0
