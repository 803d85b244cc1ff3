"""The history of completion times, on numbers that can be checked by hand."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
import pytest
from numpy.typing import NDArray

from flower_ext.errors import InvalidInputError
from flower_ext.scheduling.history import CompletionHistory

Floats = NDArray[np.float64]


def filled(
    times: Mapping[int, Sequence[float]], prior_weight: int = 0, **options: int
) -> CompletionHistory:
    """Record one job of one partition per round: worker -> seconds, no overhead."""
    history = CompletionHistory(prior_weight=prior_weight, **options)
    for worker, seconds in times.items():
        for number, value in enumerate(seconds, start=1):
            history.completed(worker, number, 1, value, value)
    return history


def typical_seconds(
    history: CompletionHistory, worker: int, server_round: int = 100
) -> float:
    return float(history.typical([worker], server_round)[0][0])


def test_nobody_known() -> None:
    seconds, overhead = CompletionHistory().typical([1, 2], 1)
    assert seconds.tolist() == [1.0, 1.0]
    assert overhead.tolist() == [0.0, 0.0]
    assert len(CompletionHistory()) == 0


def test_typical_is_the_median_per_partition_and_what_exceeds_it_is_overhead() -> None:
    history = CompletionHistory(prior_weight=0)
    for number, compute in enumerate((4.0, 6.0, 20.0), start=1):
        history.completed(0, number, 2, compute, compute + number)
    history.completed(1, 1, 1, 9.0, 9.5)
    seconds, overhead = history.typical([0, 1, 5], 9)
    # Medians of (2, 3, 10) and of (1, 2, 3); a stranger gets the medians over workers.
    assert seconds.tolist() == [3.0, 9.0, 6.0]
    assert overhead.tolist() == [2.0, 0.5, 1.25]
    assert len(history) == 2


def test_the_median_of_an_even_number_of_records_is_their_midpoint() -> None:
    assert typical_seconds(filled({0: [1.0, 2.0, 4.0, 8.0]}), 0) == 3.0


def test_compute_time_is_never_more_than_the_elapsed_time() -> None:
    history = CompletionHistory(prior_weight=0)
    history.completed(0, 1, 1, compute_seconds=5.0, elapsed=2.0)
    seconds, overhead = history.typical([0], 2)
    assert (seconds[0], overhead[0]) == (2.0, 0.0)


def test_imagined_records_at_the_fleets_median_shield_a_worker_from_one_bad_round() -> (
    None
):
    times = {0: [1.0], 1: [1.0], 2: [20.0]}
    assert typical_seconds(filled(times), 2) == 20.0
    assert typical_seconds(filled(times, prior_weight=2), 2) == 1.0
    # Three real records outvote the two imagined ones.
    times[2] = [20.0, 20.0, 20.0]
    assert typical_seconds(filled(times, prior_weight=2), 2) == 20.0


def test_censored_counts_twice_the_wait_until_the_reply_tells_the_truth() -> None:
    history = CompletionHistory(prior_weight=0)
    history.censored(0, 1, load=2, elapsed=4.0)
    assert typical_seconds(history, 0) == 4.0  # (2 * 4 - 0) / 2
    history.censored(0, 1, load=2, elapsed=8.0)
    assert typical_seconds(history, 0) == 8.0
    history.completed(0, 1, load=2, compute_seconds=10.0, elapsed=10.0)
    assert typical_seconds(history, 0) == 5.0


def test_censored_within_the_overhead_teaches_nothing() -> None:
    history = CompletionHistory(prior_weight=0)
    history.completed(0, 1, 1, compute_seconds=1.0, elapsed=4.0)
    history.censored(0, 2, load=1, elapsed=3.0)
    assert typical_seconds(history, 0) == 1.0
    history.censored(0, 2, load=1, elapsed=5.0)
    assert typical_seconds(history, 0) == (1.0 + (2 * 5.0 - 3.0)) / 2


def test_records_age() -> None:
    history = filled({0: [10.0], 1: [1.0]}, max_age=5)
    history.completed(1, 5, 1, 1.0, 1.0)
    assert typical_seconds(history, 0) == 10.0
    history.completed(1, 6, 1, 1.0, 1.0)
    assert typical_seconds(history, 0) == 1.0  # forgotten: the fleet's
    assert len(history) == 1


def test_window_keeps_the_latest_records() -> None:
    assert typical_seconds(filled({0: [9.0, 9.0, 9.0, 1.0, 2.0]}, window=2), 0) == 1.5


def test_the_least_recently_heard_worker_is_forgotten_first() -> None:
    history = filled({0: [1.0], 1: [2.0], 2: [3.0]}, max_workers=3)
    history.completed(0, 2, 1, 1.0, 1.0)
    history.completed(3, 2, 1, 4.0, 4.0)
    assert len(history) == 3
    assert typical_seconds(history, 0) == 1.0
    assert typical_seconds(history, 1) == 3.0  # median of 1, 3 and 4


def test_slow_in_this_round_is_taken_to_stay_slow_for_the_round() -> None:
    history = filled({0: [1.0] * 9, 1: [1.0] * 9})
    history.completed(0, 10, 1, 7.0, 7.0)
    history.completed(1, 10, 1, 1.9, 1.9)
    assert history.typical([0, 1], 10)[0].tolist() == [7.0, 1.0]
    assert history.typical([0, 1], 11)[0].tolist() == [1.0, 1.0]


def test_second_jobs_are_measured_against_what_the_first_said() -> None:
    history = filled({0: [1.0] * 900}, window=2000, max_age=2000)
    for number in range(901, 981):
        # A slow round, and half as slow again in the second job.
        history.completed(0, number, 1, 4.0, 4.0)
        history.completed(0, number, 1, 6.0, 6.0)
    rng = np.random.default_rng(0)
    drawn, _ = history.sample_again([0], 1000, 2000, rng)
    assert (drawn == 1.5).mean() > 0.8  # what is left are the prior's
    history.completed(0, 1000, 1, 10.0, 10.0)
    drawn, _ = history.sample_again([0], 1000, 2000, rng)
    assert (drawn == 15.0).mean() > 0.8


@pytest.mark.parametrize("method", ["sample", "sample_again"])
def test_samples_have_their_shape_and_follow_their_generator(method: str) -> None:
    history = filled({w: [1.0 + w, 2.0, 3.0] for w in range(4)})
    workers = [0, 3, 77]

    def draw(seed: int) -> tuple[Floats, Floats]:
        rng = np.random.default_rng(seed)
        drawn: tuple[Floats, Floats] = getattr(history, method)(workers, 9, 50, rng)
        return drawn

    for first, again in zip(draw(1), draw(1), strict=True):
        assert first.shape == (50, 3)
        assert np.isfinite(first).all()
        assert (first >= 0).all()
        assert (first == again).all()
    assert (draw(1)[0] != draw(2)[0]).any()


def test_samples_resample_the_records_once_these_outnumber_the_prior() -> None:
    history = filled({w: [1.0, 1.0, 1.0, 4.0] * 8 for w in range(4)})
    drawn, overhead = history.sample([0, 1], 99, 4000, np.random.default_rng(0))
    assert set(np.unique(drawn)) == {1.0, 4.0}
    assert abs((drawn == 4.0).mean() - 0.25) < 0.02
    assert (overhead == 0.0).all()


def test_a_worker_with_records_of_its_own_is_sampled_from_them() -> None:
    times = {w: [1.0] * 32 for w in range(9)} | {9: [1.0, 1.0, 1.0, 30.0] * 8}
    history = filled(times)
    drawn, _ = history.sample([0, 9], 99, 4000, np.random.default_rng(0))
    often = (drawn == 30.0).mean(axis=0)
    # 8 parts fleet, which has 8 in 320, and 32 parts own, with none or one in four.
    assert abs(often[0] - 0.2 * 0.025) < 0.01
    assert abs(often[1] - (0.2 * 0.025 + 0.8 * 0.25)) < 0.02


def test_unfinished_jobs_take_longer_than_they_have() -> None:
    history = filled({w: [1.0, 1.2, 0.8, 6.0] * 8 for w in range(4)})
    elapsed = np.array([0.0, 1.0, 5.0, 500.0])
    drawn = history.sample_unfinished(
        range(4), 99, [1, 2, 1, 3], elapsed, 300, np.random.default_rng(0)
    )
    assert drawn.shape == (300, 4)
    assert (drawn > elapsed).all()
    # 5 s into a job of a worker that takes 1 s, only its 6 s remain possible...
    assert set(drawn[:, 2].round(9)) == {6.0}
    # ...and beyond anything on record: as long again on the median, at most 20 times.
    assert 1.7 < np.median(drawn[:, 3]) / 500 < 2.3
    assert drawn[:, 3].max() <= 20 * 500


def test_jobs_that_took_no_time_give_no_nan() -> None:
    history = filled({0: [0.0] * 40, 1: [0.0, 1.0] * 16, 2: [0.0]}, prior_weight=2)
    workers, rng = [0, 1, 2, 3], np.random.default_rng(0)
    history.completed(0, 50, 1, 0.0, 0.0)
    history.completed(0, 50, 1, 0.0, 0.0)
    drawn = [
        *history.sample(workers, 50, 40, rng),
        *history.sample_again(workers, 50, 40, rng),
        *history.typical(workers, 50),
    ]
    assert all(np.isfinite(values).all() for values in drawn)
    for elapsed in (np.zeros(4), np.full(4, 3.0)):
        taken = history.sample_unfinished(workers, 50, [1] * 4, elapsed, 40, rng)
        assert np.isfinite(taken).all()
        assert (taken > elapsed).all()


@pytest.mark.parametrize(
    "options", [{"window": 0}, {"max_age": 0}, {"prior_weight": -1}, {"max_workers": 0}]
)
def test_bad_parameters_are_refused(options: dict[str, int]) -> None:
    with pytest.raises(InvalidInputError, match=next(iter(options))):
        CompletionHistory(**options)


@pytest.mark.parametrize(
    ("load", "compute", "elapsed"),
    [(0, 1.0, 1.0), (1, -1.0, 1.0), (1, 1.0, math.nan), (1, math.inf, 1.0)],
)
def test_bad_records_are_refused(load: int, compute: float, elapsed: float) -> None:
    history = CompletionHistory()
    with pytest.raises(InvalidInputError):
        history.completed(0, 1, load, compute, elapsed)
    if compute == 1.0:
        with pytest.raises(InvalidInputError):
            history.censored(0, 1, load, elapsed)
    assert len(history) == 0


def test_announced_overheads_take_the_place_of_typical_ones() -> None:
    history = CompletionHistory()
    for server_round in range(1, 20):
        for worker in (0, 1):
            history.completed(worker, server_round, 1, 1.0, 3.0)
    history.announce(20, {0: 8.0})
    assert history.typical([0, 1], 20)[1].tolist() == [8.0, 2.0]
    drawn = history.sample([0, 1], 20, 1000, np.random.default_rng(0))[1]
    assert np.median(drawn, axis=0).tolist() == pytest.approx([8.0, 2.0], rel=0.05)
    assert history.typical([0], 21)[1].tolist() == [2.0]


def test_replies_are_held_against_what_was_announced() -> None:
    history = CompletionHistory(prior_weight=0)
    for server_round in range(1, 30):
        seconds = 1.0 + server_round % 5  # five-fold variation, all of it foreseen
        history.announce(server_round, {0: seconds})
        history.completed(0, server_round, 1, 1.0, 1.0 + seconds)
    history.announce(30, {0: 4.0})
    drawn = history.sample([0], 30, 1000, np.random.default_rng(0))[1]
    assert np.quantile(drawn, [0.2, 0.8]).tolist() == pytest.approx([4.0, 4.0], rel=0.1)


@pytest.mark.parametrize("seconds", [0.0, -1.0, np.inf, np.nan])
def test_announcements_out_of_range_are_refused(seconds: float) -> None:
    with pytest.raises(InvalidInputError, match="announced for worker 3"):
        CompletionHistory().announce(1, {3: seconds})


def test_what_was_declared_counts_where_nothing_is_recorded() -> None:
    history = CompletionHistory()
    history.declare(0, 4.0)
    assert len(history) == 0
    assert history.typical([0, 1], 1)[0].tolist() == [4.0, 1.0]
    history.declare(0, 5.0)  # the last word counts
    drawn = history.sample([0], 1, 1000, np.random.default_rng(0))[0]
    assert np.median(drawn) == pytest.approx(5.0, rel=0.1)
    assert history.typical([0], 1)[1].tolist() == [0.0]

    history = filled({0: [3.0], 1: [9.0]})
    for worker in (0, 2):
        history.declare(worker, 4.0)
    # What was measured, what was declared, the fleet's.
    assert history.typical([0, 2, 3], 5)[0].tolist() == [3.0, 4.0, 6.0]
    history.begin_run()
    assert history.typical([0, 2, 3], 1)[0].tolist() == [3.0, 4.0, 6.0]


def test_what_was_declared_counts_again_once_the_records_are_too_old() -> None:
    history = filled({0: [3.0], 1: [9.0]}, max_age=5)
    history.declare(0, 4.0)
    history.completed(1, 7, 1, 9.0, 9.0)
    assert history.typical([0, 1], 7)[0].tolist() == [4.0, 9.0]


@pytest.mark.parametrize("seconds", [0.0, -1.0, math.inf, math.nan])
def test_declarations_out_of_range_are_refused(seconds: float) -> None:
    history = CompletionHistory()
    with pytest.raises(InvalidInputError, match=f"declared for worker 3 .* {seconds}"):
        history.declare(3, seconds)
    assert history.typical([3], 1)[0].tolist() == [1.0]
