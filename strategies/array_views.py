"""Flower's serialised arrays read in place, without the copy that ``numpy()`` makes."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from flwr.app import Array
from numpy.typing import NDArray

from flower_ext.errors import InvalidInputError

__all__ = ["view"]


def view(name: str, array: Array) -> NDArray[Any]:
    """Return a read-only NumPy view of a Flower array's bytes.

    Parameters
    ----------
    name : str
        What the array is called in the message of an error.
    array : Array
        Serialised by Flower, that is in the ``.npy`` format.

    Returns
    -------
    ndarray
        Shares the memory of ``array.data``.

    Raises
    ------
    InvalidInputError
        If the bytes are not a numeric array of the announced shape and dtype.
    """
    try:
        buffer = io.BytesIO(array.data)  # shares the bytes as long as nobody writes
        version = np.lib.format.read_magic(buffer)
        if version == (1, 0):
            header = np.lib.format.read_array_header_1_0(buffer)
        else:
            header = np.lib.format.read_array_header_2_0(buffer)
        shape, fortran_order, dtype = header
        if dtype.kind not in "biufc":
            raise ValueError(f"its dtype is {dtype}")
        if str(dtype) != array.dtype or tuple(shape) != tuple(array.shape):
            raise ValueError(
                f"it announces {array.dtype} {tuple(array.shape)} "
                f"but holds {dtype} {shape}"
            )
        flat: NDArray[Any] = np.frombuffer(array.data, dtype, offset=buffer.tell())
        return flat.reshape(shape, order="F" if fortran_order else "C")
    except Exception as error:  # whatever NumPy's parsers make of foreign bytes
        raise InvalidInputError(f"The array '{name}' is unreadable: {error}.") from None
