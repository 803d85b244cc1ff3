"""A scheduler of slots in the rounds of a federation, by hand."""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from flower_ext.errors import InvalidInputError
from flower_ext.network import Device
from flower_ext.scheduling import (
    LyapunovScheduler,
    MaxThroughput,
    Observation,
    Random,
    RoundRobin,
    RoundScheduler,
    Scheduler,
)
from flower_ext.scheduling.admission import Admission, Candidate
from flower_ext.scheduling.queues import Plan, QueueScheduler

Floats = NDArray[np.float64]

REPLY = 100


class Scripted(QueueScheduler):
    """Admits everything, gives out the shares that it is told, keeps what it sees."""

    def __init__(self, *shares: float) -> None:
        super().__init__("time-shared")
        self.shares = shares
        self.seen: list[tuple[Floats, Floats, Floats]] = []

    def _decide(
        self, rates: Floats, offered: Floats, waiting: Floats, snr: Floats
    ) -> Plan:
        self.seen.append((rates, offered, waiting))
        shares = np.array(self.shares or np.zeros(len(rates)))
        return Plan(
            offered.copy(), np.zeros(len(rates)), shares, shares.copy(), rates * shares
        )


def fleet(
    holdings: Sequence[Collection[int]],
    rates: Sequence[float | None] | None = None,
    first: int = 0,
    **values: Any,
) -> list[Candidate]:
    """Workers of equal, known rates by default."""
    if rates is None:
        rates = [100.0] * len(holdings)
    return [
        Candidate(first + i, held, rate=rate, **values)
        for i, (held, rate) in enumerate(zip(holdings, rates, strict=True))
    ]


def admitted(
    rounds: RoundScheduler, candidates: Sequence[Candidate], partitions: int
) -> Admission:
    admission = rounds.begin_round(candidates, range(partitions), REPLY)
    assert admission is not None
    return admission


# -- the first round -------------------------------------------------------------------


def test_the_first_round_is_everybodys_where_no_rate_is_known() -> None:
    rounds = RoundScheduler(MaxThroughput())
    candidates = fleet([range(4)] * 4, [None] * 4)
    assert rounds.begin_round(candidates, range(4), REPLY) is None
    assert rounds.slot == 0.0
    # Four have shared the carrier: alone they would have had 40 and 80 bytes a second.
    rounds.replied(0, 1, upload_seconds=10.0, reply_bytes=REPLY)
    rounds.replied(1, 1, upload_seconds=5.0, reply_bytes=REPLY)
    assert rounds.end_round() is None

    admission = admitted(rounds, candidates, 4)
    # Who is not known yet is taken to be as fast as the median: 60 bytes a second.
    assert rounds.slot == pytest.approx(2.5 + 1.25 + 2 / 0.6)
    assert set(admission.airtime) <= {0, 1, 2, 3}
    for worker, seconds in {0: 2.5, 1: 1.25, 2: 5 / 3, 3: 5 / 3}.items():
        if worker in admission.airtime:
            assert admission.airtime[worker] == pytest.approx(seconds)


def test_where_rates_are_known_the_first_round_is_scheduled() -> None:
    rounds = RoundScheduler(MaxThroughput())
    assert rounds.begin_round(fleet([range(4)] * 2), range(4), REPLY) is not None
    assert rounds.end_round() is not None


def test_a_slot_is_the_time_in_which_everybody_can_send_one_reply() -> None:
    rounds = RoundScheduler(Scripted(1.0, 0.0))
    admitted(rounds, fleet([range(2)] * 2, [50.0, 25.0]), 2)
    assert rounds.slot == 6.0
    admitted(rounds, fleet([range(2)] * 2, [1.0, 1.0]), 2)
    assert rounds.slot == 6.0  # the first rates count
    given = RoundScheduler(Scripted(1.0, 0.0), slot_seconds=9.0)
    assert given.slot == 9.0
    admitted(given, fleet([range(2)] * 2, [50.0, 25.0]), 2)
    assert given.slot == 9.0


def test_a_dead_link_does_not_make_a_slot_last_for_ever() -> None:
    rounds = RoundScheduler(MaxThroughput())
    dead = fleet([range(2)] * 2, [0.0, 0.0])
    assert rounds.begin_round(dead, range(2), REPLY) is None
    admission = admitted(rounds, fleet([range(2)] * 2, [0.0, 50.0]), 2)
    assert rounds.slot == 2.0
    assert set(admission.limits) == {1}


