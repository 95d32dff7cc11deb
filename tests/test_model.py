"""Model: the architecture."""

import keras
import numpy as np

import MNIST_HandwritingRecognition as mnist


def test_architecture(trained):
    """Of a new network and the saved one; only the third block pools, and first."""
    plain, pooled = ["Conv2D"], ["Conv2D", "MaxPooling2D"]
    rest = ["BatchNormalization", "ReLU"]
    names = [*plain, *rest, *plain, *rest, *pooled, *rest, *plain, *rest]
    names += ["GlobalAveragePooling2D", "Dense"]
    for model in (mnist.build_model(), trained.model):
        kinds = {name: [] for name in names}
        for layer, name in zip(model.layers, names, strict=True):
            assert type(layer).__name__ == name
            kinds[name].append(layer)
        shapes = [(13, 13, 16), (13, 13, 32), (3, 3, 64), (3, 3, 128)]
        assert [layer.output.shape[1:] for layer in kinds["ReLU"]] == shapes
        assert {layer.kernel_size for layer in kinds["Conv2D"]} == {(3, 3)}
        assert {layer.momentum for layer in kinds["BatchNormalization"]} == {0.9}
        assert (model.input_shape, model.output_shape) == (
            (None, 28, 28, 1),
            (None, 10),
        )
        assert model.count_params() == 99_162


def test_last_block_sees_the_whole_digit():
    """Some feature there depends on both of two corners, 24 pixels apart."""
    keras.utils.set_random_seed(0)
    model, images = mnist.build_model(), np.zeros((3, 28, 28, 1), np.float32)
    images[1, 2, 2] = images[2, 25, 25] = 1
    maps = keras.Model(model.inputs[0], model.layers[-5].output)(images).numpy()
    changed = np.abs(maps[1:] - maps[0]).max(axis=3) > 0
    assert (changed[0] & changed[1]).any()
