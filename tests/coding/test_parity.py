"""Parity checks: honest replies raise no alarm, and whoever is named has lied."""

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from flower_ext.coding import (
    CyclicRepetition,
    FractionalRepetition,
    HeterogeneityAware,
    UndecodableError,
    decode,
)
from flower_ext.coding.parity import check
from flower_ext.coding.sketch import DIMENSIONS, Sketcher
from flower_ext.errors import InvalidInputError

Floats = NDArray[np.float64]

TWO_STAGE = np.array(  # a straggler's row came late, after coded copies of its parts
    [
        [1, 1, 1, 0, 0, 0],
        [0, 0, 0, 1, 1, 1],
        [1, 1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0],
        [0, 0, 1, 0, 0, 0],
        [0, 0, 1, 2, 2, 2],
        [0, 0, 0, 1, 1, 1],
    ],
    dtype=float,
)
PARTIAL = [[0, 1, 2], [1, 2, 3], [2, 3, 0], [3, 0, 1], [0, 1, 2, 3], [0, 2]]
CODES: dict[str, Callable[[], Floats]] = {
    "cyclic": lambda: CyclicRepetition(6, 2).matrix,
    "cyclic of five": lambda: CyclicRepetition(5, 2).matrix,
    "cyclic of four": lambda: CyclicRepetition(7, 4).matrix,
    "fractional": lambda: FractionalRepetition(6, 2).matrix,
    "heterogeneity-aware": lambda: (
        HeterogeneityAware(PARTIAL, [1.0, 2.0, 1.0, 1.0, 3.0, 1.0], 2).matrix
    ),
    "two-stage": lambda: TWO_STAGE,
}
LIES: dict[str, Callable[[Floats, np.random.Generator], Floats]] = {
    "scaled": lambda reply, rng: 10.0 * reply,
    "sign-flipped": lambda reply, rng: -reply,
    "zero": lambda reply, rng: 0.0 * reply,
    "noise": lambda reply, rng: rng.standard_normal(reply.shape),
    "vast": lambda reply, rng: 1e25 * rng.standard_normal(reply.shape),
}


def honest(
    rows: Floats, rng: np.random.Generator, noise: float = 0.0, width: int = 20
) -> Floats:
    """Return replies for partitions of uneven size that move alike, with rounding."""
    common = rng.standard_normal(width)
    sizes = rng.uniform(0.2, 5.0, (rows.shape[1], 1))
    partitions = sizes * (common + rng.standard_normal((rows.shape[1], width)))
    exact = rows @ partitions
    rounding = rng.standard_normal(exact.shape)
    rounding /= np.linalg.norm(rounding, axis=1, keepdims=True)
    exact += noise * np.linalg.norm(exact, axis=1, keepdims=True) * rounding
    return np.asarray(exact)


def left_null_space(rows: Floats) -> Floats:
    vectors, strengths, _ = np.linalg.svd(rows)
    return vectors[:, int((strengths > 1e-9).sum()) :].T


def independent_columns(checks: Floats, size: int) -> bool:
    """Return whether any so many columns of H are independent."""
    return all(
        np.linalg.matrix_rank(checks[:, list(c)], tol=1e-7) == size
        for c in itertools.combinations(range(checks.shape[1]), size)
    )


def decodes(rows: Floats, replies: list[int]) -> bool:
    try:
        decode(rows, replies)
    except UndecodableError:
        return False
    return True


@pytest.mark.parametrize("code", CODES)
@pytest.mark.parametrize("noise", [0.0, 1e-6, 1e-3])
def test_honest_replies_raise_no_alarm(code: str, noise: float) -> None:
    rows = CODES[code]()
    for seed in range(40):
        rng = np.random.default_rng(seed)
        keep = np.sort(rng.permutation(len(rows))[: rng.integers(1, len(rows) + 1)])
        report = check(rows[keep], honest(rows[keep], rng, noise), tolerance=1e-3)
        assert report.consistent
        assert report.least == 0
        assert report.checks == len(keep) - np.linalg.matrix_rank(rows[keep], tol=1e-7)


