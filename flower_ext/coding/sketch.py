"""Sketches: what remains of a reply, once its arrays are gone, to check it by.

A sketch is a random linear projection of all of a reply's arrays onto a few numbers. As
it is linear, every relation between replies holds between their sketches; as the
projection is drawn from a secret, nobody can write a false reply that it does not see.
Each block of a flattened array, as a matrix X, enters as A X C with fresh random A and
C, so that a number costs eight multiplications and not as many as the sketch has
entries. The entries of A and C come from a continuous law: no two different replies
have equal sketches, however few elements they differ in (with probability 1), and the
expected square of the sketch's norm is that of what is sketched.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flower_ext.coding.gradient_code import check_count
from flower_ext.errors import InvalidInputError

__all__ = ["DIMENSIONS", "GROUPS", "Sketcher"]

Floats = NDArray[np.float64]
Layout = Mapping[str, tuple[tuple[int, ...], np.dtype[Any]]]

DIMENSIONS = 64
"""Numbers per group in a sketch."""

GROUPS = ("arrays of floats", "arrays of integers", "numbers of examples")
"""What is sketched apart, as its magnitudes cannot be compared with the others'."""

_SIDE = 8  # A is 8 x rows, C columns x 8, and 8 x 8 is DIMENSIONS
_COLUMNS = 64
_BLOCK = 8192  # elements; in float64 they stay in the processor's first cache
_SPREAD = np.sqrt(12.0 / _SIDE)  # of a uniform entry, so that norms are kept


class Sketcher:
    """Sketches the replies of one round.

    Parameters
    ----------
    layout : Mapping[str, tuple[tuple[int, ...], numpy.dtype]]
        Shape and dtype of each of the model's arrays, as the server sent them.
    secret : int
        At least 0, 128 bits at most; from :mod:`secrets`, new for each round, and never
        told to a client.
    most_elements : int, optional
        Sketch a secret sample of blocks with about so many elements, at least 1. A lie
        is then seen only where it touches the sample: dense ones always, lies about a
        few elements hardly. By default all elements are sketched.

    Raises
    ------
    InvalidInputError
        If an argument is out of range.

    Examples
    --------
    >>> layout = {"weight": ((3,), np.dtype(np.float32))}
    >>> sketcher = Sketcher(layout, secret=7)
    >>> one, other = np.ones(3, np.float32), np.arange(3, dtype=np.float32)
    >>> parts = [sketcher.arrays({"weight": a}) for a in (one, other, one + 2 * other)]
    >>> bool(np.allclose(parts[0] + 2 * parts[1], parts[2]))
    True
    """

    def __init__(
        self, layout: Layout, secret: int, most_elements: int | None = None
    ) -> None:
        secret = check_count("secret", secret, low=0, high=(1 << 128) - 1)
        self.layout = {name: (tuple(s), np.dtype(d)) for name, (s, d) in layout.items()}
        self._secret = secret
        # Views of complex arrays have twice the elements.
        sizes = {
            name: int(np.prod(shape)) * (2 if dtype.kind == "c" else 1)
            for name, (shape, dtype) in self.layout.items()
        }
        self._blocks = {n: list(range(0, size, _BLOCK)) for n, size in sizes.items()}
        if most_elements is not None:
            check_count("most_elements", most_elements, low=1)
            self._sample(sizes, most_elements)

    def _sample(self, sizes: Mapping[str, int], most: int) -> None:
        """Keep blocks, in a secret order, until there are enough elements."""
        rng = self._rng(1)
        blocks = [(name, at) for name, starts in self._blocks.items() for at in starts]
        self._blocks = {name: [] for name in sizes}
        left = most
        for i in rng.permutation(len(blocks)).tolist():
            if left <= 0:
                break
            name, at = blocks[i]
            self._blocks[name].append(at)
            left -= min(_BLOCK, sizes[name] - at)
        for starts in self._blocks.values():
            starts.sort()

    def arrays(self, arrays: Mapping[str, NDArray[Any]]) -> Floats:
        """Sketch the arrays of a reply.

        Parameters
        ----------
        arrays : Mapping[str, ndarray]
            With the names and shapes of the layout; real or complex.

        Returns
        -------
        ndarray of shape (2, DIMENSIONS)
            Of what answers to the model's floats, and to its integers and booleans.

        Raises
        ------
        InvalidInputError
            If an array is missing, has another shape, or holds NaN or infinity.
        """
        rng = self._rng(0)
        sketch = np.zeros((2, _SIDE, _SIDE))
        padded = np.zeros((_BLOCK // _COLUMNS, _COLUMNS))
        for name, (shape, dtype) in self.layout.items():
            if name not in arrays or arrays[name].shape != shape:
                raise InvalidInputError(f"It has no array '{name}' of shape {shape}.")
            flat = np.ascontiguousarray(arrays[name]).reshape(-1)
            if dtype.kind == "c":
                wide = flat if flat.dtype.kind == "c" else flat.astype(complex)
                flat = wide.view(wide.real.dtype)
            group = sketch[0 if dtype.kind in "fc" else 1]
            for start in self._blocks[name]:
                block = flat[start : start + _BLOCK]
                rows = -(-block.size // _COLUMNS)
                matrix = padded[:rows]
                spread = matrix.reshape(-1)
                spread[: block.size] = block
                spread[block.size :] = 0.0
                left = rng.random((_SIDE, rows)) - 0.5
                right = rng.random((_COLUMNS, _SIDE)) - 0.5
                group += (left @ matrix) @ right
        sketch *= _SPREAD**2
        if not np.isfinite(sketch).all():
            raise InvalidInputError("Its arrays have NaN, infinite or vast values.")
        return sketch.reshape(2, DIMENSIONS)

    def examples(
        self,
        partitions: Sequence[int],
        coefficients: Sequence[float],
        examples: Sequence[float],
    ) -> Floats:
        """Sketch the numbers of examples that a reply reports for its partitions.

        Parameters
        ----------
        partitions : Sequence[int]
            Ids, at least 0.
        coefficients : Sequence[float]
            The reply's row there.
        examples : Sequence[float]
            n_k there.

        Returns
        -------
        ndarray of shape (DIMENSIONS,)
            Σ b_k n_k g_k with a random vector g_k for each partition.
        """
        sketch = np.zeros(DIMENSIONS)
        for k, b, n in zip(partitions, coefficients, examples, strict=True):
            sketch += b * n * self._rng(2 + k).standard_normal(DIMENSIONS)
        sketch /= np.sqrt(DIMENSIONS)
        return sketch

    def reply(
        self,
        arrays: Mapping[str, NDArray[Any]],
        partitions: Sequence[int],
        coefficients: Sequence[float],
        examples: Sequence[float],
    ) -> Floats:
        """Sketch a whole reply; parameters as in the two methods above.

        Returns
        -------
        ndarray of shape (len(GROUPS), DIMENSIONS)
            One row per group.
        """
        counted = self.examples(partitions, coefficients, examples)
        return np.concatenate([self.arrays(arrays), counted[None]])

    def _rng(self, purpose: int) -> np.random.Generator:
        """Return the same numbers each time for a purpose."""
        return np.random.Generator(np.random.SFC64([self._secret, purpose]))
