"""The shared carrier: textbook processor sharing, bytes and airtime conserved."""

import math
from collections.abc import Callable, Hashable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flower_ext.errors import InvalidInputError
from flower_ext.network import Link, SharedCarrier, TraceRate

LINK = Link(100.0)
GAPPY = TraceRate((0.0, 1.0, 3.0), (50.0, 0.0, 200.0))


def drain(carrier: SharedCarrier, until: float = math.inf) -> dict[Hashable, float]:
    done: dict[Hashable, float] = {}
    while completion := carrier.next(until):
        assert completion[1] >= max(done.values(), default=0.0)
        assert carrier.now == completion[1]
        done[completion[0]] = completion[1]
    return done


def test_equal_links_and_starts_end_at_the_textbook_times() -> None:
    """Of n uploads b_1 <= b_2 <= ..., the k-th ends after Σ min(b_i, b_k) bytes."""
    sizes = [400.0, 100.0, 200.0, 300.0]
    carrier = SharedCarrier()
    for job, size in enumerate(sizes):
        carrier.add(job, 0.0, size, LINK)
    done = drain(carrier)
    assert done == pytest.approx({1: 4.0, 2: 7.0, 3: 9.0, 0: 10.0})
    assert list(done) == [1, 2, 3, 0]
    airtimes = [carrier.airtime(job) for job in range(4)]
    assert airtimes == pytest.approx([4.0, 1.0, 2.0, 3.0])


def test_weights_share_in_proportion() -> None:
    carrier = SharedCarrier()
    carrier.add("heavy", 0.0, 300.0, LINK, weight=3.0)
    carrier.add("light", 0.0, 200.0, LINK, weight=1.0)
    # At 3/4 the heavy one ends at 4; 100 bytes of the light one are left then.
    assert drain(carrier) == pytest.approx({"heavy": 4.0, "light": 5.0})


def test_the_share_is_of_each_ones_own_link() -> None:
    carrier = SharedCarrier()
    carrier.add("fast", 0.0, 200.0, Link(200.0, rtt=1.0))
    carrier.add("lossy", 0.0, 100.0, Link(100.0, loss=0.5))
    # Each needs 1 s and 2 s of airtime; the fast one is sent at 2, and arrives at 2.5.
    assert drain(carrier) == pytest.approx({"fast": 2.5, "lossy": 3.0})
    assert carrier.airtime("fast") == pytest.approx(1.0)
    assert carrier.airtime("lossy") == pytest.approx(2.0)


def test_rates_that_change_are_integrated() -> None:
    carrier = SharedCarrier()
    carrier.add("a", 0.0, 45.0, Link(GAPPY))
    carrier.add("b", 0.5, 200.0, LINK)
    # Alone until 0.5: 25 bytes. Half of 50/s until 1: 12.5. Nothing until 3. The last
    # 7.5 at 100/s: 3.075. By then b has 50 * 2.575 bytes, and is alone.
    done = drain(carrier)
    assert done == pytest.approx({"a": 3.075, "b": 3.075 + (200 - 128.75) / 100})
    assert carrier.airtime("a") == pytest.approx(0.5 + 2.575 / 2)


def test_a_later_job_is_taken_into_account() -> None:
    """Nothing is committed beyond ``until``, which is not skipped either."""
    carrier = SharedCarrier()
    carrier.add("first", 0.0, 100.0, LINK)
    assert carrier.next(until=0.5) is None
    assert carrier.now == 0.5
    carrier.add("second", 0.5, 100.0, LINK)
    carrier.add("third", 1.0, 10.0, LINK)
    # 0.5 s at 1/2 each, then thirds until the third has its 10 bytes at 1.3.
    assert carrier.next(until=1.299) is None
    completion = carrier.next(until=1.3001)
    assert completion is not None
    assert completion[0] == "third"
    assert completion[1] == pytest.approx(1.3)
    assert drain(carrier) == pytest.approx({"first": 1.6, "second": 2.1})
    assert carrier.next(math.inf) is None
    assert carrier.now == pytest.approx(2.1)


def test_a_completion_at_until_counts_and_an_early_job_is_an_error() -> None:
    carrier = SharedCarrier()
    assert carrier.next(math.inf) is None
    assert carrier.now == 0.0
    carrier.add("job", 1.0, 100.0, LINK)
    assert carrier.next(until=2.0) == ("job", 2.0)
    with pytest.raises(InvalidInputError, match=r"before now \(2.0\), got 1.5"):
        carrier.add("late", 1.5, 1.0, LINK)
    carrier.add("job", 2.0, 50.0, LINK)  # A completed job's name is free again.
    assert carrier.next(math.inf) == ("job", 2.5)
    assert carrier.airtime("job") == 0.5


