"""Traces: read from files, made up, and dealt to workers."""

import gzip
import json
from collections.abc import Callable
from dataclasses import FrozenInstanceError
from pathlib import Path

import numpy as np
import pytest

from flower_ext.errors import InvalidInputError
from flower_ext.network import (
    Trace,
    TraceRate,
    load_traces,
    synthetic_traces,
    trace_links,
)

BUS = {"name": "bus", "t": [0.0, 2.0, 3.0], "mbps": [8.0, 0.0, 4.0]}
TRAM = {"name": "tram", "t": [5, 6], "mbps": [1, 2]}


@pytest.mark.parametrize("name", ["traces.jsonl", "traces.jsonl.gz"])
def test_megabits_become_bytes(tmp_path: Path, name: str) -> None:
    text = f"{json.dumps(BUS)}\n\n{json.dumps(TRAM)}\n".encode()
    path = tmp_path / name
    path.write_bytes(gzip.compress(text) if name.endswith("gz") else text)

    bus, tram = load_traces(path)

    assert bus == Trace("bus", (0.0, 2.0, 3.0), (1e6, 0.0, 0.5e6))
    assert (tram.name, tram.times) == ("tram", (5.0, 6.0))
    assert tram.rate.bytes_between(0.0, 2.0) == 0.375e6
    assert load_traces(str(path)) == [bus, tram]
    with pytest.raises(FrozenInstanceError):
        bus.name = "train"  # type: ignore[misc]


@pytest.mark.parametrize(
    ("line", "text"),
    [
        ("{", "not a trace"),
        ("[1, 2]", "not a trace"),
        ('{"name": "a", "t": [0]}', "'mbps' is missing"),
        ('{"name": "a", "t": [0, 1], "mbps": [1]}', r"\(2,\) and \(1,\)"),
        ('{"name": "a", "t": [0, 0], "mbps": [1, 1]}', "increase"),
        ('{"name": "a", "t": [0, 1], "mbps": [1, -8]}', "got -1000000.0"),
        ('{"name": "a", "t": [0, 1], "mbps": [0, 0]}', "0 everywhere"),
        ('{"name": "a", "t": [0, 1], "mbps": ["x", 0]}', "not a trace"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, line: str, text: str) -> None:
    path = tmp_path / "some.jsonl"
    path.write_text(f"{json.dumps(BUS)}\n{line}\n")
    with pytest.raises(InvalidInputError, match=rf"some\.jsonl, line 2: .*{text}"):
        load_traces(path)


def test_a_file_without_traces_is_named(tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").write_text("\n")
    (tmp_path / "text.jsonl.gz").write_text("not gzipped")
    with pytest.raises(InvalidInputError, match=r"empty\.jsonl has no traces"):
        load_traces(tmp_path / "empty.jsonl")
    with pytest.raises(InvalidInputError, match=r"text\.jsonl\.gz cannot be read"):
        load_traces(tmp_path / "text.jsonl.gz")
    with pytest.raises(FileNotFoundError, match=r"none\.jsonl"):
        load_traces(tmp_path / "none.jsonl")


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("norway_3g_hsdpa", 80),
        ("fcc_broadband", 196),
        ("puffer_220218_first100", 100),
    ],
)
def test_measured_traces(measured_data: Path, name: str, count: int) -> None:
    traces = load_traces(measured_data / "traces" / f"{name}.jsonl.gz")
    assert len({trace.name for trace in traces}) == count
    for trace in traces[::10]:
        rate = trace.rate
        mean = rate.bytes_between(0.0, rate.seconds) / rate.seconds
        assert 0.01e6 < mean < 1e6
        sent = rate.bytes_between(3.0, 3.0 + rate.seconds_for(1e6, at=3.0))
        assert sent == pytest.approx(1e6)


def test_synthetic_traces_look_like_3g() -> None:
    traces = synthetic_traces(40, seed=2, seconds=500)
    rates = np.array([trace.bytes_per_second for trace in traces])
    assert rates.shape == (40, 500)
    assert rates.min() > 0
    medians = np.median(rates, axis=1)
    assert medians.min() > 0.05e6
    assert medians.max() < 1e6
    assert medians.max() > 2 * medians.min()
    # Dips: 8 % of the seconds or so, less where they overlap.
    dips = (rates < medians[:, None] / 8).mean()
    assert 0.03 < dips < 0.13
    # One second resembles the next.
    logs = np.log(rates)
    steps = [np.corrcoef(row[:-1], row[1:])[0, 1] for row in logs]
    assert np.mean(steps) > 0.6
    assert synthetic_traces(3, seed=2, seconds=500) == traces[:3]
    assert synthetic_traces(1, seed=3, seconds=500) != traces[:1]
    assert len({trace.name for trace in traces}) == 40


def test_workers_get_distinct_traces_while_they_last() -> None:
    traces = synthetic_traces(5, seconds=100)
    links = trace_links(traces, 12, seed=1, rtt=0.1, loss=0.25)

    rates = [link.up for link in links]
    assert all(isinstance(rate, TraceRate) for rate in rates)
    owners = [
        [trace.bytes_per_second for trace in traces].index(rate.bytes_per_second)
        for rate in rates
        if isinstance(rate, TraceRate)
    ]
    assert sorted(owners[:5]) == sorted(owners[5:10]) == [0, 1, 2, 3, 4]
    offsets = [rate.offset for rate in rates if isinstance(rate, TraceRate)]
    assert len(set(offsets)) == 12
    assert 0 <= min(offsets) < 40
    assert 60 < max(offsets) < 100
    assert {(link.rtt, link.loss) for link in links} == {(0.1, 0.25)}
    assert links == trace_links(traces, 12, seed=1, rtt=0.1, loss=0.25)
    assert links != trace_links(traces, 12, seed=2, rtt=0.1, loss=0.25)


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: Trace("a", [], []), "at least one"),
        (lambda: synthetic_traces(-1), "count must be .* got -1"),
        (lambda: synthetic_traces(1, seconds=0), "and 0"),
        (lambda: synthetic_traces(1, seed=-1), "seed must be"),
        (lambda: trace_links([], 1), "at least one trace"),
        (lambda: trace_links(synthetic_traces(1), -1), "count must be .* got -1"),
        (lambda: trace_links(synthetic_traces(1), 1, seed=-1), "seed must be"),
    ],
)
def test_bad_input_is_named(make: Callable[[], object], text: str) -> None:
    with pytest.raises(InvalidInputError, match=text):
        make()
