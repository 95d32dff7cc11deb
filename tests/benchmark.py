"""Measure the script over several seeds, each run in a fresh process of its own.

python tests/benchmark.py --seeds 5 --epochs 1      five quick runs
python tests/benchmark.py --seeds 5 --control 2     Keras's example beside the script
python tests/benchmark.py --scaling                 how time and memory grow
python tests/benchmark.py --epochs 60 --seeds 3 --json long.json

Options not in --help, such as --epochs, --limit, --batch-size and --data, go to the
script, whose whole command is run; the figures are from the files it writes. Leave the
machine to it: whatever else runs is in its seconds. The columns:

validation      accuracy on the images held out of the training part
accuracy, loss  on the test set, at the end of a run
one view        its accuracy without test-time augmentation
training s      every epoch, with its validation and TensorFlow's preparations
images/s        training images by that time
share           arithmetic a second in training / that of TensorFlow's own product of
                large float32 matrices, measured before and after the run, averaged.
                All images are taken to be 28x28.
memory MB       the largest resident size, in millions of bytes
total s         the process from start to end, with imports, evaluation and pictures
to 99 % s       training until an epoch ends with 99 % or more of the validation images

The control is written after https://keras.io/examples/vision/mnist_convnet/. The
drawing libraries, which the script's loader brings along, are not in its total, but in
its memory.
"""

import argparse
import contextlib
import csv
import datetime
import importlib
import itertools
import json
import math
import multiprocessing
import os
import platform
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import Any

Row = dict[str, Any]  # The figures of one run.
Run = tuple[Callable[[list[str]], Row], list[str]]  # A function, the script's options.

COLUMNS = {  # Of the tables: a figure's name in a row, its heading, its format.
    "validation_accuracy": ("validation", ".3%"),
    "test_accuracy": ("accuracy", ".3%"),
    "single_view": ("one view", ".3%"),
    "test_loss": ("loss", ".4f"),
    "training_seconds": ("training s", ".1f"),
    "images_per_second": ("images/s", ",.0f"),
    "share_of_matrix_product": ("share", ".1%"),
    "memory_mb": ("memory MB", ",.0f"),
    "total_seconds": ("total s", ".1f"),
    "seconds_to_99": ("to 99 % s", ".1f"),
}


def load_script() -> ModuleType:
    """Import the script from the folder above, which starts TensorFlow."""
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    return importlib.import_module("MNIST_HandwritingRecognition")


def measure_matrix_product(size: int = 2048, repetitions: int = 10) -> float:
    """The best rate, in operations a second, of multiplying two float32 matrices."""
    tf = load_script().tf
    matrix, seconds = tf.random.normal((size, size)), []
    for _ in range(repetitions):
        start = time.perf_counter()
        tf.linalg.matmul(matrix, matrix)[0, 0].numpy()  # Waits for the result.
        seconds.append(time.perf_counter() - start)
    return 2 * size**3 / min(seconds)


def count_operations(model: Any) -> int:
    """The operations to train `model` on one image: two for each multiply-add.

    Counted are convolutions and dense layers, each with one product forward and two
    backward: for the gradients of its weights and of its input, which the first layer
    doesn't need. The other layers are not counted.
    """
    forward = [
        2 * math.prod(layer.kernel.shape) * math.prod(layer.output.shape[1:-1])
        for layer in model.layers
        if hasattr(layer, "kernel")
    ]
    return 3 * sum(forward) - forward[0]


def describe_training(
    model: Any, images: int, seconds: list[float], accuracies: list[float]
) -> Row:
    """The figures of a training run in this process that went through `images` in all.

    `seconds` and validation `accuracies` (0 to 1) are those of each epoch.
    """
    unit = 1 if sys.platform == "darwin" else 1024  # Of ru_maxrss, in bytes.
    ends = zip(itertools.accumulate(seconds), accuracies)
    return {
        "images": images,
        "training_seconds": sum(seconds),
        "images_per_second": images / sum(seconds),
        "operations_per_second": count_operations(model) * images / sum(seconds),
        "memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6,
        "seconds_to_99": next((end for end, value in ends if value >= 0.99), None),
    }


