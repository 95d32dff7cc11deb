"""Figures: what is on each picture."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from matplotlib import pyplot
from PIL import Image

import MNIST_HandwritingRecognition as mnist

ROW = {"loss": 0.5, "accuracy": 0.8, "val_loss": 0.4, "val_accuracy": 0.9}


def titles(figure):
    """The titles of the axes that have one."""
    return [axes.get_title() for axes in figure.axes if axes.get_title()]


def test_training_data_shows_four_of_each_digit(subset):
    figure = mnist.draw_training_data(subset)
    assert titles(figure) == list("0123456789") * 4
    assert "mnist_subset.npz" in figure.get_suptitle()
    first_seven = np.flatnonzero(subset.train.labels == 7)[0]
    (picture,) = figure.axes[7].images
    assert np.array_equal(picture.get_array(), subset.train.images[first_seven])


def test_training_data_of_few_digits(subset):
    few = subset._replace(train=subset.train.take(slice(3)))
    assert titles(mnist.draw_training_data(few)) == ["0", "4", "5"]


def test_predictions_show_answers_and_the_least_sure_last(subset, trained):
    figure = mnist.draw_predictions(subset, trained.probabilities)
    assert len(titles(figure)) == 40
    percents = [float(title.split("\n")[1][:-1]) for title in titles(figure)]
    assert percents[30:] == sorted(percents[30:])
    assert max(percents[30:]) <= min(percents[:30])


def test_misclassified_shows_the_errors_the_most_confident_first(subset):
    probabilities = np.eye(10)[subset.test.labels]
    for image, confidence in [(3, 0.6), (8, 0.9), (11, 0.7)]:
        probabilities[image] = (1 - confidence) / 9
        probabilities[image, (subset.test.labels[image] + 1) % 10] = confidence
    figure = mnist.draw_misclassified(subset, probabilities)
    assert "3 of 480" in figure.get_suptitle()
    true = [int(subset.test.labels[image]) for image in (8, 11, 3)]
    percents = ["90.0%", "70.0%", "60.0%"]
    assert titles(figure) == [
        f"{(digit + 1) % 10}, not {digit}\n{percent}"
        for digit, percent in zip(true, percents)
    ]
    (picture,) = figure.axes[0].images
    assert np.array_equal(picture.get_array(), subset.test.images[8])


def test_right_and_wrong_differ_by_more_than_colour(subset):
    probabilities = np.eye(10)[subset.test.labels[:2]]
    probabilities[1] = np.roll(probabilities[1], 1)
    figure = mnist.draw_digits("two", subset.test.take(slice(2)), probabilities)
    right, wrong = figure.axes[:2]
    assert (right.title.get_fontweight(), right.get_frame_on()) == ("normal", False)
    assert (wrong.title.get_fontweight(), wrong.get_frame_on()) == ("bold", True)


def test_no_errors_draw_without_failing(subset):
    figure = mnist.draw_misclassified(subset, np.eye(10)[subset.test.labels])
    assert titles(figure) == []
    assert figure.get_suptitle().startswith("0 of 480")
    figure.savefig(file := io.BytesIO(), dpi=150)
    assert Image.open(file).width >= 900


def test_no_more_than_fifty_errors_are_drawn(subset):
    figure = mnist.draw_misclassified(subset, np.eye(10)[9 - subset.test.labels])
    assert len(titles(figure)) == 50


def test_feature_maps_follow_the_first_test_image(subset, trained):
    figure = mnist.draw_feature_maps(trained.model, subset, trained.probabilities)
    assert len(titles(figure)) == 6
    for count in (16, 32, 64, 128):
        assert any(f"{count} maps" in title for title in titles(figure)), count
    (picture,) = figure.axes[0].images
    assert np.array_equal(picture.get_array()[..., :], subset.test.images[0])
    (bars,) = (axes.patches for axes in figure.axes if axes.get_title()[:4] == "prob")
    widths = [bar.get_width() for bar in bars]
    assert widths == pytest.approx(trained.probabilities[0], abs=1e-5)


@pytest.mark.parametrize("epochs", [1, 5])
def test_history_has_a_line_each_for_training_and_validation(epochs, subset):
    rows = [{"epoch": n + 1} | ROW for n in range(epochs)]
    figure = mnist.draw_history(rows, subset)
    figure.draw_without_rendering()
    for axes, name in zip(figure.axes, ("loss", "accuracy"), strict=True):
        assert axes.get_ylabel() == name
        training, validation = axes.lines
        assert list(training.get_xdata()) == list(range(1, epochs + 1))
        assert list(training.get_ydata()) == [ROW[name]] * epochs
        assert list(validation.get_ydata()) == [ROW["val_" + name]] * epochs
        legend = [text.get_text() for text in axes.get_legend().get_texts()]
        assert "training" in legend[0] and "validation" in legend[1]


def test_confusion_matrix_has_true_rows_and_colour_for_errors_alone(subset):
    """Of the sevens two are read as ones, all else is right."""
    predictions = subset.test.labels.copy()
    predictions[np.flatnonzero(predictions == 7)[:2]] = 1
    figure = mnist.draw_confusions(subset, np.eye(10)[predictions])
    axes = figure.axes[0]
    assert "true" in axes.get_ylabel() and "predicted" in axes.get_xlabel()
    cells = {
        (int(text.get_position()[1]), int(text.get_position()[0])): text.get_text()
        for text in axes.texts
    }
    assert cells[7, 1] == "2"
    assert cells[1, 7] == ""
    for digit in range(10):
        right = (subset.test.labels == digit) & (predictions == digit)
        assert cells[digit, digit] == str(right.sum())
    colours = axes.collections[0].get_array().reshape(10, 10)
    assert (colours[7, 1], colours.sum()) == (2, 2)
    rows = [label.get_text() for label in axes.get_yticklabels()]
    assert rows == list("0123456789")
    assert axes.yaxis_inverted()


def test_no_figure_is_left_to_pyplot(trained):
    assert pyplot.get_fignums() == []


@pytest.fixture(scope="module")
def imported(tmp_path_factory):
    """What a process without SciPy sees before and after it imports the script."""
    code = """if True:
        import faulthandler, json, matplotlib, sys
        faulthandler.enable()
        sys.modules["scipy"] = None  # As if it weren't installed.
        before = matplotlib.rcParams.copy()
        import MNIST_HandwritingRecognition
        facts = {
            "backend": matplotlib.rcParams._get_backend_or_none(),
            "same settings": matplotlib.rcParams.copy() == before,
            "crashes are reported": faulthandler.is_enabled(),
        }
        print(json.dumps(facts))
    """
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path_factory.mktemp("elsewhere"),
        env={**os.environ, "PYTHONPATH": str(Path(mnist.__file__).parent)},
        capture_output=True,
        check=True,
        text=True,
    )
    assert done.stderr == ""
    return json.loads(done.stdout)


def test_import_neither_chooses_a_backend_nor_changes_settings(imported):
    assert imported["backend"] is None
    assert imported["same settings"]


def test_import_leaves_the_callers_crash_reports_on(imported):
    assert imported["crashes are reported"]
