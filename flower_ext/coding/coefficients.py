"""Coefficients for given supports: exact decoding that survives float32 replies.

Wang et al. 2019 (arXiv:1901.09339, section IV) give worker i a column c_i of a matrix C
with s + 1 rows, any s + 1 columns of which are independent, and solve C_S b = 1 for the
coefficients b of a partition held by the workers S. Let z be orthogonal to the columns
of the s stragglers; then w_i = (z . c_i) / (z . 1) is zero on the stragglers and
decodes. Two steps beyond that paper keep the arithmetic well conditioned:

* two workers that share no partition may have the *same* column. C needs one column per
  colour of the graph in which workers that share a partition are adjacent, often little
  more than s + 1 where there are a thousand workers. With s + 1 colours every
  coefficient is 1.
* the right-hand side 1 is one more vector of the frame, free to choose. The frame is
  the best of a few by how far it amplifies rounding: a trigonometric moment curve in
  several orders, and Gaussian vectors, from a fixed seed.
"""

from __future__ import annotations

import itertools
import math

import numpy as np
from numpy.typing import NDArray

__all__ = ["colour_workers", "encoding_matrix"]

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

# Frames are compared until one loses about 3e-7 of a sum at worst to float32 replies...
_GOOD_AMPLIFICATION = 10.0
_CANDIDATES = 40  # ... or so many are compared
_SEARCH_WORK = 20_000_000  # ... or after so many multiplications, about 0.1 s
_STRAGGLER_SETS = 2_000  # sets that a frame is judged on; all of them where they fit
_CHUNK = 4_000_000  # numbers in one batch of linear systems, 32 MB


def encoding_matrix(supports: Ints, colours: Ints) -> Floats:
    """Return an encoding matrix that tolerates any s stragglers.

    Parameters
    ----------
    supports : ndarray of shape (partitions, s + 1)
        The distinct workers that hold each partition.
    colours : ndarray of shape (workers,)
        Colours from 0; workers that share a partition have different ones.

    Returns
    -------
    ndarray of shape (workers, partitions)
        Zero outside the supports; the largest coefficient of a worker is 1 in size.
    """
    partitions, copies = supports.shape
    matrix = np.zeros((len(colours), partitions))
    columns = np.arange(partitions)[:, None]
    if int(colours.max()) < copies:
        matrix[supports, columns] = 1.0
        return matrix
    by_colour = np.argsort(colours[supports], axis=1)
    supports = np.take_along_axis(supports, by_colour, axis=1)
    distinct, which, counts = np.unique(
        colours[supports], axis=0, return_inverse=True, return_counts=True
    )
    frame = _choose_frame(distinct, counts, int(colours.max()) + 1)
    coefficients = _coefficients(frame, distinct)[which.ravel()]
    largest = np.zeros(len(colours))
    np.maximum.at(largest, supports, np.abs(coefficients))
    matrix[supports, columns] = coefficients / largest[supports]
    return matrix


def colour_workers(supports: Ints, workers: int) -> Ints:
    """Colour the workers so that those that share a partition differ, greedily.

    Two orders are tried, by number (best when partitions lie on a line or a ring) and
    by falling degree, and the one that needs fewer colours is kept.

    Parameters
    ----------
    supports : ndarray of shape (partitions, s + 1)
        The distinct workers that hold each partition.
    workers : int
        Number of workers.

    Returns
    -------
    ndarray of shape (workers,)
        Colours from 0 upwards.
    """
    adjacent = np.zeros((workers, workers), dtype=bool)
    for left, right in itertools.permutations(supports.T, 2):
        adjacent[left, right] = True
    neighbours = [np.flatnonzero(row) for row in adjacent]
    by_degree = np.argsort([-len(n) for n in neighbours], kind="stable")
    colourings = [_greedy(neighbours, order) for order in (range(workers), by_degree)]
    return min(colourings, key=lambda colours: int(colours.max()))


def _greedy(neighbours: list[Ints], order: range | Ints) -> Ints:
    """Give each worker in turn the lowest colour that no neighbour has."""
    colours = np.full(len(neighbours), -1)
    for worker in order:
        taken = set(colours[neighbours[worker]].tolist())
        colours[worker] = next(c for c in itertools.count() if c not in taken)
    return colours


