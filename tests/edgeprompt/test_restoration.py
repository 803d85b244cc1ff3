"""Computing from the front and fetching from the back, over links of all kinds."""

import inspect
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flower_ext.edgeprompt.estimates import DeviceSpeed, LinkEstimate
from flower_ext.edgeprompt.plan import Offer, OfferedBlock, plan
from flower_ext.edgeprompt.precision import Precision
from flower_ext.edgeprompt.restoration import Restoration
from flower_ext.edgeprompt.simulated import Simulated, simulate
from flower_ext.edgeprompt.source import Wanted
from flower_ext.errors import InvalidInputError
from flower_ext.network import Link, TraceRate

FP16, INT8, INT4 = Precision.FP16, Precision.INT8, Precision.INT4
FREE = dict.fromkeys(Precision, 0.0)


def offer_of(count: int, errors: dict[Precision, float] | None = None) -> Offer:
    sizes = {FP16: 2000, INT8: 1000, INT4: 500}
    blocks = [OfferedBlock(i, 10 * i, 10, sizes) for i in range(count)]
    return Offer(blocks, errors or {FP16: 0.001, INT8: 0.01})


def device_of(seconds: float) -> DeviceSpeed:
    return DeviceSpeed(seconds, 0.0, 0.0, FREE)


def asked(todo: Restoration) -> list[Wanted]:
    return list(todo.fetching)


def restored(
    link: Link,
    seconds: float,
    count: int = 8,
    stops_within: float = 1.0,
    estimate: LinkEstimate | None = None,
    outages: tuple[tuple[float, float], ...] = (),
) -> Simulated:
    offer = offer_of(count)
    todo = Restoration(
        offer, device_of(seconds), estimate or LinkEstimate(), 0.02, stops_within, 0.0
    )
    return simulate(todo, offer, link, device_of(seconds), layers=10, outages=outages)


def test_both_ends_meet() -> None:
    # Blocks take 1 s to compute and 1 s to fetch; 0.08 s are spent on listening.
    done = restored(Link(up=1000.0), 1.0)

    assert done.computed == (0, 1, 2, 3)
    assert done.fetched == (7, 6, 5, 4)
    assert done.seconds == pytest.approx(4.08)
    assert done.requests == 1


def test_a_slow_link_is_never_waited_for() -> None:
    assert restored(Link(up=1.0), 1.0).seconds == pytest.approx(8.08)
    assert restored(Link(up=0.0), 1.0).computed == tuple(range(8))


def test_a_slow_device_never_computes() -> None:
    done = restored(Link(up=1000.0, rtt=0.1), 1000.0)

    assert done.computed == ()
    assert done.seconds == pytest.approx(8.1)


def test_nothing_is_begun_that_will_have_come_sooner() -> None:
    # All but one block are had after 3 s; the last comes 0.5 s later.
    link = Link(up=TraceRate([0.0, 3.0], [1000.0, 2000.0]))
    done = restored(link, 2.9, count=5)

    assert done.computed == (0,)
    assert done.seconds == pytest.approx(3.5, abs=0.01)


@pytest.mark.parametrize("stops_within", [1.0, 1 / 16])
@pytest.mark.parametrize("factor", [0.01, 100.0])
def test_a_link_may_become_100_times_faster_or_slower_midway(
    factor: float, stops_within: float
) -> None:
    rates = [1000.0, 1000.0 * factor, 1000.0 * factor]
    link = Link(up=TraceRate([0.0, 4.0, 1000.0], rates), rtt=0.02)
    best = plan(link, device_of(1.0), offer_of(16)).seconds

    done = restored(link, 1.0, count=16, stops_within=stops_within)

    # What was begun before it was known is finished or stopped.
    late = 1.0 if stops_within == 1 else 1 / 16
    assert done.seconds <= best + 0.08 + late + 0.01
    assert len(done.fetched) == (4 if factor < 1 else 12)