def run_script(arguments: list[str]) -> Row:
    """Run the script's whole command; SystemExit with its exit code if it fails."""
    script = load_script()
    with tempfile.TemporaryDirectory() as folder:
        with contextlib.redirect_stdout(sys.stderr):
            code = script.main([*arguments, "--outputs", folder])
        if code:
            sys.exit(code)
        metrics = json.loads(Path(folder, "metrics.json").read_text())
        with Path(folder, "history.csv").open(newline="") as file:
            epochs = list(csv.DictReader(file))
    size, epochs_run = metrics["settings"]["batch_size"], metrics["settings"]["epochs"]
    images = metrics["data"]["training"] // size * size * epochs_run
    seconds = [float(epoch["seconds"]) for epoch in epochs]
    accuracies = [float(epoch["val_accuracy"]) for epoch in epochs]
    kept = ("test_accuracy", "test_loss", "validation_accuracy", "data", "settings")
    row = {name: metrics[name] for name in (*kept, "versions", "weights_sha256")}
    row["single_view"] = metrics["single_view"]["test_accuracy"]
    return row | describe_training(script.build_model(), images, seconds, accuracies)


def build_control(keras: ModuleType) -> Any:
    """The network of Keras's MNIST example, compiled as there."""
    layers = [
        keras.Input((28, 28, 1)),
        keras.layers.Conv2D(32, 3, activation="relu"),
        keras.layers.MaxPooling2D(2),
        keras.layers.Conv2D(64, 3, activation="relu"),
        keras.layers.MaxPooling2D(2),
        keras.layers.Flatten(),
        keras.layers.Dropout(0.5),
        keras.layers.Dense(10, activation="softmax"),
    ]
    model = keras.Sequential(layers)
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    return model


def run_control(arguments: list[str]) -> Row:
    """Train Keras's example on the data, and for the epochs, that `arguments` name."""
    start = time.perf_counter()
    importlib.import_module("seaborn")  # With matplotlib: no part of the example.
    excess = time.perf_counter() - start
    script = load_script()
    keras, options = script.keras, script.parse_arguments(arguments)
    train, test, _ = script.load_dataset(options.data, options.limit)
    images, labels = script.normalize(train.images), train.labels
    keras.utils.set_random_seed(options.seed)
    model, settings = build_control(keras), {"batch_size": 128, "verbose": 0}
    ends = [time.perf_counter()]
    log = keras.callbacks.LambdaCallback(
        on_epoch_end=lambda *_: ends.append(time.perf_counter())
    )
    settings |= {"validation_split": 0.1, "callbacks": [log], "epochs": options.epochs}
    accuracies = model.fit(images, labels, **settings).history["val_accuracy"]
    seconds = [end - begin for begin, end in itertools.pairwise(ends)]
    images, labels = script.normalize(test.images), test.labels
    loss, accuracy = model.evaluate(images, labels, verbose=0)
    row = {"test_accuracy": accuracy, "test_loss": loss, "excess_seconds": excess}
    row |= {"validation_accuracy": accuracies[-1], "single_view": accuracy}
    count = int(len(train.labels) * 0.9) * options.epochs
    return row | describe_training(model, count, seconds, accuracies)


def run_alone(function: Callable[..., Any], *arguments: Any) -> tuple[Any, float]:
    """Call `function` in a fresh process; return its result, and the seconds in all."""
    start = time.perf_counter()
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
        result = process.submit(function, *arguments).result()
    return result, time.perf_counter() - start


def run_all(runs: list[Run]) -> list[Row]:
    """Call each function with its arguments, one at a time, between matrix products."""
    rows, before = [], run_alone(measure_matrix_product)[0]
    for function, arguments in runs:
        row, seconds = run_alone(function, arguments)
        after = run_alone(measure_matrix_product)[0]
        product, before = (before + after) / 2, after
        row |= {
            "run": function.__name__,
            "arguments": arguments,
            "total_seconds": seconds - row.pop("excess_seconds", 0),
            "matrix_product_per_second": product,
            "share_of_matrix_product": row["operations_per_second"] / product,
        }
        rows.append(row)
        figures = ", ".join(f"{name} {row[name]}" for name in COLUMNS)
        print(function.__name__, *arguments, figures, file=sys.stderr)
    return rows


def tabulate_seeds(rows: list[Row]) -> str:
    """A table of the rows, and below them their statistics (sd: of a sample)."""
    import pandas  # Not above, where it would slow the start of each run's process.

    figures = pandas.DataFrame(rows, columns=list(COLUMNS), dtype=float)
    statistics = figures.agg(["mean", "std", "min", "max"])
    statistics.index = ["mean", "sd", "minimum", "maximum"]
    figures, table = pandas.concat([figures, statistics]), pandas.DataFrame()
    for name, (heading, form) in COLUMNS.items():
        cells = figures[name].map(f"{{:{form}}}".format, na_action="ignore")
        table[heading] = cells.astype(object).fillna("-")
    return table.rename_axis(columns="seed").to_string()


