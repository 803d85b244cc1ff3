"""Utilities, on numbers that can be checked by hand and against a search."""

import numpy as np
import pytest

from flower_ext.errors import InvalidInputError
from flower_ext.scheduling import AlphaFair, LogUtility, MeanVariance, Utility

ALL = (
    LogUtility(),
    AlphaFair(0.0),
    AlphaFair(0.5),
    AlphaFair(1.0),
    AlphaFair(2.0),
    MeanVariance(1.5),
)


@pytest.mark.parametrize("utility", ALL, ids=repr)
def test_the_auxiliary_rate_is_the_best_of_a_fine_grid(utility: Utility) -> None:
    v, queue = 7.0, np.array([0.0, 0.3, 2.0, 6.9, 7.0, 20.0])
    limit = np.array([0.5, 1.0, 2.0, 3.0, 1.0, 1.0])
    rate = utility.auxiliary(v, queue, limit)
    assert ((rate >= 0) & (rate <= limit)).all()
    grid = np.linspace(0, 1, 2001)[:, None] * limit
    best = (v * utility.value(grid) - queue * grid).max(axis=0)
    assert np.allclose(v * utility.value(rate) - queue * rate, best, atol=1e-5)
    assert (v * utility.value(rate) - queue * rate >= best - 1e-12).all()


@pytest.mark.parametrize("utility", ALL, ids=repr)
def test_utilities_start_at_zero_with_their_slope_and_are_concave(
    utility: Utility,
) -> None:
    x = np.linspace(0, 4, 401)
    value = utility.value(x)
    assert isinstance(utility, Utility)
    assert value[0] == 0
    small = np.array([1e-8])
    assert utility.value(small)[0] == pytest.approx(1e-8 * utility.slope, rel=1e-6)
    assert (np.diff(value) >= 0).all()
    assert (np.diff(value, 2) <= 1e-12).all()


def test_alpha_one_is_the_logarithm_and_alpha_zero_is_throughput() -> None:
    x = np.array([0.0, 0.7, 3.0])
    assert AlphaFair(1.0).value(x).tolist() == LogUtility().value(x).tolist()
    assert np.allclose(AlphaFair(0.0).value(x), x)
    queue, limit = np.array([0.0, 1.0, 5.0]), np.full(3, 2.0)
    logarithmic = LogUtility().auxiliary(3.0, queue, limit)
    assert np.allclose(AlphaFair(1.0).auxiliary(3.0, queue, limit), logarithmic)
    assert logarithmic.tolist() == [2.0, 2.0, 0.0]


def test_bad_parameters_are_named() -> None:
    with pytest.raises(InvalidInputError, match=r"alpha .* got -0\.5"):
        AlphaFair(-0.5)
    with pytest.raises(InvalidInputError, match=r"alpha .* got nan"):
        AlphaFair(float("nan"))
    with pytest.raises(InvalidInputError, match=r"ceiling .* got 0"):
        MeanVariance(0.0)