# -- who takes part --------------------------------------------------------------------


def test_who_has_a_share_takes_part() -> None:
    scheduler = Scripted(0.5, 0.0, 0.25)
    rounds = RoundScheduler(scheduler, slot_seconds=10.0, max_load=2.0)
    candidates = fleet([range(4)] * 3, [100.0, 50.0, 25.0], first=7)
    candidates[0] = Candidate(7, range(4), rate=100.0, download=3.0)
    admission = admitted(rounds, candidates, 4)

    # ⌈2 · 4/3⌉ partitions; what nobody has asked for is shared equally.
    assert admission.limits == {7: 3, 9: 3}
    assert admission.shares == pytest.approx({7: 0.625, 9: 0.375})
    assert admission.airtime == {7: 1.0, 9: 4.0}
    assert admission.download == {7: 3.0}
    rates, offered, waiting = scheduler.seen[-1]
    assert rates.tolist() == [10.0, 5.0, 2.5]  # replies per slot
    assert offered.tolist() == [1.0, 1.0, 1.0]
    assert waiting.tolist() == [1.0, 1.0, 1.0]
    rounds.end_round()
    admitted(rounds, candidates, 4)
    assert scheduler.backlog.tolist()[1] == 3.0
    assert scheduler.seen[-1][2].tolist() == [1.0, 1.0, 1.0]  # one reply in a round


@pytest.mark.parametrize(
    ("max_load", "partitions", "workers", "limit"),
    [(1.0, 6, 3, 2), (1.0, 7, 3, 3), (2.5, 7, 3, 6), (8.0, 2, 100, 1)],
)
def test_limits_are_multiples_of_the_fair_share(
    max_load: float, partitions: int, workers: int, limit: int
) -> None:
    shares = np.full(workers, 1 / workers)
    rounds = RoundScheduler(Scripted(*shares), slot_seconds=1.0, max_load=max_load)
    admission = admitted(rounds, fleet([range(partitions)] * workers), partitions)
    assert set(admission.limits.values()) == {limit}
    assert len(admission.limits) == workers


def test_a_partition_that_nobody_admitted_holds_brings_in_the_best_refused() -> None:
    # Workers 2 and 3 hold partition 3, and 3 has the better link.
    rounds = RoundScheduler(Scripted(1.0, 0.0, 0.0, 0.0), slot_seconds=10.0)
    held = [{0, 1, 2}, {0, 1, 2}, {0, 3}, {1, 3}]
    admission = admitted(rounds, fleet(held, [50.0, 90.0, 20.0, 30.0]), 4)
    assert set(admission.limits) == {0, 3}
    # It has not been given a share, but has one of what is left: next to nothing.
    assert admission.shares[0] > 0.99
    assert 0 < admission.shares[3] < 0.01
    assert sum(admission.shares.values()) == pytest.approx(1.0)


def test_partitions_beyond_the_limits_bring_in_the_best_refused() -> None:
    # A fair share is one partition: four are needed for as many, the best three more.
    rounds = RoundScheduler(
        Scripted(1.0, 0.0, 0.0, 0.0, 0.0), slot_seconds=10.0, max_load=1.0
    )
    rates = [10.0, 20.0, 30.0, 5.0, 40.0]
    admission = admitted(rounds, fleet([range(4)] * 5, rates), 4)
    assert set(admission.limits) == {0, 1, 2, 4}
    assert set(admission.limits.values()) == {1}


def test_who_holds_nothing_that_is_asked_for_takes_no_part() -> None:
    scheduler = Scripted(0.4, 0.6, 0.0)
    rounds = RoundScheduler(scheduler, slot_seconds=1.0, max_load=1.0)
    admission = admitted(rounds, fleet([range(4), [9], []]), 4)
    assert set(admission.limits) == {0}
    assert scheduler.seen[-1][1].tolist() == [1.0, 0.0, 0.0]  # and is offered nothing


def test_an_empty_battery_is_not_brought_in() -> None:
    # A slot takes 1 J for sending and 1 s · ⌈fair share 2 · 1⌉ · 2 W for computing.
    empty = Device(1.0, 2.0, 1.0, capacity_joules=50.0, battery_joules=4.9)
    enough = Device(1.0, 2.0, 1.0, capacity_joules=50.0, battery_joules=5.0)
    for device, brought_in in ((empty, {0}), (enough, {0, 1})):
        rounds = RoundScheduler(Scripted(1.0, 0.0), slot_seconds=1.0, max_load=1.0)
        # Nothing is admitted, so that nothing but the battery decides.
        candidates = [
            Candidate(0, {0, 1, 2}, rate=100.0),
            Candidate(1, {3}, rate=100.0, device=device),
        ]
        rounds.scheduler.step = no_admission(rounds.scheduler)  # type: ignore[method-assign]
        assert set(admitted(rounds, candidates, 4).limits) == brought_in


