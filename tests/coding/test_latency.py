"""Expected round times: against closed forms, the real codes and drawn rounds.

The drawn rounds are those of experiments/latency.py, which compares more of them.
"""

import importlib.util
import itertools
import math
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from scipy import stats

from flower_ext.coding import (
    CyclicRepetition,
    FractionalRepetition,
    Uncoded,
    UndecodableError,
    decode,
)
from flower_ext.coding.gradient_code import GradientCode
from flower_ext.coding.latency import RoundLatency, cyclic, fractional, uncoded
from flower_ext.coding.latency_choice import best_for_deadline, best_two_stage
from flower_ext.coding.latency_late import Chunk, Component
from flower_ext.coding.latency_times import (
    Duration,
    WorkerTimes,
    constant_duration,
    rayleigh_upload,
    shifted_exponential,
)
from flower_ext.coding.latency_two_stage import balanced_loads, two_stage
from flower_ext.errors import InvalidInputError

UNLIKE = (0.5, 0.8, 1.0, 1.3, 2.0, 3.0)


@pytest.fixture(scope="module")
def drawn() -> Iterator[ModuleType]:
    """Load the experiment, whose simulation shares nothing with the analysis."""
    folder = Path(__file__).parents[2] / "experiments"
    spec = importlib.util.spec_from_file_location(
        "latency_experiment", folder / "latency.py"
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    sys.path.insert(0, str(folder))
    try:
        spec.loader.exec_module(module)
        yield module
    finally:
        sys.path.remove(str(folder))
        del sys.modules[spec.name]


def make_worker(
    shift: float = 0.0, mean: float = 1.0, upload: Duration | None = None
) -> WorkerTimes:
    return WorkerTimes(
        partial(shifted_exponential, shift=shift, mean=mean),
        upload or constant_duration(0.0),
    )


# -- laws -----------------------------------------------------------------------------


def test_computing_is_erlang_or_one_exponential() -> None:
    seconds = np.array([0.5, 3.5, 4.0, 9.0])

    many = shifted_exponential(3, shift=1.0, mean=0.5).cdf(seconds)
    one = shifted_exponential(3, 1.0, 0.5, per_partition=False).cdf(seconds)

    np.testing.assert_allclose(many, stats.gamma.cdf(seconds - 3.0, 3, scale=0.5))
    np.testing.assert_allclose(one, stats.expon.cdf(seconds - 3.0, scale=1.5))


@pytest.mark.parametrize("least_rate", [1e3, 1e5, 3e6])
def test_mean_upload_is_the_area_above_the_distribution(least_rate: float) -> None:
    upload = rayleigh_upload(2e5, bandwidth=1e6, snr=10.0, least_rate=least_rate)
    times = np.geomspace(1e-3, 8 * 2e5 / least_rate, 100_001)

    area = times[0] + np.trapezoid(1.0 - upload.cdf(times), times)

    assert upload.mean == pytest.approx(area, rel=2e-4)


def test_upload_is_that_of_a_channel_coherent_for_longer_than_an_upload() -> None:
    rayleigh = pytest.importorskip("flower_ext.network.rayleigh")
    channel = partial(
        rayleigh.RayleighRate,
        bandwidth=1e6,
        power=0.1,
        path_loss_db=120.0,
        coherence_seconds=1e6,
        least_rate=1e5,
    )
    upload = rayleigh_upload(2e5, 1e6, channel().snr, 1e5)
    draws = [channel(seed=seed).seconds_for(2e5, 0.0) for seed in range(400)]

    assert stats.kstest(draws, upload.cdf).pvalue > 0.01


def test_sum_of_computing_and_uploading() -> None:
    upload = rayleigh_upload(2e5, 1e6, 10.0, 1e5)
    arrival = make_worker(0.5, 1.0, upload).arrival(3)

    mean = arrival.times[0] + np.trapezoid(1.0 - arrival.probability, arrival.times)

    assert mean == pytest.approx(4.5 + upload.mean, rel=1e-3)
    assert arrival.computed[-1] == pytest.approx(4.5, rel=1e-4)


def test_any_law_can_be_put_in() -> None:
    uniform = Duration(lambda t: np.clip(t, 0.0, 1.0), mean=0.5)
    worker = WorkerTimes(lambda load: uniform, constant_duration(1.0))

    latency = uncoded([worker] * 3, partitions=3)

    assert latency.time.mean == pytest.approx(1.0 + 3 / 4, rel=1e-4)
    assert latency.known_by(1.25) == pytest.approx(0.25, abs=1e-3)


def test_constant_times_add_up() -> None:
    worker = make_worker(shift=2.0, mean=0.0, upload=constant_duration(3.0))

    latency = uncoded([worker] * 2, partitions=4)

    assert latency.time.mean == pytest.approx(7.0)
    assert latency.computation == pytest.approx(4.0)


# -- one stage ------------------------------------------------------------------------


def test_largest_of_exponential_times_has_a_harmonic_mean() -> None:
    for n in (1, 4, 30):
        latency = uncoded([make_worker()] * n, partitions=n)
        assert latency.time.mean == pytest.approx(
            sum(1 / i for i in range(1, n + 1)), rel=1e-3
        )


@pytest.mark.parametrize(
    ("code", "analysis"),
    [
        (Uncoded(6), uncoded),
        (CyclicRepetition(6, 1), partial(cyclic, stragglers=1, early=True)),
        (CyclicRepetition(6, 2), partial(cyclic, stragglers=2, early=True)),
        (FractionalRepetition(6, 1), partial(fractional, stragglers=1)),
        (FractionalRepetition(6, 2), partial(fractional, stragglers=2)),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, GradientCode) else "",
)
def test_probability_to_decode_is_that_of_the_real_code(
    code: GradientCode, analysis: Callable[..., RoundLatency]
) -> None:
    workers = [make_worker(0.1 * p, p) for p in UNLIKE]
    load = np.count_nonzero(code.matrix[0])
    at = 1.6 * load
    by = [float(w.arrival(int(load)).by(np.array(at))) for w in workers]

    total = 0.0
    for arrived in itertools.product((False, True), repeat=6):
        rows = np.flatnonzero(arrived)
        try:
            decode(code.matrix, rows.tolist())
        except UndecodableError:
            continue
        total += math.prod(
            p if here else 1 - p for p, here in zip(by, arrived, strict=True)
        )

    latency = analysis(workers, 6)
    assert 0.05 < total < 0.99
    assert float(latency.time.cdf(np.array(at))) == pytest.approx(total, abs=2e-3)
    assert latency.work == load


def test_cyclic_code_waits_for_all_but_s() -> None:
    """The sum of 1/i from s + 1 to n, the mean of an order statistic."""
    worker = WorkerTimes(
        lambda load: shifted_exponential(1, 0.0, 1.0), constant_duration(0.0)
    )
    for n, s in ((5, 1), (5, 2), (12, 3)):
        latency = cyclic([worker] * n, n, s)
        expected = sum(1 / i for i in range(s + 1, n + 1))
        assert latency.time.mean == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("rayleigh", [False, True])
@pytest.mark.parametrize("pace", [(1.0,) * 4, UNLIKE, (1.0,) * 12])
def test_one_stage_rounds_are_as_drawn(
    drawn: ModuleType, pace: tuple[float, ...], rayleigh: bool
) -> None:
    fleet = drawn.Fleet("", pace, 2 * len(pace), rayleigh)
    rng = np.random.default_rng([len(pace), rayleigh])
    times, n, k = fleet.times(), len(pace), fleet.partitions
    cases = [("uncoded", 0, uncoded(times, k))]
    cases += [("cyclic", s, cyclic(times, k, s)) for s in (1, 2, 3)]
    cases += [
        ("fractional", s, fractional(times, k, s))
        for s in (1, 2, 3)
        if n % (s + 1) == 0
    ]
    for scheme, s, latency in cases:
        deadline = latency.time.mean
        rounds = drawn.one_stage(fleet, scheme, s, deadline, rng, 60_000)
        line = drawn.line(fleet, scheme, latency, rounds, deadline)
        assert len(line.values) == 5
        assert line.worst < 0.02, (scheme, s, line.values)


def test_loads_need_not_be_equal() -> None:
    workers = [make_worker(1.0, 0.0), make_worker(3.0, 0.0)]

    assert uncoded(workers, 4, loads=[3, 1]).time.mean == pytest.approx(3.0)
    assert balanced_loads(workers, 4).tolist() == [3, 1]


def test_groups_of_a_fractional_code_may_differ_in_size() -> None:
    latency = fractional([make_worker(1.0, 0.0)] * 4, partitions=5, stragglers=1)

    assert latency.time.mean == pytest.approx(3.0)
    assert latency.known_by(2.5) == pytest.approx(2 / 5)
    assert latency.work == 2.0


# -- two stages -----------------------------------------------------------------------


def test_two_workers_take_over_from_each_other() -> None:
    """Exponential beyond 1 s, T₁ = 2: the four cases by hand."""
    q = math.exp(-1.0)
    none_late = 2.0 - (1 - 2 * (1 - q) + (1 - q**2) / 2) / (1 - q) ** 2
    one_late = 2.0 + (1 - q) + q / 2  # min(rest, 1 + another)
    both_late = 2.0 + 1.5

    latency = two_stage([make_worker(1.0, 1.0)] * 2, 2, stop=2.0, redundancy=0)

    mean = (1 - q) ** 2 * none_late + 2 * q * (1 - q) * one_late + q**2 * both_late
    assert latency.time.mean == pytest.approx(mean, rel=1e-3)
    assert latency.work == pytest.approx(1 + q * (1 - q), rel=1e-3)
    assert latency.transmission == pytest.approx(0.0, abs=2e-3)


@pytest.mark.parametrize(
    ("pace", "partitions", "rayleigh", "per_partition"),
    [
        ((1.0,) * 5, 13, False, True),
        ((1.0,) * 10, 20, True, False),
        (UNLIKE, 18, True, True),
    ],
)
def test_two_stage_rounds_are_as_drawn(
    drawn: ModuleType,
    pace: tuple[float, ...],
    partitions: int,
    rayleigh: bool,
    per_partition: bool,
) -> None:
    fleet = drawn.Fleet("", pace, partitions, rayleigh, per_partition=per_partition)
    rng = np.random.default_rng(partitions)
    times = fleet.times()
    loads = balanced_loads(times, partitions).tolist()
    plain = uncoded(times, partitions, loads).time.mean
    for share, redundancy in ((0.5, 0), (0.6, 1), (0.8, 2)):
        latency = two_stage(times, partitions, share * plain, redundancy)
        rounds = drawn.two_stages(fleet, share * plain, redundancy, plain, rng, 2500)
        line = drawn.line(fleet, "two-stage", latency, rounds, plain)
        assert line.worst < 0.05, (share, redundancy, line.values)
        split = latency.computation + latency.transmission
        assert split == pytest.approx(latency.time.mean)


def test_known_partitions_are_those_of_jobs_first_and_then_of_free_chunks() -> None:
    """Jobs {0, 1} and {2}, chunks {0} and {1, 2}: all sixteen cases."""
    chances = (0.5, 0.3, 0.6, 0.8)
    jobs = [(np.array([p]), np.zeros(1)) for p in chances[:2]]
    rows = [[(np.array([p]), np.zeros(1))] for p in chances[2:]]
    component = Component(
        [2, 1], jobs, [Chunk(1, [0], rows[0]), Chunk(2, [0, 1], rows[1])]
    )

    total = 0.0
    for here in itertools.product((False, True), repeat=4):
        first, second, left, right = here
        known = 2 * first + second
        known += left * (not first) + 2 * right * (not (first or second))
        if left and right:
            known = 3
        total += known * math.prod(
            p if h else 1 - p for p, h in zip(chances, here, strict=True)
        )

    assert component.known()[0] == pytest.approx(total)


def test_without_a_second_stage_it_is_uncoded() -> None:
    workers = [make_worker(0.2, p) for p in UNLIKE]
    loads = balanced_loads(workers, 12).tolist()

    never = two_stage(workers, 12, math.inf, 1)
    hardly = two_stage(workers, 12, 1e3, 1)
    plain = uncoded(workers, 12, loads)

    assert never.time.mean == plain.time.mean
    assert hardly.time.mean == pytest.approx(plain.time.mean, rel=1e-6)
    assert hardly.computation == pytest.approx(plain.computation, rel=1e-3)


def test_too_many_sets_of_late_workers_are_sampled() -> None:
    workers = [make_worker(0.5, 1.0 + 0.05 * i) for i in range(8)]
    every, some = (two_stage(workers, 16, 4.0, 1, most_sets=sets) for sets in (256, 64))

    assert some.time.mean == pytest.approx(every.time.mean, rel=0.01)
    assert some.work == pytest.approx(every.work, rel=0.01)


# -- choices --------------------------------------------------------------------------


@pytest.mark.parametrize("budget", [1.15, math.inf])
def test_no_other_choice_within_the_budget_is_better(budget: float) -> None:
    workers = [make_worker(0.5, 1.0, constant_duration(0.5))] * 8
    fastest = best_two_stage(workers, 16, budget)
    fullest = best_for_deadline(workers, 16, 4.0, budget)

    assert max(fastest.latency.work, fullest.latency.work) <= budget
    for stop in np.linspace(1.0, 10.0, 37):
        for redundancy in range(3):
            other = two_stage(workers, 16, float(stop), redundancy)
            if other.work <= budget:
                assert fastest.latency.time.mean < 1.002 * other.time.mean
                assert fullest.latency.known_by(4.0) > other.known_by(4.0) - 2e-3


def test_without_a_budget_for_repetition_nothing_is_repeated() -> None:
    workers = [make_worker(0.5, 1.0)] * 4

    assert best_two_stage(workers, 8, budget=1.0).stop == math.inf


# -- refusals -------------------------------------------------------------------------

WORKERS = [make_worker()] * 4


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: shifted_exponential(1, -1.0, 1.0), "shift must be a finite number"),
        (lambda: shifted_exponential(-1, 1.0, 1.0), "load"),
        (lambda: rayleigh_upload(1e5, 1e6, 10.0, 0.0), "least_rate must be positive"),
        (lambda: constant_duration(-1.0), "mean must be"),
        (lambda: uncoded([], 4), "number of workers"),
        (lambda: uncoded(WORKERS, 4, [1, 1, 1, 2]), "sum to 4"),
        (lambda: uncoded(WORKERS, 0), "partitions"),
        (lambda: cyclic(WORKERS, 4, 4), "stragglers"),
        (lambda: cyclic(WORKERS, 4, 2, early=True), "early needs"),
        (lambda: fractional(WORKERS, 4, 2), "divide the workers"),
        (lambda: two_stage(WORKERS, 4, -1.0, 0), "stop must be"),
        (lambda: two_stage(WORKERS, 4, math.nan, 0), "stop must be"),
        (lambda: two_stage(WORKERS, 4, 1.0, -1), "redundancy"),
        (lambda: best_two_stage(WORKERS, 4, budget=0.5), "budget must be at least 1"),
        (lambda: best_for_deadline(WORKERS, 4, 0.0), "deadline must be"),
        (
            lambda: WorkerTimes(
                lambda load: Duration(lambda t: np.where(t > 1.0, 0.5, 0.0), 1.0),
                WORKERS[0].upload,
            ).arrival(1),
            "must rise to 1",
        ),
    ],
)
def test_what_cannot_be_is_refused(call: Callable[[], object], message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        call()
