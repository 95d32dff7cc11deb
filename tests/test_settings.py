"""Settings: the defaults, and the range of each."""

import pytest

import MNIST_HandwritingRecognition as mnist

DEFAULTS = {"epochs": 10, "batch_size": 128, "learning_rate": 0.02, "seed": 0}
DEFAULTS |= {"label_smoothing": 0.05, "augmentation": 1.0, "validation": 1 / 12}
DEFAULTS |= {"limit": 1_000_000, "minimum_accuracy": 0.0}
WRONG = "epochs=0 batch-size=0 learning-rate=-0.1 learning-rate=nan seed=-1 limit=11"
WRONG += " label-smoothing=1.1 augmentation=-1 augmentation=inf validation=0"
WRONG += " validation=0.9 seed=2147483648 minimum-accuracy=1.1"


def test_defaults_are_the_measured_recipe_and_every_setting_has_a_reason():
    """The README's figures were measured with these."""
    options = vars(mnist.parse_arguments([]))
    assert {name: options[name] for name, *_ in mnist.SETTINGS} == DEFAULTS
    assert all(len(reason) > 10 for *_, reason in mnist.SETTINGS)


@pytest.mark.parametrize("wrong", WRONG.split())
def test_value_out_of_range_is_refused_and_named(wrong, earlier, capsys):
    """Before any data are read."""
    with pytest.raises(SystemExit) as end:
        mnist.main([f"--{wrong}", "--outputs", str(earlier.folder)])
    assert end.value.code == 2
    option, value = wrong.split("=")
    error = capsys.readouterr().err.splitlines()[-1]
    assert f"error: --{option} must be " in error and value in error
    assert earlier.now() == earlier.files


def test_ends_of_a_range_are_allowed():
    """Both of them."""
    for name, default, *ends, _ in mnist.SETTINGS:
        for end in ends:
            option = f"--{name.replace('_', '-')}={end}"
            value = getattr(mnist.parse_arguments([option]), name)
            assert value == end and type(value) is type(default)
