"""What the tests share. They need no network: every way to it leads nowhere."""

import contextlib
import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
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
os.environ.pop("PYTHONUNBUFFERED", None)  # What most users run without.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import MNIST_HandwritingRecognition as mnist


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


OPTIONS = ["--epochs", "5", "--batch-size", "32", "--minimum-accuracy", "0.95"]


def kill_and_resume(command, folder):
    """Run a user's program; kill it at each of these lines; let it come to its end."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    left = []
    for moment in ("Data", "epoch 2", "epoch 5"):
        with subprocess.Popen(command, cwd=folder, **pipes) as killed:
            for line in killed.stderr:
                if line.startswith(moment):
                    break
            killed.kill()
        left += [file.name for file in folder.glob("here/*")]
    done = subprocess.run(command, cwd=folder, check=False, **pipes)
    names = {"stdout": done.stdout, "stderr": done.stderr, "code": done.returncode}
    return SimpleNamespace(**names, folder=folder, left=left)


@pytest.fixture(scope="session")
def resuming(subset, tmp_path_factory):
    """The promise of a run that is killed and resumed, beside the other tests."""
    command = [sys.executable, mnist.__file__, "--data", subset.source, *OPTIONS]
    folder = tmp_path_factory.mktemp("resumed")
    with ThreadPoolExecutor() as pool:
        yield pool.submit(kill_and_resume, [*command, "--outputs", "here"], folder)


@pytest.fixture(scope="session")
def trained(subset, resuming, tmp_path_factory):
    """One real run of the whole script on the subset, and what it wrote."""
    folder = tmp_path_factory.mktemp("trained")
    stdout, stderr = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(stdout), contextlib.redirect_stderr(stderr):
        code = mnist.main(["--data", subset.source, *OPTIONS, "--outputs", str(folder)])
    model = mnist.keras.saving.load_model(folder / "model.keras")
    return SimpleNamespace(
        code=code,
        folder=folder,
        stdout=stdout.getvalue(),
        stderr=stderr.getvalue(),
        model=model,
        metrics=json.loads((folder / "metrics.json").read_text()),
        probabilities=model.predict(subset.test.images[..., None] / 255, verbose=0),
    )
