"""Delay models: deterministic, keyed, and of the distribution they promise."""

import random
import subprocess
import sys
from collections.abc import Callable

import numpy as np
import pytest

from flower_ext.errors import InvalidInputError
from flower_ext.network import (
    BernoulliSlowdown,
    DelayModel,
    RecordedDelays,
    ShiftedExponential,
    SpeedProfile,
)

MODELS = [
    SpeedProfile((1.0, 3.0), upload=0.5),
    ShiftedExponential(1.0, 2.0, upload=0.5),
    BernoulliSlowdown(0.5, 4.0, base=ShiftedExponential(1.0, 2.0, upload=0.5)),
    RecordedDelays([[1.0, 2.0], [3.0]], upload=0.5),
]


@pytest.mark.parametrize("model", MODELS, ids=lambda m: type(m).__name__)
def test_calls_in_any_order_give_the_same_delays(model: DelayModel) -> None:
    assert isinstance(model, DelayModel)
    keys = [(w, r, p) for w in range(3) for r in range(3) for p in range(3)]
    forward = {key: model.compute_seconds(*key) for key in keys}
    random.seed(0)
    backward = {key: model.compute_seconds(*key) for key in reversed(keys)}
    assert forward == backward
    assert model.upload_seconds(2, 1) == 0.5


def test_shifted_exponential_has_its_mean_and_independent_draws() -> None:
    model = ShiftedExponential(2.0, 3.0, seed=1)
    keys = [(0, r, p) for r in range(50) for p in range(40)]
    draws = np.array([model.compute_seconds(*key) for key in keys])
    # The standard error of the mean of 2000 draws is 3 / sqrt(2000) = 0.067.
    assert draws.min() > 2.0
    assert abs(draws.mean() - 5.0) < 0.2
    assert abs(np.median(draws) - (2.0 + 3.0 * np.log(2))) < 0.2
    assert len(set(draws)) == draws.size
    other = ShiftedExponential(2.0, 3.0, seed=2)
    assert other.compute_seconds(0, 0, 0) != draws[0]


def test_bernoulli_straggler_is_slow_for_the_whole_round() -> None:
    model = BernoulliSlowdown(0.3, 10.0, base=2.0, seed=4)
    slow = np.zeros((20, 50), bool)
    for worker, server_round in np.ndindex(*slow.shape):
        seconds = {model.compute_seconds(worker, server_round, p) for p in range(3)}
        assert seconds in ({2.0}, {20.0})
        slow[worker, server_round] = seconds == {20.0}
        assert model.is_straggler(worker, server_round) == slow[worker, server_round]
    # 1000 draws: the standard error of the frequency is 0.0145.
    assert abs(slow.mean() - 0.3) < 0.05
    # Two of 50 rounds have the same stragglers with a chance of 1225 * 0.58**20 = 2 %.
    assert len({tuple(stragglers) for stragglers in slow.T}) >= 49


def test_slowdown_composes_and_leaves_the_upload() -> None:
    base = BernoulliSlowdown(1.0, 2.0, base=SpeedProfile((1.0, 3.0), upload=0.5))
    model = BernoulliSlowdown(1.0, 5.0, base=base)
    assert model.compute_seconds(1, 1, 0) == 30.0
    assert model.upload_seconds(1, 1) == 0.5
    never = BernoulliSlowdown(0.0, 5.0)
    assert {never.compute_seconds(w, 1, 0) for w in range(50)} == {1.0}


def test_slowdown_and_exponential_draws_are_unrelated() -> None:
    """With one seed, stragglers must not be those with a long exponential part."""
    base = ShiftedExponential(0.0, 1.0, seed=3)
    model = BernoulliSlowdown(0.5, 2.0, base=base, seed=3)
    keys = [(w, 1) for w in range(400)]
    slow = [model.is_straggler(*key) for key in keys]
    draws = [base.compute_seconds(*key, 0) for key in keys]
    # The standard error of a correlation of 400 unrelated pairs is 0.05.
    assert abs(np.corrcoef(slow, draws)[0, 1]) < 0.2


def test_recorded_delays_replay() -> None:
    by_worker = RecordedDelays(
        {7: [1.0, 5.0], 9: np.array([2.0, 3.0, 4.0])}  # type: ignore[dict-item]
    )
    assert [by_worker.compute_seconds(7, r, 3) for r in (1, 2, 3)] == [1.0, 5.0, 1.0]
    assert by_worker.compute_seconds(9, 3, 0) == 4.0
    with pytest.raises(InvalidInputError, match=r"worker 8; .* \[7, 9\]"):
        by_worker.compute_seconds(8, 1, 0)
    in_order = RecordedDelays([[1.0], [2.0]])
    assert [in_order.compute_seconds(w, 1, 0) for w in range(3)] == [1.0, 2.0, 1.0]


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: SpeedProfile(()), "speeds must hold"),
        (lambda: SpeedProfile((1.0, -1.0)), "speeds must be .* got -1.0"),
        (lambda: SpeedProfile((1.0,), upload=float("inf")), "upload must be"),
        (lambda: ShiftedExponential(-1.0, 1.0), "shift must be"),
        (lambda: ShiftedExponential(1.0, float("nan")), "mean must be"),
        (lambda: ShiftedExponential(1.0, 1.0, seed=-1), "seed must be"),
        (lambda: BernoulliSlowdown(1.1, 2.0), "probability must lie"),
        (lambda: BernoulliSlowdown(0.1, 0.5), "slowdown must be"),
        (lambda: BernoulliSlowdown(0.1, 2.0, base=-1.0), "got -1.0"),
        (lambda: BernoulliSlowdown(0.1, 2.0, seed=-1), "seed must be"),
        (lambda: RecordedDelays({}), "at least one worker"),
        (lambda: RecordedDelays([[]]), "times must hold"),
        (lambda: RecordedDelays({0: [-2.0]}), "times must be"),
    ],
)
def test_parameters_out_of_range_are_named(
    make: Callable[[], object], text: str
) -> None:
    with pytest.raises(InvalidInputError, match=text):
        make()


def test_package_is_free_of_flower() -> None:
    code = "import flower_ext.network, sys; sys.exit('flwr' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
