"""A strategy's state as JSON, and the arrays that it holds as tensors beside it.

What JSON has no words for is written as an object of one key that says what it is:
``{"array": name}``, ``{"complex": name}`` (as pairs), ``{"arrays": {name: ...}}`` (an
``ArrayRecord``), ``{"metrics": {...}}`` (a ``MetricRecord``) and ``{"dict": {...}}`` or
``{"items": [[key, value]]}`` for dictionaries, whose keys may be whole numbers.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, MetricRecord
from numpy.typing import NDArray

from flower_ext.errors import InvalidInputError
from flower_ext.strategies.array_views import view

__all__ = ["State", "decode", "encode"]

State = dict[str, Any]
"""None, numbers, str, list, tuple, dict, ndarray, ArrayRecord and MetricRecord."""

Tensors = dict[str, NDArray[Any]]


def encode(value: Any, tensors: Tensors, path: str = "state") -> Any:
    """Return a value as JSON knows it, and put its arrays aside.

    Parameters
    ----------
    value : Any
        What :data:`State` says.
    tensors : dict[str, ndarray]
        Where arrays are put, under the path at which they lie in the value.
    path : str
        The value's own path.

    Returns
    -------
    Any
        Of dict, list, str, int, float, bool and None.

    Raises
    ------
    InvalidInputError
        If a value is of another type.
    """
    if value is None or isinstance(value, bool | int | float | str):
        # NumPy's own scalars are not JSON's.
        return value.item() if isinstance(value, np.generic) else value
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        while path in tensors:  # names may hold slashes
            path += "'"
        kind = "array"
        if value.dtype.kind == "c":
            value = np.ascontiguousarray(value)[..., None].view(value.real.dtype)
            kind = "complex"
        tensors[path] = value
        return {kind: path}
    if isinstance(value, ArrayRecord):
        parts = {
            name: encode(view(name, array), tensors, f"{path}/{name}")
            for name, array in value.items()
        }
        return {"arrays": parts}
    if isinstance(value, MetricRecord):
        return {"metrics": {k: encode(v, tensors, k) for k, v in value.items()}}
    if isinstance(value, list | tuple):
        return [encode(v, tensors, f"{path}/{i}") for i, v in enumerate(value)]
    if isinstance(value, dict):
        items = [(k, encode(v, tensors, f"{path}/{k}")) for k, v in value.items()]
        if all(isinstance(key, str) for key in value):
            return {"dict": dict(items)}
        return {"items": [[encode(k, tensors, path), v] for k, v in items]}
    raise InvalidInputError(
        f"A checkpoint cannot hold {value!r} ({type(value).__name__}) at {path}: use "
        "numbers, text, lists, dictionaries, NumPy arrays, ArrayRecords."
    )


def decode(value: Any, tensors: Tensors) -> Any:
    """Return what :func:`encode` was given; tuples come back as lists."""
    if isinstance(value, list):
        return [decode(v, tensors) for v in value]
    if not isinstance(value, dict):
        return value
    ((kind, content),) = value.items()
    if kind == "array":
        return tensors[content]
    if kind == "complex":
        pairs = tensors[content]
        return pairs.view(np.result_type(pairs.dtype, np.complex64))[..., 0]
    if kind == "arrays":
        return ArrayRecord(
            {name: Array(decode(part, tensors)) for name, part in content.items()}
        )
    if kind == "metrics":
        return MetricRecord(content)
    if kind == "items":
        return {decode(k, tensors): decode(v, tensors) for k, v in content}
    return {k: decode(v, tensors) for k, v in content.items()}
