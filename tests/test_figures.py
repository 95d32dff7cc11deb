"""Figures: what is on each picture."""

import io

import numpy as np
import pytest
from conftest import PICTURES
from matplotlib import pyplot
from PIL import Image

import MNIST_HandwritingRecognition as mnist

HISTORY = [{"epoch": 1, "loss": 1, "accuracy": 1, "val_loss": 1, "val_accuracy": 1}]


def draw(name, subset, trained, answers):
    """One of a run's pictures, had the network given these answers."""
    examples = subset.name, subset.train, subset.test
    return mnist.draw_all(examples, trained.model, HISTORY, answers)[name]


def titles(figure):
    """The titles of the axes that have one."""
    return [axes.get_title() for axes in figure.axes if axes.get_title()]


def test_images_are_drawn_under_their_labels(subset):
    """Ten a row, in their order."""
    figure = mnist.draw_digits(subset.train[:13])
    assert titles(figure) == [*map(str, subset.train.labels[:13])]
    assert len(figure.axes) == 20
    for axes, image in zip(figure.axes, subset.train.images[:13]):
        assert np.array_equal(axes.images[0].get_array(), image)


def test_predictions_show_the_least_confident_last(subset, trained, probabilities):
    """Thirty at random, then ten."""
    _, figure = draw("predictions_on_test_set", subset, trained, probabilities)
    percents = [float(title.split("\n")[1][:-1]) for title in titles(figure)]
    assert len(percents) == 40
    assert percents[30:] == sorted(percents[30:])
    assert max(percents[30:]) <= min(percents[:30])


def test_misclassified_shows_the_errors_the_most_confident_first(subset, trained):
    """With the predicted and the true digit, and the confidence."""
    answers, images = np.eye(10)[subset.test.labels], {8: 0.9, 11: 0.7, 3: 0.6}
    for image, confidence in images.items():
        answers[image] = (1 - confidence) / 9
        answers[image, (subset.test.labels[image] + 1) % 10] = confidence
    heading, figure = draw("misclassified_digits", subset, trained, answers)
    assert "3 of 480" in heading
    true = {image: int(subset.test.labels[image]) for image in images}
    expected = [
        f"{(true[i] + 1) % 10} (true: {true[i]})\n{images[i]:.1%}" for i in images
    ]
    assert titles(figure) == expected
    (picture,) = figure.axes[0].images
    assert np.array_equal(picture.get_array(), subset.test.images[8])
    # Right and wrong are told apart without colour.
    part = subset.test[7:9], answers[7:9]
    right, wrong = mnist.draw_digits(*part).axes[:2]
    assert (right.title.get_fontweight(), right.get_frame_on()) == ("normal", False)
    assert (wrong.title.get_fontweight(), wrong.get_frame_on()) == ("bold", True)


@pytest.mark.parametrize(("wrong", "shown"), [(0, 0), (480, 50)])
def test_errors_are_counted_and_not_too_many_drawn(wrong, shown, subset, trained):
    """Without an error the picture can be saved, too."""
    answers = np.eye(10)[(subset.test.labels + wrong // 480) % 10]
    heading, figure = draw("misclassified_digits", subset, trained, answers)
    assert len(titles(figure)) == shown
    assert heading.startswith(f"{wrong} of 480")
    figure.savefig(file := io.BytesIO())
    assert Image.open(file).width >= 600


def test_feature_maps_follow_an_image_to_its_answer(subset, trained, probabilities):
    """All four blocks; the heading says the answer and its confidence."""
    image = subset.test.images[:1]
    heading, figure = draw("feature_maps", subset, trained, probabilities)
    assert np.array_equal(figure.axes[0].images[0].get_array(), image[0])
    blocks = [(16, 13), (32, 13), (64, 3), (128, 3)]
    for title, (count, size) in zip(titles(figure), blocks, strict=True):
        assert f"of {count} feature maps" in title and f"{size}x{size}" in title
    digit, confidence = probabilities[0].argmax(), probabilities[0].max()
    assert f"predicted: {digit}, {confidence:.1%}" in heading


@pytest.mark.parametrize("epochs", [1, 5])
def test_history_has_a_line_each_for_training_and_validation(epochs):
    """Loss, and error rate on a scale that tells late epochs apart."""
    row = {"loss": 0.5, "accuracy": 0.8, "val_loss": 0.4, "val_accuracy": 1}
    rows = [{"epoch": n + 1} | row for n in range(epochs)]
    figure = mnist.draw_history(rows)
    figure.draw_without_rendering()
    loss, errors = figure.axes
    assert "loss" in loss.get_ylabel() and "%" in errors.get_ylabel()
    assert errors.get_yscale() == "log"
    # No error at all can't be drawn on that scale: 0.01 % stands for it.
    for axes, expected in ((loss, (0.5, 0.4)), (errors, (20, 0.01))):
        for line, value in zip(axes.lines, expected, strict=True):
            assert list(line.get_xdata()) == list(range(1, epochs + 1))
            assert list(line.get_ydata()) == pytest.approx([value] * epochs)
        names = [text.get_text() for text in axes.get_legend().get_texts()]
        assert "training" in names[0] and "validation" in names[1]


def test_confusion_matrix_has_true_rows_and_colour_for_errors_alone(subset):
    """Of the sevens two are read as ones, all else is right."""
    labels, answers = subset.test.labels, np.eye(10)[subset.test.labels]
    answers[np.flatnonzero(labels == 7)[:2]] = np.eye(10)[1]
    axes = mnist.draw_confusions(labels, answers.argmax(axis=1)).axes[0]
    assert "true" in axes.get_ylabel() and "predicted" in axes.get_xlabel()
    cells = {text.get_position()[::-1]: text.get_text() for text in axes.texts}
    assert (cells[7.5, 1.5], cells[1.5, 7.5]) == ("2", "")
    for digit, count in enumerate(np.bincount(labels) - 2 * np.eye(10, dtype=int)[7]):
        assert cells[digit + 0.5, digit + 0.5] == str(count)
    colours = axes.collections[0].get_array().reshape(10, 10)
    assert (colours[7, 1], colours.sum()) == (2, 2)
    assert [x.get_text() for x in axes.get_yticklabels()] == list("0123456789")
    assert axes.yaxis_inverted()


@pytest.mark.parametrize("name", PICTURES)
def test_picture_is_whole_and_sharp(name, trained):
    """Not blank, and nothing is left to pyplot."""
    with Image.open(trained.folder / name) as picture:
        assert picture.width >= 900 and picture.height >= 250
        assert picture.info["dpi"] == pytest.approx((150, 150), abs=0.1)
        assert len(np.unique(np.asarray(picture.convert("L")))) > 10
    assert pyplot.get_fignums() == []


@pytest.mark.parametrize("name", PICTURES)
def test_a_users_matplotlibrc_changes_no_picture(name, trained, resumed):
    """The other run had one that turns images over and wants TeX."""
    expected = (trained.folder / name).read_bytes()
    assert (resumed.outputs / name).read_bytes() == expected