@pytest.mark.parametrize("loudness", [1e3, 1e5, 1e6, 1e9])
def test_honest_rounding_of_loud_replies_has_nobody_named(loudness: float) -> None:
    """Three copies of a partition that moves far more than the usual one."""
    rows = np.array(
        [[1.0, 0, 0, 0]] * 3 + [[0, 1.0, 0, 0], [0, 0, 1.0, 0], [0, 0, 0, 1.0]] * 2
    )
    replies = np.ones((9, 4))
    replies[:3] *= loudness
    rounded = replies.copy()
    rounded[0] *= 1 + 1e-4
    false = replies.copy()
    false[1] *= -1

    assert check(rows, rounded, tolerance=1e-3).liars == ()
    report = check(rows, false, tolerance=1e-3)
    assert not report.consistent
    if loudness > 1e4:
        assert (report.liars, report.suspects, report.least) == ((), (0, 1, 2), 0)
    else:
        assert (report.liars, report.suspects, report.least) == ((1,), (), 1)


def test_a_liar_that_is_loud_is_named() -> None:
    rows, replies = np.ones((3, 1)), np.ones((3, 4))
    for loudness in (1e3, 1e5, 1e7, 1e9):
        false = replies.copy()
        false[2] *= loudness
        assert check(rows, false, tolerance=1e-3).liars == (2,)


@pytest.mark.parametrize("code", CODES)
@pytest.mark.parametrize("lie", LIES)
def test_a_lie_that_matters_is_detected(code: str, lie: str) -> None:
    """Wherever the others decode too, and the lie is in the decoded update at all."""
    rows = CODES[code]()
    detected = 0
    for seed, liar in itertools.product(range(5), range(len(rows))):
        rng = np.random.default_rng([seed, liar])
        others = [i for i in range(len(rows)) if i != liar]
        replies = honest(rows, rng, 1e-5)
        false = replies.copy()
        false[liar] = LIES[lie](replies[liar], rng)
        weights = decode(rows, range(len(rows)))
        change = np.linalg.norm(weights @ (false - replies))
        report = check(rows, false, tolerance=1e-4)
        if decodes(rows, others) and change > 0.02 * np.linalg.norm(weights @ replies):
            assert not report.consistent
            assert liar in report.liars + report.suspects
            detected += 1
        assert set(report.liars) <= {liar}
    assert detected >= 5


@pytest.mark.parametrize("code", CODES)
@pytest.mark.parametrize("limit", [1, 2])
def test_who_is_named_for_every_set_of_replies(code: str, limit: int) -> None:
    """Any 2 e independent columns of H name e liars, whatever they agree upon."""
    rows = CODES[code]()
    nameable = 0
    for size in range(2 * limit, len(rows) + 1):
        for kept in itertools.combinations(range(len(rows)), size):
            part = rows[list(kept)]
            checks = left_null_space(part)
            names_all = len(checks) >= 2 * limit and independent_columns(
                checks, 2 * limit
            )
            rng = np.random.default_rng(kept)
            for liars in itertools.combinations(range(size), limit):
                false = honest(part, rng, 1e-7)
                false[list(liars)] += rng.standard_normal((limit, 20))
                report = check(part, false, tolerance=1e-5, limit=limit)
                assert set(report.liars) <= set(liars)
                if names_all:
                    nameable += 1
                    assert set(report.liars) == set(liars)
                    assert not report.suspects
                    assert report.least == limit
    # With runs of three in a circle of six, opposite rows are in the same checks.
    possible = {
        "cyclic of five": 1,
        "cyclic of four": 2,
        "fractional": 1,
        "two-stage": 1,
    }
    assert (nameable > 0) == (limit <= possible.get(code, 0))


@pytest.mark.parametrize("code", [code for code in CODES if code != "two-stage"])
def test_without_the_suspects_the_update_is_right(code: str) -> None:
    """Where any two replies may be missing, whoever of the suspects has lied."""
    rows = CODES[code]()
    everybody = set(range(len(rows)))
    for pair in itertools.combinations(everybody, 2):
        assert decodes(rows, sorted(everybody.difference(pair)))
    for seed, liar in itertools.product(range(3), everybody):
        rng = np.random.default_rng([seed, liar])
        replies = honest(rows, rng)
        false = replies.copy()
        false[liar] += rng.standard_normal(20)
        report = check(rows, false)
        rest = sorted(everybody.difference(report.liars, report.suspects))
        update = decode(rows, range(len(rows))) @ replies
        if liar in rest:  # a lie within the tolerance
            assert report.consistent
        elif decodes(rows, rest):
            np.testing.assert_allclose(decode(rows, rest) @ false, update, atol=1e-6)
        else:
            assert report.suspects


