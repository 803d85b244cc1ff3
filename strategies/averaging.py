"""The new global arrays from coded replies, in one pass over their bytes.

The arrays are walked in blocks that stay in the processor's cache: a block of some
replies is read where Flower received it, widened to float64 and summed with their
weights, then added to the global arrays' block and written to the result.
Beyond the replies and the result, about two megabytes are held.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord
from numpy.typing import NDArray

from flower_ext.coding.payload import accumulation_dtype, apply_update
from flower_ext.errors import InvalidInputError
from flower_ext.strategies.array_views import view

__all__ = ["apply_replies"]

_BLOCK = 1 << 15  # elements
_ROWS = 8  # replies summed at once; rows x block in float64 are 2 MB
_NUMPY = "numpy.ndarray"


def apply_replies(
    arrays: ArrayRecord,
    replies: Sequence[tuple[ArrayRecord, float]],
    examples: float,
    *,
    release: bool = False,
) -> ArrayRecord:
    """Return the global arrays moved by the weighted mean of the replies.

    Parameters
    ----------
    arrays : ArrayRecord
        The global arrays that the round began with.
    replies : Sequence[tuple[ArrayRecord, float]]
        Coded replies Σ b_k n_k Δ_k and their decoding weights; checked before.
    examples : float
        Σ c_k n_k, what the weighted sum is divided by, positive.
    release : bool (default: False)
        Whether to take each array out of the replies' records once it is folded in, so
        that its memory is free before the next one is.

    Returns
    -------
    ArrayRecord
        With the keys, shapes and dtypes of `arrays`.

    Raises
    ------
    InvalidInputError
        If a value of the result would not be finite.
    """
    moved = {}
    for name, array in arrays.items():
        received = view(name, array)
        parts = [
            (view(name, coded[name]), weight / examples) for coded, weight in replies
        ]
        moved[name] = _moved(name, received, parts)
        if release:
            del parts
            for coded, _ in replies:
                del coded[name]
    return ArrayRecord(moved)


def _moved(
    name: str, received: NDArray[Any], parts: list[tuple[NDArray[Any], float]]
) -> Array:
    """Return one array moved by its weighted parts."""
    flat = received.reshape(-1)
    flat_parts = [part.reshape(-1) for part, _ in parts]
    weights = np.array([weight for _, weight in parts])
    dtype = accumulation_dtype(received.dtype)
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        buffer,
        {
            "descr": np.lib.format.dtype_to_descr(received.dtype),
            "fortran_order": False,
            "shape": received.shape,
        },
    )
    start_of_data = buffer.tell()
    if flat.nbytes:  # reserve all at once: growing step by step takes an eighth more
        buffer.seek(flat.nbytes - 1, io.SEEK_CUR)
        buffer.write(b"\0")
        buffer.seek(start_of_data)
    rows = np.empty((min(_ROWS, len(parts)), min(_BLOCK, flat.size)), dtype)
    for start in range(0, flat.size, _BLOCK):
        block = flat[start : start + _BLOCK]
        update = np.zeros(block.size, dtype)
        for first in range(0, len(parts), _ROWS):
            group = flat_parts[first : first + _ROWS]
            for row, part in zip(rows, group, strict=False):
                row[: block.size] = part[start : start + _BLOCK]
            wide = rows[: len(group), : block.size]
            # Not by BLAS: its threads wait for each other, for ever on a busy machine.
            update += np.einsum("i,ij->j", weights[first : first + _ROWS], wide)
        with np.errstate(over="ignore"):  # told below
            moved = apply_update(block, update)
        if moved.dtype.kind in "fc" and not np.isfinite(moved).all():
            raise InvalidInputError(
                f"The update overflows the dtype {received.dtype} of '{name}'."
            )
        buffer.write(moved.data)
    return Array(
        dtype=str(received.dtype),
        shape=tuple(received.shape),
        stype=_NUMPY,
        data=buffer.getvalue(),
    )
