"""Parity checks: whether coded replies agree, and whose do not.

The replies to rows B are Y = B X, with one row of X per partition. Whatever X is, the
left null space of B, H with H B = 0, gives H Y = 0: each of its rows is a parity check,
and there are as many as there are replies beyond the rank of B. A lie D shows as H D.
This is DRACO's idea (Chen et al. 2018, arXiv:1803.09877) for real-valued gradient codes
and any set of rows: checks are taken of what has arrived, not of a fixed code.

**Detection.** If the rows decode without those of some workers, no lie of theirs that
agrees with the rest can change the decoded update: for H D = 0 means D = B Z, the
others' zeros mean w^T B Z = 0 for a decoding vector w of theirs, and w^T B = 1^T.

**Naming.** A set of workers *explains* the replies if all others' are consistent. If at
most `limit` workers lie, those who do are such a set, and so contain a smallest one:
whoever is in all smallest explaining sets of up to `limit` workers has lied, for
certain. Where any 2 x `limit` columns of H are independent, there is one such set only,
and it is exactly those who lied: two spare replies name one.

**Rounding.** Honest replies agree but for rounding. That of each is taken to be at most
`tolerance` times its magnitude, or that which is usual for its row if that is larger
(a coded sum may be small where its terms are not). Checks weigh replies by the inverse
of it, and an alarm needs more than all of them together could cause, so that honest
replies within the tolerance raise none; and since a set of all liars then always
explains the replies, no rounding within it can put the blame on anybody honest. Where
replies that are far louder than usual contradict each other, that much rounding is not
allowed for: then there is an alarm, and nobody is named.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Hashable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from flower_ext.coding.blocks import Block, independent_blocks
from flower_ext.coding.gradient_code import check_count
from flower_ext.errors import InvalidInputError

__all__ = ["DEFAULT_TOLERANCE", "ParityReport", "check"]

Floats = NDArray[np.float64]

DEFAULT_TOLERANCE = 1e-3
"""Relative to a reply's magnitude: what rounding on different machines may come to."""

_RANK = 1e-8  # directions weaker than this count as absent
_LOUD = 1e4  # a reply's rounding is taken to be at most this often the usual one
_MOST_SETS = 20_000  # sets of workers that are tried


class ParityReport(NamedTuple):
    """What the checks say.

    Parameters
    ----------
    consistent : bool
        Whether all replies agree.
    liars : tuple
        The workers that have sent false replies for certain, if at most `limit` have.
    suspects : tuple
        Workers of whom some, besides the liars, may have lied; the checks cannot tell
        which. All others' replies are consistent.
    least : int
        How many workers have lied at least, liars and suspects together; 0 where no
        set of up to `limit` explains the replies, and so more have lied, or it is
        nobody's lie (training that is not deterministic, rounding of loud replies).
    checks : int
        How many independent parity checks there were.
    """

    consistent: bool
    liars: tuple[Hashable, ...]
    suspects: tuple[Hashable, ...]
    least: int
    checks: int