def test_liars_who_agree_cannot_have_an_honest_worker_named() -> None:
    """Two of three copies lie alike: with up to two liars, nobody is to blame yet."""
    rows = np.ones((3, 1))
    replies = np.array([[-1.0, 2.0], [-1.0, 2.0], [3.0, 4.0]])
    report = check(rows, replies, limit=2)
    assert not report.consistent
    assert report.liars == ()
    assert set(report.suspects) == {0, 1, 2}
    # Two more honest copies name them.
    more = np.vstack([replies, replies[2:], replies[2:]])
    assert check(np.ones((5, 1)), more, limit=2).liars == (0, 1)


def test_colluders_of_a_cyclic_code_are_named_or_change_nothing() -> None:
    """They know all the code and each other's replies, and aim at the kernel of H."""
    rows = CyclicRepetition(7, 4).matrix
    weights = decode(rows, range(7))
    checks = left_null_space(rows)
    for liars in itertools.combinations(range(7), 2):
        rng = np.random.default_rng(liars)
        replies = honest(rows, rng)
        # The two lies that the checks see least.
        _, _, directions = np.linalg.svd(checks[:, list(liars)])
        lie = directions[-1][:, None] * rng.standard_normal(20)
        false = replies.copy()
        false[list(liars)] += lie * np.linalg.norm(replies)
        report = check(rows, false, tolerance=1e-6, limit=2)
        assert np.linalg.norm(weights @ (false - replies)) > 1e-3
        assert report.liars == liars


def test_a_worker_is_named_for_all_of_its_replies() -> None:
    rows = np.array([[1.0, 0], [0, 1], [0, 1], [1, 0], [1, 1]])
    workers = ["a", "b", "a", "c", "d"]
    rng = np.random.default_rng(3)
    replies = honest(rows, rng)
    replies[[0, 2]] *= -1.0
    # Reply by reply it takes two lies; a worker by its own.
    assert check(rows, replies).liars == ()
    assert check(rows, replies, workers=workers).liars == ("a",)


def test_two_liars_in_separate_blocks() -> None:
    rows = np.repeat(np.eye(2), 3, axis=0)
    replies = honest(rows, np.random.default_rng(0))
    replies[[1, 5]] *= 2.0
    assert check(rows, replies, limit=2).liars == (1, 5)
    beyond = check(rows, replies, limit=1)
    assert beyond.liars == ()
    assert beyond.suspects == (0, 1, 2, 3, 4, 5)


def test_a_cancelling_sum_is_not_held_to_its_own_small_magnitude() -> None:
    """The reply to (1, -1) is all rounding where both partitions move alike."""
    rng = np.random.default_rng(0)
    update = rng.standard_normal(30)
    rows = np.array([[1.0, 0], [0, 1], [1, -1]])
    replies = rows @ np.stack([update, update])
    replies[2] += 1e-4 * rng.standard_normal(30)
    assert check(rows, replies, tolerance=1e-3).consistent


def test_groups_are_checked_apart() -> None:
    rows = np.ones((3, 1))
    replies = np.ones((3, 2, 4))
    replies[:, 1] *= 1e12
    replies[1, 0] += 0.1
    assert check(rows, replies).liars == (1,)
    assert check(rows, replies, tolerance=[0.1, 1e-3]).consistent
    assert check(rows, np.zeros((3, 2, 4))).consistent


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"tolerance": 0.0}, r"'tolerance' must lie in \(0, 0.1\]"),
        ({"tolerance": float("nan")}, "'tolerance' must lie in"),
        ({"limit": 0}, "'limit' must be at least 1"),
        ({"workers": [1]}, "'workers' needs one entry per reply, 2"),
        ({"sketches": [[1.0]]}, "one entry for each of 2 replies"),
        ({"sketches": [[1.0], [np.inf]]}, "must be finite"),
        ({"rows": [1.0, 1.0]}, "'rows' must be finite, of shape"),
    ],
)
def test_what_cannot_be_checked_is_refused(
    changed: dict[str, object], message: str
) -> None:
    arguments = {"rows": [[1.0], [1.0]], "sketches": [[1.0], [1.0]], **changed}
    with pytest.raises(InvalidInputError, match=message):
        check(**arguments)  # type: ignore[arg-type]


