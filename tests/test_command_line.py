"""Command line: the whole run, as a program and as a user meets it."""

import csv
import dataclasses
import hashlib
import math
import re
from pathlib import Path

import keras
import numpy as np
import pytest
from PIL import Image

import MNIST_HandwritingRecognition as mnist

PICTURES = [
    "training_data_example.png",
    "predictions_on_test_set.png",
    "feature_maps.png",
    "training_history.png",
    "confusion_matrix.png",
    "misclassified_digits.png",
]
FILES = sorted([*PICTURES, "model.keras", "metrics.json", "history.csv"])

# ---- One run on the subset: the smoke test --------------------------------------


def test_run_learns_and_writes_every_file_and_nothing_else(trained):
    """Three seeds reached 98.1 to 98.3 %; an untrained network gets 10."""
    assert trained.code == 0
    assert trained.metrics["test_accuracy"] > 0.95
    assert sorted(file.name for file in trained.folder.iterdir()) == FILES


@pytest.mark.parametrize("name", PICTURES)
def test_picture_is_whole_and_sharp(name, trained):
    with Image.open(trained.folder / name) as picture:
        assert picture.width >= 900
        assert picture.height >= 250
        assert picture.info["dpi"] == pytest.approx((150, 150), abs=0.1)
        assert len(np.unique(np.asarray(picture.convert("L")))) > 10  # Not blank.


