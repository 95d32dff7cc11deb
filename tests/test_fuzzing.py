"""Damaged and arbitrary files: only the documented error comes out."""

import gzip
import io
import zipfile

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import MNIST_HandwritingRecognition as mnist

FUZZ = settings(
    deadline=None,
    max_examples=150,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
NAMES = [
    f"{part}-{kind}-ubyte"
    for part in ("train", "t10k")
    for kind in ("images-idx3", "labels-idx1")
]


def idx(array):
    """The bytes of an IDX file."""
    shape = np.array(array.shape, ">u4").tobytes()
    return bytes([0, 0, 8, array.ndim]) + shape + array.tobytes()


def good_files():
    """A tiny dataset in each form that is read: its bytes."""
    images, labels = np.zeros((3, 28, 28), np.uint8), np.arange(3, dtype=np.uint8)
    arrays = [images, labels, images, labels]
    npz, archive = io.BytesIO(), io.BytesIO()
    keys = ("x_train", "y_train", "x_test", "y_test")
    np.savez_compressed(npz, **dict(zip(keys, arrays)))
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
        for name, array in zip(NAMES, arrays):
            file.writestr(f"{name}.gz", gzip.compress(idx(array)))
    return [npz.getvalue(), archive.getvalue()]


GOOD = good_files()


@FUZZ
@given(data=st.binary(max_size=500))
def test_arbitrary_bytes_as_a_dataset(data, tmp_path):
    path = tmp_path / "data.zip"
    path.write_bytes(data)
    with pytest.raises(mnist.InputError) as error:
        mnist.read_dataset(path)
    assert "\n" not in str(error.value)


@FUZZ
@given(
    which=st.integers(0, 1),
    changes=st.lists(
        st.tuples(st.integers(0, 10_000), st.integers(0, 255)), min_size=1, max_size=8
    ),
    end=st.integers(1, 10_000),
)
def test_mutated_archives(which, changes, end, tmp_path):
    data = bytearray(GOOD[which])
    for place, value in changes:
        data[place % len(data)] = value
    path = tmp_path / "data.zip"
    path.write_bytes(data[:end])
    try:
        dataset = mnist.read_dataset(path)
    except mnist.InputError as error:
        assert "\n" not in str(error)
    else:
        assert dataset.train.images.shape[1:] == (28, 28)


@FUZZ
@given(
    header=st.binary(max_size=24),
    kept=st.integers(0, 24),
    packed=st.booleans(),
)
def test_mutated_idx_files(header, kept, packed, tmp_path):
    arrays = [np.zeros((3, 28, 28), np.uint8), np.arange(3, dtype=np.uint8)] * 2
    for name, array in zip(NAMES, arrays):
        (tmp_path / name).write_bytes(idx(array))
    data = idx(arrays[0])[:kept] + header + idx(arrays[0])[kept:]
    (tmp_path / NAMES[0]).write_bytes(gzip.compress(data) if packed else data)
    try:
        mnist.read_dataset(tmp_path)
    except mnist.InputError as error:
        assert NAMES[0] in str(error) or "these are" in str(error)


def test_path_that_climbs_out_is_only_a_name(tmp_path):
    path = tmp_path / "data.zip"
    with zipfile.ZipFile(path, "w") as file:
        for name in NAMES:
            array = np.zeros((3, 28, 28) if "images" in name else 3, np.uint8)
            file.writestr(f"../../{name}", idx(array))
    before = sorted(tmp_path.rglob("*"))
    assert len(mnist.read_dataset(path).train.labels) == 3
    assert sorted(tmp_path.rglob("*")) == before


def test_zip_of_many_folders_is_refused(tmp_path):
    path = tmp_path / "many.zip"
    with zipfile.ZipFile(path, "w") as file:
        for number in range(20_000):
            file.writestr(f"{number}/{'a/' * (number % 50)}file", b"")
    with pytest.raises(mnist.InputError, match="there must be"):
        mnist.read_dataset(path)