def check(
    rows: ArrayLike,
    sketches: ArrayLike,
    tolerance: float | Sequence[float] = DEFAULT_TOLERANCE,
    *,
    workers: Sequence[Hashable] | None = None,
    limit: int = 1,
) -> ParityReport:
    """Check whether replies are consistent, and find whose are not.

    Parameters
    ----------
    rows : array_like of shape (replies, partitions)
        The rows of the encoding matrix that have been answered.
    sketches : array_like of shape (replies, n) or (replies, groups, n)
        The replies, or :class:`~flower_ext.coding.sketch.Sketcher`'s sketches of them,
        finite. Groups are checked apart, each relative to its own magnitudes.
    tolerance : float or Sequence[float] (default: 1e-3)
        How much an honest reply may differ from another machine's, relative to its
        magnitude; one number, or one per group, in (0, 0.1]. Sane: 1e-5 where all
        machines are alike, 1e-3 where they are not.
    workers : Sequence, optional
        Who sent each reply; by default replies are numbered, and each is its own.
    limit : int (default: 1)
        The most workers that may have lied, at least 1.

    Returns
    -------
    ParityReport
        Where no set of up to `limit` workers explains the replies, or one leaves out a
        reply 10,000 times as loud as usual, everybody whom the failing checks touch is
        a suspect.

    Raises
    ------
    InvalidInputError
        If shapes do not fit or a number is out of range.

    Examples
    --------
    Three workers computed partition 0, one of them falsely; the fourth is unchecked:

    >>> rows = [[1.0, 0.0], [1.0, 0.0], [1.0, 0.0], [0.0, 1.0]]
    >>> check(rows, [[2.0, 1.0], [2.0, 1.0], [2.0, -1.0], [5.0, 5.0]])
    ParityReport(consistent=False, liars=(2,), suspects=(), least=1, checks=2)
    """
    encoding, values, tolerances = _checked(rows, sketches, tolerance)
    check_count("limit", limit, low=1)
    names = list(range(len(encoding))) if workers is None else list(workers)
    if len(names) != len(encoding):
        raise InvalidInputError(
            f"'workers' needs one entry per reply, {len(encoding)}, got {len(names)}."
        )
    usual = _usual(encoding, values)
    count, failing = 0, []
    for block in independent_blocks(encoding, np.arange(len(encoding))):
        parity = _BlockParity(
            block, values[block.rows], usual, tolerances, [names[i] for i in block.rows]
        )
        count += parity.checks
        if not parity.explained(frozenset()):
            failing.append(parity)
    if not failing:
        return ParityReport(True, (), (), 0, count)
    involved = list(dict.fromkeys(w for p in failing for w in p.workers))
    sets = _smallest_explanations(failing, involved, limit)
    if not sets or any(p.loud - found for p in failing for found in sets):
        return ParityReport(False, (), tuple(involved), 0, count)
    certain = frozenset.intersection(*sets)
    possible = frozenset.union(*sets) - certain
    return ParityReport(
        False,
        tuple(w for w in involved if w in certain),
        tuple(w for w in involved if w in possible),
        min(map(len, sets)),
        count,
    )


def _smallest_explanations(
    failing: list[_BlockParity], involved: list[Hashable], limit: int
) -> list[frozenset[Hashable]]:
    """Return all sets of up to `limit` workers that explain and contain no other."""
    found: list[frozenset[Hashable]] = []
    tried = 0
    for size in range(1, min(limit, len(involved)) + 1):
        tried += math.comb(len(involved), size)
        if tried > _MOST_SETS:  # not all are known: nobody can be named for certain
            return []
        for members in itertools.combinations(involved, size):
            candidate = frozenset(members)
            if any(smaller <= candidate for smaller in found):
                continue
            if all(parity.explained(candidate) for parity in failing):
                found.append(candidate)
    return found