def test_history_has_a_row_for_each_epoch(trained):
    with (trained.folder / "history.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["epoch"] for row in rows] == ["1", "2", "3", "4", "5"]
    for name in ("loss", "accuracy", "val_loss", "val_accuracy"):
        assert all(math.isfinite(float(row[name])) for row in rows)
    assert float(rows[-1]["loss"]) < float(rows[0]["loss"])


def test_model_loads_without_custom_objects_or_optimizer(trained):
    assert isinstance(trained.model, keras.Sequential)
    assert not trained.model.compiled
    assert getattr(trained.model, "optimizer", None) is None


def test_figures_are_those_of_the_saved_model(trained, subset):
    """Each is worked out anew from the model's answers, by other means."""
    metrics, labels = trained.metrics, subset.test.labels
    answers = [int(row.argmax()) for row in trained.probabilities]
    right = [answer == label for answer, label in zip(answers, labels)]
    assert metrics["test_images"] == 480
    assert metrics["test_errors"] == 480 - sum(right)
    assert metrics["test_accuracy"] == pytest.approx(sum(right) / 480)

    true = [float(row[label]) for row, label in zip(trained.probabilities, labels)]
    loss = -sum(map(math.log, true)) / 480
    assert metrics["test_loss"] == pytest.approx(loss, rel=1e-4)

    # Wilson's bounds solve (rate - p)^2 = z^2 p (1 - p) / n for p.
    rate, share = sum(right) / 480, 1.959964**2 / 480
    bounds = np.roots([1 + share, -2 * rate - share, rate**2])
    assert metrics["test_accuracy_interval_95"] == pytest.approx(sorted(bounds))


def test_confidences_are_those_of_the_saved_model(trained, subset):
    """Each is worked out anew from the model's answers, by other means."""
    metrics, labels = trained.metrics, subset.test.labels
    confidences = [float(row.max()) for row in trained.probabilities]
    answers = [int(row.argmax()) for row in trained.probabilities]
    right = [answer == label for answer, label in zip(answers, labels)]
    error = 0.0
    for low in range(15):
        inside = [n for n in range(480) if low / 15 <= confidences[n] < (low + 1) / 15]
        if low == 14:
            inside = [n for n in range(480) if 14 / 15 <= confidences[n]]
        gap = sum(confidences[n] for n in inside) - sum(right[n] for n in inside)
        error += abs(gap) / 480
    assert metrics["expected_calibration_error"] == pytest.approx(error, abs=1e-5)

    sure = [confidence for confidence, is_right in zip(confidences, right) if is_right]
    mean = sum(sure) / len(sure)
    assert metrics["mean_confidence_correct"] == pytest.approx(mean, abs=1e-5)
    unsure = [c for c, is_right in zip(confidences, right) if not is_right]
    mean = sum(unsure) / len(unsure)
    assert metrics["mean_confidence_wrong"] == pytest.approx(mean, abs=1e-5)


def test_figures_of_each_class_are_those_of_the_saved_model(trained, subset):
    labels = subset.test.labels.tolist()
    answers = [int(row.argmax()) for row in trained.probabilities]
    for digit in range(10):
        pairs = list(zip(answers, labels))
        hits = pairs.count((digit, digit))
        predicted, support = answers.count(digit), labels.count(digit)
        figures = trained.metrics["per_class"][str(digit)]
        assert figures["support"] == support
        assert figures["precision"] == pytest.approx(hits / predicted)
        assert figures["recall"] == pytest.approx(hits / support)
        harmonic = 2 / (predicted / hits + support / hits)
        assert figures["f1"] == pytest.approx(harmonic)


def test_validation_accuracy_is_that_of_the_saved_model(trained, subset):
    settings = trained.metrics["settings"]
    share, seed = settings["validation"], settings["seed"]
    _, validation = mnist.split(subset.train, share, seed)
    answers = mnist.predict(trained.model, validation.images).argmax(axis=1)
    accuracy = (answers == validation.labels).mean()
    assert trained.metrics["validation_accuracy"] == pytest.approx(accuracy)


def test_digest_and_count_are_those_of_the_saved_model(trained):
    digest = hashlib.sha256()
    for array in trained.model.get_weights():
        digest.update(array.tobytes())
    assert trained.metrics["weights_sha256"] == digest.hexdigest()
    assert trained.metrics["parameters"] == trained.model.count_params() == 99_162
    assert trained.metrics["maps"] == [13, 13, 3, 3]


def test_metrics_tell_what_was_run(trained, subset):
    metrics = trained.metrics
    assert metrics["data"] == {
        "source": subset.source,
        "name": "mnist_subset.npz (not MNIST)",
        "canonical_mnist": False,
        "sha256": [
            hashlib.sha256(array.tobytes()).hexdigest()
            for array in (*subset.train, *subset.test)
        ],
        "training": 2640,
        "validation": 240,
        "test": 480,
    }
    given = {"epochs": 5, "batch_size": 32, "minimum_accuracy": 0.95}
    assert metrics["settings"] == dataclasses.asdict(mnist.Settings()) | given
    assert metrics["versions"]["keras"] == keras.__version__
    assert metrics["versions"]["numpy"] == np.__version__
    assert {"python", "tensorflow", "matplotlib", "seaborn"} < set(metrics["versions"])
    assert metrics["device"]


def test_times_add_up(trained):
    seconds = dict(trained.metrics["seconds"])
    total = seconds.pop("total")
    assert list(seconds) == ["start", "data", "training", "evaluation", "figures"]
    assert total == pytest.approx(sum(seconds.values()), abs=0.05)
    rate = 5 * 2640 / seconds["training"]
    assert trained.metrics["images_per_second"] == pytest.approx(rate, rel=0.01)


def test_summary_tells_the_result(trained):
    right = 480 - trained.metrics["test_errors"]
    assert f"mnist_subset.npz (not MNIST): {right} of 480 right" in trained.stdout
    assert f"{trained.metrics['test_accuracy']:.2%}" in trained.stdout
    assert f"{trained.metrics['test_loss']:.4f}" in trained.stdout
    assert all(name in trained.stdout for name in [*FILES, str(trained.folder)])


# ---- As a user runs it ----------------------------------------------------------


def test_screen_shows_the_summary_and_a_line_an_epoch(trained):
    names = ("accuracy", "loss", "val_accuracy", "val_loss")
    figures = ", ".join(rf"{name} \d\.\d{{4}}" for name in names)
    epochs = [rf"epoch {n} of 5: {figures}, \d+\.\d+ s\n" for n in range(1, 6)]
    assert re.fullmatch(r"Data: .*\n" + "".join(epochs), trained.stderr)
    assert trained.stdout.startswith("Test set of mnist_subset.npz (not MNIST): ")
    assert 1 < trained.stdout.count("\n") <= 5


def test_part_of_the_data_is_marked_as_such(subset):
    part = mnist.load_dataset(Path(subset.source), limit=300)
    assert part.name == "a part of mnist_subset.npz (not MNIST)"
    assert not part.canonical
    assert (len(part.train.labels), len(part.test.labels)) == (300, 50)


# ---- Arguments and exit codes ---------------------------------------------------


def test_help_gives_every_setting_its_default_and_reason(capsys):
    with pytest.raises(SystemExit) as end:
        mnist.main(["--help"])
    assert end.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    for field in dataclasses.fields(mnist.Settings):
        option = "--" + field.name.replace("_", "-")
        entry = text[text.rindex(f" {option} ") :].partition(" --")[2]
        entry = entry.partition(" --")[0]
        assert field.metadata["reason"] in entry, option
        default = re.search(r"\(default ([\w.]+)\)", entry)[1]
        if field.default is None:
            assert default == "all"
        else:
            assert float(default) == pytest.approx(field.default, rel=0.01)
    assert "--data PATH" in text and "--outputs DIR" in text


@pytest.mark.parametrize(
    "arguments",
    [
        ["--epochs", "many"],
        ["--epochs", "1.5"],
        ["--unknown"],
        ["--data"],
        ["extra"],
        ["--model", "network.keras"],  # Of no use without --predict.
        ["--predict", "digit.png", "--batch-size", "64"],  # Of no use with it.
        ["--predict", "digit.png", "--data", "mnist.npz"],
        ["--predict", "digit.png", "--fresh"],
        ["--outputs", ""],
        ["--predict", "digit.png", ""],
    ],
)
def test_wrong_usage_is_exit_2(arguments, capsys):
    with pytest.raises(SystemExit) as end:
        mnist.main(arguments)
    assert end.value.code == 2
    assert "error: " in capsys.readouterr().err


def test_outputs_that_name_a_file_are_refused(subset, tmp_path, capsys):
    (tmp_path / "taken").write_text("mine")
    options = ["--data", subset.source, "--outputs", str(tmp_path / "taken")]
    assert mnist.main(options) == 2
    assert str(tmp_path / "taken") in capsys.readouterr().err
    assert (tmp_path / "taken").read_text() == "mine"


# ---- Files that are whole -------------------------------------------------------


def test_failure_leaves_the_earlier_files(earlier):
    with pytest.raises(OSError), mnist.workplace(earlier.folder) as folder:
        (folder / "results" / "model.keras").write_text("half of the n")
        raise OSError("disk full")
    assert earlier.now() == earlier.files


def test_success_replaces_the_earlier_files_and_leaves_others(earlier):
    (earlier.folder / "notes.txt").write_text("mine")
    with mnist.workplace(earlier.folder) as folder:
        (folder / "results" / "model.keras").write_text("the new model")
        (folder / "results" / "metrics.json").write_text("[]")
        assert (earlier.folder / "model.keras").read_text() == "the earlier model"
    assert earlier.now() == {
        "model.keras": "the new model",
        "metrics.json": "[]",
        "notes.txt": "mine",
    }


def test_metrics_come_last_so_that_they_vouch_for_the_rest(earlier):
    """One file can't be replaced: then no metrics.json, old or new, may stay."""
    (earlier.folder / "zoo.png" / "in the way").mkdir(parents=True)
    with pytest.raises(OSError), mnist.workplace(earlier.folder) as folder:
        for name in ("model.keras", "metrics.json", "zoo.png"):
            (folder / "results" / name).write_text("new")
    assert not (earlier.folder / "metrics.json").exists()