def test_a_dropped_link_is_tried_again_while_computing_goes_on() -> None:
    done = restored(Link(up=1000.0, rtt=0.02), 1.0, outages=((1.5, 2.5),))

    # 1.4 blocks before, 0.4 of which need not come again. Tried again after 0.1, 0.2,
    # 0.4 and 0.8 s.
    assert done.requests == 5
    assert done.fetched[0] == 7
    assert done.computed == (0, 1, 2, 3, 4)
    assert done.seconds == pytest.approx(5.08)


def test_a_link_that_drops_for_ever_leaves_computing() -> None:
    done = restored(Link(up=1e6, rtt=0.02), 1.0, count=4, outages=((0.0, math.inf),))

    assert done.computed == (0, 1, 2, 3)
    assert done.seconds == pytest.approx(4.08, abs=0.03)


def test_losses_are_asked_for_again_ever_more_rarely() -> None:
    todo = Restoration(offer_of(2), device_of(1.0), LinkEstimate(), at=0.0)
    pauses = []
    at = 0.0
    for _ in range(8):
        todo.lost(at)
        begun = at
        while not asked(todo):
            at += todo.patience
            todo.passed(at)
        pauses.append(round(at - begun, 6))

    assert pauses == [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0]


def test_what_has_begun_to_come_is_first_after_a_loss() -> None:
    todo = Restoration(offer_of(3), device_of(1.0), LinkEstimate(), at=0.0)
    todo.arrived(Wanted(2, INT8), 1000, 0.1, whole=True)
    todo.arrived(Wanted(1, INT8), 300, 0.2, whole=False)
    todo.lost(0.3)
    todo.passed(0.5)

    assert todo.fetching == (Wanted(1, INT8), Wanted(0, INT8))
    assert todo.missing == (0, 1)


def test_a_refused_precision_leaves_the_finer_ones() -> None:
    errors = {FP16: 0.001, INT8: 0.01, INT4: 0.015}
    todo = Restoration(offer_of(3, errors), device_of(1.0), LinkEstimate(1e3), at=0.0)
    assert todo.fetching[0].precision is INT4

    todo.arrived(Wanted(2, INT4), 500, 0.1, whole=True)
    todo.refused(INT8, 0.5)

    assert asked(todo) == [Wanted(1, FP16), Wanted(0, FP16)]
    assert not todo.arrived(Wanted(1, INT4), 500, 0.2, whole=True)
    todo.refused(FP16, 0.5)
    assert asked(todo) == []
    assert todo.computing == 0


def test_a_precision_is_chosen_again_when_the_link_turns_out_fast() -> None:
    # INT8 takes 0.1 s to decode: only on a slow link is it worth that.
    device = DeviceSpeed(100.0, 0.0, 0.0, {FP16: 0.0, INT8: 1e-4})
    offer = offer_of(8)
    todo = Restoration(offer, device, LinkEstimate(1e3, 0.0), at=0.0)
    assert {w.precision for w in todo.fetching} == {INT8}

    done = simulate(todo, offer, Link(up=1e6), device, layers=10)

    assert done.requests == 2
    assert {w.precision for w in todo.fetching} <= {FP16}
    assert done.seconds < 0.2  # 0.8 if it had stayed


def test_what_comes_first_is_used_and_the_other_is_not() -> None:
    todo = Restoration(offer_of(2), device_of(1.0), LinkEstimate(), at=0.0)
    assert todo.arrived(Wanted(1, INT8), 1000, 0.5, whole=True)
    assert todo.useful(0, 0.0)
    assert todo.arrived(Wanted(0, INT8), 1000, 0.9, whole=True)

    assert not todo.useful(0, 0.0)
    assert not todo.computed(0, 1.0, 1.0)
    assert (todo.finished, todo.fetching, todo.computing) == (True, (), None)
    assert (todo.computed_blocks, todo.fetched_blocks) == ((), (1, 0))


def test_stopping_saves_what_would_have_been_waited_for() -> None:
    link = Link(up=20_000.0, rtt=0.1)  # All comes after 0.5 s; heard of after 0.105 s.

    held_up = restored(link, 1.0)
    stopped = restored(link, 1.0, stops_within=0.05)

    assert held_up.seconds == pytest.approx(1.08)
    assert stopped.seconds == pytest.approx(0.5)


