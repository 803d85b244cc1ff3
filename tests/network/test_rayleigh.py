"""Rayleigh fading: Shannon's rate at keyed, exponential gains."""

import math
import pickle
import random
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flower_ext.errors import InvalidInputError
from flower_ext.network import Link, Rate, RayleighRate

# 0.04 W over 100 dB is 4e-12 W, over 4e-21 * 1e6 = 4e-15 W of noise.
RATE = RayleighRate(1.0e6, 0.04, 100.0, coherence_seconds=0.5, seed=5)


def test_the_mean_snr_in_si_units() -> None:
    assert RATE.snr == pytest.approx(1000.0)
    assert replace(RATE, path_loss_db=110.0).snr == pytest.approx(100.0)
    assert replace(RATE, bandwidth=2.0e6).snr == pytest.approx(500.0)


def test_the_rate_is_shannons_in_bytes_and_constant_for_a_coherence_time() -> None:
    assert isinstance(RATE, Rate)
    for interval in (0, 1, 511, 512, 5000):
        start = 0.5 * interval
        snr = RATE.snr_at(start)
        assert RATE.at(start) == pytest.approx(1.0e6 * math.log2(1 + snr) / 8)
        assert RATE.at(start + 0.49) == RATE.at(start)
        assert RATE.at(start + 0.5) != RATE.at(start)
        carried = RATE.bytes_between(start, start + 0.5)
        assert carried == pytest.approx(0.5 * RATE.at(start))


def test_gains_are_exponential_and_independent() -> None:
    gains = np.array([RATE.snr_at(0.5 * k) for k in range(4000)]) / RATE.snr
    # Standard errors: of the mean 0.016, of the variance 0.045, of a frequency 0.008.
    assert abs(gains.mean() - 1) < 0.06
    assert abs(gains.var() - 1) < 0.2
    assert abs((gains > 1).mean() - math.exp(-1)) < 0.03
    assert abs(np.corrcoef(gains[:-1], gains[1:])[0, 1]) < 0.06
    assert len(set(gains)) == gains.size
    other = replace(RATE, seed=6)
    assert other.snr_at(0.0) != RATE.snr_at(0.0)


def test_the_slowest_modulation_is_a_floor() -> None:
    kept = replace(RATE, least_rate=8.0e6)
    rates = [kept.at(0.5 * k) for k in range(200)]
    free = [RATE.at(0.5 * k) for k in range(200)]
    assert rates == [max(rate, 1.0e6) for rate in free]
    assert min(free) < 1.0e6 < max(free)
    faint = replace(RATE, path_loss_db=300.0, least_rate=800.0)
    assert faint.seconds_for(1000.0, at=3.0) == pytest.approx(10.0)


def test_the_order_of_calls_changes_nothing() -> None:
    instants = [0.5 * 512 * block + 1.3 for block in range(12)]
    forward = [RATE.at(t) for t in instants]
    random.seed(1)
    shuffled = random.sample(range(12), 12)
    fresh = replace(RATE)
    found = {i: fresh.at(instants[i]) for i in shuffled}
    assert [found[i] for i in range(12)] == forward
    assert pickle.loads(pickle.dumps(fresh)).at(instants[3]) == forward[3]


@given(st.floats(0, 2000), st.floats(0.001, 1e9))
def test_seconds_for_inverts_the_integral(at: float, size: float) -> None:
    seconds = RATE.seconds_for(size, at)
    # 1e6 bytes/s for the rounding of a time.
    slack = 1e-9 * (size + 1e6)
    assert RATE.bytes_between(at, at + seconds) == pytest.approx(size, abs=slack)


@given(st.floats(0, 1000), st.floats(1, 1e8), st.floats(0, 1))
def test_an_upload_in_two_parts_takes_as_long(
    at: float, size: float, part: float
) -> None:
    link = Link(RATE)
    first = link.transmit(part * size, at)
    second = link.transmit((1 - part) * size, at + first)
    assert first + second == pytest.approx(link.transmit(size, at), abs=1e-6)


@pytest.mark.parametrize(
    ("changed", "text"),
    [
        ({"bandwidth": 0.0}, "bandwidth must be .* got 0.0"),
        ({"power": -1.0}, "power must be"),
        ({"noise_density": math.nan}, "noise_density must be"),
        ({"coherence_seconds": 0.0}, "coherence_seconds must be"),
        ({"path_loss_db": math.inf}, "path_loss_db must be"),
        ({"least_rate": -1.0}, "least_rate must be"),
        ({"seed": -1}, "seed must be"),
        ({"path_loss_db": 250.0, "least_rate": 0.0}, "under 1 bit per second"),
    ],
)
def test_bad_input_is_named(changed: dict[str, float], text: str) -> None:
    with pytest.raises(InvalidInputError, match=text):
        replace(RATE, **changed)  # type: ignore[arg-type]
