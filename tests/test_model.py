"""Model: the network that the project promises, layer by layer."""

import keras
import numpy as np
import pytest

import MNIST_HandwritingRecognition as mnist

EITHER = [mnist.QUICK_EPOCHS, mnist.QUICK_EPOCHS + 1]  # With coarse maps, with fine.


@pytest.fixture(scope="module", params=EITHER)
def model(request):
    return mnist.build_model(request.param)


def test_input_and_output(model):
    assert model.input_shape == (None, 28, 28, 1)
    assert model.output_shape == (None, 10)
    assert model.layers[-1].activation is keras.activations.softmax


def test_layers_in_order(model):
    pooling = keras.layers.MaxPooling2D
    names = [type(layer).__name__ for layer in model.layers if type(layer) != pooling]
    block = ["Conv2D", "BatchNormalization", "ReLU"]
    assert names == [*block * 4, "GlobalAveragePooling2D", "Dense"]


def test_convolutions(model):
    layers = [layer for layer in model.layers if isinstance(layer, keras.layers.Conv2D)]
    assert [layer.filters for layer in layers] == [16, 32, 64, 128]
    assert {layer.kernel_size for layer in layers} == {(3, 3)}
    assert {layer.activation for layer in layers} == {keras.activations.linear}


def test_parameters(model):
    assert model.count_params() == 99_162


@pytest.mark.parametrize(
    ("epochs", "sizes"),
    list(zip(EITHER, ([13, 6, 3, 3], [13, 13, 3, 3]))),
)
def test_maps_are_coarser_in_quick_runs(epochs, sizes):
    layers = mnist.build_model(epochs).layers
    relus = [layer for layer in layers if isinstance(layer, keras.layers.ReLU)]
    assert [layer.output.shape[1] for layer in relus] == sizes


@pytest.mark.parametrize("epochs", EITHER)
def test_last_block_sees_the_whole_digit(epochs):
    """Some feature there depends on both of two corners, 24 pixels apart."""
    network, images = mnist.build_model(epochs), np.zeros((3, 28, 28, 1), np.float32)
    images[1, 2, 2] = images[2, 25, 25] = 1
    last = [x for x in network.layers if isinstance(x, keras.layers.Conv2D)][-1]
    maps = keras.Model(network.inputs[0], last.output)(images).numpy()
    changed = np.abs(maps[1:] - maps[0]).max(axis=3) > 0
    assert (changed[0] & changed[1]).any()


def test_answers_are_probabilities(model, subset):
    probabilities = mnist.predict(model, subset.test.images[:7])
    assert probabilities.shape == (7, 10)
    assert probabilities.min() >= 0
    assert np.allclose(probabilities.sum(axis=1), 1)


@pytest.mark.parametrize("epochs", EITHER)
def test_kept_network_averages_what_it_sees_of_nine_shifts(epochs, trained, subset):
    """Averaged features give the answers' geometric mean: what follows is linear."""
    network, images = mnist.build_model(epochs), subset.test.images
    network.set_weights(trained.model.get_weights())
    kept = mnist.average_shifts(network)
    assert kept.count_params() == network.count_params()
    wide = np.pad(images, [(0, 0), (1, 1), (1, 1)])
    moved = [wide[:, y : y + 28, x : x + 28] for y in range(3) for x in range(3)]
    logits = np.mean([np.log(mnist.predict(network, m)) for m in moved], axis=0)
    expected = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    assert np.allclose(mnist.predict(kept, images), expected, atol=1e-5)
    assert not np.allclose(mnist.predict(network, images), expected, atol=1e-2)
