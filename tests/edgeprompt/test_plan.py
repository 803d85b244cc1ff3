"""Plans over known links by hand, and what a device learns of itself and its link."""

import json
import math

import numpy as np
import pytest

from flower_ext.edgeprompt.estimates import DeviceSpeed, KnownLink, LinkEstimate
from flower_ext.edgeprompt.plan import Offer, OfferedBlock, Way, plan
from flower_ext.edgeprompt.precision import Precision
from flower_ext.errors import InvalidInputError
from flower_ext.network import Link, TraceRate

FP16, INT8, INT4 = Precision.FP16, Precision.INT8, Precision.INT4
ERRORS = {FP16: 0.001, INT8: 0.01, INT4: 0.1}
SECOND_A_BLOCK = DeviceSpeed(1.0, 0.0, 0.0, dict.fromkeys(Precision, 0.0))


def offer_of(count: int) -> Offer:
    sizes = {FP16: 200, INT8: 100, INT4: 50}
    blocks = [OfferedBlock(i, 10 * i, 10, sizes) for i in range(count)]
    return Offer(blocks, ERRORS)


@pytest.mark.parametrize(
    ("rate", "way", "computed", "precision", "seconds"),
    [
        (10.0, Way.RECOMPUTE, 4, None, 4.0),
        # 2 blocks of 100 bytes in 2 s, while the others are computed.
        (100.0, Way.SPLIT, 2, INT8, 2.0),
        (1000.0, Way.FETCH, 0, INT8, 0.4),
        (0.0, Way.RECOMPUTE, 4, None, 4.0),
    ],
)
def test_a_plan_is_the_best_of_all_choices(
    rate: float, way: Way, computed: int, precision: Precision | None, seconds: float
) -> None:
    found = plan(Link(up=rate), SECOND_A_BLOCK, offer_of(4))

    assert (found.way, found.computed, found.precision) == (way, computed, precision)
    assert found.seconds == pytest.approx(seconds)
    # 4 numbers of fetched blocks in 2 precisions, and recomputing.
    assert len(found.alternatives) == 4 * 2
    times = [found.seconds, *(a.seconds for a in found.alternatives)]
    assert times == sorted(times)


def test_coarser_precisions_need_a_wider_bound() -> None:
    link = Link(up=1000.0)

    assert plan(link, SECOND_A_BLOCK, offer_of(4), max_error=0.1).precision is INT4
    assert plan(link, SECOND_A_BLOCK, offer_of(4), max_error=0.005).precision is FP16
    assert plan(link, SECOND_A_BLOCK, offer_of(4), max_error=0.0).way is Way.RECOMPUTE


def test_decoding_counts_and_goes_on_beside_the_link() -> None:
    # 2 blocks come at 0.1 and 0.2 s; each takes 0.4 s to decode, one after the other.
    device = DeviceSpeed(9.0, 0.0, 0.0, {INT8: 0.004, FP16: 0.0})

    found = plan(Link(up=1000.0), device, offer_of(2))

    times = {(c.computed, c.precision): c.seconds for c in found.alternatives}
    assert found.precision is FP16
    assert found.seconds == pytest.approx(0.4)
    assert times[0, INT8] == pytest.approx(0.9)


def test_round_trips_and_what_a_link_will_do_are_counted() -> None:
    link = Link(up=TraceRate([0.0, 1.0], [100.0, 1000.0]), rtt=0.5)

    assert KnownLink(link).fetch_seconds(100.0, at=0.0) == pytest.approx(0.5 + 0.775)
    assert plan(link, SECOND_A_BLOCK, offer_of(4)).way is not Way.RECOMPUTE
    assert plan(link, SECOND_A_BLOCK, offer_of(4), at=1.0).seconds < 2.0


def test_a_plan_goes_by_an_estimate_too() -> None:
    estimate = LinkEstimate(bytes_per_second=1000.0, round_trip=0.1)

    found = plan(estimate, SECOND_A_BLOCK, offer_of(4))

    assert found.way is Way.FETCH
    assert found.seconds == pytest.approx(0.5)


def test_bad_offers_are_refused() -> None:
    block = OfferedBlock(1, 10, 10, {INT8: 100})
    with pytest.raises(InvalidInputError, match="no size in FP16"):
        Offer([block], {FP16: 0.0})
    with pytest.raises(InvalidInputError, match="in their order"):
        Offer([block, OfferedBlock(0, 0, 10, {INT8: 100})], {INT8: 0.0})
    with pytest.raises(InvalidInputError, match="must be at least 0, got -1"):
        Offer([block], {INT8: -1.0})
    with pytest.raises(InvalidInputError, match="tokens at least 1"):
        OfferedBlock(0, 0, 0, {})
    with pytest.raises(InvalidInputError, match="a byte at least"):
        OfferedBlock(0, 0, 1, {INT8: 0})
    with pytest.raises(InvalidInputError, match="nothing to plan"):
        plan(Link(up=1.0), SECOND_A_BLOCK, Offer([], ERRORS))
    with pytest.raises(InvalidInputError, match="max_error"):
        plan(Link(up=1.0), SECOND_A_BLOCK, offer_of(1), max_error=math.nan)
    with pytest.raises(InvalidInputError, match="at must be"):
        plan(Link(up=1.0), SECOND_A_BLOCK, offer_of(1), at=-1.0)


