"""How many workers' replies a round could do without, part by part.

Rows that share no partition decode apart from each other. A part *spares* e workers if
it decodes without the replies of any e of them: their lies can then be detected, and
change nothing unnoticed (:mod:`flower_ext.coding.parity`).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Collection, Iterable, Sequence
from typing import NamedTuple, Protocol

import numpy as np

from flower_ext.coding.allocation import allocate
from flower_ext.coding.blocks import EXACT_TOLERANCE, RANK_TOLERANCE

__all__ = ["Part", "parts_of", "second_opinions", "telling_rows"]

_MOST_SETS = 5_000  # sets of workers that are tried


class Row(Protocol):
    """A row of the encoding matrix and who computes it."""

    @property
    def worker(self) -> int: ...
    @property
    def partitions(self) -> tuple[int, ...]: ...
    @property
    def coefficients(self) -> tuple[float, ...]: ...


class Part(NamedTuple):
    """Rows that share partitions with each other and with no other row.

    Parameters
    ----------
    rows : tuple[int, ...]
        Their places in the sequence of rows.
    partitions : tuple[int, ...]
        The partitions in them, in order.
    workers : frozenset[int]
        Who computes them.
    spares : int
        Any so many workers may be left out, as far as was asked; -1 if the rows do not
        decode at all.
    whole : frozenset[int]
        Which workers have a row that decodes by itself.
    """

    rows: tuple[int, ...]
    partitions: tuple[int, ...]
    workers: frozenset[int]
    spares: int
    whole: frozenset[int] = frozenset()


def parts_of(rows: Sequence[Row], wanted: int) -> list[Part]:
    """Cut rows into parts, and say how many workers each spares.

    Parameters
    ----------
    rows : Sequence[Row]
        Dispatches.
    wanted : int
        Look no further than this number of spare workers, at least 0.

    Examples
    --------
    >>> from flower_ext.coding.plan import Dispatch
    >>> rows = [Dispatch(i, i, 1, (0, 1), (1.0, 1.0)) for i in range(2)]
    >>> rows.append(Dispatch(2, 2, 1, (2,), (1.0,)))
    >>> [part.spares for part in parts_of(rows, 1)]
    [1, 0]
    """
    parts = []
    for members in _connected(rows):
        chosen = [rows[i] for i in members]
        partitions = tuple(sorted({p for row in chosen for p in row.partitions}))
        workers = frozenset(row.worker for row in chosen)
        matrix = _matrix(chosen, partitions)
        spares = _spares(chosen, matrix, workers, wanted)
        whole = {
            row.worker for row, line in zip(chosen, matrix, strict=True) if _flat(line)
        }
        parts.append(
            Part(tuple(members), partitions, workers, spares, frozenset(whole))
        )
    return parts


def second_opinions(
    parts: Sequence[Part],
    workers: Sequence[int],
    holdings: Sequence[Collection[int]],
    seconds: Sequence[float],
    overhead: Sequence[float],
    limits: Sequence[int] | None = None,
) -> tuple[dict[int, list[int]], set[int]]:
    """Let parts be computed once more, by workers that have no row in them.

    A part is spared one worker more by a plain sum over all of its partitions, or by
    several that make it up, from workers that are new to it: whoever is left out, a
    whole copy remains on one side or the other. Where no such workers are left, those
    that computed some of it compute all of it, if that makes whole copies enough.

    Parameters
    ----------
    parts : Sequence[Part]
        What to compute.
    workers : Sequence[int]
        The idle workers.
    holdings : Sequence[Collection[int]]
        What each holds.
    seconds, overhead : Sequence[float]
        Typical seconds per partition and per reply, of each.
    limits : Sequence[int], optional
        The most partitions that each may be given.

    Returns
    -------
    tuple
        The partitions to sum by worker, and those of the parts that nobody can take.
    """
    jobs: dict[int, list[int]] = {}
    place = {worker: i for i, worker in enumerate(workers)}
    single: set[int] = set()  # workers that may not be given another part
    unmet: set[int] = set()

    def able(part: Part, others: Collection[int]) -> list[tuple[float, int]]:
        """Return who can take all of a part, with the seconds until they have it."""
        found = []
        for w in workers:
            i, length = place[w], len(jobs.get(w, ())) + len(part.partitions)
            if w in others or w in single or (limits and length > limits[i]):
                continue
            if set(part.partitions) <= set(holdings[i]):
                found.append((overhead[i] + seconds[i] * length, w))
        return found

    for part in sorted(parts, key=lambda p: -len(p.partitions)):
        if found := able(part, part.workers):
            jobs.setdefault(min(found)[1], []).extend(part.partitions)
            continue
        free = [w for w in workers if w not in part.workers | single | jobs.keys()]
        places = [place[w] for w in free]
        shares = allocate(
            list(part.partitions),
            [holdings[i] for i in places],
            np.array([seconds[i] for i in places]),
            np.array([overhead[i] for i in places]),
            None if limits is None else np.array([limits[i] for i in places]),
        )
        if sum(map(len, shares)) < len(part.partitions):
            found = able(part, part.whole)
            if len(found) + len(part.whole) > part.spares + 1:
                jobs.setdefault(min(found)[1], []).extend(part.partitions)
            else:
                unmet.update(part.partitions)
            continue
        shared = {w: share for w, share in zip(free, shares, strict=True) if share}
        jobs |= shared
        single |= shared.keys()
    return jobs, unmet


def telling_rows(
    rows: Sequence[Row], suspects: Collection[int], doubted: Collection[int]
) -> list[list[int]]:
    """Return, of each suspect, the rows which, computed anew, tell whether it lied.

    They are those that are no combination of rows of workers that nobody doubts. Where
    one of two has lied, to know of one is to know of both.

    Parameters
    ----------
    rows : Sequence[Row]
        Those that were answered, or will be.
    suspects : Collection[int]
        Of whom some have lied.
    doubted : Collection[int]
        They, and whoever has lied for certain.

    Returns
    -------
    list[list[int]]
        Their places, of the suspects that have any; the fewest first.

    Examples
    --------
    Workers 0 and 1 computed the same, with two results:

    >>> from flower_ext.coding.plan import Dispatch
    >>> rows = [Dispatch(i, i, 1, (0, 1), (1.0, 1.0)) for i in range(2)]
    >>> rows.append(Dispatch(2, 1, 1, (2,), (1.0,)))
    >>> telling_rows(rows, {0, 1}, {0, 1})
    [[0], [1, 2]]
    """
    found: dict[int, list[int]] = {}
    for members in _connected(rows):
        chosen = [rows[i] for i in members]
        if not any(row.worker in suspects for row in chosen):
            continue
        matrix = _matrix(chosen, sorted({p for row in chosen for p in row.partitions}))
        known = matrix[[row.worker not in doubted for row in chosen]]
        for i, row, line in zip(members, chosen, matrix, strict=True):
            if row.worker in suspects and not _combines(known, line):
                found.setdefault(row.worker, []).append(i)
    return sorted(found.values(), key=len)


def _connected(rows: Sequence[Row]) -> list[list[int]]:
    """Return the places of rows that share partitions, directly or through others."""
    root: dict[int, int] = {}

    def find(partition: int) -> int:
        while root.setdefault(partition, partition) != partition:
            root[partition] = root[root[partition]]
            partition = root[partition]
        return partition

    for row in rows:
        for partition in row.partitions[1:]:
            root[find(partition)] = find(row.partitions[0])
    members: dict[int, list[int]] = {}
    for i, row in enumerate(rows):
        members.setdefault(find(row.partitions[0]), []).append(i)
    return list(members.values())


def _matrix(rows: Sequence[Row], partitions: Sequence[int]) -> np.ndarray:
    """Return the rows' coefficients, shape (rows, partitions)."""
    column = {p: k for k, p in enumerate(partitions)}
    matrix = np.zeros((len(rows), len(partitions)))
    for line, row in zip(matrix, rows, strict=True):
        line[[column[p] for p in row.partitions]] = row.coefficients
    return matrix