def no_admission(scheduler: Scheduler) -> Any:
    step = scheduler.step

    def nothing_offered(seen: Observation) -> Any:
        return step(
            Observation(seen.rates, 0 * seen.offered, seen.harvest, None, seen.sendable)
        )

    return nothing_offered


# -- queues ----------------------------------------------------------------------------


def test_taking_part_uses_up_a_unit_even_without_a_reply() -> None:
    rounds = RoundScheduler(Scripted(0.5, 0.0, 0.5), slot_seconds=10.0)
    admitted(rounds, fleet([range(3)] * 3), 3)
    # One waited at each before, and one more is admitted in the round.
    told = rounds.end_round()
    assert told is not None
    assert told.admitted == {0: 1.0, 1: 1.0, 2: 1.0}
    assert told.backlog == {0: 1.0, 1: 2.0, 2: 1.0}

    admitted(rounds, fleet([range(3)] * 3), 3)
    rounds.replied(1, 2, 1.0, REPLY)  # a late one, from an earlier round
    rounds.replied(1, 1, 1.0, REPLY)
    rounds.replied(2, 1, 1.0, REPLY)
    told = rounds.end_round()
    assert told is not None
    assert told.backlog == {0: 1.0, 1: 1.0, 2: 1.0}


def test_fairness_is_of_all_partitions_delivered_so_far() -> None:
    rounds = RoundScheduler(Scripted(0.5, 0.5), slot_seconds=10.0)
    fairness = []
    for delivered in ({0: 3, 1: 1}, {1: 4}, {}):
        admitted(rounds, fleet([range(4)] * 2), 4)
        for worker, partitions in delivered.items():
            rounds.replied(worker, partitions, 1.0, REPLY)
        told = rounds.end_round()
        assert told is not None
        fairness.append(told.fairness)
    assert fairness == pytest.approx([16 / 20, 64 / 68, 64 / 68])


def test_workers_that_join_and_leave_leave_the_others_their_queues() -> None:
    rounds = RoundScheduler(Scripted(1.0, 0.0, 0.0), slot_seconds=10.0)
    for _ in range(2):
        admitted(rounds, fleet([range(3)] * 3), 3)
        rounds.end_round()
    assert rounds.scheduler.backlog.tolist() == [1.0, 3.0, 3.0]
    # Worker 0 leaves, 3 joins, 2 comes first now.
    candidates = fleet([range(3)] * 4)
    admitted(rounds, [candidates[i] for i in (2, 1, 3)], 3)
    told = rounds.end_round()
    assert told is not None
    assert told.backlog == {2: 3.0, 1: 4.0, 3: 1.0}  # 2 has taken part
    admission = admitted(rounds, candidates[:3], 3)
    assert set(admission.limits) == {0}
    told = rounds.end_round()
    assert told is not None
    assert told.backlog == {0: 1.0, 1: 5.0, 2: 4.0}  # 0 has been forgotten


# -- batteries -------------------------------------------------------------------------


def batteries(
    rounds: RoundScheduler, measured: Mapping[int, float]
) -> dict[int, float]:
    """Play a round of two phones and a worker on mains."""
    phone = Device(1.0, 2.0, 1.0, capacity_joules=50.0)
    candidates = [
        Candidate(0, range(3), rate=100.0, device=phone),
        Candidate(1, range(3), rate=100.0, device=phone),
        Candidate(2, range(3), rate=100.0),
    ]
    admitted(rounds, candidates, 3)
    for worker, joules in measured.items():
        rounds.measured_battery(worker, joules)
    told = rounds.end_round()
    assert told is not None
    assert set(told.battery) == {0, 1}  # who has one
    return told.battery


def test_what_was_measured_takes_the_place_of_the_model() -> None:
    rounds = RoundScheduler(Scripted(0.5, 0.5, 0.0), slot_seconds=4.0, max_load=1.0)
    # Half a slot of sending, one partition.
    assert batteries(rounds, {}) == {0: 46.0, 1: 46.0}
    assert batteries(rounds, {0: 30.0, 2: 5.0}) == {0: 30.0, 1: 42.0}
    assert batteries(rounds, {}) == {0: 26.0, 1: 38.0}  # measured once, for one round