def _choose_frame(supports: Ints, counts: Ints, colours: int) -> Floats:
    """Return a frame that amplifies rounding little, the best of those compared."""
    dimension = supports.shape[1]
    rng = np.random.default_rng(2017)
    stragglers = _straggler_sets(colours, dimension - 1, rng)
    work = (len(stragglers) + len(supports)) * (dimension + 2) ** 3
    curve = _trigonometric_frame(dimension, colours + 1)
    best = curve
    lowest = _amplification(curve, supports, counts, stragglers)
    for number in range(min(_CANDIDATES, _SEARCH_WORK // work)):
        if lowest <= _GOOD_AMPLIFICATION:
            break
        if number % 2:
            frame = rng.permutation(curve, axis=1)
        else:
            frame = rng.standard_normal((dimension, colours + 1))
            frame /= np.linalg.norm(frame, axis=0)
        amplification = _amplification(frame, supports, counts, stragglers)
        if amplification < lowest:
            best, lowest = frame, amplification
    return best


def _straggler_sets(colours: int, stragglers: int, rng: np.random.Generator) -> Ints:
    """Return all sets of ``stragglers`` colours, or a sample when there are too many.

    The sample is smaller in high dimension, so that one batch of systems fits _CHUNK.
    """
    limit = max(1, min(_STRAGGLER_SETS, _CHUNK // (stragglers + 1) ** 2))
    if math.comb(colours, stragglers) <= limit:
        return np.array(list(itertools.combinations(range(colours), stragglers)))
    return rng.random((limit, colours)).argsort(axis=1)[:, :stragglers]


def _trigonometric_frame(dimension: int, vectors: int) -> Floats:
    """Return equally spaced points of the trigonometric moment curve, as columns.

    A minor is a product of sines of half the angles between its points, so none is
    zero; with ``vectors <= dimension + 2`` they are as equal as minors can be.
    """
    angles = 2 * np.pi * np.arange(vectors) / vectors
    frequencies = np.arange(1 + dimension % 2, dimension + 1, 2) / 2
    waves = frequencies[:, None] * angles
    constant = np.full((dimension % 2, vectors), math.sqrt(0.5))
    return np.concatenate([constant, np.cos(waves), np.sin(waves)])


def _coefficients(frame: Floats, supports: Ints) -> Floats:
    """Solve C_S b = a for each set S of colours, a being the frame's last vector."""
    dimension = len(frame)
    batch = max(1, _CHUNK // dimension**2)
    solved = np.empty(supports.shape)
    for start in range(0, len(supports), batch):
        chosen = supports[start : start + batch]
        target = np.broadcast_to(frame[:, -1:], (len(chosen), dimension, 1))
        systems = frame[:, chosen].transpose(1, 0, 2)
        solved[start : start + batch] = np.linalg.solve(systems, target)[..., 0]
    return solved


def _amplification(
    frame: Floats, supports: Ints, counts: Ints, stragglers: Ints
) -> float:
    """Return how far decoding amplifies rounding, for the worst straggler set.

    Each reply is rounded in proportion to the norm of its row b_i and enters the sum
    with its decoding weight, which gives sqrt(sum_i w_i^2 |b_i|^2); the sum of all
    updates, rounded once, has sqrt(K).
    """
    dimension, vectors = frame.shape
    energy = np.bincount(
        supports.ravel(),
        weights=(counts[:, None] * _coefficients(frame, supports) ** 2).ravel(),
        minlength=vectors - 1,
    )
    last = np.broadcast_to(frame[:, -1], (len(stragglers), 1, dimension))
    systems = np.concatenate([frame[:, stragglers].transpose(1, 2, 0), last], axis=1)
    target = np.zeros((len(stragglers), dimension, 1))
    target[:, -1] = 1.0
    normals = np.linalg.solve(systems, target)[..., 0]
    weights = normals @ frame[:, :-1]
    return math.sqrt((weights**2 @ energy).max() / counts.sum())
