"""Data sets in their published formats, whole and damaged."""

import functools
import gzip
import struct

import numpy as np
import pytest

from experiments.tasks import data

RNG = np.random.default_rng(0)
COUNTS = (20, 10)
IDX = {
    "train-images-idx3-ubyte": RNG.integers(0, 256, (20, 28, 28), np.uint8),
    "train-labels-idx1-ubyte": np.arange(20, dtype=np.uint8) % 10,
    "t10k-images-idx3-ubyte": RNG.integers(0, 256, (10, 28, 28), np.uint8),
    "t10k-labels-idx1-ubyte": np.arange(10, dtype=np.uint8),
}
BATCHES = [f"data_batch_{i}.bin" for i in range(1, 6)] + ["test_batch.bin"]


def idx_bytes(array):
    """The format as the MNIST page states it, written out by hand."""
    dims = b"".join(struct.pack(">i", n) for n in array.shape)
    return bytes([0, 0, 8, array.ndim]) + dims + array.tobytes()


def write_idx(folder, *, packed):
    folder.mkdir(parents=True)
    for name, array in IDX.items():
        content = idx_bytes(array)
        if packed:
            (folder / f"{name}.gz").write_bytes(gzip.compress(content))
        else:
            (folder / name).write_bytes(content)
    return folder


def write_cifar(folder, count=4):
    """Red, green and blue planes one after the other, as the CIFAR page states."""
    folder.mkdir(parents=True)
    images = np.random.default_rng(1).integers(0, 256, (24, 32, 32, 3), np.uint8)
    labels = np.arange(24, dtype=np.uint8) % 10
    for b, name in enumerate(BATCHES):
        content = b""
        for i in range(count * b, count * (b + 1)):
            content += bytes([labels[i]])
            for channel in range(3):
                content += images[i, :, :, channel].tobytes()
        (folder / name).write_bytes(content)
    return images, labels


@pytest.mark.parametrize("packed", [False, True])
def test_idx_files_are_read_as_written(tmp_path, packed):
    raw = data.read_idx_set(write_idx(tmp_path / "mnist", packed=packed), COUNTS)
    np.testing.assert_array_equal(
        raw.train.images[..., 0], IDX["train-images-idx3-ubyte"]
    )
    np.testing.assert_array_equal(
        raw.test.images[..., 0], IDX["t10k-images-idx3-ubyte"]
    )
    np.testing.assert_array_equal(raw.train.labels, IDX["train-labels-idx1-ubyte"])
    np.testing.assert_array_equal(raw.test.labels, IDX["t10k-labels-idx1-ubyte"])


@pytest.mark.parametrize("name", IDX)
@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda content: content[:-1], "truncated"),
        (lambda content: content[:3], "not an idx file"),
        (lambda content: content + b"\0", "longer"),
        (lambda content: b"\x89PNG" + content[4:], "not an idx file"),
        (lambda content: content[:3] + b"\x02" + content[4:], "not an idx file"),
        (lambda content: b"", "not an idx file"),
    ],
)
def test_a_damaged_idx_file_is_named(tmp_path, name, damage, message):
    folder = write_idx(tmp_path / "mnist", packed=False)
    path = folder / name
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(data.DataError, match=message) as error:
        data.read_idx_set(folder, COUNTS)
    assert str(path) in str(error.value)


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: content[:-9],
        lambda content: content[: len(content) // 2],
        lambda content: b"not gzip at all",
        lambda content: content[:40] + b"\xff\xff\xff\xff" + content[44:],
        lambda content: content[:-8] + b"\0\0\0\0" + content[-4:],  # the checksum
        lambda content: gzip.compress(b"some other file"),
    ],
)
def test_a_damaged_gzip_file_is_named(tmp_path, damage):
    folder = write_idx(tmp_path / "mnist", packed=True)
    path = folder / "train-images-idx3-ubyte.gz"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(data.DataError) as error:
        data.read_idx_set(folder, COUNTS)
    assert str(path) in str(error.value)


def test_a_label_out_of_range_is_named(tmp_path):
    folder = write_idx(tmp_path / "mnist", packed=False)
    path = folder / "train-labels-idx1-ubyte"
    path.write_bytes(path.read_bytes()[:-1] + b"\x0a")
    with pytest.raises(data.DataError, match="has the label 10") as error:
        data.read_idx_set(folder, COUNTS)
    assert str(path) in str(error.value)


def test_cifar_planes_become_channels(tmp_path):
    images, labels = write_cifar(tmp_path / "cifar")
    raw = data.read_cifar10(tmp_path / "cifar", count=4)
    np.testing.assert_array_equal(raw.train.images, images[:20])
    np.testing.assert_array_equal(raw.test.images, images[20:])
    np.testing.assert_array_equal(raw.train.labels, labels[:20])
    np.testing.assert_array_equal(raw.test.labels, labels[20:])


