"""What is no regular file, no local path, or not inside of the checkpoint."""

import contextlib
import hashlib
import os
import pathlib
import shutil
import signal
import socket

import numpy as np
import pytest
from support.damage import saved_files, seal, small
from support.export_cases import small as packed

from jprune import checkpoint, formats

ERROR = checkpoint.CheckpointError


@contextlib.contextmanager
def at_most(seconds):
    """What waits for a FIFO, or reads a device to its end, is interrupted."""

    def stop(*_):
        raise TimeoutError

    previous = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, previous)


def fifo(path):
    os.mkfifo(path)


def device(path):
    path.symlink_to("/dev/full")  # endless zeros, as from /dev/zero


def directory(path):
    path.mkdir()


def listening_socket(path):
    # From its directory, since a path of a socket is short.
    with socket.socket(socket.AF_UNIX) as server, contextlib.chdir(path.parent):
        server.bind(path.name)


KINDS = [
    (fifo, "is a FIFO, not a regular file"),
    (device, "is a device, not a regular file"),
    (directory, "is a directory, not a regular file"),
    (listening_socket, "is a socket, not a regular file"),
]


@pytest.mark.parametrize(("kind", "match"), KINDS)
def test_special_files_in_a_checkpoint_are_refused_by_name(kind, match, tmp_path):
    state = small()
    path = checkpoint.save(tmp_path, 3, state)
    for file in saved_files(path):
        data = file.read_bytes()
        file.unlink()
        kind(file)
        with at_most(10), pytest.raises(ERROR, match=f"{file.name} {match}") as caught:
            checkpoint.restore(tmp_path, state)
        assert f"cannot restore {path}" in str(caught.value)
        shutil.rmtree(file) if file.is_dir() else file.unlink()
        file.write_bytes(data)
    checkpoint.restore(tmp_path, state)
    if kind is not directory:  # an empty one is nobody's business
        kind(path / "arrays" / "more")
        with at_most(10), pytest.raises(ERROR, match="arrays/more is foreign"):
            checkpoint.restore(tmp_path, state)


@pytest.mark.parametrize(("kind", "match"), KINDS)
def test_special_files_are_no_packed_weights(kind, match, tmp_path):
    kind(tmp_path / "m")
    with (
        at_most(10),
        pytest.raises(ERROR, match=f"cannot load {tmp_path}/m: m {match}"),
    ):
        formats.load_packed(tmp_path / "m")


def test_links_to_regular_files_are_followed(tmp_path):
    """Caches of downloaded models are made of them."""
    formats.save_packed(tmp_path / "m", packed())
    (tmp_path / "link").symlink_to(tmp_path / "m")
    assert formats.load_packed(tmp_path / "link").keys() == packed().keys()


def test_a_manifest_of_any_size_is_not_read(tmp_path):
    path = checkpoint.save(tmp_path, 3, small())
    os.truncate(path / "manifest.json", 2**28 + 1)  # takes no room on the disk
    with pytest.raises(ERROR, match=r"manifest.json has 268435457 bytes; at most 2684"):
        checkpoint.restore(tmp_path, small())


@pytest.mark.parametrize(
    "name", ["{outside}", "../outside", "arrays/../../outside", "./outside", ""]
)
def test_manifests_name_files_of_their_directory(name, tmp_path):
    outside = tmp_path / "outside"
    outside.write_text("of somebody else")
    name = name.format(outside=outside)
    path = checkpoint.save(tmp_path, 3, small())
    digest = hashlib.sha256(outside.read_bytes()).hexdigest()
    seal(path, lambda manifest: manifest["files"].update({name: digest}))
    with pytest.raises(ERROR, match=f"names the file '{name}', which is not a path"):
        checkpoint.restore(tmp_path, small())


@pytest.mark.parametrize("url", ["gs://bucket/run", "s3://bucket/run", "file:///tmp/x"])
@pytest.mark.parametrize("kind", [str, pathlib.Path])
def test_urls_are_refused_with_the_remedy(url, kind, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path, params = kind(url), {"w": np.ones(3)}
    for act in (
        lambda: checkpoint.save(path, 1, params),
        lambda: checkpoint.restore(path, params),
        lambda: checkpoint.all_steps(path),
        lambda: checkpoint.latest_step(path),
        lambda: formats.save_packed(path, packed()),
        lambda: formats.save_dense(path, params),
        lambda: formats.load_packed(path),
    ):
        with pytest.raises(
            ERROR, match=r"is a URL.*save to a local directory and copy"
        ):
            act()
    assert not os.listdir(tmp_path)
