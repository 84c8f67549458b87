"""Real data sets in their published formats, validated, split and normalised.

`digits` comes with scikit-learn. The other sets are read from a data directory:

    DIR/mnist/train-images-idx3-ubyte[.gz]            (and its three siblings)
    DIR/fashion-mnist/train-images-idx3-ubyte[.gz]    (and its three siblings)
    DIR/cifar-10/cifar-10-batches-bin/data_batch_1.bin ... test_batch.bin

The folder of an unpacked official archive may also be in DIR itself.
"""

import gzip
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from experiments import ExperimentError

CLASSES = 10  # in every set below


class DataError(ExperimentError):
    """A data file is missing, truncated or not of the expected format."""


class Examples(NamedTuple):
    """Images with their labels.

    Attributes:
      images: `(n, height, width, channels)`, float32.
      labels: `(n,)`, int32, in `[0, CLASSES)`.
    """

    images: np.ndarray
    labels: np.ndarray


class Splits(NamedTuple):
    """Disjoint examples for training, validation and test."""

    train: Examples
    validation: Examples
    test: Examples


class Raw(NamedTuple):
    """A published train and test set as unsigned bytes, before any scaling."""

    train: Examples
    test: Examples


def load(name: str, data_dir: Path | None = None, *, seed: int = 0) -> Splits:
    """Returns a data set: stratified splits, normalised with train statistics.

    Args:
      name: name of the data set, one of `SETS`.
      data_dir: directory of the sets other than digits; see the module's docstring.
      seed: seed of the splits.

    Returns:
      The splits. The published test set stays whole; validation is a part of train.

    Raises:
      DataError: the name is unknown, or a file is missing or broken.

    Example:
      >>> load("digits").train.images.shape
      (1078, 8, 8, 1)
    """
    if name not in SETS:
        raise DataError(f"unknown data set {name!r}; known: {', '.join(SETS)}")
    if name == "digits":
        return digits(seed=seed)
    if data_dir is None:
        raise DataError(
            f"{name} is read from a data directory: give --data-dir DIR or set "
            f"JPRUNE_DATA_DIR.\n{FILE_SETS[name].source}"
        )
    if not data_dir.is_dir():
        raise DataError(f"data directory {data_dir} is not a directory")
    raw = FILE_SETS[name].read(data_dir)
    train, validation = stratified(raw.train.labels, (0.9, 0.1), seed)
    return normalized(take(raw.train, train), take(raw.train, validation), raw.test)


def digits(*, seed: int = 0) -> Splits:
    """Returns scikit-learn's 1,797 handwritten digits, split 60 / 20 / 20 percent."""
    from sklearn.datasets import load_digits

    images, labels = map(np.asarray, load_digits(return_X_y=True))
    examples = Examples(images.reshape(-1, 8, 8, 1), labels.astype(np.int32))
    parts = stratified(examples.labels, (0.6, 0.2, 0.2), seed)
    return normalized(*(take(examples, part) for part in parts))


def stratified(
    labels: np.ndarray, fractions: tuple[float, ...], seed: int
) -> tuple[np.ndarray, ...]:
    """Returns disjoint index arrays that cover all labels, class by class.

    Args:
      labels: `(n,)` integers.
      fractions: share of each part; they sum to 1.
      seed: seed of the shuffle.

    Returns:
      One ascending index array per fraction. Every class is divided in these
      fractions, to within one example.
    """
    # Not scikit-learn's `train_test_split(stratify=...)`: its parts for a seed differ,
    # and the committed results are those of these.
    rng = np.random.default_rng(seed)
    parts: list[list[np.ndarray]] = [[] for _ in fractions]
    for value in np.unique(labels):
        members = rng.permutation(np.flatnonzero(labels == value))
        cuts = np.rint(np.cumsum(fractions[:-1]) * len(members)).astype(int)
        for part, piece in zip(parts, np.split(members, cuts), strict=True):
            part.append(piece)
    return tuple(np.sort(np.concatenate(part)) for part in parts)


def take(examples: Examples, indices: np.ndarray) -> Examples:
    """Returns the examples at the indices."""
    return Examples(examples.images[indices], examples.labels[indices])


def normalized(train: Examples, validation: Examples, test: Examples) -> Splits:
    """Standardizes each channel by the mean and variance of train, float32."""
    axes = (0, 1, 2)
    mean = train.images.mean(axes, dtype=np.float64)
    std = train.images.std(axes, dtype=np.float64)
    if not std.all():
        raise DataError("all train images are the same constant; nothing to learn from")

    def scale(examples: Examples) -> Examples:
        images = examples.images.astype(np.float32)
        images -= mean.astype(np.float32)
        images /= std.astype(np.float32)
        return Examples(images, examples.labels.astype(np.int32))

    return Splits(scale(train), scale(validation), scale(test))


def read_idx_set(folder: Path, counts: tuple[int, int] = (60_000, 10_000)) -> Raw:
    """Reads the four idx files of MNIST or Fashion-MNIST, plain or gzipped.

    Args:
      folder: folder of the files.
      counts: published numbers of train and test images.

    Returns:
      Images `(n, 28, 28, 1)` and labels, uint8.

    Raises:
      DataError: a file is truncated, too long or of another format; the message has
        its path.
    """

    def part(prefix: str, count: int) -> Examples:
        images = idx_path(folder, f"{prefix}-images-idx3-ubyte")
        labels = idx_path(folder, f"{prefix}-labels-idx1-ubyte")
        return Examples(
            read_idx(images, (count, 28, 28))[..., None],
            checked_labels(read_idx(labels, (count,)), labels),
        )

    return Raw(part("train", counts[0]), part("t10k", counts[1]))