def test_a_link_known_from_before_spares_the_listening() -> None:
    estimate = LinkEstimate()
    restored(Link(up=1000.0, rtt=0.1), 1.0, estimate=estimate)

    done = restored(Link(up=1000.0, rtt=0.1), 1.0, estimate=estimate)

    assert done.seconds == pytest.approx(4.1)  # The fourth comes at 4.1.
    assert done.computed == (0, 1, 2, 3)


def test_bad_input_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="stops_within"):
        Restoration(offer_of(1), device_of(1.0), LinkEstimate(), stops_within=0.0)
    with pytest.raises(InvalidInputError, match="max_error"):
        Restoration(offer_of(1), device_of(1.0), LinkEstimate(), -0.1)
    todo = Restoration(offer_of(3), device_of(1.0), LinkEstimate())
    with pytest.raises(InvalidInputError, match="block 0 before it is missing"):
        todo.computed(1, 1.0, 1.0)
    with pytest.raises(InvalidInputError, match="at must be finite"):
        todo.passed(math.nan)
    with pytest.raises(InvalidInputError, match="error must be"):
        todo.refused(INT8, -1.0)
    with pytest.raises(InvalidInputError, match="layers"):
        simulate(todo, offer_of(3), Link(up=1.0), device_of(1.0), layers=0)


def test_nothing_private_can_be_told() -> None:
    """Its inputs are offers of shared blocks, measurements and times; no text."""
    told = {
        name
        for _, method in inspect.getmembers(Restoration, inspect.isfunction)
        if not method.__name__.startswith("_") or method.__name__ == "__init__"
        for name in inspect.signature(method).parameters
    }

    assert told == {
        *("self", "offer", "device", "link_estimate", "max_error", "stops_within"),
        *("at", "block", "seconds", "wanted", "nbytes", "whole", "precision"),
        *("error", "begun_at", "come"),
    }


class Watched(Restoration):
    """Checks that only the lowest missing block is ever computed."""

    def computed(self, block: int, seconds: float, at: float) -> bool:
        if block in self.missing:
            assert block == self.missing[0]
        return super().computed(block, seconds, at)


RATES = st.lists(st.sampled_from([0.0, 1.0, 300.0, 1e4, 1e6]), min_size=2, max_size=5)


@settings(deadline=None, max_examples=150)
@given(
    held=st.sets(st.integers(0, 9), max_size=9),
    rates=RATES.filter(any),
    rtt=st.sampled_from([0.0, 0.02, 0.5]),
    seconds=st.sampled_from([0.01, 0.3, 20.0]),
    believed=st.sampled_from([0.01, 0.3, 20.0]),
    stops_within=st.sampled_from([1.0, 0.1]),
    max_error=st.sampled_from([0.0, 0.005, 0.02]),
    down=st.lists(st.floats(0.0, 20.0), max_size=3),
    layers=st.integers(1, 4),
)
def test_every_block_is_had_once_in_no_more_than_computing_and_waiting_take(
    held: set[int],
    rates: list[float],
    rtt: float,
    seconds: float,
    believed: float,
    stops_within: float,
    max_error: float,
    down: list[float],
    layers: int,
) -> None:
    everything = offer_of(10)
    missing = [b for b in everything.blocks if b.block not in held]
    offer = Offer(missing, everything.errors)
    link = Link(up=TraceRate([3.0 * i for i in range(len(rates))], rates), rtt=rtt)
    todo = Watched(
        offer, device_of(believed), LinkEstimate(), max_error, stops_within, 0.0
    )

    done = simulate(
        todo,
        offer,
        link,
        device_of(seconds),
        layers=layers,
        outages=[(t, t + 1.0) for t in sorted(down)],
    )

    assert sorted(done.computed + done.fetched) == [b.block for b in missing]
    assert list(done.computed) == sorted(done.computed)
    assert list(done.fetched) == sorted(done.fetched, reverse=True)
    if max_error == 0.0:
        assert not done.fetched
    if believed == seconds and stops_within == 1:
        # A wait is given up when it is expected to be in vain: twice what is best
        # without the link, and never without end.
        assert done.seconds <= 2.5 * seconds * len(missing) + 1.0
