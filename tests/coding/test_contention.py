"""Who should send on a shared carrier: by hand, and against the carrier itself."""

import itertools
import math
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from flower_ext.coding.allocation import balance
from flower_ext.coding.contention import Airtime
from flower_ext.errors import InvalidInputError
from flower_ext.network import Link, SharedCarrier

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

POSITIVE = st.floats(0.05, 20.0)


def equals(seconds: Sequence[float], before: Sequence[float] = ()) -> Airtime:
    """Airtime of workers 0, 1, ... that share equally."""
    return Airtime(
        dict(enumerate(seconds)),
        dict.fromkeys(range(len(seconds)), 1.0),
        dict(enumerate(before)),
    )


def last_upload(computed: Floats, air: Floats, loads: Ints) -> float:
    """Return when all have sent that have a load, first come, first served."""
    free = 0.0
    for k in np.argsort(computed, kind="stable"):
        if loads[k] > 0:
            free = max(free, float(computed[k])) + float(air[k])
    return free


def test_two_uploads_by_hand() -> None:
    # At 3/4 the first has its second of airtime after 4/3 s; the second is left with
    # 2/3 of its own, and with everything.
    airtime = Airtime({7: 1.0, 8: 1.0}, {7: 3.0, 8: 1.0}, {8: 10.0})
    assert airtime.upload_seconds([7, 8]) == pytest.approx({7: 4 / 3, 8: 12.0})
    assert airtime.upload_seconds([8]) == {8: 11.0}
    assert airtime.upload_seconds([]) == {}


@given(st.lists(st.tuples(POSITIVE, POSITIVE), min_size=1, max_size=8))
@settings(max_examples=100, deadline=None)
def test_uploads_take_what_the_carrier_says(workers: list[tuple[float, float]]) -> None:
    airtime = Airtime(
        {w: seconds for w, (seconds, _) in enumerate(workers)},
        {w: share for w, (_, share) in enumerate(workers)},
    )
    carrier = SharedCarrier()
    for worker, (seconds, share) in enumerate(workers):
        rate = 10.0 * (1 + worker)
        carrier.add(worker, 0.0, rate * seconds, Link(rate), share)
    done = {}
    while completion := carrier.next(math.inf):
        done[completion[0]] = completion[1]

    expected = airtime.upload_seconds(range(len(workers)))
    assert done == pytest.approx(expected, rel=1e-7)


def test_uploads_follow_each_other_without_a_gap() -> None:
    # The largest product of airtime and seconds per partition goes first: worker 1
    # computes 2, sends in [2, 5]; worker 0 computes 5, sends in [5, 6].
    loads, uploads = equals([1.0, 3.0]).share_out([0, 1], 7, np.array([1.0, 1.0]))
    assert loads.tolist() == [5, 2]
    assert uploads.tolist() == [1.0, 3.0]


def test_a_worker_whose_upload_costs_more_than_it_saves_is_left_out() -> None:
    # Both: 4 partitions each, 10 s. Worker 0 alone: 8 s and half a second.
    loads, uploads = equals([0.5, 9.0]).share_out([0, 1], 8, np.array([1.0, 1.0]))
    assert loads.tolist() == [8, 0]
    assert uploads.tolist() == [0.5, 0.0]


def test_who_begins_later_computes_less() -> None:
    # Worker 1 has its download after 3 s, and has computed in the fourth.
    airtime = equals([1.0, 1.0], before=[0.0, 3.0])
    loads, uploads = airtime.share_out([0, 1], 6, np.array([1.0, 1.0]))
    assert loads.tolist() == [4, 2]
    assert uploads.tolist() == [1.0, 4.0]


def test_limits_push_work_to_others() -> None:
    loads, _ = equals([0.5, 9.0]).share_out(
        [0, 1], 8, np.array([1.0, 1.0]), np.array([5, 8])
    )
    assert loads.tolist() == [5, 3]
    loads, _ = equals([1.0] * 3).share_out(
        [2, 0, 1], 3, np.ones(3), np.array([0, 2, 9])
    )
    assert loads[0] == 0


def test_whole_partitions_too_coarse_to_stagger_are_balanced() -> None:
    # Worker 0 should go first, but is the last to have computed one: by order, worker
    # 1 does both, in 2.24 + 0.68 s. One each: worker 1 by 1.80, worker 0 by 2.47 s.
    loads, _ = equals([0.6, 0.68]).share_out([0, 1], 2, np.array([1.87, 1.12]))
    assert loads.tolist() == [1, 1]


def instance(seed: int) -> tuple[int, Floats, Floats, Floats, Ints]:
    """Return work, airtime, seconds per partition, a head start and limits."""
    rng = np.random.default_rng(seed)
    count, work = int(rng.integers(1, 12)), int(rng.integers(1, 30))
    limits = rng.integers(0, work + 1, count)
    while limits.sum() < work:
        limits[rng.integers(count)] += 1
    return (
        work,
        10 ** rng.uniform(-2, 1, count),
        10 ** rng.uniform(-1, 1, count),
        rng.uniform(0, 3, count) * rng.choice([0, 1]),
        limits if rng.random() < 0.5 else np.full(count, work),
    )