def test_the_way_of_the_last_byte_takes_no_airtime() -> None:
    carrier = SharedCarrier()
    carrier.add("far", 0.0, 100.0, Link(100.0, rtt=4.0))
    carrier.add("near", 1.0, 100.0, LINK)
    carrier.add("empty", 1.5, 0.0, Link(100.0, rtt=0.2))
    assert drain(carrier) == pytest.approx({"empty": 1.6, "near": 2.0, "far": 3.0})
    assert carrier.airtime("empty") == 0.0


def test_a_dead_link_never_completes_but_keeps_its_share() -> None:
    carrier = SharedCarrier()
    carrier.add("dead", 0.0, 1.0, Link(0.0))
    carrier.add("alive", 0.0, 100.0, LINK)
    assert drain(carrier) == {"alive": 2.0}
    assert carrier.next(100.0) is None
    assert carrier.now == 100.0


def test_dedicated_links_are_not_shared() -> None:
    carrier = SharedCarrier(dedicated=True)
    carrier.add("trace", 0.25, 100.0, Link(GAPPY, rtt=0.5))
    carrier.add("other", 0.25, 100.0, LINK)
    trace = 0.25 + Link(GAPPY, rtt=0.5).transmit(100.0, 0.25)
    assert drain(carrier) == pytest.approx({"other": 1.25, "trace": trace})
    assert carrier.airtime("trace") == pytest.approx(trace - 0.25 - 0.25)


@given(
    st.lists(
        st.tuples(
            st.floats(0, 10),
            st.floats(1, 1000),
            st.floats(0.1, 10),
            st.floats(0, 5),
            st.booleans(),
        ),
        min_size=1,
        max_size=8,
    ),
    st.lists(st.floats(0, 60), max_size=6),
)
def test_bytes_and_airtime_are_conserved_whatever_the_stops(
    jobs: list[tuple[float, float, float, float, bool]], stops: list[float]
) -> None:
    """Stops change nothing; the carrier is busy exactly while a job is active."""

    def simulate(stops: list[float]) -> tuple[dict[int, float], list[float]]:
        carrier = SharedCarrier()
        done: dict[int, float] = {}
        for job, (start, size, weight, offset, constant) in enumerate(jobs):
            link = LINK if constant else Link(GAPPY.shifted(offset))
            carrier.add(job, start, size, link, weight)
        for until in [*sorted(stops), math.inf]:
            while completion := carrier.next(max(until, carrier.now)):
                assert isinstance(completion[0], int)
                done[completion[0]] = completion[1]
        return done, [carrier.airtime(job) for job in range(len(jobs))]

    done, airtimes = simulate([])
    assert len(done) == len(jobs)
    stopped, stopped_airtimes = simulate(stops)
    assert stopped == pytest.approx(done, rel=1e-6)
    assert stopped_airtimes == pytest.approx(airtimes, rel=1e-6)

    active = [(jobs[job][0], end) for job, end in done.items()]
    busy, reached = 0.0, 0.0
    for start, end in sorted(active):
        busy += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    assert sum(airtimes) == pytest.approx(busy, rel=1e-6)
    for job, (_, size, _, _, constant) in enumerate(jobs):
        if constant:
            assert 100.0 * airtimes[job] == pytest.approx(size, rel=1e-6)


def test_three_hundred_uploads_agree_with_the_textbook() -> None:
    carrier = SharedCarrier()
    for job in range(300):
        carrier.add(job, 0.0, 1.0 + job, LINK)
    done = drain(carrier)
    for k in (0, 10, 150, 299):
        expected = sum(min(1.0 + job, 1.0 + k) for job in range(300)) / 100.0
        assert done[k] == pytest.approx(expected, rel=1e-9)


def test_new_weights_hold_from_now_on() -> None:
    carrier = SharedCarrier()
    carrier.add("old", 0.0, 100.0, LINK)
    carrier.add("new", 0.0, 150.0, LINK)
    assert carrier.next(until=1.0) is None
    carrier.reweight({"old": 1 / 3})
    # 50 bytes each by 1; then the new one has 3/4, and is done with 100 more at 7/3,
    # when the old one has 50/3 left.
    assert drain(carrier) == pytest.approx({"new": 1 + 4 / 3, "old": 2.5})
    assert carrier.airtime("old") == pytest.approx(1.0)
    assert carrier.airtime("new") == pytest.approx(1.5)