@pytest.mark.parametrize("name", BATCHES)
@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda content: content[:-1], "truncated or foreign"),
        (lambda content: content[:-3073], "truncated or foreign"),
        (lambda content: content + content, "truncated or foreign"),
        (lambda content: b"\x0b" + content[1:], "has the label 11"),
    ],
)
def test_a_damaged_cifar_file_is_named(tmp_path, name, damage, message):
    write_cifar(tmp_path / "cifar")
    path = tmp_path / "cifar" / name
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(data.DataError, match=message) as error:
        data.read_cifar10(tmp_path / "cifar", count=4)
    assert str(path) in str(error.value)


@pytest.mark.parametrize("folder", ["mnist", "MNIST/raw"])
def test_a_source_is_found_in_either_layout(tmp_path, folder):
    write_idx(tmp_path / folder, packed=True)
    read = functools.partial(data.read_idx_set, counts=COUNTS)
    source = data.found("where from", read, "mnist", "MNIST/raw")
    assert source.read(tmp_path).train.images.shape == (20, 28, 28, 1)


@pytest.mark.parametrize(
    ("name", "file", "url"),
    [
        ("mnist", "train-images-idx3-ubyte.gz", "storage.googleapis.com/cvdf-datasets"),
        ("fashion-mnist", "t10k-labels-idx1-ubyte.gz", "fashion-mnist.s3-website"),
        ("cifar-10", "data_batch_1.bin", "www.cs.toronto.edu/~kriz/cifar.html"),
    ],
)
def test_what_is_missing_and_where_it_comes_from_is_said(tmp_path, name, file, url):
    folders = {"cifar-10": "cifar-10/cifar-10-batches-bin"}
    empty, partly = tmp_path / "empty", tmp_path / "partly"
    empty.mkdir()
    (partly / folders.get(name, name)).mkdir(parents=True)
    for directory in (None, empty, partly):
        with pytest.raises(data.DataError) as error:
            data.load(name, directory)
        assert file in str(error.value)
        assert url in str(error.value)
        assert directory is None or str(directory) in str(error.value)


def test_a_file_of_another_size_than_published_is_refused(tmp_path):
    write_idx(tmp_path / "mnist", packed=False)
    with pytest.raises(data.DataError, match=r"shape \(60000, 28, 28\)"):
        data.load("mnist", tmp_path)


def test_an_unknown_set_is_refused_with_the_known_ones():
    with pytest.raises(data.DataError, match=r"'imagenet'.*digits, mnist"):
        data.load("imagenet")


def test_splits_are_disjoint_stratified_and_seeded():
    labels = np.repeat(np.arange(5), [11, 20, 37, 100, 1])
    np.random.default_rng(3).shuffle(labels)
    parts = data.stratified(labels, (0.6, 0.2, 0.2), seed=7)
    np.testing.assert_array_equal(np.sort(np.concatenate(parts)), np.arange(169))
    for fraction, part in zip((0.6, 0.2, 0.2), parts, strict=True):
        expected = fraction * np.bincount(labels)
        found = np.bincount(labels[part], minlength=5)
        assert np.abs(found - expected).max() <= 1
    again = data.stratified(labels, (0.6, 0.2, 0.2), seed=7)
    other = data.stratified(labels, (0.6, 0.2, 0.2), seed=8)
    assert all(np.array_equal(a, b) for a, b in zip(parts, again, strict=True))
    assert not np.array_equal(parts[0], other[0])


def test_normalisation_uses_train_statistics_only():
    # Per channel: train has mean 2 and standard deviation 2; mean 10 and 5.
    train = np.array([[0, 5], [4, 15]], np.float64).reshape(2, 1, 1, 2)
    rest = np.array([[2, 10], [8, 0]], np.float64).reshape(2, 1, 1, 2)
    labels = np.zeros(2, np.int32)
    splits = data.normalized(
        data.Examples(train, labels),
        data.Examples(rest, labels),
        data.Examples(rest + 1, labels),
    )
    assert splits.train.images.ravel().tolist() == [-1, -1, 1, 1]
    assert splits.validation.images.ravel().tolist() == [0, 0, 3, -2]
    np.testing.assert_allclose(splits.test.images.ravel(), [0.5, 0.2, 3.5, -1.8])


def test_constant_images_are_refused():
    blank = data.Examples(np.full((3, 2, 2, 1), 7), np.zeros(3, np.int32))
    with pytest.raises(data.DataError, match="constant"):
        data.normalized(blank, blank, blank)


def test_digits_are_the_1797_of_scikit_learn():
    from sklearn.datasets import load_digits

    splits = data.load("digits")
    assert [len(part.labels) for part in splits] == [1078, 360, 359]
    labels = np.concatenate([part.labels for part in splits])
    np.testing.assert_array_equal(
        np.bincount(labels), np.bincount(load_digits().target)
    )
    images = splits.train.images.astype(np.float64)
    assert splits.train.images.shape == (1078, 8, 8, 1)
    assert splits.train.images.dtype == np.float32
    assert splits.train.labels.dtype == np.int32
    assert abs(images.mean()) < 1e-6
    assert abs(images.std() - 1) < 1e-6
    # 1,797 different images: no test image is among the train images.
    seen = {image.tobytes() for image in splits.train.images}
    assert len(seen) == 1078
    assert not any(image.tobytes() in seen for image in splits.test.images)
