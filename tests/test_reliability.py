"""Runs that are killed, starved of disk, or not alone: nothing is lost or damaged."""

import contextlib
import os
import random
import signal
import subprocess
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import FILES, OPTIONS, PICTURES, SHORT, finish, start
from makers import DAMAGED, check_whole, little_room, read_results, save

import MNIST_HandwritingRecognition as mnist

# ---- Stopped, and started again -------------------------------------------------


def test_a_signal_ends_a_run_at_once_and_leaves_its_checkpoint(resumed):
    """A shell calls these codes 130 and 143; SIGKILL's is 137."""
    codes = [end.code for end in resumed.stopped]
    assert codes == [-signal.SIGINT, -signal.SIGTERM, -signal.SIGKILL]
    for end, (left,) in zip(resumed.stopped, resumed.left):
        assert end.stdout == ""
        assert "Traceback" not in end.stderr
        assert left.startswith(".unfinished-") and left.endswith(".npz")


def test_a_stopped_run_goes_on_to_the_same_bits(resumed, trained):
    """Of another process: weights, figures, history. Nothing unfinished stays."""
    starting, data, *said = resumed.done.stderr.splitlines()
    assert (starting, data[:6]) == ("Starting TensorFlow...", "Data: ")
    going_on = "Going on with an unfinished run, after its epoch 5."
    assert said[0].startswith("Training on 2,640 images...")
    assert said[1:] == [going_on, "Evaluating..."]
    assert resumed.done.code == 0
    assert resumed.done.stdout.startswith("mnist_subset.npz (not MNIST): ")
    assert resumed.done.stdout.count("\n") == 2
    assert read_results(resumed.outputs) == read_results(trained.folder)
    assert sorted(os.listdir(resumed.outputs)) == FILES


@pytest.mark.parametrize("damage", DAMAGED)
def test_damaged_checkpoint_is_reported_and_not_used(damage, tmp_path, capsys):
    """In one sentence; the good one is used."""
    path = tmp_path / "checkpoint.npz"
    variables = [mnist.keras.Variable(np.full(s, 5.0)) for s in ((3, 4), (4,), ())]
    DAMAGED[damage](path)
    assert mnist.load_checkpoint(path, variables) == []
    said = capsys.readouterr().err
    assert said.startswith(f"Starting afresh: {path} can't be used: ")
    assert said.count("\n") == 1
    assert [float(np.mean(variable)) for variable in variables] == [5, 5, 5]
    save()(path)
    assert mnist.load_checkpoint(path, variables) == [{"epoch": 1}]
    assert [float(np.mean(variable)) for variable in variables] == [1, 1, 1]


def locate(outputs, dataset, *arguments):
    """The checkpoint of a run with these arguments."""
    options = mnist.parse_arguments([*OPTIONS, *arguments])
    data = {"source": dataset.source, "sha256": dataset.sha256}
    return mnist.prepare_outputs(outputs, mnist.describe_run(options, data))


def test_each_run_has_a_checkpoint_of_its_own(subset, tmp_path, monkeypatch):
    """By settings, data and threads, but not by where the data are; all stay."""
    path = locate(tmp_path, subset)
    paths = [path, locate(tmp_path, SimpleNamespace(source="here", sha256="another"))]
    for option in ("--seed=1", "--epochs=6", "--learning-rate=0.01"):
        paths.append(locate(tmp_path, subset, option))
        paths[-1].touch()
    monkeypatch.setenv("TF_NUM_INTRAOP_THREADS", "1")
    paths.append(locate(tmp_path, subset))
    assert len(set(paths)) == 6
    assert sorted(tmp_path.iterdir()) == sorted(paths[2:5])
    monkeypatch.undo()
    assert locate(tmp_path, SimpleNamespace(source="", sha256=subset.sha256)) == path


def test_what_is_unfinished_for_a_day_is_removed(subset, tmp_path):
    """But not the young or a run's own, nor where a link leads, nor any other file."""
    outputs, foreign = tmp_path / "outputs", tmp_path / "foreign"
    for folder in (outputs / ".unfinished-old", outputs / ".unfinished-new", foreign):
        folder.mkdir(parents=True)
        (folder / "file").touch()
    (outputs / ".unfinished-file.npz").touch()
    (outputs / "notes.txt").touch()
    (outputs / ".unfinished-link").symlink_to(foreign)
    for path in set(outputs.iterdir()) - {outputs / ".unfinished-new"}:
        os.utime(path, (0, 0), follow_symlinks=False)
    own = locate(outputs, subset)
    own.touch()
    os.utime(own, (0, 0))  # Left on a Friday, to be continued on a Monday.
    assert locate(outputs, subset) == own
    left = [".unfinished-link", ".unfinished-new", own.name, "notes.txt"]
    assert sorted(os.listdir(outputs)) == sorted(left)
    assert [*foreign.iterdir()] == [foreign / "file"]


