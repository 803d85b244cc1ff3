"""Fleets of devices and their links: from measurements of phones, or made up.

The measurements are those that FLASH publishes: Yang et al., "Characterizing Impacts
of Heterogeneity in Federated Learning upon Large-Scale Smartphone Data" (WWW 2021,
arXiv:2006.06983), in two JSON files of its repository.
"""

from __future__ import annotations

import json
import math
from os import PathLike
from pathlib import Path

import numpy as np

from flower_ext.errors import InvalidInputError
from flower_ext.network.delays import check_seconds
from flower_ext.network.device import Device
from flower_ext.network.harvest import Harvest
from flower_ext.network.keyed import check_seed, deal, keyed_generator
from flower_ext.network.link import Link
from flower_ext.network.rates import TraceRate

__all__ = ["load_flash", "load_flash_links", "synthetic_devices"]

_DEVICE_DRAW = 6
_LINK_DRAW = 7
_SPEED_DRAW = 8


def load_flash(
    folder: str | PathLike[str],
    count: int,
    seed: int = 0,
    seconds_per_partition: float = 1.0,
    exponent: float = 0.5,
    compute_watts: float = 3.0,
    transmit_watts: float = 1.5,
    capacity_joules: float = math.inf,
    harvest: Harvest | float = 0.0,
) -> list[Device]:
    """Make each of ``count`` workers a phone of the AI Benchmark.

    A phone of score b trains on a partition in ``seconds_per_partition * (median /
    b) ** exponent`` seconds. Scores span 212 to 76,206, a factor of 360, because the
    high ones are those of accelerators for inference, of which training on the CPU has
    nothing. The square root is a choice, not a measurement: it keeps the order of the
    phones and leaves a factor of 19 between the extremes, of 3 between the quartiles.

    Parameters
    ----------
    folder : str | os.PathLike[str]
        Has ``benchmark2score.json``: an object of phone -> score (> 0).
    count : int
        How many workers, at least 0. No two have the same phone while they last.
    seed : int (default: 0)
        Keys the draws, at least 0.
    seconds_per_partition : float (default: 1.0)
        Seconds per partition of a phone of median score, finite and at least 0.
    exponent : float (default: 0.5)
        In [0, 1]: 0 makes all phones equal, 1 takes the scores for speeds.
    compute_watts : float (default: 3.0)
        Power of every phone while it trains: 2 to 4 W for the big cores of its CPU.
    transmit_watts : float (default: 1.5)
        Power while it sends: 1 to 2 W over a mobile network.
    capacity_joules : float (default: inf)
        What every battery holds, at least 0; all start full.
    harvest : Harvest | float (default: 0.0)
        The energy that comes in to every phone: a model, or constant watts.

    Returns
    -------
    list[Device]
        The workers' devices.

    Raises
    ------
    FileNotFoundError
        If the folder has no such file.
    InvalidInputError
        If a parameter is out of range or the file is not as described.
    """
    check_seed(seed)
    check_seconds("seconds_per_partition", seconds_per_partition)
    if not 0 <= exponent <= 1:
        raise InvalidInputError(f"exponent must lie in [0, 1], got {exponent}.")
    path = Path(folder) / "benchmark2score.json"
    table = _read(path)
    scores = np.array([_number(path, phone, value) for phone, value in table.items()])
    factors = (np.median(scores) / scores) ** exponent
    dealt = deal(len(scores), count, keyed_generator(seed, _DEVICE_DRAW))
    return [
        Device(
            seconds_per_partition * float(factors[index]),
            compute_watts,
            transmit_watts,
            capacity_joules,
            harvest,
        )
        for index in dealt
    ]