class _BlockParity:
    """The checks among replies that share partitions with each other only.

    Parameters
    ----------
    block : Block
        The rows.
    values : ndarray of shape (block rows, groups, n)
        Their sketches.
    usual : ndarray of shape (groups,)
        The usual magnitude of a reply to a row of norm 1.
    tolerances : ndarray of shape (groups,)
        Relative tolerances.
    workers : list
        Who sent each.
    """

    def __init__(
        self,
        block: Block,
        values: Floats,
        usual: Floats,
        tolerances: Floats,
        workers: list[Hashable],
    ) -> None:
        self.workers = workers
        self.loud: set[Hashable] = set()  # whose rounding may exceed what is allowed
        self._known: dict[frozenset[Hashable], bool] = {}
        self._bases: list[Floats] = []
        self._syndromes: list[Floats] = []
        norms = np.sqrt((block.matrix**2) @ block.counts)
        null = _left_null_space(block.matrix / norms[:, None])
        self.checks = null.shape[1]
        if not self.checks:
            return
        replies = values / norms[:, None, None]
        self._bounds = tolerances * math.sqrt(len(workers))
        for group, magnitude in enumerate(usual):
            # Without a magnitude all are zero, and agree.
            parts = replies[:, group] / (magnitude or 1.0)
            loudness = np.linalg.norm(parts, axis=1)
            self.loud.update(workers[i] for i in np.flatnonzero(loudness > _LOUD))
            slack = np.clip(loudness, 1.0, _LOUD)
            basis = np.linalg.qr(null * slack[:, None])[0]
            self._bases.append(basis)
            self._syndromes.append(basis.T @ (parts / slack[:, None]))

    def explained(self, liars: frozenset[Hashable]) -> bool:
        """Return whether the others' replies are consistent."""
        if not self.checks:
            return True
        here = liars.intersection(self.workers)
        if here not in self._known:
            rows = [i for i, worker in enumerate(self.workers) if worker in here]
            self._known[here] = all(
                _beyond(syndrome, basis[rows]) <= bound
                for basis, syndrome, bound in zip(
                    self._bases, self._syndromes, self._bounds, strict=True
                )
            )
        return self._known[here]


def _beyond(syndrome: Floats, columns: Floats) -> float:
    """Return the norm of what of the syndrome no lie of these replies can cause."""
    if len(columns):
        directions, strengths, _ = np.linalg.svd(columns.T, full_matrices=False)
        directions = directions[:, strengths > _RANK]
        syndrome = syndrome - directions @ (directions.T @ syndrome)
    return float(np.linalg.norm(syndrome))


def _left_null_space(matrix: Floats) -> Floats:
    """Return an orthonormal basis of the left null space, one vector per column."""
    if len(matrix) == 1:
        return np.empty((1, 0))
    vectors, strengths, _ = np.linalg.svd(matrix)
    rank = int(np.count_nonzero(strengths > _RANK * strengths[0]))
    return np.asarray(vectors[:, rank:])


def _usual(encoding: Floats, values: Floats) -> Floats:
    """Return the median magnitude of a reply to a row of norm 1, per group.

    The lower median of those that are not zero: while most of them are honest, so is
    it.
    """
    norms = np.linalg.norm(encoding, axis=1)
    rows = norms > 0
    magnitudes = np.linalg.norm(values[rows], axis=2) / norms[rows, None]
    usual = np.zeros(values.shape[1])
    for group, column in enumerate(magnitudes.T):
        present = np.sort(column[column > 0])
        if len(present):
            usual[group] = present[(len(present) - 1) // 2]
    return usual


def _checked(
    rows: ArrayLike, sketches: ArrayLike, tolerance: float | Sequence[float]
) -> tuple[Floats, Floats, Floats]:
    """Return the checked arguments, the sketches with a largest entry of 1."""
    encoding = np.asarray(rows, dtype=np.float64)
    values = np.asarray(sketches, dtype=np.float64)
    if encoding.ndim != 2 or not np.isfinite(encoding).all():
        raise InvalidInputError(
            "'rows' must be finite, of shape (replies, partitions), got shape "
            f"{encoding.shape}."
        )
    if values.ndim == 2:
        values = values[:, None, :]
    if (
        values.ndim != 3
        or len(values) != len(encoding)
        or not np.isfinite(values).all()
    ):
        raise InvalidInputError(
            f"'sketches' must be finite, with one entry for each of {len(encoding)} "
            f"replies, got shape {np.shape(sketches)}."
        )
    tolerances = np.broadcast_to(
        np.asarray(tolerance, dtype=np.float64), values.shape[1]
    )
    if not ((tolerances > 0) & (tolerances <= 0.1)).all():
        raise InvalidInputError(f"'tolerance' must lie in (0, 0.1], got {tolerance}.")
    # Squares of the largest numbers would overflow.
    largest = np.abs(values).max(axis=(0, 2), initial=0.0)
    return encoding, values / np.where(largest > 0, largest, 1.0)[:, None], tolerances
