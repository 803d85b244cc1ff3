"""Payload arithmetic: how model changes are formed, summed, rounded and put back.

A coded reply is ``sum_k b_k n_k delta_k``. This module fixes in which precision each
step happens, so that workers and the server agree for every dtype of a model:

1. ``delta_k`` and the sum live in the *accumulation* dtype (float64, or complex128),
2. the sum is rounded once to the *payload* dtype, in which it travels,
3. the update is added to the received array and cast back to its own dtype.

A worker therefore needs one accumulator of the model's size in float64; partitions
arrive one after another, so it cannot be done array by array.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from flower_ext.errors import InvalidInputError

__all__ = [
    "accumulate",
    "accumulation_dtype",
    "apply_update",
    "delta",
    "payload_dtype",
]

Array = NDArray[Any]

_BLOCK = 1 << 16
"""Elements that :func:`accumulate` handles at a time: half a MiB, it fits a cache."""


def payload_dtype(dtype: DTypeLike) -> np.dtype[Any]:
    """Return the dtype in which changes of an array of ``dtype`` travel.

    Parameters
    ----------
    dtype : DTypeLike
        A boolean, integer, floating or complex dtype.

    Returns
    -------
    np.dtype
        float32 for float16, which ``n_k delta_k`` overflows; float64 for integers and
        booleans; any other floating or complex dtype unchanged, in native byte order.

    Raises
    ------
    InvalidInputError
        If ``dtype`` is not numeric (objects, strings, dates, raw bytes).

    Examples
    --------
    >>> [str(payload_dtype(d)) for d in ("float16", "float32", "int64", "bool")]
    ['float32', 'float32', 'float64', 'float64']
    """
    resolved = np.dtype(dtype)
    if resolved.kind in "fc":
        return np.result_type(resolved, np.float32)
    if resolved.kind in "biu":
        return np.dtype(np.float64)
    raise InvalidInputError(
        f"Arrays of dtype '{resolved}' cannot be trained in a coded round: use "
        "boolean, integer, floating or complex arrays."
    )


def accumulation_dtype(dtype: DTypeLike) -> np.dtype[Any]:
    """Return the dtype in which changes of an array of ``dtype`` are summed.

    Parameters
    ----------
    dtype : DTypeLike
        As for :func:`payload_dtype`.

    Returns
    -------
    np.dtype
        float64, complex128, or wider.

    Raises
    ------
    InvalidInputError
        If ``dtype`` is not numeric.

    Examples
    --------
    >>> [str(accumulation_dtype(d)) for d in ("float16", "complex64", "uint8")]
    ['float64', 'complex128', 'float64']
    """
    return np.result_type(payload_dtype(dtype), np.float64)


def delta(trained: Array, received: Array) -> Array:
    """Return the change that training made, ``trained - received``.

    Integers are subtracted exactly, whatever their size, and then rounded to float64.

    Parameters
    ----------
    trained : NDArray
        The array after training, of the same shape as ``received``.
    received : NDArray
        The array before training.

    Returns
    -------
    NDArray
        The change in the accumulation dtype of ``received``, of the same shape.

    Raises
    ------
    InvalidInputError
        If the shapes differ, a dtype is not numeric, or a real array became complex.

    Examples
    --------
    >>> delta(np.array([3, 1]), np.array([1, 2]))
    array([ 2., -1.])
    """
    if trained.shape != received.shape:
        raise InvalidInputError(
            f"The trained array has shape {trained.shape}, the received one "
            f"{received.shape}: training must keep shapes."
        )
    dtype = accumulation_dtype(received.dtype)
    if payload_dtype(trained.dtype).kind != dtype.kind and dtype.kind != "c":
        raise InvalidInputError(
            f"The trained array is of dtype '{trained.dtype}', the received one "
            f"'{received.dtype}': training must keep real arrays real."
        )
    if trained.dtype == received.dtype and received.dtype.kind in "iu":
        return _integer_difference(trained, received)
    return np.asarray(np.subtract(trained, received, dtype=dtype))


def accumulate(total: Array, array: Array, weight: float) -> None:
    """Add ``weight * array`` to ``total`` in place, without an array-sized temporary.

    Parameters
    ----------
    total : NDArray
        The running sum, C-contiguous; changed in place.
    array : NDArray
        The summand, of the same shape as ``total``.
    weight : float
        The finite factor, for example ``b_k * n_k``.

    Raises
    ------
    InvalidInputError
        If the shapes differ or ``total`` cannot hold the sum in place.

    Examples
    --------
    >>> total = np.zeros(2)
    >>> accumulate(total, np.array([1, 2], np.float32), 0.5)
    >>> total
    array([0.5, 1. ])
    """
    if total.shape != array.shape:
        raise InvalidInputError(
            f"Cannot add an array of shape {array.shape} to a sum of shape "
            f"{total.shape}."
        )
    if not total.flags.c_contiguous or not np.can_cast(
        array.dtype, total.dtype, "same_kind"
    ):
        raise InvalidInputError(
            f"A sum must be C-contiguous and at least as wide as its summands, got a "
            f"sum of dtype '{total.dtype}' and an array of dtype '{array.dtype}'."
        )
    flat_total, flat_array = total.reshape(-1), array.reshape(-1)
    scratch = np.empty(min(_BLOCK, total.size), total.dtype)
    for start in range(0, total.size, _BLOCK):
        part = flat_array[start : start + _BLOCK]
        product = scratch[: part.size]
        np.multiply(part, weight, out=product, dtype=total.dtype)
        flat_total[start : start + _BLOCK] += product


def apply_update(received: Array, update: Array) -> Array:
    """Add an averaged update to the received array, in the received array's dtype.

    Floats are added in the wider of the payload dtype and the update's, then cast.
    Integers change by the update rounded to the nearest integer (ties to even) and
    saturate at the bounds of their dtype; the addition itself is exact. A boolean is
    true where ``received + update > 0.5``: the weighted majority.

    Parameters
    ----------
    received : NDArray
        The array before the round.
    update : NDArray
        The change, in the payload dtype or wider, of the same shape.

    Returns
    -------
    NDArray
        A new array with the shape and dtype of ``received``.

    Raises
    ------
    InvalidInputError
        If the shapes differ, a dtype is not numeric, the update is not finite, or it
        is complex and the received array is not.

    Examples
    --------
    >>> apply_update(np.array([250, 3], np.uint8), np.array([9.7, -1.2]))
    array([255,   2], dtype=uint8)
    """
    payload = payload_dtype(received.dtype)
    if received.shape != update.shape:
        raise InvalidInputError(
            f"An update of shape {update.shape} does not fit an array of shape "
            f"{received.shape}."
        )
    if update.dtype.kind == "c" and payload.kind != "c":
        raise InvalidInputError(
            f"A complex update cannot be applied to an array of dtype "
            f"'{received.dtype}'."
        )
    if not np.isfinite(update).all():
        raise InvalidInputError("An update with NaN or infinity cannot be applied.")
    if received.dtype.kind in "iu":
        return _shift_integers(received, update)
    moved = np.asarray(
        np.add(received, update, dtype=np.result_type(payload, update.dtype))
    )
    if received.dtype.kind == "b":
        return np.asarray(moved > 0.5)
    return moved.astype(received.dtype)


def _integer_difference(trained: Array, received: Array) -> Array:
    """Subtract integers of one dtype exactly and round the difference to float64.

    The distance fits an unsigned 64-bit integer even where the difference overflows a
    signed one. Both integer helpers work on flat arrays: NumPy warns when the wrap
    that they rely on happens in a scalar.
    """
    high = np.maximum(trained, received).reshape(-1).astype(np.uint64)
    low = np.minimum(trained, received).reshape(-1).astype(np.uint64)
    distance = (high - low).astype(np.float64).reshape(received.shape)
    return np.where(trained >= received, distance, -distance)


def _shift_integers(received: Array, update: Array) -> Array:
    """Add rounded ``update`` to integers exactly, saturating at the dtype's bounds.

    float64 cannot hold every 64-bit integer, so only the step is rounded; the sum is
    taken modulo 2**64, in which the wrapped and the true result agree.
    """
    limits = np.iinfo(received.dtype)
    step = np.rint(update.reshape(-1).astype(np.float64))
    start = received.reshape(-1).astype(np.uint64)
    headroom = np.uint64(limits.max % 2**64) - start
    footroom = start - np.uint64(limits.min % 2**64)
    room = np.where(step >= 0, headroom, footroom)
    fits = np.abs(step) < 2.0**64
    size = np.where(fits, np.abs(step), 0).astype(np.uint64)
    distance = np.where(fits, np.minimum(size, room), room)
    moved = np.where(step >= 0, start + distance, start - distance)
    return moved.astype(received.dtype).reshape(received.shape)
