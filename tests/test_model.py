"""Model: the network that the project promises, layer by layer."""

import keras
import numpy as np
import pytest

import MNIST_HandwritingRecognition as mnist


@pytest.fixture(scope="module", params=[mnist.LONG_RUN - 1, mnist.LONG_RUN])
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


def test_maps_shrink_so_that_the_last_block_sees_the_whole_digit(model):
    relus = [layer for layer in model.layers if isinstance(layer, keras.layers.ReLU)]
    sizes = [layer.output.shape[1] for layer in relus]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[-1] <= 4


def test_long_runs_have_finer_maps():
    short, long = (mnist.build_model(mnist.LONG_RUN + more) for more in (-1, 0))
    for coarse, fine in zip(short.layers, long.layers[:4]):
        assert coarse.output.shape[1] < fine.output.shape[1]


def test_answers_are_probabilities(model, subset):
    probabilities = mnist.predict(model, subset.test.images[:7])
    assert probabilities.shape == (7, 10)
    assert probabilities.min() >= 0
    assert np.allclose(probabilities.sum(axis=1), 1)


@pytest.mark.parametrize("epochs", [mnist.LONG_RUN - 1, mnist.LONG_RUN])
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