# ---- The outputs ----------------------------------------------------------------


@pytest.mark.parametrize("place", ["taken", "taken/below"])
def test_outputs_that_cannot_be_written_are_refused(place, tmp_path, capsys):
    """Before training; the file that is in the way stays."""
    (tmp_path / "taken").write_text("mine")
    assert mnist.main([*SHORT, "--outputs", str(tmp_path / place)]) == 1
    *_, error = capsys.readouterr().err.splitlines()
    assert error.startswith("error: ") and str(tmp_path / "taken") in error
    assert (tmp_path / "taken").read_text() == "mine"


def test_results_replace_the_earlier_ones_metrics_last(earlier, trained):
    """If a file can't be made, none is; if one can't be replaced, no metrics stay."""
    (earlier.folder / "notes.txt").write_text("mine")
    before, staging = earlier.now(), earlier.folder / ".staging"
    results = trained.model, {"means": [0]}, [{"epoch": 1}], trained.metrics
    with pytest.raises(OSError):
        mnist.write_results(staging, *results)  # There is no such folder yet.
    assert earlier.now() == before
    staging.mkdir()
    (staging / "picture.png").touch()
    mnist.write_results(staging, *results)
    names = {*FILES, "notes.txt", "picture.png", staging.name} - {*PICTURES}
    assert set(os.listdir(earlier.folder)) == names
    (earlier.folder / "taken.png" / "mine").mkdir(parents=True)
    (staging / "taken.png").touch()
    with pytest.raises(OSError):
        mnist.write_results(staging, *results)
    assert not (earlier.folder / "metrics.json").exists()


def check_together(runs):
    """Both ended well, their output redirected; all files are whole."""
    for end in runs.ends:
        assert end.code == 0, end.stderr
        assert end.stdout.startswith("a part of mnist_subset.npz (not MNIST): ")
        assert "Going on" not in end.stderr
    assert sorted(os.listdir(runs.outputs)) == FILES
    check_whole(runs.outputs)


def test_two_identical_runs_at_once_write_the_same(identical):
    """The metrics are of the model beside them."""
    check_together(identical)
    read_results(identical.outputs)


@pytest.mark.slow
def test_two_different_runs_at_once_both_end(different):
    """Neither uses or removes what is the other's."""
    check_together(different)


# ---- Slow: runs that are cut off anywhere ---------------------------------------


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The outputs of a short run that nothing disturbed."""
    outputs = tmp_path_factory.mktemp("undisturbed")
    assert mnist.main([*SHORT, "--outputs", str(outputs)]) == 0
    return outputs


@pytest.mark.slow
def test_twenty_killed_runs_end_with_the_same_result(tmp_path, undisturbed):
    """Killed at random moments, of the start, too; files are whole after each."""
    random.seed(20)
    for _ in range(20):
        process = start(*SHORT, "--outputs", tmp_path)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.communicate(timeout=random.uniform(3, 12))
        process.kill()
        process.wait()
        check_whole(tmp_path)
    assert finish(start(*SHORT, "--outputs", tmp_path)).code == 0
    assert read_results(tmp_path) == read_results(undisturbed)


@pytest.mark.slow
def test_full_disk_keeps_the_earlier_results(undisturbed, tmp_path, capsys):
    """With room for less or more of a run: for none of its checkpoint, or for all."""
    codes = []
    for room in (0, 600, 1200, 1300, 1500, 1700, 1900, 2100, 4000):
        outputs = tmp_path / str(room)
        with little_room(outputs, undisturbed, room):
            before = {path.name: path.read_bytes() for path in outputs.iterdir()}
            codes.append(mnist.main([*SHORT, "--epochs=1", "--outputs", str(outputs)]))
            check_whole(outputs)
            files = {path.name: path.read_bytes() for path in outputs.glob("[!.]*")}
        said = capsys.readouterr().err
        if codes[-1]:
            assert files == before
            assert said.splitlines()[-1].startswith("error: ")
    assert codes == sorted(codes, reverse=True)
    assert codes[0] > 0 == codes[-1]