def tabulate_scaling(rows: list[Row]) -> str:
    """A table of three runs that differ in epochs, and three that differ in images.

    A ratio is to the first of its three; that of the seconds is divided by the ratio of
    the work, so that 1 is linear growth and less is better.
    """
    import pandas

    figures = pandas.DataFrame(rows)
    first = figures.iloc[[0, 0, 0, 3, 3, 3]].reset_index()
    epochs = pandas.Series([row["settings"]["epochs"] for row in rows])
    pace = figures["training_seconds"] / figures["images"]
    columns = {
        "epochs": epochs,
        "training images": figures["images"] // epochs,
        "training s": figures["training_seconds"].round(1),
        "to linear": (pace / (first["training_seconds"] / first["images"])).round(2),
        "memory MB": figures["memory_mb"].round().astype(int),
        "to first": (figures["memory_mb"] / first["memory_mb"]).round(2),
    }
    return pandas.DataFrame(columns).to_string(index=False)


def compare(rows: list[Row], controls: list[Row], name: str) -> str:
    """The ratio of the script's mean seconds to the control's, in a sentence."""
    sides = [[row[name] for row in side if row[name]] for side in (rows, controls)]
    if not all(sides):
        return f"{COLUMNS[name][0]}: not reached by both"
    script, control = (sum(side) / len(side) for side in sides)
    return (
        f"{COLUMNS[name][0]}: script {script:.1f} / control {control:.1f} = "
        f"{script / control:.3f} (means of {len(sides[0])} and {len(sides[1])} runs)"
    )


def parse_arguments() -> tuple[argparse.Namespace, list[str]]:
    """Read the command line; return the benchmark's own options, and the others."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,  # --seed would be taken for --seeds.
    )
    add = parser.add_argument
    add("--seeds", type=int, default=5, metavar="N", help="runs (default 5)")
    where = "runs of Keras's example beside the first N seeds (default 0)"
    add("--control", type=int, default=0, metavar="N", help=where)
    add("--control-epochs", default="15", metavar="N", help="its epochs (default 15)")
    where = "1, 2, 4 epochs, then 15,000, 30,000, 60,000 images, in place of the seeds"
    add("--scaling", action="store_true", help=where)
    add("--json", type=Path, metavar="PATH", help="write everything to this file")
    return parser.parse_known_args()


def plan(options: argparse.Namespace, passed: list[str]) -> list[Run]:
    """The runs that the command line asks for, in their order."""
    if options.scaling:
        changes = [[epochs] for epochs in ("1", "2", "4")]
        changes += [["1", "--limit", limit] for limit in ("15000", "30000", "60000")]
        return [(run_script, [*passed, "--epochs", *change]) for change in changes]
    runs = []
    for seed in range(options.seeds):
        arguments = [*passed, "--seed", str(seed)]
        runs.append((run_script, arguments))
        if seed < options.control:  # In turn: a drift of the machine's hits both.
            arguments = [*arguments, "--epochs", options.control_epochs]
            runs.append((run_control, arguments))
    return runs


def main() -> None:
    """Make the runs, print their tables, and write the report."""
    options, passed = parse_arguments()
    report = {
        "date": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
        "machine": platform.machine(),
        "cpu_count": os.cpu_count(),
        "load_before": round(os.getloadavg()[0], 2),
        "command": " ".join(sys.argv),
    }
    if options.json:  # Rather now than after all the runs.
        options.json.parent.mkdir(parents=True, exist_ok=True)
    rows = run_all(plan(options, passed))
    report["versions"] = rows[0]["versions"]
    for name, value in report.items():
        print(f"{name}: {value}")
    scripts = [row for row in rows if row["run"] == "run_script"]
    controls = [row for row in rows if row["run"] == "run_control"]
    if options.scaling:
        print(tabulate_scaling(rows))
    else:
        print("", "Script", tabulate_seeds(scripts), sep="\n")
    if controls:
        print("", "Control", tabulate_seeds(controls), "", sep="\n")
        for name in ("total_seconds", "seconds_to_99"):
            print(compare(scripts, controls, name))
    if options.json:
        options.json.write_text(json.dumps(report | {"runs": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
