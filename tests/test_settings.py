"""Settings: the defaults, and the range of each."""

import dataclasses

import pytest

import MNIST_HandwritingRecognition as mnist


def test_every_setting_has_a_reason():
    for field in dataclasses.fields(mnist.Settings):
        assert len(field.metadata["reason"]) > 10, field.name


def test_settings_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        mnist.Settings().epochs = 3


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("epochs", 0),
        ("epochs", -1),
        ("batch_size", 0),
        ("learning_rate", -0.1),
        ("learning_rate", float("nan")),
        ("label_smoothing", -0.1),
        ("label_smoothing", 1.1),
        ("augmentation", -1),
        ("augmentation", float("inf")),
        ("validation", 0),
        ("validation", 0.9),
        ("seed", -1),
        ("seed", 2**31),
        ("limit", 0),
        ("limit", 11),
        ("minimum_accuracy", -0.1),
        ("minimum_accuracy", 1.1),
    ],
)
def test_value_out_of_range_is_refused_and_named(name, value, earlier, capsys):
    option = "--" + name.replace("_", "-")
    with pytest.raises(mnist.InputError, match=option):
        mnist.Settings(**{name: value})
    # The same on the command line, before any data are read.
    arguments = [f"{option}={value}", "--outputs", str(earlier.folder)]
    assert mnist.main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {option} ")
    assert error.count("\n") == 1
    assert earlier.now() == earlier.files


@pytest.mark.parametrize(
    ("name", "value"),
    [("epochs", 1), ("batch_size", 1), ("seed", 2**31 - 1), ("minimum_accuracy", 1)],
)
def test_end_of_a_range_is_allowed(name, value):
    assert getattr(mnist.Settings(**{name: value}), name) == value