def _spares(
    rows: Sequence[Row],
    matrix: np.ndarray,
    workers: Iterable[int],
    wanted: int,
) -> int:
    """Return how many workers may be left out; try no more than 5,000 sets."""
    if not _decodes(matrix):
        return -1
    full = {row.worker for row, line in zip(rows, matrix, strict=True) if _flat(line)}
    spares = max(len(full) - 1, 0)
    names, tried = sorted(workers), 0
    while spares < min(wanted, len(names) - 1):
        tried += math.comb(len(names), spares + 1)
        if tried > _MOST_SETS:
            break
        for absent in itertools.combinations(names, spares + 1):
            kept = [i for i, row in enumerate(rows) if row.worker not in absent]
            if not _decodes(matrix[kept]):
                return spares
        spares += 1
    return min(spares, wanted)


def _flat(line: np.ndarray) -> bool:
    """Return whether a row decodes by itself."""
    return bool(line[0] != 0 and (line == line[0]).all())


def _decodes(matrix: np.ndarray) -> bool:
    """Return whether the rows combine to all ones."""
    if any(_flat(line) for line in matrix):
        return True
    return _combines(matrix, np.ones(matrix.shape[1]))


def _combines(matrix: np.ndarray, line: np.ndarray) -> bool:
    """Return whether rows combine to another one."""
    weights = np.linalg.lstsq(matrix.T, line, rcond=RANK_TOLERANCE)[0]
    return bool(np.abs(weights @ matrix - line).max() <= EXACT_TOLERANCE)