def true_seconds(begin: int, count: int) -> float:
    return 0.05 + 4e-3 * count + 3e-6 * (begin * count + count**2 / 2)


def test_a_device_learns_its_three_costs_among_noise_and_hiccups() -> None:
    generator = np.random.default_rng(0)
    device = DeviceSpeed()
    for number in range(40):
        begin = 256 * int(generator.integers(16))
        count = int(generator.integers(16, 257))
        noise = float(generator.lognormal(sigma=0.03))
        hiccup = 5.0 if number % 10 == 3 else 1.0
        device.computed(begin, count, true_seconds(begin, count) * noise * hiccup)

    for begin, count in ((0, 256), (3840, 256), (1024, 32)):
        predicted = device.seconds(begin, count)
        assert predicted == pytest.approx(true_seconds(begin, count), rel=0.1)


def test_one_measurement_scales_what_was_believed_and_a_slower_device_shows() -> None:
    device = DeviceSpeed(0.0, 1e-3, 0.0)
    device.computed(0, 256, 2.56)
    assert device.seconds(0, 100) == pytest.approx(1.0, rel=0.01)

    for _ in range(15):
        device.computed(0, 256, 5.12)
    assert device.seconds(0, 100) == pytest.approx(2.0, rel=0.02)


def test_decoding_is_learned_by_precision() -> None:
    device = DeviceSpeed(decoding={INT8: 1e-6})
    assert device.decode_seconds(INT8, 1000) == pytest.approx(1e-3)

    for seconds in (0.1, 0.2, 9.0):
        device.decoded(INT8, 100, seconds)

    assert device.decode_seconds(INT8, 1000) == pytest.approx(2.0)
    assert device.decode_seconds(INT4, 1000) == pytest.approx(2e-6)


def test_a_device_survives_as_a_dictionary() -> None:
    device = DeviceSpeed(0.1, 0.2, 0.0, {INT8: 1e-6})
    device.computed(10, 20, 7.0)
    device.decoded(INT4, 10, 0.5)

    again = DeviceSpeed.from_dict(json.loads(json.dumps(device.to_dict())))

    assert again.seconds(5, 50) == device.seconds(5, 50)
    for precision in Precision:
        both = [d.decode_seconds(precision, 77) for d in (again, device)]
        assert both[0] == both[1]
    with pytest.raises(InvalidInputError, match="not a DeviceSpeed"):
        DeviceSpeed.from_dict({"costs": [1.0]})


def test_a_link_is_what_the_last_second_showed() -> None:
    link = LinkEstimate()
    assert not link.measured

    link.first_bytes(10.0, seconds=0.3)
    for _ in range(20):
        link.arrived(10.0, seconds=0.1)
    assert link.bytes_per_second == pytest.approx(100.0)
    assert link.round_trip == pytest.approx(0.2)

    for _ in range(150):  # 1.5 s
        link.arrived(100.0, seconds=0.01)
    assert link.bytes_per_second == pytest.approx(10_000.0, rel=0.15)

    link.arrived(100.0, seconds=4.0)
    assert link.bytes_per_second == pytest.approx(25.0, rel=0.5)


def test_silence_bounds_the_rate() -> None:
    link = LinkEstimate()
    link.arrived(100.0, seconds=0.1)

    assert link.seconds_for(1000.0, silent=0.05) == pytest.approx(1.0)
    assert link.seconds_for(1000.0, silent=2.0) == pytest.approx(20.0)


@pytest.mark.parametrize("bad", [-1.0, math.nan, math.inf])
def test_measurements_out_of_range_are_refused(bad: float) -> None:
    link, device = LinkEstimate(), DeviceSpeed()
    with pytest.raises(InvalidInputError):
        link.arrived(1.0, bad)
    with pytest.raises(InvalidInputError):
        link.first_bytes(bad, 1.0)
    with pytest.raises(InvalidInputError):
        device.computed(0, 1, bad)
    with pytest.raises(InvalidInputError):
        device.decoded(INT8, 1, bad)
    with pytest.raises(InvalidInputError):
        DeviceSpeed(base=bad)
    with pytest.raises(InvalidInputError):
        LinkEstimate(bytes_per_second=bad)