def test_the_weight_of_an_upload_yet_to_start_can_change() -> None:
    carrier = SharedCarrier()
    carrier.add("first", 0.0, 100.0, LINK)
    carrier.add("second", 0.5, 60.0, LINK)
    carrier.reweight({"second": 3.0})
    # 50 bytes by 0.5; 3/4 bring the second its 60 by 1.3, the first 20 more.
    assert drain(carrier) == pytest.approx({"second": 1.3, "first": 1.6})


def test_an_upload_that_is_sent_already_does_not_come_back() -> None:
    carrier = SharedCarrier()
    carrier.add("far", 0.0, 100.0, Link(100.0, rtt=4.0))
    carrier.add("near", 0.0, 200.0, LINK)
    assert carrier.next(until=2.5) is None  # the far one was sent at 2
    carrier.reweight({"far": 99.0})
    assert drain(carrier) == pytest.approx({"near": 3.0, "far": 4.0})
    alone = SharedCarrier(dedicated=True)
    alone.add("far", 0.0, 100.0, LINK)
    alone.reweight({"far": 0.1})
    assert drain(alone) == {"far": 1.0}


def test_a_weight_can_change_while_another_upload_ends() -> None:
    carrier = SharedCarrier()
    for job in ("a", "b", "c"):
        carrier.add(job, 0.0, 100.0, LINK)
    assert carrier.next(math.inf) == ("a", 3.0)
    carrier.reweight({"c": 7.0})  # all three have ended at once
    assert drain(carrier) == {"b": 3.0, "c": 3.0}


@given(
    st.lists(
        st.tuples(st.floats(0, 5), st.floats(1, 500), st.floats(0.1, 10)),
        min_size=1,
        max_size=6,
    ),
    st.lists(
        st.tuples(st.floats(0, 30), st.integers(0, 5), st.floats(1e-3, 100)),
        max_size=12,
    ),
)
def test_bytes_are_conserved_whatever_the_weights_become(
    jobs: list[tuple[float, float, float]], changes: list[tuple[float, int, float]]
) -> None:
    carrier = SharedCarrier()
    done: dict[Hashable, float] = {}
    for job, (start, size, weight) in enumerate(jobs):
        carrier.add(job, start, size, LINK, weight)
    for until, job, weight in sorted(changes):
        while completion := carrier.next(max(until, carrier.now)):
            done[completion[0]] = completion[1]
        if job < len(jobs) and job not in done:
            carrier.reweight({job: weight})
    done |= drain(carrier)

    assert len(done) == len(jobs)
    for job, (_, size, _) in enumerate(jobs):
        assert 100.0 * carrier.airtime(job) == pytest.approx(size, rel=1e-6)
    # Work-conserving: the busy times are those of any order.
    end = 0.0
    for start, size, _ in sorted(jobs):
        end = max(end, start) + size / 100.0
    assert max(done.values()) == pytest.approx(end, rel=1e-6)


def busy_carrier() -> SharedCarrier:
    carrier = SharedCarrier()
    carrier.add("job", 1.0, 100.0, LINK)
    carrier.next(until=1.5)
    return carrier


@pytest.mark.parametrize(
    ("act", "text"),
    [
        (lambda c: c.add("job", 2.0, 1.0, LINK), "'job' is in progress"),
        (lambda c: c.add(1, math.inf, 1.0, LINK), "start must be .* got inf"),
        (lambda c: c.add(1, math.nan, 1.0, LINK), "start must be .* got nan"),
        (lambda c: c.add(1, 2.0, -1.0, LINK), "size must be .* got -1.0"),
        (lambda c: c.add(1, 2.0, 1.0, LINK, 0.0), "weight must be .* got 0.0"),
        (lambda c: c.add(1, 2.0, 1.0, LINK, math.nan), "weight must be .* got nan"),
        (lambda c: c.reweight({"job": 0.0}), "weight must be .* got 0.0"),
        (lambda c: c.reweight({"job": math.inf}), "weight must be .* got inf"),
        (lambda c: c.reweight({1: 1.0}), "No upload 1 is in progress"),
        (lambda c: c.next(1.0), r"before now \(1.5\), got 1.0"),
        (lambda c: c.next(math.nan), "got nan"),
        (lambda c: c.airtime("job"), "No job 'job' has completed"),
    ],
)
def test_bad_input_is_named(act: Callable[[SharedCarrier], object], text: str) -> None:
    with pytest.raises(InvalidInputError, match=text):
        act(busy_carrier())