LAYOUT: dict[str, tuple[tuple[int, ...], np.dtype[Any]]] = {
    "weight": ((300, 70), np.dtype(np.float32)),
    "bias": ((3,), np.dtype(np.float16)),
    "phase": ((5,), np.dtype(np.complex64)),
    "steps": ((), np.dtype(np.int64)),
}


def arrays(rng: np.random.Generator) -> dict[str, NDArray[np.float64]]:
    drawn = {name: rng.standard_normal(shape) for name, (shape, _) in LAYOUT.items()}
    return {name: np.asarray(array) for name, array in drawn.items()}


def test_a_sketch_is_linear_and_keeps_norms() -> None:
    rng = np.random.default_rng(0)
    one, other = arrays(rng), arrays(rng)
    ratios = []
    for secret in range(60):
        sketcher = Sketcher(LAYOUT, secret)
        mixed = {n: 2.0 * one[n] - 3.0 * other[n] for n in one}
        left = sketcher.reply(mixed, [4, 9], [2.0, -3.0], [10.0, 20.0])
        right = 2.0 * sketcher.reply(one, [4], [1.0], [10.0])
        right -= 3.0 * sketcher.reply(other, [9], [1.0], [20.0])
        np.testing.assert_allclose(left, right, rtol=1e-9, atol=1e-9)
        assert left.shape == (3, DIMENSIONS)
        exact = np.sqrt(
            sum(float((one[n] ** 2).sum()) for n in ("weight", "bias", "phase"))
        )
        ratios.append(np.linalg.norm(sketcher.arrays(one)[0]) / exact)
    assert np.mean(ratios) == pytest.approx(1.0, abs=0.02)
    assert np.max(np.abs(np.array(ratios) - 1.0)) < 0.5


def test_a_lie_about_one_element_or_two_is_in_the_sketch() -> None:
    """Of any size, in any place, and cancelling in every sum over the array."""
    rng = np.random.default_rng(1)
    for secret in range(200):
        lie = {n: np.zeros_like(a) for n, a in arrays(rng).items()}
        first, second = rng.choice(21_000, 2, replace=False)
        lie["weight"].reshape(-1)[[first, second]] = [1.0, -1.0]
        norm = np.linalg.norm(Sketcher(LAYOUT, secret).arrays(lie)[0])
        assert 0.05 < norm < 10.0


def test_a_sample_sees_dense_lies_and_is_secret() -> None:
    layout = {"weight": ((100_000,), np.dtype(np.float32))}
    dense = {"weight": np.ones(100_000, np.float32)}
    seen = []
    for secret in range(20):
        sketcher = Sketcher(layout, secret, most_elements=20_000)
        whole = np.linalg.norm(sketcher.arrays(dense)[0])
        assert 50 < whole < 300  # 157 is the root of three blocks of 8192
        lie = {"weight": np.zeros(100_000, np.float32)}
        lie["weight"][50_000] = 1.0
        seen.append(np.linalg.norm(sketcher.arrays(lie)[0]) > 0)
    assert 0 < sum(seen) < 20


def test_what_does_not_fit_the_layout_or_is_not_finite_is_refused() -> None:
    sketcher = Sketcher({"weight": ((2,), np.dtype(np.float32))}, 1)
    with pytest.raises(InvalidInputError, match=r"no array 'weight' of shape \(2,\)"):
        sketcher.arrays({"weight": np.ones(3)})
    with pytest.raises(InvalidInputError, match="NaN, infinite or vast"):
        sketcher.arrays({"weight": np.array([1.0, np.nan])})
