"""Command line: what a run leaves and prints, and what a user may type."""

import csv
import json
import math
import re
import warnings

import keras
import numpy as np
import pytest
from conftest import FILES, SHORT, SUBSET
from makers import KEYS, digest_weights, fields

import MNIST_HandwritingRecognition as mnist


def test_run_learns_and_writes_every_file_and_nothing_else(trained):
    """Three seeds reached 97.5 to 98.8 %; an untrained network gets 10."""
    assert trained.code == 0
    assert trained.metrics["test_accuracy"] > 0.95
    assert sorted(file.name for file in trained.folder.iterdir()) == FILES


def test_history_has_a_row_for_each_epoch(trained):
    """With finite figures; the network learns."""
    with (trained.folder / "history.csv").open(newline="") as file:
        rows = [{k: float(v) for k, v in row.items()} for row in csv.DictReader(file)]
    assert [row["epoch"] for row in rows] == [1, 2, 3, 4, 5]
    assert {*rows[0]} - {"epoch", "seconds"} == {
        *("loss", "accuracy", "val_loss", "val_accuracy")
    }
    assert all(math.isfinite(value) for row in rows for value in row.values())
    assert rows[-1]["loss"] < rows[0]["loss"]


def test_model_loads_anywhere(trained):
    """Without this script, custom objects, an optimizer's state, or a warning."""
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        model = keras.saving.load_model(trained.folder / "model.keras")
    assert not [w for w in warned if w.category is not DeprecationWarning]
    assert type(model) is keras.Sequential and model.compiled
    assert {type(layer).__module__.split(".")[0] for layer in model.layers} == {"keras"}
    assert sum(np.size(variable) for variable in model.optimizer.variables) <= 2


def test_metrics_tell_what_was_run(trained, subset):
    """In strict JSON; the digest and count are the saved model's."""
    text = (trained.folder / "metrics.json").read_text()
    metrics = json.loads(text, parse_constant=pytest.fail)  # NaN is a constant.
    data = {"source": SUBSET, "name": "mnist_subset.npz (not MNIST)", "test": 480}
    data |= {"canonical_mnist": False, "training": 2640, "validation": 240}
    assert metrics["data"] == data | {"sha256": subset.sha256}
    given = {"epochs": 5, "batch_size": 32, "minimum_accuracy": 0.95}
    defaults = {name: default for name, default, *_ in mnist.SETTINGS}
    assert metrics["settings"] == defaults | given
    versions = metrics["versions"]
    assert (versions["keras"], versions["numpy"]) == (keras.__version__, np.__version__)
    assert {"python", "tensorflow", "matplotlib", "seaborn"} < {*versions}
    assert metrics["device"] and "OMP_NUM_THREADS" in metrics["environment"]
    digest = digest_weights(trained.folder / "model.keras")
    assert metrics["weights_sha256"] == digest
    assert metrics["parameters"] == trained.model.count_params()
    total, seconds = metrics["seconds"].pop("total"), metrics["seconds"]
    assert list(seconds) == ["data", "training", "evaluation", "figures"]
    assert total == pytest.approx(sum(seconds.values()), abs=0.05)
    speed = 5 * 2640 / seconds["training"]
    assert metrics["images_per_second"] == pytest.approx(speed, rel=0.01)


def test_standard_output_holds_the_results_and_the_screen_the_progress(trained):
    """Accuracy, interval and errors are those of metrics.json."""
    result, written = trained.stdout.splitlines()
    low, high = trained.metrics["test_accuracy_interval_95"]
    for text in (
        f"{trained.metrics['test_accuracy']:.2%} of 480 test images",
        "mnist_subset.npz (not MNIST)",
        f"{low:.2%} to {high:.2%}",
    ):
        assert text in result
    assert str(trained.folder) in written
    figures = r"accuracy \d+\.\d\d%, validation \d+\.\d\d%, \d+\.\d s\n"
    epochs = [f"Epoch {n}: {figures}" for n in range(1, 6)]
    lines = r"Data: .*\nTraining on 2,640 images.*\n", *epochs, r"Evaluating...\n"
    assert re.fullmatch("".join(lines), trained.stderr)


def test_help_gives_every_setting_its_default_and_reason(capsys):
    """And every option."""
    with pytest.raises(SystemExit) as end:
        mnist.main(["--help"])
    assert end.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    for name, default, _, _, reason in mnist.SETTINGS:
        option = "--" + name.replace("_", "-")
        entry = text[text.rindex(f" {option} N ") :].partition(" --")[2]
        assert reason in entry, option
        shown = re.search(r"\(default ([\w.+]+)\)", entry)[1]
        assert float(shown) == pytest.approx(default, rel=0.01)
    for option in ("--data", "--outputs", "--predict", "--model"):
        assert f"{option} PATH" in text


WRONG = "--epochs many; --epochs 1.5; --unknown; --epoch 1; --data; extra"


@pytest.mark.parametrize("arguments", WRONG.split("; "))
def test_wrong_usage_is_exit_2(arguments, capsys):
    """Before anything is done; the last line says what is wrong."""
    with pytest.raises(SystemExit) as end:
        mnist.main(arguments.split())
    assert end.value.code == 2
    stdout, stderr = capsys.readouterr()
    assert stdout == ""
    assert "error: " in stderr.splitlines()[-1]


def test_few_images_of_one_class_alone_work(subset, tmp_path, capsys):
    """The test images are of another class: too low an accuracy is exit 1."""
    train, test = (subset.train[subset.train.labels == digit] for digit in (4, 7))
    arrays = (*fields(train[:12]), *fields(test[:2]))
    np.savez(tmp_path / "few.npz", **dict(zip(KEYS, arrays)))
    options = ["--data", tmp_path / "few.npz", "--outputs", tmp_path / "new" / "folder"]
    options += ["--epochs", "1", "--batch-size", "4", "--minimum-accuracy", "0.5"]
    assert mnist.main([*map(str, options)]) == 1
    assert "0.00% of 2 test images" in capsys.readouterr().out
    assert sorted(p.name for p in (tmp_path / "new" / "folder").iterdir()) == FILES


def test_a_run_that_diverges_still_ends_with_every_file(tmp_path):
    """At the highest learning rate; its features are huge, and can be described."""
    options = [*SHORT, "--learning-rate", "10", "--outputs", str(tmp_path)]
    assert mnist.main(options) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == FILES
    mnist.load_network(tmp_path / "model.keras")