def test_measurements_beyond_the_battery_are_its_ends() -> None:
    rounds = RoundScheduler(Scripted(0.5, 0.5, 0.0), slot_seconds=4.0, max_load=1.0)
    assert batteries(rounds, {0: -3.0, 1: 99.0}) == {0: 0.0, 1: 50.0}
    assert rounds.scheduler.battery.tolist() == [0.0, 50.0, math.inf]


def test_harvests_reach_the_scheduler() -> None:
    phone = Device(1.0, 2.0, 1.0, capacity_joules=50.0, battery_joules=20.0)
    rounds = RoundScheduler(Scripted(0.0, 1.0), slot_seconds=4.0, max_load=1.0)
    candidates = [
        Candidate(0, range(2), rate=100.0, device=phone, harvest=5.0),
        Candidate(1, range(2), rate=100.0),
    ]
    admitted(rounds, candidates, 2)
    told = rounds.end_round()
    assert told is not None
    assert told.battery == {0: 20.0 - 2.0 + 5.0}


def test_a_battery_too_small_is_refused_before_the_round() -> None:
    tiny = Device(1.0, 2.0, 1.0, capacity_joules=5.0)
    rounds = RoundScheduler(LyapunovScheduler(v=100.0), slot_seconds=1.0)
    with pytest.raises(InvalidInputError, match="battery of worker 0 holds 5 J"):
        rounds.begin_round(fleet([range(2)] * 2, device=tiny), range(2), REPLY)


# -- rates -----------------------------------------------------------------------------


def known_rate(rounds: RoundScheduler, worker: int, candidates: int = 2) -> float:
    """Return a worker's rate, bytes per second, as the next round would be told it."""
    admission = admitted(rounds, fleet([range(2)] * candidates, [None] * candidates), 2)
    return REPLY / admission.airtime[worker]


def test_measured_rates_are_averaged_geometrically() -> None:
    rounds = RoundScheduler(Scripted(0.5, 0.5), slot_seconds=10.0)
    rounds.begin_round(fleet([range(2)] * 2, [None] * 2), range(2), REPLY)
    for seconds in (4.0, 1.0):
        rounds.replied(0, 1, seconds, REPLY)  # 50 bytes a second alone, then 200
    assert known_rate(rounds, 0) == pytest.approx(50.0**0.7 * 200.0**0.3)
    before = known_rate(rounds, 0)
    rounds.replied(0, 1, 0.0, REPLY)  # no time, no measurement
    assert known_rate(rounds, 0) == before


def test_a_rate_counts_those_who_took_part() -> None:
    rounds = RoundScheduler(Scripted(1.0, 0.0), slot_seconds=10.0)
    admitted(rounds, fleet([range(2)] * 2, [25.0, 25.0]), 2)
    rounds.replied(0, 2, 4.0, REPLY)  # it was alone
    rounds.end_round()
    assert known_rate(rounds, 0) == pytest.approx(25.0)


def test_a_known_rate_takes_the_place_of_measurements() -> None:
    rounds = RoundScheduler(Scripted(1.0, 0.0), slot_seconds=10.0)
    for rate in (25.0, 80.0):
        admission = admitted(rounds, fleet([range(2)] * 2, [rate, rate]), 2)
        assert admission.airtime[0] == REPLY / rate
        rounds.replied(0, 2, 4.0, REPLY)
        rounds.end_round()


def test_a_reply_over_a_link_that_was_dead_as_the_round_began() -> None:
    rounds = RoundScheduler(Scripted(1.0, 0.0), slot_seconds=10.0)
    admitted(rounds, fleet([range(2)] * 2, [0.0, 50.0]), 2)
    rounds.replied(0, 2, 4.0, REPLY)
    rounds.end_round()
    assert known_rate(rounds, 0) == pytest.approx(25.0)