@given(st.integers(0, 2**32))
@settings(max_examples=100, deadline=None)
def test_all_work_within_the_limits_and_no_later_than_balanced(seed: int) -> None:
    work, air, seconds, before, limits = instance(seed)
    everybody = range(len(air))
    airtime = equals(air.tolist(), before.tolist())
    loads, uploads = airtime.share_out(everybody, work, seconds, limits)

    assert loads.sum() == work
    assert ((loads >= 0) & (loads <= limits)).all()
    end = last_upload(before + loads * seconds, air, loads)
    assert (loads * seconds + uploads).max() == pytest.approx(end)
    assert (uploads[loads > 0] >= (before + air)[loads > 0] * (1 - 1e-9)).all()
    assert not uploads[loads == 0].any()
    even = balance(work, seconds, before + air, limits)
    assert end <= last_upload(before + even * seconds, air, even) * (1 + 1e-9)


def compositions(work: int, count: int) -> list[Ints]:
    """Return all ways to give so many workers the work."""
    loads = itertools.product(range(work + 1), repeat=count)
    return [np.array(row) for row in loads if sum(row) == work]


def test_how_far_from_the_optimum() -> None:
    """Exact for crews in the order of the products; over all loads, nearly so."""
    ratios = []
    for seed in range(150):
        rng = np.random.default_rng(seed)
        count, work = int(rng.integers(1, 5)), int(rng.integers(1, 7))
        air, seconds = rng.uniform(0.1, 3, count), rng.uniform(0.1, 3, count)
        loads, _ = equals(air.tolist()).share_out(range(count), work, seconds)
        end = last_upload(loads * seconds, air, loads)

        every = compositions(work, count)
        best = min(last_upload(row * seconds, air, row) for row in every)
        ratios.append(end / best)
        ranked = np.argsort(air + max(work / count, 1.0) * seconds, kind="stable")
        for size in range(1, count + 1):
            crew = ranked[:size]
            crew = crew[np.argsort(-air[crew] * seconds[crew], kind="stable")]
            to_come = np.cumsum(air[crew][::-1])[::-1]
            for row in every:
                if row.sum() == row[crew].sum() and row[crew].all():
                    in_order = (row[crew] * seconds[crew] + to_come).max()
                    assert end <= in_order * (1 + 1e-9)
    assert np.mean(np.array(ratios) < 1 + 1e-9) > 0.95
    assert np.mean(ratios) < 1.005
    assert max(ratios) < 1.25


def test_a_crew_is_as_large_as_shortens_the_round() -> None:
    # Four equal workers, four partitions of 2 s. With uploads of 3 s, one is done after
    # 8 + 3 s, two after 4 + 6, three after 2 + 9, and all after 2 + 12.
    for air, size in ((0.1, 4), (3.0, 2), (9.0, 1)):
        crew = equals([air] * 4).crew(range(4), 4, np.full(4, 2.0), redundancy=0)
        assert len(crew) == size
    # Whoever is faster, or sends faster, is chosen.
    slow, fast = np.ones(4), np.array([1.0, 0.5, 1.0, 1.0])
    assert equals([9.0] * 4).crew(range(4), 4, fast, 0) == [1]
    airtime = equals([9.0, 9.0, 9.0, 8.0])
    assert airtime.crew(range(4), 4, slow, 0) == [3]
    assert airtime.crew([2, 3], 4, slow[:2], 0) == [1]  # an index


@given(st.integers(0, 2**32))
@settings(max_examples=50, deadline=None)
def test_a_crew_holds_whole_sets_of_copies(seed: int) -> None:
    work, air, seconds, before, _ = instance(seed)
    redundancy = seed % len(air)
    crew = equals(air.tolist(), before.tolist()).crew(
        range(len(air)), work, seconds, redundancy
    )
    assert len(set(crew)) == len(crew)
    assert len(crew) % (redundancy + 1) == 0
    assert 0 < len(crew) <= work * (redundancy + 1)


@pytest.mark.parametrize(
    ("seconds", "shares", "before", "message"),
    [
        ({0: 1.0, 2: 1.0}, {0: 1.0}, {}, r"seconds \[0, 2\] and in shares \[0\]"),
        ({3: 0.0}, {3: 1.0}, {}, r"seconds of worker 3 .* got 0\.0"),
        ({3: math.inf}, {3: 1.0}, {}, "seconds of worker 3 .* got inf"),
        ({3: 1.0}, {3: 0.0}, {}, r"shares of worker 3 .* got 0\.0"),
        ({3: 1.0}, {3: math.nan}, {}, "shares of worker 3 .* got nan"),
        ({3: 1.0}, {3: 1.0}, {3: -1.0}, r"before of worker 3 .* got -1\.0"),
        ({3: 1.0}, {3: 1.0}, {3: math.inf}, "before of worker 3 .* got inf"),
    ],
)
def test_bad_input_is_named(
    seconds: dict[int, float],
    shares: dict[int, float],
    before: dict[int, float],
    message: str,
) -> None:
    with pytest.raises(InvalidInputError, match=message):
        Airtime(seconds, shares, before)
