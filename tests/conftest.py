"""What the tests share. They need no network: every way to it leads nowhere."""

import contextlib
import io
import json
import os
import shutil
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

import pytest

# Before Keras is imported, since it writes to its home at once. Port 9 refuses.
os.environ["KERAS_HOME"] = tempfile.mkdtemp(prefix="keras-home-")
os.environ.update(PIP_NO_INDEX="1", HTTPS_PROXY="http://127.0.0.1:9", NO_PROXY="")
os.environ.update(https_proxy="http://127.0.0.1:9", no_proxy="")
# Pictures must need neither a display nor a chosen backend.
os.environ.pop("DISPLAY", None)
os.environ.pop("MPLBACKEND", None)
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import keras

import MNIST_HandwritingRecognition as mnist


def pytest_configure(config):
    """Leave the slow tests to `-m slow`."""
    config.addinivalue_line("markers", "slow: minutes of runs that are cut off")
    config.option.markexpr = config.option.markexpr or "not slow"


def pytest_unconfigure():
    """Remove Keras's home."""
    shutil.rmtree(os.environ["KERAS_HOME"], ignore_errors=True)


@pytest.fixture(autouse=True)
def keras_home(tmp_path_factory, monkeypatch):
    """A home of each test's own for Keras's cache; it doesn't exist yet."""
    home = tmp_path_factory.mktemp("home") / "keras"
    monkeypatch.setenv("KERAS_HOME", str(home))
    return home


@pytest.fixture(scope="session")
def subset():
    """The first 2,880 training and 480 test images of MNIST."""
    return mnist.read_dataset(Path(__file__).with_name("mnist_subset.npz"))


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


@pytest.fixture(scope="session")
def trained(subset, tmp_path_factory):
    """One real run of the whole script on the subset, and what it wrote."""
    folder = tmp_path_factory.mktemp("trained")
    options = ["--epochs", "4", "--batch-size", "32", "--outputs", str(folder)]
    with contextlib.redirect_stdout(io.StringIO()) as stdout:
        code = mnist.main(["--data", subset.source, *options])
    model = keras.saving.load_model(folder / "model.keras")
    return SimpleNamespace(
        code=code,
        folder=folder,
        stdout=stdout.getvalue(),
        model=model,
        metrics=json.loads((folder / "metrics.json").read_text()),
        probabilities=model.predict(subset.test.images[..., None] / 255, verbose=0),
    )
