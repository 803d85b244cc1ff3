"""Keyed choices: functions of their key, uniform, and independent across keys."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import chisquare, kstest

from flower_ext.errors import InvalidInputError
from flower_ext.speculative import KeyedChoices, Purpose


def test_draws_have_their_weights_and_never_weight_zero() -> None:
    weights = np.array([0, 3, 0, 1, 2, 0], dtype=np.float32)
    choices = KeyedChoices(1)

    drawn = [choices.draw(weights, n, Purpose.DRAFT) for n in range(6000)]

    counts = np.bincount(drawn, minlength=6)
    assert counts[[0, 2, 5]].sum() == 0
    assert chisquare(counts[[1, 3, 4]], [3000, 1000, 2000]).pvalue > 0.001


def test_candidates_are_the_same_however_they_are_asked_for() -> None:
    weights = np.ones(50, dtype=np.float32)
    choices = KeyedChoices(1)

    whole = choices.draws(weights, 3, 0, 40)

    assert choices.draws(weights, 3, 0, 7) == whole[:7]
    assert choices.draws(weights, 3, 7, 33) == whole[7:]
    assert choices.draws(weights, 4, 0, 40) != whole


@pytest.mark.parametrize("purpose", Purpose)
def test_uniforms_are_uniform_over_every_part_of_the_key(purpose: Purpose) -> None:
    series = (
        [KeyedChoices(seed)._uniforms(5, purpose, 0, 1)[0] for seed in range(2000)],
        [KeyedChoices(5)._uniforms(n, purpose, 0, 1)[0] for n in range(2000)],
        list(KeyedChoices(5)._uniforms(5, purpose, 0, 2000)),
    )
    for values in series:
        assert kstest(values, "uniform").pvalue > 0.001
        assert abs(np.corrcoef(values[:-1], values[1:])[0, 1]) < 0.1


def test_purposes_are_independent() -> None:
    columns = [
        [KeyedChoices(3)._uniforms(n, purpose, 0, 1)[0] for n in range(2000)]
        for purpose in Purpose
    ]
    correlations = np.corrcoef(columns) - np.eye(len(columns))
    assert np.abs(correlations).max() < 0.1


def test_chances_at_the_ends_are_certain() -> None:
    choices = KeyedChoices(1)
    assert all(choices.happens(1, n, Purpose.ACCEPT) for n in range(100))
    assert not any(choices.happens(0, n, Purpose.ACCEPT) for n in range(100))


def test_seeds_out_of_range_are_named() -> None:
    with pytest.raises(InvalidInputError, match="-1"):
        KeyedChoices(-1)
    assert KeyedChoices(2**64 - 1).seed == 2**64 - 1