def idx_path(folder: Path, name: str) -> Path:
    """Returns the path of the plain or gzipped file of that name."""
    for candidate in (folder / name, folder / f"{name}.gz"):
        if candidate.is_file():
            return candidate
    raise DataError(f"{folder / name}[.gz] is missing")


def read_idx(path: Path, shape: tuple[int, ...]) -> np.ndarray:
    """Reads the unsigned bytes of an idx file of the given shape.

    The format: two zero bytes, the type 0x08, the number of axes, each axis as a
    big-endian int32, then the bytes in C order.
    """
    header = struct.pack(f">HBB{len(shape)}I", 0, 8, len(shape), *shape)
    size = len(header) + int(np.prod(shape))
    opener = gzip.open if path.suffix == ".gz" else open
    try:
        with opener(path, "rb") as file:
            content = file.read(size + 1)  # one more byte shows that a file is too long
    except (EOFError, OSError, zlib.error) as error:
        raise DataError(f"{path} cannot be read: {error}") from error
    if content[: len(header)] != header:
        raise DataError(
            f"{path} is not an idx file of bytes with shape {shape}: it starts with "
            f"{content[: len(header)].hex()}, not {header.hex()}"
        )
    if len(content) != size:
        state = "truncated" if len(content) < size else "longer than its header says"
        raise DataError(f"{path} is {state}: expected {size} bytes uncompressed")
    return np.frombuffer(content, np.uint8, offset=len(header)).reshape(shape)


def read_cifar10(folder: Path, count: int = 10_000) -> Raw:
    """Reads the six files of CIFAR-10's binary version.

    Args:
      folder: folder of the files.
      count: published number of images in each file.

    Returns:
      Images `(n, 32, 32, 3)` and labels, uint8; the five train files in order.

    Raises:
      DataError: a file is missing, truncated or of another format; the message has
        its path.
    """
    train = [
        read_cifar_file(folder / f"data_batch_{i}.bin", count) for i in range(1, 6)
    ]
    images = np.concatenate([part.images for part in train])
    labels = np.concatenate([part.labels for part in train])
    test = read_cifar_file(folder / "test_batch.bin", count)
    return Raw(Examples(images, labels), test)


def read_cifar_file(path: Path, count: int) -> Examples:
    """Reads records of one label byte and 3x32x32 bytes (red, green, blue planes)."""
    if not path.is_file():
        raise DataError(f"{path} is missing")
    size = path.stat().st_size
    if size != count * 3073:
        raise DataError(
            f"{path} is truncated or foreign: {size} bytes, expected {count} records "
            f"of 3073 = {count * 3073}"
        )
    records = np.fromfile(path, np.uint8).reshape(count, 3073)
    images = records[:, 1:].reshape(count, 3, 32, 32).transpose(0, 2, 3, 1)
    return Examples(images, checked_labels(records[:, 0], path))


def checked_labels(labels: np.ndarray, path: Path) -> np.ndarray:
    """Returns the labels, after checking that all are below `CLASSES`."""
    if labels.size and labels.max() >= CLASSES:
        raise DataError(
            f"{path} has the label {labels.max()}; the largest is {CLASSES - 1}"
        )
    return labels


class Source(NamedTuple):
    """Source of a data set.

    Attributes:
      source: instructions: what to download, and where to put it.
      read: `data_dir -> Raw`.
    """

    source: str
    read: Callable[[Path], Raw]


IDX_FILES = ", ".join(
    f"{part}-ubyte.gz"
    for part in (
        "train-images-idx3",
        "train-labels-idx1",
        "t10k-images-idx3",
        "t10k-labels-idx1",
    )
)
CIFAR_FILES = "data_batch_1.bin ... data_batch_5.bin, test_batch.bin"


def found(source: str, read: Callable[[Path], Raw], *folders: str) -> Source:
    """Returns a source that reads the first existing folder."""

    def read_first(data_dir: Path) -> Raw:
        existing = [data_dir / f for f in folders if (data_dir / f).is_dir()]
        if not existing:
            tried = " or ".join(str(data_dir / f) for f in folders)
            raise DataError(f"found no folder {tried}.\n{source}")
        try:
            return read(existing[0])
        except DataError as error:
            raise DataError(f"{error}\n{source}") from error

    return Source(source, read_first)


FILE_SETS: dict[str, Source] = {
    "mnist": found(
        f"Expected in DIR/mnist: {IDX_FILES}; download them from "
        "https://storage.googleapis.com/cvdf-datasets/mnist/",
        read_idx_set,
        "mnist",
        "MNIST/raw",
    ),
    "fashion-mnist": found(
        f"Expected in DIR/fashion-mnist: {IDX_FILES}; download them from "
        "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
        read_idx_set,
        "fashion-mnist",
        "FashionMNIST/raw",
    ),
    "cifar-10": found(
        f"Expected in DIR/cifar-10/cifar-10-batches-bin: {CIFAR_FILES}; download the "
        "binary version from https://www.cs.toronto.edu/~kriz/cifar.html",
        read_cifar10,
        "cifar-10/cifar-10-batches-bin",
        "cifar-10-batches-bin",
    ),
}
SETS = ("digits", *FILE_SETS)
