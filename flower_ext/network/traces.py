"""Throughput traces: measured ones from files, made-up ones, and links of both."""

from __future__ import annotations

import gzip
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path

import numpy as np

from flower_ext.errors import InvalidInputError
from flower_ext.network.keyed import check_seed, deal, keyed_generator
from flower_ext.network.link import Link
from flower_ext.network.rates import TraceRate

__all__ = ["Trace", "load_traces", "synthetic_traces", "trace_links"]

_BYTES_PER_MEGABIT = 1e6 / 8
_TRACE_DRAW = 3
_LINK_DRAW = 4


@dataclass(frozen=True)
class Trace:
    """The throughput of a link over time.

    Parameters
    ----------
    name : str
        Where it was measured.
    times : Sequence[float]
        When each sample begins, in seconds; as for
        :class:`~flower_ext.network.TraceRate`.
    bytes_per_second : Sequence[float]
        The throughput of each sample, at least 0, not everywhere 0.

    Attributes
    ----------
    rate : TraceRate
        Replays the trace from its start.

    Raises
    ------
    InvalidInputError
        If these are not the samples of a trace.
    """

    name: str
    times: Sequence[float] = field(repr=False)
    bytes_per_second: Sequence[float] = field(repr=False)
    rate: TraceRate = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Check the samples and keep copies."""
        rate = TraceRate(self.times, self.bytes_per_second)
        object.__setattr__(self, "times", rate.times)
        object.__setattr__(self, "bytes_per_second", rate.bytes_per_second)
        object.__setattr__(self, "rate", rate)


def load_traces(path: str | PathLike[str]) -> list[Trace]:
    """Read traces from a file of JSON lines, gzipped if its name ends in ``.gz``.

    Each line is an object with ``name``, ``t`` (seconds, increasing) and ``mbps``
    (megabits per second, as many as ``t``): the format into which collections such as
    the Norwegian 3G commutes, FCC broadband and Puffer are brought easily.

    Parameters
    ----------
    path : str | os.PathLike[str]
        The file.

    Returns
    -------
    list[Trace]
        One trace per line, at least one; empty lines do not count.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    InvalidInputError
        If the file has no trace or a line is not one; the message has file and line.
    """
    path = Path(path)
    data = path.read_bytes()
    try:
        text = (gzip.decompress(data) if path.suffix == ".gz" else data).decode()
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise InvalidInputError(f"{path} cannot be read as text: {error}.") from error
    traces = [
        _parse(line, f"{path}, line {number}")
        for number, line in enumerate(text.split("\n"), start=1)
        if line.strip()
    ]
    if not traces:
        raise InvalidInputError(f"{path} has no traces; it needs one per line.")
    return traces


def synthetic_traces(count: int, seed: int = 0, seconds: int = 600) -> list[Trace]:
    """Make up traces that look like a 3G link on the move.

    One sample per second. The logarithm of the rate is an AR(1) process (correlation
    0.9 from one second to the next, standard deviation 0.5) around a level of the
    trace's own, between 0.1 and 0.5 MB/s; now and then (2 % of the seconds) a dip
    begins, of 4 s on average, at a twentieth of the rate.

    Parameters
    ----------
    count : int
        How many, at least 0.
    seed : int (default: 0)
        Keys the draws, at least 0; trace i does not depend on ``count``.
    seconds : int (default: 600)
        How long each lasts before it starts again, at least 1.

    Returns
    -------
    list[Trace]
        The traces, never at rate 0.

    Raises
    ------
    InvalidInputError
        If a parameter is out of range.

    Examples
    --------
    >>> traces = synthetic_traces(2, seed=1)
    >>> [round(sum(t.bytes_per_second) / len(t.times)) for t in traces]
    [331591, 257989]
    """
    if count < 0 or seconds < 1:
        raise InvalidInputError(
            f"count must be at least 0 and seconds at least 1, got {count} and "
            f"{seconds}."
        )
    check_seed(seed)
    return [_synthetic(number, seed, seconds) for number in range(count)]


def trace_links(
    traces: Sequence[Trace],
    count: int,
    seed: int = 0,
    rtt: float = 0.0,
    loss: float = 0.0,
) -> list[Link]:
    """Give each of ``count`` workers a trace, from a random moment of it on.

    Parameters
    ----------
    traces : Sequence[Trace]
        At least one. No two workers have the same while they last.
    count : int
        How many workers, at least 0.
    seed : int (default: 0)
        Keys the draws, at least 0.
    rtt : float (default: 0.0)
        Round-trip time of every link in seconds, finite and at least 0.
    loss : float (default: 0.0)
        Share of the bytes that are sent again, in [0, 1).

    Returns
    -------
    list[Link]
        A link per worker, its trace the rate of both directions.

    Raises
    ------
    InvalidInputError
        If a parameter is out of range.
    """
    if not traces:
        raise InvalidInputError("traces must hold at least one trace.")
    check_seed(seed)
    generator = keyed_generator(seed, _LINK_DRAW)
    rates = [traces[index].rate for index in deal(len(traces), count, generator)]
    return [
        Link(rate.shifted(generator.uniform(0, rate.seconds)), rtt=rtt, loss=loss)
        for rate in rates
    ]


def _parse(line: str, place: str) -> Trace:
    """Return the trace of a line; ``place`` is for the message of an error."""
    try:
        fields = json.loads(line)
        rates = np.asarray(fields["mbps"], np.float64) * _BYTES_PER_MEGABIT
        return Trace(str(fields["name"]), fields["t"], rates.tolist())
    except KeyError as error:
        raise InvalidInputError(
            f"{place}: a trace needs name, t and mbps; {error} is missing."
        ) from error
    except (TypeError, ValueError) as error:
        raise InvalidInputError(f"{place}: not a trace: {error}") from error


def _synthetic(number: int, seed: int, seconds: int) -> Trace:
    """Make up one trace."""
    generator = keyed_generator(seed, _TRACE_DRAW, number)
    level = math.exp(generator.uniform(math.log(0.1e6), math.log(0.5e6)))
    shocks = 0.5 * generator.standard_normal(seconds)
    begins = generator.random(seconds) < 0.02
    lengths = generator.geometric(1 / 4, seconds)
    state, dip_ends, rates = 0.0, 0, []
    for second in range(seconds):
        kept = 0.9 if second else 0.0
        state = kept * state + math.sqrt(1 - kept**2) * float(shocks[second])
        if begins[second]:
            dip_ends = second + int(lengths[second])
        rates.append(level * math.exp(state) * (0.05 if second < dip_ends else 1.0))
    return Trace(f"synthetic-3g-{seed}-{number}", range(seconds), rates)