@given(st.lists(st.floats(0.01, 1.0), min_size=1, max_size=25))
@settings(max_examples=30, deadline=None)
def test_small_shares_do_not_run_away(shares: list[float]) -> None:
    """Whatever is given out, links that share equally are measured as what they are."""
    scheduler = Scripted(0.5, 0.5)
    rounds = RoundScheduler(scheduler, slot_seconds=10.0)
    candidates = fleet([range(2)] * 2, [None] * 2)
    rounds.begin_round(candidates, range(2), REPLY)
    for share in shares:
        for worker in (0, 1):  # both of 50 bytes a second, shared by two
            rounds.replied(worker, 1, REPLY / 25.0, REPLY)
        rounds.end_round()
        scheduler.shares = (share * 0.01, 1 - share * 0.01)
        admission = admitted(rounds, candidates, 2)
        assert admission.airtime == pytest.approx({0: 2.0, 1: 2.0})


# -- every scheduler -------------------------------------------------------------------


@given(
    seed=st.integers(0, 2**32), kind=st.sampled_from(["lyapunov", "best", "turns", "?"])
)
@settings(max_examples=40, deadline=None)
def test_whatever_happens_a_round_is_covered_and_the_queues_are_bounded(
    seed: int, kind: str
) -> None:
    """Random rates, holdings, replies, batteries, joins and departures."""
    rng = np.random.default_rng(seed)
    scheduler: Scheduler = {
        "lyapunov": LyapunovScheduler(v=5.0),
        "best": MaxThroughput(),
        "turns": RoundRobin(),
        "?": Random(np.random.default_rng(seed)),
    }[kind]
    measured = rng.random() < 0.5
    rounds = RoundScheduler(
        scheduler,
        slot_seconds=5.0 if rng.random() < 0.5 else None,
        max_load=float(rng.uniform(1, 9)),
    )
    partitions = int(rng.integers(1, 10))
    present = list(range(int(rng.integers(1, 6))))
    for number in range(12):
        if rng.random() < 0.2:
            present.append(100 + number)
        if len(present) > 1 and rng.random() < 0.2:
            present.remove(int(rng.choice(present)))
        candidates = [
            Candidate(
                worker,
                frozenset(np.flatnonzero(rng.random(partitions) < 0.6).tolist()),
                rate=None if measured else float(rng.uniform(0, 99)),
                harvest=float(rng.random()),
            )
            for worker in present
        ]
        admission = rounds.begin_round(candidates, range(partitions), REPLY)
        taking_part = present if admission is None else list(admission.limits)
        if admission is not None:
            held = {c.worker: c.holdings for c in candidates}
            reach: set[int] = set().union(*held.values())
            assert set().union(*(held[w] for w in taking_part)) == reach
            assert all(held[w] for w in taking_part)
            assert set(taking_part) <= set(present)
            assert sum(admission.shares.values()) == pytest.approx(
                float(bool(taking_part))
            )
            assert all(share > 0 for share in admission.shares.values())
            assert admission.shares.keys() == admission.airtime.keys()
        for worker in taking_part:
            if rng.random() < 0.9:
                rounds.replied(worker, 1, float(rng.exponential(9)), REPLY)
        told = rounds.end_round()
        assert (told is None) == (admission is None)
        if told is not None:
            assert list(told.backlog) == list(told.admitted) == present
            assert max(told.backlog.values()) <= 5.0 + 2.0  # Vφ′(0) + 2; 5 for others
            assert 1 / len(present) <= told.fairness <= 1 + 1e-12
            assert told.battery == {}


def test_a_late_reply_was_sent_among_those_of_its_own_round() -> None:
    rounds = RoundScheduler(Scripted(0.5, 0.5, 0.0, 0.0))
    everybody = fleet([range(4)] * 4, [None] * 4)
    assert rounds.begin_round(everybody, range(4), REPLY) is None
    for worker in (0, 1, 2):
        rounds.replied(worker, 1, upload_seconds=10.0, reply_bytes=REPLY)
    rounds.end_round()
    busy = [replace(c, idle=c.worker != 3) for c in everybody]
    assert set(admitted(rounds, busy, 4).limits) == {0, 1, 3}
    rounds.replied(3, 1, upload_seconds=10.0, reply_bytes=REPLY)
    assert rounds._known[3].rate == pytest.approx(4 * REPLY / 10.0)


def test_workers_that_are_gone_are_forgotten_but_for_some() -> None:
    rounds = RoundScheduler(Scripted())
    for first in range(0, 1000, 4):
        rounds.begin_round(fleet([range(4)] * 4, first=first), range(4), REPLY)
        rounds.end_round()

    known = rounds.state()["known"]
    assert set(range(996, 1000)) <= known.keys()
    assert len(known) == 64 + 4
