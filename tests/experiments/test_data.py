"""The two-stage app's data sets and splits."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from two_stage_coded.data import (
    IDX_FILES,
    load_data,
    load_partitions,
    split_dirichlet,
    split_iid,
)
from two_stage_coded.settings import Settings

from flower_ext.errors import InvalidInputError

RunConfig = dict[str, str | int | float | bool]


def write_idx(folder: Path, compress: bool) -> None:
    """Write a data set of six training and two test images of 28 × 28."""
    folder.mkdir(parents=True)
    images = np.arange(8 * 28 * 28, dtype=np.uint8).reshape(8, 28, 28)
    labels = np.arange(8, dtype=np.uint8)
    for name, array in zip(
        IDX_FILES, (images[:6], labels[:6], images[6:], labels[6:]), strict=True
    ):
        head = struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape)
        content = head + array.tobytes()
        if compress:
            (folder / f"{name}.gz").write_bytes(gzip.compress(content))
        else:
            (folder / name).write_bytes(content)


def covers_once(parts: list[NDArray[np.int64]], count: int) -> bool:
    """Return whether the parts hold every example once."""
    return sorted(np.concatenate(parts).tolist()) == list(range(count))


def test_digits_are_bundled() -> None:
    data = load_data("digits", "")
    assert data.train_images.shape == (1438, 1, 8, 8)
    assert data.test_images.shape == (359, 1, 8, 8)
    assert data.train_images.min() == -1.0
    assert data.train_images.max() == 1.0
    assert set(data.test_labels) == set(range(10))


@pytest.mark.parametrize(
    ("dataset", "inside", "compress"),
    [
        ("mnist", ".", True),
        ("mnist", "MNIST/raw", False),
        ("fashion-mnist", "FashionMNIST/raw", True),
    ],
)
def test_idx_files_are_read_in_both_layouts(
    tmp_path: Path, dataset: str, inside: str, compress: bool
) -> None:
    root = tmp_path / "root"
    write_idx(root / inside, compress)
    data = load_data(dataset, str(root))
    assert data.train_images.shape == (6, 1, 28, 28)
    assert data.test_labels.tolist() == [6, 7]
    assert data.train_images[0, 0, 0, 2] == pytest.approx(2 / 127.5 - 1)


def test_cifar10_is_read_from_an_npz(tmp_path: Path) -> None:
    images = np.full((3, 32, 32, 3), 255, dtype=np.uint8)
    labels = np.arange(3)
    path = tmp_path / "cifar10_small.npz"
    np.savez(path, x_train=images, y_train=labels, x_test=images, y_test=labels)
    for data_dir in (path, tmp_path):
        data = load_data("cifar10", str(data_dir))
        assert data.train_images.shape == (3, 3, 32, 32)
        assert data.train_images.max() == 1.0


@pytest.mark.parametrize("dataset", ["mnist", "fashion-mnist", "cifar10"])
def test_absent_data_is_an_error_that_says_what_to_do(
    tmp_path: Path, dataset: str
) -> None:
    with pytest.raises(InvalidInputError, match="download=true") as caught:
        load_data(dataset, str(tmp_path))
    assert str(tmp_path) in str(caught.value)


def test_a_broken_idx_file_is_named(tmp_path: Path) -> None:
    root = tmp_path / "root"
    write_idx(root, compress=True)
    broken = root / f"{IDX_FILES[0]}.gz"
    broken.write_bytes(broken.read_bytes()[:50])
    with pytest.raises(InvalidInputError, match="fetch it again") as caught:
        load_data("mnist", str(root))
    assert str(broken) in str(caught.value)


def test_an_iid_split_is_even() -> None:
    parts = split_iid(103, 24, np.random.default_rng(0))
    assert covers_once(parts, 103)
    assert {len(part) for part in parts} == {4, 5}


def test_a_dirichlet_split_is_skewed_by_alpha() -> None:
    labels = np.repeat(np.arange(10), 100)
    shares = {}
    for alpha in (0.1, 100.0):
        parts = split_dirichlet(labels, 8, alpha, np.random.default_rng(0))
        assert covers_once(parts, 1000)
        largest = [np.bincount(labels[p]).max() / len(p) for p in parts]
        shares[alpha] = float(np.mean(largest))
    assert shares[100.0] < 0.2
    assert shares[0.1] > 0.4


def test_no_partition_is_empty() -> None:
    labels = np.repeat(np.arange(2), 20)
    parts = split_dirichlet(labels, 8, 0.5, np.random.default_rng(3))
    assert min(map(len, parts)) > 0


def test_splits_that_cannot_be_are_errors() -> None:
    rng = np.random.default_rng(0)
    with pytest.raises(InvalidInputError, match="smaller 'num-partitions'"):
        split_iid(3, 4, rng)
    with pytest.raises(InvalidInputError, match="larger 'dirichlet-alpha'"):
        split_dirichlet(np.zeros(8, dtype=np.int64), 8, 0.01, rng)


@pytest.mark.parametrize("split", ["iid", "dirichlet"])
def test_the_seed_fixes_the_partitions(run_config: RunConfig, split: str) -> None:
    first, again, other = (
        load_partitions(Settings.from_run_config({**run_config, **values}))
        for values in (
            {"split": split, "seed": 1},
            {"split": split, "seed": 1, "num-server-rounds": 7},
            {"split": split, "seed": 2},
        )
    )
    assert covers_once(first, 1438)
    assert len(first) == 24
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert not all(np.array_equal(a, b) for a, b in zip(first, other, strict=True))
