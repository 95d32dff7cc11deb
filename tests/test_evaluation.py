"""Evaluation: every figure, against values worked out by hand or published."""

import json
import math

import keras
import numpy as np
import pytest

import MNIST_HandwritingRecognition as mnist


def answer(digits, confidences):
    """Probabilities: each digit with its confidence, the rest shared by the others."""
    rest = [(1 - confidence) / 9 for confidence in confidences]
    probabilities = np.repeat(np.array(rest)[:, None], 10, axis=1)
    probabilities[range(len(digits)), digits] = confidences
    return probabilities


def test_confusions_have_rows_of_true_and_columns_of_predicted_digits():
    labels, predictions = np.array([3, 3, 3, 5]), np.array([5, 5, 3, 5])
    expected = np.zeros((10, 10), int)
    expected[3, 5], expected[3, 3], expected[5, 5] = 2, 1, 1
    assert np.array_equal(mnist.count_confusions(labels, predictions), expected)


def test_per_class_on_a_lopsided_example_with_absent_digits():
    confusions = np.zeros((10, 10), int)
    confusions[3, 5], confusions[3, 3], confusions[5, 5] = 2, 1, 1
    figures = mnist.per_class(confusions)
    assert list(figures) == list("0123456789")
    three = {"precision": 1, "recall": 1 / 3, "f1": 1 / 2, "support": 3}
    assert figures["3"] == pytest.approx(three)
    five = {"precision": 1 / 3, "recall": 1, "f1": 1 / 2, "support": 1}
    assert figures["5"] == pytest.approx(five)
    assert figures["0"] == {"precision": 0, "recall": 0, "f1": 0, "support": 0}


@pytest.mark.parametrize(
    ("confidences", "right", "expected"),
    [
        # One bin, half right: its confidence is 0.4 too high.
        ([0.9, 0.9], [True, False], 0.4),
        # The bins' gaps, +0.4 and -0.35, don't cancel.
        ([0.9, 0.9, 0.65, 0.65], [True, False, True, True], 0.375),
        # A bin counts by its images: (3 * 0.1 + 1 * 0.65) / 4.
        ([0.9, 0.9, 0.9, 0.65], [True, True, True, False], 0.2375),
        ([1, 1], [True, True], 0),
    ],
)
def test_calibration_error_by_hand(confidences, right, expected):
    labels = np.where(right, 4, 7)
    probabilities = answer([4] * len(right), confidences)
    assert mnist.calibration_error(probabilities, labels) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("successes", "trials", "low", "high"),
    [
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_interval_as_published(successes, trials, low, high):
    """Newcombe 1998, Statistics in Medicine 17:857, table I, method 3."""
    interval = mnist.wilson_interval(successes, trials)
    assert interval == pytest.approx((low, high), abs=5e-5)


def test_wilson_interval_of_none_wrong_ends_at_1():
    assert mnist.wilson_interval(20, 20)[1] == 1  # It rounds to more.


def test_cross_entropy():
    probabilities = answer([1, 2], [0.5, 0.8])
    loss = mnist.cross_entropy(probabilities, np.array([1, 2]))
    assert loss == pytest.approx(-(math.log(0.5) + math.log(0.8)) / 2)


def test_cross_entropy_of_an_impossible_answer_is_finite():
    loss = mnist.cross_entropy(answer([1], [1.0]), np.array([2]))
    assert loss == pytest.approx(-math.log(1e-7))


def test_evaluate():
    probabilities = answer([1, 2, 3, 4], [0.9, 0.8, 0.7, 0.6])
    figures = mnist.evaluate(probabilities, np.array([1, 2, 3, 5]))
    assert figures["test_accuracy"] == 0.75
    assert figures["test_errors"] == 1
    assert figures["test_images"] == 4
    assert figures["mean_confidence_correct"] == pytest.approx(0.8)
    assert figures["mean_confidence_wrong"] == pytest.approx(0.6)
    assert figures["per_class"]["5"]["recall"] == 0


def test_evaluate_without_errors_is_valid_json():
    figures = mnist.evaluate(answer([1, 2], [0.9, 0.8]), np.array([1, 2]))
    assert figures["mean_confidence_wrong"] is None
    json.dumps(figures, allow_nan=False)


@pytest.mark.parametrize("factor", [3, 0.4])
def test_calibrate_lowers_the_loss_and_keeps_every_answer(factor, trained, subset):
    """The trained network, made too sure or not sure enough, is set right again."""
    weights = trained.model.get_weights()
    weights[-2:] = [array * factor for array in weights[-2:]]
    model = mnist.build_model(trained.metrics["settings"]["epochs"])
    model.set_weights(weights)
    examples = subset.train.take(slice(600))
    before = mnist.predict(model, examples.images)
    mnist.calibrate(model, before, examples.labels)
    after = mnist.predict(model, examples.images)
    assert np.array_equal(before.argmax(axis=1), after.argmax(axis=1))
    loss = mnist.cross_entropy(after, examples.labels)
    assert loss < 0.9 * mnist.cross_entropy(before, examples.labels)


def test_calibrate_does_nothing_where_all_are_right(trained, subset):
    before = trained.model.get_weights()
    right = trained.probabilities.argmax(axis=1) == subset.test.labels
    labels = subset.test.labels[right]
    mnist.calibrate(trained.model, trained.probabilities[right], labels)
    for old, new in zip(before, trained.model.get_weights()):
        assert np.array_equal(old, new)


def test_digest_tells_weights_apart():
    keras.utils.set_random_seed(1)
    model = mnist.build_model(epochs=1)
    digest = mnist.digest_weights(model)
    assert digest == mnist.digest_weights(model)
    model.layers[0].set_weights([w + 1e-3 for w in model.layers[0].get_weights()])
    assert digest != mnist.digest_weights(model)
