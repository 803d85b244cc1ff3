"""Harvests: exact energies over any span."""

import math
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flower_ext.errors import InvalidInputError
from flower_ext.network import (
    BernoulliHarvest,
    ConstantHarvest,
    DiurnalHarvest,
    Harvest,
)

MODELS: list[Harvest] = [
    ConstantHarvest(3.0),
    BernoulliHarvest(5.0, 0.3, slot_seconds=2.0, seed=1),
    DiurnalHarvest(4.0, period_seconds=20.0, phase=7.0),
]


@given(st.sampled_from(MODELS), st.floats(0, 5000), st.floats(0, 99), st.floats(0, 99))
def test_energies_add_up(
    harvest: Harvest, start: float, first: float, second: float
) -> None:
    assert isinstance(harvest, Harvest)
    middle, end = start + first, start + first + second
    parts = harvest.joules_between(start, middle) + harvest.joules_between(middle, end)
    whole = harvest.joules_between(start, end)
    assert 0 <= whole <= 5.0 * (end - start) + 1e-6
    assert parts == pytest.approx(whole, abs=1e-6)


def test_constant() -> None:
    assert ConstantHarvest(3.0).joules_between(2.0, 4.5) == 7.5


def test_bernoulli_slots_are_all_or_nothing_at_their_frequency() -> None:
    harvest = BernoulliHarvest(5.0, 0.3, slot_seconds=2.0, seed=1)
    slots = [harvest.joules_between(2.0 * k, 2.0 * k + 2.0) for k in range(3000)]
    full = [joules > 5.0 for joules in slots]
    for joules, is_full in zip(slots, full, strict=True):
        assert joules == pytest.approx(10.0 if is_full else 0.0, abs=1e-9)
    # The standard error of the frequency is 0.008.
    assert abs(sum(full) / 3000 - 0.3) < 0.03
    k = full.index(True)
    assert harvest.joules_between(2.0 * k + 0.5, 2.0 * k + 1.0) == pytest.approx(2.5)
    again = BernoulliHarvest(5.0, 0.3, slot_seconds=2.0, seed=1)
    assert again.joules_between(5998.0, 6000.0) == slots[-1]
    other = BernoulliHarvest(5.0, 0.3, slot_seconds=2.0, seed=2)
    assert [other.joules_between(2.0 * k, 2.0 * k + 2.0) for k in range(99)] != slots[
        :99
    ]


def test_the_sun_shines_half_of_the_day() -> None:
    sun = DiurnalHarvest(math.pi, period_seconds=24.0)
    # A half sine of 12 h has 2/pi of its peak on average.
    assert sun.joules_between(0.0, 12.0) == pytest.approx(24.0)
    assert sun.joules_between(12.0, 24.0) == pytest.approx(0.0, abs=1e-12)
    assert sun.joules_between(5.0, 5.0 + 240.0) == pytest.approx(240.0)
    # Noon: the peak; after two hours (30 degrees), half of it.
    assert sun.joules_between(5.999, 6.001) == pytest.approx(0.002 * math.pi, rel=1e-5)
    at_two = sun.joules_between(1.999, 2.001)
    assert at_two == pytest.approx(0.002 * math.pi / 2, rel=1e-5)
    noon = DiurnalHarvest(math.pi, period_seconds=24.0, phase=6.0)
    assert noon.joules_between(0.0, 6.0) == pytest.approx(12.0)
    assert noon.joules_between(6.0, 18.0) == pytest.approx(0.0, abs=1e-12)


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: ConstantHarvest(-1.0), "watts must be .* got -1.0"),
        (lambda: BernoulliHarvest(math.inf, 0.5, 1.0), "watts must be .* got inf"),
        (lambda: BernoulliHarvest(1.0, 1.5, 1.0), "probability must lie .* got 1.5"),
        (lambda: BernoulliHarvest(1.0, 0.5, 0.0), "slot_seconds must be .* got 0.0"),
        (lambda: BernoulliHarvest(1.0, 0.5, 1.0, -1), "seed must be"),
        (lambda: DiurnalHarvest(-1.0), "peak_watts must be"),
        (lambda: DiurnalHarvest(1.0, 0.0), "period_seconds must be"),
        (lambda: DiurnalHarvest(1.0, phase=-1.0), "phase must be"),
        (lambda: MODELS[0].joules_between(1.0, 0.0), "start 1.0 and end 0.0"),
        (lambda: MODELS[1].joules_between(1.0, 0.0), "start 1.0 and end 0.0"),
        (lambda: MODELS[2].joules_between(-1.0, 0.0), "start -1.0 and end 0.0"),
    ],
)
def test_bad_input_is_named(make: Callable[[], object], text: str) -> None:
    with pytest.raises(InvalidInputError, match=text):
        make()
