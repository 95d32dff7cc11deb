"""Evaluation: every figure, against values worked out by hand or published."""

import json
import math

import numpy as np
import pytest
from makers import fields

import MNIST_HandwritingRecognition as mnist


def answer(digits, confidences):
    """Probabilities: each digit with its confidence, the rest shared by the others."""
    rest = [(1 - confidence) / 9 for confidence in confidences]
    probabilities = np.repeat(np.array(rest)[:, None], 10, axis=1)
    probabilities[range(len(digits)), digits] = confidences
    return probabilities


def test_per_class_on_a_lopsided_example_with_absent_digits():
    """Of three threes two are read as fives; there is one five."""
    probabilities = answer([5, 5, 3, 5], [0.9] * 4)
    figures = mnist.evaluate(probabilities, np.array([3, 3, 3, 5]))["per_class"]
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
    """The mean distance of confidence from accuracy."""
    probabilities = answer([4] * len(right), confidences)
    figures = mnist.evaluate(probabilities, np.where(right, 4, 7))
    assert figures["expected_calibration_error"] == pytest.approx(expected)


@pytest.mark.parametrize(
    ("successes", "trials", "low", "high"),
    [
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0, 0.1611),
        (20, 20, 0.8389, 1),
    ],
)
def test_wilson_interval_as_published(successes, trials, low, high):
    """Newcombe 1998, Statistics in Medicine 17:857, table I, method 3."""
    labels = np.where(np.arange(trials) < successes, 4, 7)
    figures = mnist.evaluate(answer([4] * trials, [0.9] * trials), labels)
    interval = figures["test_accuracy_interval_95"]
    assert interval == pytest.approx((low, high), abs=5e-5)
    assert interval[1] <= 1  # Unrounded, it would be more for 20 of 20.


def test_evaluate():
    """Three of four are right. A loss is never infinite, the mean of nothing null."""
    probabilities = answer([1, 2, 3, 4], [0.9, 0.8, 0.7, 1.0])
    figures = mnist.evaluate(probabilities, np.array([1, 2, 3, 5]))
    names = ("test_accuracy", "test_errors", "test_images")
    assert [figures[name] for name in names] == [0.75, 1, 4]
    loss = -sum(map(math.log, (0.9, 0.8, 0.7, 1e-7))) / 4
    assert figures["test_loss"] == pytest.approx(loss)
    assert figures["mean_confidence_correct"] == pytest.approx(0.8)
    assert figures["mean_confidence_wrong"] == pytest.approx(1)
    for label, kind in ((1, "wrong"), (2, "correct")):
        figures = mnist.evaluate(answer([1, 1], [0.9, 0.8]), np.array([label] * 2))
        assert figures[f"mean_confidence_{kind}"] is None
        json.dumps(figures, allow_nan=False)


def test_answer_is_the_geometric_mean_over_nine_views(trained, subset, probabilities):
    """One view alone would be something else."""
    images = subset.test.images
    assert np.allclose(mnist.predict(trained.model, images), probabilities, atol=1e-5)
    alone = trained.model.predict(images[..., None] / 255, verbose=0)
    single = mnist.predict(trained.model, images, shifts=[0])
    assert np.allclose(single, alone, atol=1e-5)
    assert not np.allclose(single, probabilities, atol=1e-2)


@pytest.mark.parametrize("factor", [3, 0.4])
def test_calibrate_lowers_the_loss_and_keeps_every_answer(factor, trained, subset):
    """Of a network too sure, or not sure enough; without errors it is left alone."""
    weights = trained.model.get_weights()
    weights[-2:] = [array * factor for array in weights[-2:]]
    model, examples = mnist.build_model(), subset.test
    model.set_weights(weights)
    before = mnist.predict(model, examples.images)
    mnist.calibrate(model, examples[before.argmax(axis=1) == examples.labels])
    assert all(map(np.array_equal, weights, model.get_weights()))
    mnist.calibrate(model, examples)
    after = mnist.predict(model, examples.images)
    assert np.array_equal(before.argmax(axis=1), after.argmax(axis=1))
    losses = [np.mean(mnist.cross_entropy(examples.labels, x)) for x in (before, after)]
    assert losses[1] < 0.9 * losses[0]


def test_saved_network_has_the_best_temperature(trained):
    """On the validation images, where no other has a lower loss."""
    images, labels = fields(trained.validation)
    answers = mnist.predict(trained.model, images)
    assert (answers.argmax(axis=1) != labels).any()
    losses = []
    for temperature in (1, 0.9, 1.1):
        scaled = answers ** (1 / temperature)
        scaled /= scaled.sum(axis=1, keepdims=True)
        losses.append(np.mean(mnist.cross_entropy(labels, scaled)))
    assert losses[0] == min(losses)
    accuracy = (answers.argmax(axis=1) == labels).mean()
    assert trained.metrics["validation_accuracy"] == pytest.approx(accuracy)


def test_figures_are_those_of_the_saved_network(trained, subset, probabilities):
    """Of its nine views, but for `single_view`: that is what Keras evaluates."""
    for name, value in mnist.evaluate(probabilities, subset.test.labels).items():
        if name == "per_class":
            assert trained.metrics[name] == value
        else:
            assert trained.metrics[name] == pytest.approx(value, rel=1e-3, abs=1e-5)
    single, labels = trained.metrics["single_view"], subset.test.labels
    loss, accuracy = trained.model.evaluate(subset.test.images / 255, labels, verbose=0)
    assert single["test_loss"] == pytest.approx(loss, rel=1e-4)
    assert single["test_accuracy"] == pytest.approx(accuracy)
    assert single["test_errors"] == round(480 * (1 - accuracy))
