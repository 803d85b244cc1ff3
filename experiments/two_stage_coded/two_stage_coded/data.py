"""Real images: loading a data set and splitting it into partitions."""

from __future__ import annotations

import gzip
import zlib
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from flower_ext.errors import InvalidInputError
from two_stage_coded.settings import Settings

Images = NDArray[np.float32]
Labels = NDArray[np.int64]

IDX_FILES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)
TORCHVISION_NAMES = {
    "mnist": "MNIST",
    "fashion-mnist": "FashionMNIST",
    "cifar10": "CIFAR10",
}
SPLIT_ATTEMPTS = 100


@dataclass(frozen=True)
class ImageData:
    """Images of shape (n, channels, height, width) in [-1, 1], and their classes."""

    train_images: Images
    train_labels: Labels
    test_images: Images
    test_labels: Labels


@lru_cache(maxsize=1)
def load_data(dataset: str, data_dir: str, download: bool = False) -> ImageData:
    """Load a data set, once per process.

    Parameters
    ----------
    dataset : str
        ``"digits"``, ``"mnist"``, ``"fashion-mnist"`` or ``"cifar10"``.
    data_dir : str
        Where the data lies; without meaning for ``"digits"``. MNIST and Fashion-MNIST:
        a folder with the four idx files (plain or ``.gz``), or torchvision's root.
        CIFAR-10: torchvision's root, or an ``.npz`` with ``x_train``, ``y_train``,
        ``x_test`` and ``y_test``, or a folder that holds one.
    download : bool (default: False)
        Let torchvision download what is not there into ``data_dir``.

    Returns
    -------
    ImageData
        The images and labels.

    Raises
    ------
    InvalidInputError
        If the data is not there.
    """
    if dataset == "digits":
        return _digits()
    root = Path(data_dir).expanduser()
    load = _load_cifar10 if dataset == "cifar10" else _load_idx
    data = load(root, dataset)
    if data is None and download:
        _download(root, dataset)
        data = load(root, dataset)
    if data is None:
        raise InvalidInputError(
            f"No {dataset} data found in '{root}'. Point the run-config key 'data-dir' "
            f"to {_layouts(dataset)}, or add download=true to let torchvision "
            "download it there."
        )
    return data


@lru_cache(maxsize=1)
def load_partitions(settings: Settings) -> list[NDArray[np.int64]]:
    """Return the training examples of every partition, drawn from the seed.

    Parameters
    ----------
    settings : Settings
        Names the data, the split and the seed.

    Returns
    -------
    list[NDArray[np.int64]]
        One array of indices per partition; together every example, or
        ``train-examples`` of them, once.
    """
    labels = load_data(
        settings.dataset, settings.data_dir, settings.download
    ).train_labels
    rng = np.random.default_rng(settings.seed)
    if 0 < settings.train_examples < len(labels):
        chosen = np.sort(rng.permutation(len(labels))[: settings.train_examples])
        return [chosen[part] for part in _split(labels[chosen], settings, rng)]
    return _split(labels, settings, rng)


def _split(
    labels: Labels, settings: Settings, rng: np.random.Generator
) -> list[NDArray[np.int64]]:
    """Split examples into partitions as the settings say."""
    if settings.split == "iid":
        return split_iid(len(labels), settings.num_partitions, rng)
    return split_dirichlet(
        labels, settings.num_partitions, settings.dirichlet_alpha, rng
    )


def split_iid(
    num_examples: int, num_partitions: int, rng: np.random.Generator
) -> list[NDArray[np.int64]]:
    """Deal shuffled examples evenly to partitions.

    Parameters
    ----------
    num_examples : int
        Number of examples.
    num_partitions : int
        Number of partitions, at most ``num_examples``.
    rng : numpy.random.Generator
        Shuffles the examples.

    Returns
    -------
    list[NDArray[np.int64]]
        One array of indices per partition.

    Raises
    ------
    InvalidInputError
        If there are fewer examples than partitions.
    """
    _check_enough(num_examples, num_partitions)
    order = rng.permutation(num_examples)
    return [np.sort(part) for part in np.array_split(order, num_partitions)]


def split_dirichlet(
    labels: Labels, num_partitions: int, alpha: float, rng: np.random.Generator
) -> list[NDArray[np.int64]]:
    """Split every class over the partitions in proportions drawn from a Dirichlet.

    The usual label-skewed split: Hsu et al. 2019 (arXiv:1909.06335). Splits that leave
    a partition empty are drawn again.

    Parameters
    ----------
    labels : Labels
        The class of every example.
    num_partitions : int
        Number of partitions.
    alpha : float
        Concentration, above 0: 0.1 is strongly skewed, 100 nearly IID.
    rng : numpy.random.Generator
        Draws the split.

    Returns
    -------
    list[NDArray[np.int64]]
        One array of indices per partition, none of them empty.

    Raises
    ------
    InvalidInputError
        If no split without an empty partition is found.
    """
    _check_enough(len(labels), num_partitions)
    for _ in range(SPLIT_ATTEMPTS):
        parts: list[list[NDArray[np.int64]]] = [[] for _ in range(num_partitions)]
        for label in np.unique(labels):
            members = rng.permutation(np.flatnonzero(labels == label))
            shares = rng.dirichlet(np.full(num_partitions, alpha))
            cuts = np.round(np.cumsum(shares)[:-1] * len(members)).astype(np.int64)
            for part, some in zip(parts, np.split(members, cuts), strict=True):
                part.append(some)
        indices = [np.sort(np.concatenate(part)) for part in parts]
        if min(map(len, indices)) > 0:
            return indices
    raise InvalidInputError(
        f"{SPLIT_ATTEMPTS} Dirichlet splits with dirichlet-alpha={alpha:g} all left "
        f"one of {num_partitions} partitions empty. Set a larger 'dirichlet-alpha' or "
        "a smaller 'num-partitions'."
    )