def load_flash_links(
    folder: str | PathLike[str],
    count: int,
    seed: int = 0,
    rtt: float = 0.0,
    loss: float = 0.0,
    seconds: int = 600,
) -> list[Link]:
    """Give each of ``count`` workers the link of a user whose speed was measured.

    A user's speed in each second is a normal draw with the measured mean and standard
    deviation, drawn again until it is positive (so the mean rises a little where the
    deviation is large), independently each second and in each direction. After
    ``seconds`` the draws start again. One kB is 1000 bytes.

    Parameters
    ----------
    folder : str | os.PathLike[str]
        Has ``speed_distri.json``: an object of user -> ``up_u``, ``up_sigma``,
        ``down_u``, ``down_sigma`` in kB/s, each above 0.
    count : int
        How many workers, at least 0. No two have the same user while they last, and
        no two the same draws.
    seed : int (default: 0)
        Keys the draws, at least 0.
    rtt : float (default: 0.0)
        Round-trip time of every link in seconds, finite and at least 0.
    loss : float (default: 0.0)
        Share of the bytes that are sent again, in [0, 1).
    seconds : int (default: 600)
        How many seconds are drawn, at least 1.

    Returns
    -------
    list[Link]
        The workers' links.

    Raises
    ------
    FileNotFoundError
        If the folder has no such file.
    InvalidInputError
        If a parameter is out of range or the file is not as described.
    """
    check_seed(seed)
    if seconds < 1:
        raise InvalidInputError(f"seconds must be at least 1, got {seconds}.")
    path = Path(folder) / "speed_distri.json"
    users = [_moments(path, user, fields) for user, fields in _read(path).items()]
    links = []
    dealt = deal(len(users), count, keyed_generator(seed, _LINK_DRAW))
    for worker, index in enumerate(dealt):
        generator = keyed_generator(seed, _SPEED_DRAW, worker)
        up, down = (
            TraceRate(range(seconds), _positive_normal(generator, *moments, seconds))
            for moments in users[index]
        )
        links.append(Link(up, down, rtt, loss))
    return links


def synthetic_devices(
    count: int,
    seed: int = 0,
    seconds_per_partition: float = 1.0,
    compute_watts: float = 3.0,
    transmit_watts: float = 1.5,
    capacity_joules: float = math.inf,
    harvest: Harvest | float = 0.0,
) -> list[Device]:
    """Make up phones as diverse as those of :func:`load_flash`.

    The seconds per partition are log-normal with standard deviation 0.6 (of the
    logarithm): 95 % of the phones lie within a factor of 3.2 of the median.

    Parameters
    ----------
    count : int
        How many, at least 0.
    seed : int (default: 0)
        Keys the draws, at least 0; device i does not depend on ``count``.
    seconds_per_partition : float (default: 1.0)
        The median, finite and at least 0.
    compute_watts, transmit_watts, capacity_joules, harvest
        As for :func:`load_flash`.

    Returns
    -------
    list[Device]
        The devices.

    Raises
    ------
    InvalidInputError
        If a parameter is out of range.
    """
    check_seed(seed)
    check_seconds("seconds_per_partition", seconds_per_partition)
    if count < 0:
        raise InvalidInputError(f"count must be at least 0, got {count}.")
    logs = keyed_generator(seed, _DEVICE_DRAW).normal(0.0, 0.6, count)
    return [
        Device(
            seconds_per_partition * math.exp(log),
            compute_watts,
            transmit_watts,
            capacity_joules,
            harvest,
        )
        for log in logs.tolist()
    ]


def _read(path: Path) -> dict[str, object]:
    """Return the JSON object in a file, which must have an entry."""
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InvalidInputError(f"{path} is not JSON: {error}.") from error
    if not isinstance(table, dict) or not table:
        raise InvalidInputError(f"{path} must hold a JSON object with entries.")
    return table


def _number(path: Path, name: str, value: object) -> float:
    """Return a positive number of a file."""
    if not isinstance(value, int | float) or not 0 < value < math.inf:
        raise InvalidInputError(
            f"{path}: {name} must be a finite number > 0, got {value!r}."
        )
    return float(value)


def _moments(path: Path, user: str, fields: object) -> list[tuple[float, float]]:
    """Return mean and standard deviation up, then down, in bytes per second."""
    if not isinstance(fields, dict):
        raise InvalidInputError(f"{path}: {user} must be an object, got {fields!r}.")

    def read(name: str) -> float:
        return 1e3 * _number(path, f"{name} of {user}", fields.get(name))

    return [(read(f"{way}_u"), read(f"{way}_sigma")) for way in ("up", "down")]


def _positive_normal(
    generator: np.random.Generator, mean: float, deviation: float, count: int
) -> list[float]:
    """Draw from a normal distribution of positive mean, again until all are > 0."""
    draws = generator.normal(mean, deviation, count)
    while (low := draws <= 0).any():
        draws[low] = generator.normal(mean, deviation, int(low.sum()))
    return [float(draw) for draw in draws]
