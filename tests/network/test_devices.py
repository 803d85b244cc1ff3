"""Fleets: phones and links by published measurements, and made up."""

import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from flower_ext.errors import InvalidInputError
from flower_ext.network import (
    Device,
    TraceRate,
    load_flash,
    load_flash_links,
    synthetic_devices,
)

SPEEDS = {"up_u": 200.0, "up_sigma": 20.0, "down_u": 900.0, "down_sigma": 900.0}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    scores = {"old": 25, "usual": 100, "new": 400}
    (tmp_path / "benchmark2score.json").write_text(json.dumps(scores))
    (tmp_path / "speed_distri.json").write_text(json.dumps({"somebody": SPEEDS}))
    return tmp_path


def speeds(devices: list[Device]) -> list[float]:
    return [device.seconds_per_partition for device in devices]


def test_time_goes_with_a_power_of_the_score(folder: Path) -> None:
    first = load_flash(folder, 6, seed=1, seconds_per_partition=3.0)
    assert sorted(speeds(first[:3])) == sorted(speeds(first[3:])) == [1.5, 3.0, 6.0]
    linear = load_flash(folder, 3, exponent=1.0)
    assert sorted(speeds(linear)) == [0.25, 1.0, 4.0]
    assert speeds(load_flash(folder, 3, exponent=0.0)) == [1.0] * 3
    orders = {tuple(speeds(load_flash(folder, 3, seed=seed))) for seed in range(20)}
    assert len(orders) > 1
    assert load_flash(folder, 6, 1, 3.0) == first


def test_watts_and_batteries_are_as_told(folder: Path) -> None:
    for (device,) in (
        load_flash(folder, 1, 0, 1.0, 0.5, 2.0, 1.0, 9.0, 0.5),
        synthetic_devices(1, 0, 1.0, 2.0, 1.0, 9.0, 0.5),
    ):
        seconds = device.seconds_per_partition
        assert device == Device(seconds, 2.0, 1.0, 9.0, harvest=0.5)


def test_links_have_the_measured_moments(folder: Path) -> None:
    link, other = load_flash_links(folder, 2, seed=4, rtt=0.1, loss=0.1, seconds=2000)
    assert isinstance(link.up, TraceRate)
    assert isinstance(link.down, TraceRate)
    up = np.array(link.up.bytes_per_second)
    # Standard errors: of the mean 450, of the deviation 320 bytes/s.
    assert up.mean() == pytest.approx(200e3, abs=2e3)
    assert up.std() == pytest.approx(20e3, abs=1.5e3)
    down = np.array(link.down.bytes_per_second)
    assert down.min() > 0
    # Truncated at 0, one deviation below: the mean rises by 0.288 deviations.
    assert down.mean() == pytest.approx(1159e3, abs=70e3)
    assert (link.rtt, link.loss, link.up.seconds) == (0.1, 0.1, 2000.0)
    assert other.up != link.up
    again = load_flash_links(folder, 2, seed=4, rtt=0.1, loss=0.1, seconds=2000)
    assert again == [link, other]


def test_measured_phones_and_users(measured_data: Path) -> None:
    flash = measured_data / "devices"
    times = speeds(load_flash(flash, 307))
    assert np.median(times) == pytest.approx(1.0)
    assert max(times) / min(times) == pytest.approx(math.sqrt(76206 / 212))
    assert np.quantile(times, 0.75) / np.quantile(times, 0.25) == pytest.approx(3, 0.1)
    means = sorted(
        link.sent_between(0.0, 600.0) / 600 for link in load_flash_links(flash, 19)
    )
    # The users' measured means span 431 to 6635 kB/s.
    assert means[0] == pytest.approx(431e3, rel=0.05)
    assert means[-1] == pytest.approx(6635e3, rel=0.05)


def test_synthetic_devices_are_as_diverse_as_measured_ones() -> None:
    devices = synthetic_devices(2000, seed=3, seconds_per_partition=2.0)
    logs = np.log(speeds(devices))
    # Standard errors: of the mean 0.013, of the deviation 0.0095.
    assert logs.mean() == pytest.approx(math.log(2.0), abs=0.05)
    assert logs.std() == pytest.approx(0.6, abs=0.04)
    assert synthetic_devices(5, 3, 2.0) == devices[:5]
    assert synthetic_devices(5, 4, 2.0) != devices[:5]


@pytest.mark.parametrize(
    ("scores", "text"),
    [
        ("{", "is not JSON"),
        ("[]", "JSON object with entries"),
        ("{}", "JSON object with entries"),
        ('{"a": 0}', "a must be a finite number > 0, got 0"),
        ('{"a": "12"}', "a must be a finite number > 0, got '12'"),
    ],
)
def test_a_bad_file_of_scores_is_named(tmp_path: Path, scores: str, text: str) -> None:
    (tmp_path / "benchmark2score.json").write_text(scores)
    with pytest.raises(InvalidInputError, match=rf"benchmark2score\.json.*{text}"):
        load_flash(tmp_path, 1)


@pytest.mark.parametrize(
    ("users", "text"),
    [
        ({"a": 3}, "a must be an object, got 3"),
        ({"a": SPEEDS | {"up_sigma": -1}}, "up_sigma of a must be .* got -1"),
        ({"a": {"up_u": 1.0, "up_sigma": 1.0}}, "down_u of a must be .* got None"),
    ],
)
def test_a_bad_file_of_speeds_is_named(
    tmp_path: Path, users: dict[str, object], text: str
) -> None:
    (tmp_path / "speed_distri.json").write_text(json.dumps(users))
    with pytest.raises(InvalidInputError, match=rf"speed_distri\.json: {text}"):
        load_flash_links(tmp_path, 1)


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda folder: load_flash(folder, -1), "count must be .* got -1"),
        (lambda folder: load_flash(folder, 1, seed=-1), "seed must be"),
        (lambda folder: load_flash(folder, 1, 0, -1.0), "seconds_per_partition"),
        (lambda folder: load_flash(folder, 1, exponent=1.5), "exponent .* got 1.5"),
        (lambda folder: load_flash_links(folder, 1, seed=-1), "seed must be"),
        (lambda folder: load_flash_links(folder, -1), "count must be .* got -1"),
        (lambda folder: load_flash_links(folder, 1, seconds=0), "got 0"),
        (lambda folder: synthetic_devices(-1), "count must be .* got -1"),
        (lambda folder: synthetic_devices(1, seed=-1), "seed must be"),
        (lambda folder: synthetic_devices(1, 0, -1.0), "seconds_per_partition"),
    ],
)
def test_bad_input_is_named(
    folder: Path, make: Callable[[Path], object], text: str
) -> None:
    with pytest.raises(InvalidInputError, match=text):
        make(folder)


def test_an_absent_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"benchmark2score\.json"):
        load_flash(tmp_path, 1)
    with pytest.raises(FileNotFoundError, match=r"speed_distri\.json"):
        load_flash_links(tmp_path, 1)
