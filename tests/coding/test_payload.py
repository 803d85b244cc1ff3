"""Payload arithmetic: exact where it can be, and dtypes and shapes survive."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from flower_ext.coding.payload import (
    accumulate,
    accumulation_dtype,
    apply_update,
    delta,
    payload_dtype,
)
from flower_ext.errors import InvalidInputError

Pair = tuple[NDArray[Any], ...]

INTEGERS = ["int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64"]
SHAPES = hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4)


@st.composite
def array_pairs(draw: st.DrawFn, /, dtypes: list[str], **elements: Any) -> Pair:
    """Draw two arrays of one dtype and one shape."""
    dtype, shape = np.dtype(draw(st.sampled_from(dtypes))), draw(SHAPES)
    values = hnp.from_dtype(dtype, allow_nan=False, allow_infinity=False, **elements)
    return tuple(draw(hnp.arrays(dtype, shape, elements=values)) for _ in range(2))


def agree(one: NDArray[Any], other: NDArray[Any]) -> bool:
    return one.dtype == other.dtype and np.array_equal(one, other)


@given(array_pairs(["bool", *INTEGERS[:6]]))
def test_round_trip_of_booleans_and_integers_is_exact(pair: Pair) -> None:
    trained, received = pair
    change = delta(trained, received)
    assert change.shape == trained.shape
    assert change.dtype == np.float64
    assert agree(apply_update(received, change), trained)


@given(array_pairs(INTEGERS[6:]))
def test_64_bit_integers_move_by_the_rounded_step(pair: Pair) -> None:
    """float64 holds a difference to 53 bits; what does not change stays exact."""
    trained, received = pair
    change = delta(trained, received)
    pairs = zip(trained.flat, received.flat, strict=True)
    differences = [int(t) - int(r) for t, r in pairs]
    assert change.ravel().tolist() == [float(d) for d in differences]
    limits = np.iinfo(received.dtype)
    moved = apply_update(received, change)
    expected = [
        min(max(int(r) + int(float(d)), limits.min), limits.max)
        for r, d in zip(received.flat, differences, strict=True)
    ]
    assert moved.ravel().tolist() == expected
    assert agree(apply_update(received, np.zeros(received.shape)), received)


@given(array_pairs(["float16", "float32"], min_value=-1024, max_value=1024))
def test_round_trip_of_floats_loses_nothing_but_float64_rounding(pair: Pair) -> None:
    trained, received = pair
    moved = apply_update(received, delta(trained, received))
    assert moved.dtype == trained.dtype
    np.testing.assert_allclose(
        moved, trained, rtol=np.finfo(moved.dtype).eps, atol=2048 * 2.0**-52
    )


@given(array_pairs(["float16", "float32", "float64"], min_value=-1e3, max_value=1e3))
def test_weighted_average_is_the_average_of_the_trained_arrays(pair: Pair) -> None:
    trained, received = pair
    total = np.zeros(received.shape, accumulation_dtype(received.dtype))
    accumulate(total, delta(trained, received), 3.0)
    accumulate(total, delta(received, received), 1.0)
    payload = total.astype(payload_dtype(received.dtype))
    moved = apply_update(received, payload / 4.0)
    expected = 0.75 * trained.astype(np.float64) + 0.25 * received.astype(np.float64)
    precision = np.finfo(received.dtype).eps
    assert moved.dtype == received.dtype
    np.testing.assert_allclose(moved, expected, rtol=precision, atol=1e3 * precision)


def test_payload_dtypes() -> None:
    expected = {
        "float16": "float32",
        "float32": "float32",
        ">f4": "float32",
        "float64": "float64",
        "complex64": "complex64",
        "complex128": "complex128",
        "bool": "float64",
        **dict.fromkeys(INTEGERS, "float64"),
    }
    assert {d: str(payload_dtype(d)) for d in expected} == expected
    for dtype in ("object", "U3", "datetime64[s]", "V2"):
        with pytest.raises(InvalidInputError, match="cannot be trained"):
            payload_dtype(dtype)


def test_half_precision_does_not_overflow() -> None:
    received, trained = np.array([1.0], np.float16), np.array([3.0], np.float16)
    total = np.zeros(1)
    accumulate(total, delta(trained, received), 60_000.0)
    payload = total.astype(payload_dtype("float16"))
    assert payload.dtype == np.float32
    assert payload[0] == 120_000.0
    moved = apply_update(received, payload / 60_000)
    assert agree(moved, np.array([3.0], np.float16))


def test_accumulate_is_in_place_and_in_the_precision_of_the_sum() -> None:
    total = np.zeros((2, 100_000))
    view = total
    array = np.full((100_000, 2), 0.1, np.float32).T
    accumulate(total, array, 0.1)
    assert view is total
    np.testing.assert_array_equal(total, np.float64(np.float32(0.1)) * 0.1)


@pytest.mark.parametrize(
    ("received", "update", "expected"),
    [
        (np.array([250, 1], np.uint8), [9.7, -9.7], [255, 0]),
        (np.array([2**63 - 1, -(2**63)]), [1e300, -1e300], [2**63 - 1, -(2**63)]),
        (np.array([1, 1, 1]), [0.5, 1.5, 0.6], [1, 3, 2]),
        (np.array([True, True, False, False]), [-0.6, -0.4, 0.6, 0.4], [0, 1, 1, 0]),
    ],
)
def test_updates_of_integers_and_booleans(
    received: NDArray[Any], update: list[float], expected: list[int]
) -> None:
    moved = apply_update(received, np.array(update))
    assert agree(moved, np.array(expected, received.dtype))


def test_bad_arrays_are_named() -> None:
    with pytest.raises(InvalidInputError, match=r"shape \(2,\).*\(3,\)"):
        delta(np.ones(2), np.ones(3))
    with pytest.raises(InvalidInputError, match=r"complex128.*float64"):
        delta(np.ones(2) * 1j, np.ones(2))
    with pytest.raises(InvalidInputError, match=r"\(2,\).*\(3,\)"):
        accumulate(np.ones(3), np.ones(2), 1.0)
    for total in (np.ones((2, 2)).T[:1], np.ones((1, 2), np.int64)):
        with pytest.raises(InvalidInputError, match="at least as wide"):
            accumulate(total, np.ones((1, 2)), 1.0)
    with pytest.raises(InvalidInputError, match=r"\(2,\).*\(3,\)"):
        apply_update(np.ones(3), np.ones(2))
    with pytest.raises(InvalidInputError, match="complex update"):
        apply_update(np.ones(2), np.ones(2) * 1j)
    for dtype in ("float32", "int64"):
        with pytest.raises(InvalidInputError, match="NaN or infinity"):
            apply_update(np.ones(2, dtype), np.array([np.nan, 1.0]))