def _check_enough(num_examples: int, num_partitions: int) -> None:
    """Raise unless every partition can have an example."""
    if num_examples < num_partitions:
        raise InvalidInputError(
            f"{num_examples} training examples cannot fill {num_partitions} "
            "partitions: set a smaller 'num-partitions'."
        )


def _digits() -> ImageData:
    """Return scikit-learn's bundled digits: 1,797 images of 8×8, a fifth for tests."""
    from sklearn.datasets import load_digits  # noqa: PLC0415 - seconds, digits only

    bunch = load_digits()
    order = np.random.default_rng(0).permutation(len(bunch.target))
    images = (bunch.images[order, None] / 8.0 - 1.0).astype(np.float32)
    labels = bunch.target[order].astype(np.int64)
    cut = len(labels) // 5
    return ImageData(images[cut:], labels[cut:], images[:cut], labels[:cut])


def _load_idx(root: Path, dataset: str) -> ImageData | None:
    """Return MNIST or Fashion-MNIST from its idx files, or None without them."""
    raw = root / TORCHVISION_NAMES[dataset] / "raw"
    for folder in (root, raw):
        paths = [_idx_path(folder, name) for name in IDX_FILES]
        if all(paths):
            train, labels, test, test_labels = (_read_idx(p) for p in paths if p)
            return ImageData(
                _scaled(train[:, None]),
                labels.astype(np.int64),
                _scaled(test[:, None]),
                test_labels.astype(np.int64),
            )
    return None


def _idx_path(folder: Path, name: str) -> Path | None:
    """Return the path of an idx file, plain or compressed."""
    for path in (folder / name, folder / f"{name}.gz"):
        if path.is_file():
            return path
    return None


def _read_idx(path: Path) -> NDArray[np.uint8]:
    """Return the array of an idx file of bytes."""
    try:
        content = path.read_bytes()
        if path.suffix == ".gz":
            content = gzip.decompress(content)
        dims = content[3]
        shape = np.frombuffer(content, ">u4", count=dims, offset=4)
        array = np.frombuffer(content, np.uint8, offset=4 + 4 * dims)
        return array.reshape(shape.astype(int))
    except (OSError, EOFError, ValueError, IndexError, zlib.error) as error:
        raise InvalidInputError(
            f"'{path}' is no idx file of bytes ({error}): fetch it again."
        ) from error


def _load_cifar10(root: Path, dataset: str) -> ImageData | None:
    """Return CIFAR-10 from an .npz or torchvision's folder, or None without them."""
    found = [root] if root.suffix == ".npz" else sorted(root.glob("cifar10*.npz"))
    if found and found[0].is_file():
        with np.load(found[0]) as archive:
            arrays = [archive[k] for k in ("x_train", "y_train", "x_test", "y_test")]
    elif (root / "cifar-10-batches-py").is_dir():
        from torchvision.datasets import CIFAR10  # noqa: PLC0415 - seconds, here only

        train, test = CIFAR10(root, train=True), CIFAR10(root, train=False)
        arrays = [train.data, np.array(train.targets), test.data]
        arrays.append(np.array(test.targets))
    else:
        return None
    images, labels, test_images, test_labels = arrays
    return ImageData(
        _scaled(images.transpose(0, 3, 1, 2)),
        labels.astype(np.int64),
        _scaled(test_images.transpose(0, 3, 1, 2)),
        test_labels.astype(np.int64),
    )


def _download(root: Path, dataset: str) -> None:
    """Let torchvision download a data set."""
    from torchvision import datasets  # noqa: PLC0415 - seconds, downloads only

    try:
        getattr(datasets, TORCHVISION_NAMES[dataset])(root, download=True)
    except (OSError, RuntimeError) as error:
        raise InvalidInputError(
            f"torchvision could not download {dataset} to '{root}': {error}. Fetch it "
            "elsewhere and point the run-config key 'data-dir' to "
            f"{_layouts(dataset)}."
        ) from error


def _layouts(dataset: str) -> str:
    """Return what a data-dir may hold, as text."""
    if dataset == "cifar10":
        return (
            "a folder with 'cifar-10-batches-py' (torchvision's layout) or with a "
            "'cifar10*.npz'"
        )
    return (
        f"a folder with the files {', '.join(IDX_FILES)} (plain or .gz), or with "
        f"'{TORCHVISION_NAMES[dataset]}/raw' (torchvision's layout)"
    )


def _scaled(images: NDArray[np.uint8]) -> Images:
    """Return images of bytes as numbers in [-1, 1]."""
    return images.astype(np.float32) / np.float32(127.5) - np.float32(1.0)
