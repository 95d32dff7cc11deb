"""Training: the batches, the step, the learning rate, and a run that diverges."""

import keras
import numpy as np
import pytest

import MNIST_HandwritingRecognition as mnist


@pytest.fixture
def numbered():
    """300 examples: the first two pixels tell the number, and the number the label."""
    numbers = np.arange(300)
    images = np.zeros((300, 28, 28), np.uint8)
    images[:, 0, 0], images[:, 0, 1] = numbers // 256, numbers % 256
    return mnist.Examples(images, (numbers * 7 % 10).astype(np.uint8))


def draw_numbers(numbered, **settings):
    """The numbers in each batch, once its labels are seen to be theirs."""
    settings = mnist.Settings(batch_size=32, augmentation=0, **settings)
    batches = []
    for images, labels in mnist.training_batches(numbered, settings):
        pixels = np.rint(images.numpy()[..., 0] * 255).astype(int)
        numbers = pixels[:, 0, 0] * 256 + pixels[:, 0, 1]
        assert np.array_equal(pixels, numbered.images[numbers])
        assert np.array_equal(labels, np.eye(10)[numbered.labels[numbers]])
        batches.append(numbers.tolist())
    return batches


def test_each_epoch_takes_full_batches_in_an_order_of_its_own(numbered):
    batches = draw_numbers(numbered, epochs=3)
    assert [len(batch) for batch in batches] == [32] * 3 * (300 // 32)
    epochs = np.reshape(batches, (3, -1)).tolist()
    for epoch in epochs:
        assert len(set(epoch)) == len(epoch)  # None comes twice.
        assert epoch != sorted(epoch)
    assert epochs[0] != epochs[1] != epochs[2] != epochs[0]
    assert set(epochs[0]) != set(epochs[1])  # None is left out for good.


def test_seed_decides_the_batches(numbered):
    first = draw_numbers(numbered, epochs=2, seed=5)
    assert draw_numbers(numbered, epochs=2, seed=5) == first
    assert draw_numbers(numbered, epochs=2, seed=6) != first


def test_distorted_batches_keep_their_labels_and_are_never_the_same():
    """A square whose shade, by that of the dot in it, tells the label.

    Both survive any distortion: the ink gets no stronger than can be shown.
    """
    labels = np.repeat(np.arange(10, dtype=np.uint8), 16)
    images = np.zeros((160, 28, 28), np.uint8)
    images[:, 7:21, 7:21] = 10 * (labels[:, None, None] + 1)
    images[:, 12:16, 12:16] = 120
    settings = mnist.Settings(batch_size=160, epochs=2)
    batches = list(mnist.training_batches(mnist.Examples(images, labels), settings))
    for distorted, one_hot in batches:
        shades = [np.median(x[x > 0]) / x.max() * 12 - 1 for x in distorted.numpy()]
        assert np.array_equal(np.rint(shades), one_hot.numpy().argmax(axis=1))
    both = np.concatenate([distorted for distorted, _ in batches]).reshape(320, -1)
    assert len(np.unique(both, axis=0)) == 320


def test_batches_of_a_resumed_run_are_those_it_would_have_had(subset):
    settings = mnist.Settings(batch_size=40, epochs=3)
    examples = subset.train.take(slice(100))
    whole = list(mnist.training_batches(examples, settings))
    rest = list(mnist.training_batches(examples, settings, first_epoch=1))
    assert (len(whole), len(rest)) == (6, 4)
    for expected, batch in zip(whole[2:], rest):
        assert all(map(np.array_equal, batch, expected))


def test_batches_are_not_tuned(subset):
    """The end of training would wait for the tuning's thread, in long runs a minute."""
    batches = mnist.training_batches(subset.train, mnist.Settings())
    assert batches.options().autotune.enabled is False


def test_only_training_normalizes_with_the_fused_kernel():
    trained = mnist.start_model(mnist.Settings(), steps=10)
    blocks = mnist.average_shifts(trained).get_layer("looks").get_layer("blocks")
    for model, count in ((trained, 4), (blocks, 0)):
        kinds = [isinstance(x, mnist.FusedNormalization) for x in model.layers]
        assert sum(kinds) == count


@pytest.mark.parametrize("epochs", [mnist.QUICK_EPOCHS, mnist.QUICK_EPOCHS + 1])
def test_network_that_is_trained_has_the_maps_for_its_epochs(epochs):
    trained = mnist.start_model(mnist.Settings(epochs=epochs), steps=10).layers
    expected = mnist.build_model(epochs).layers
    assert [x.output.shape for x in trained] == [x.output.shape for x in expected]


@pytest.mark.parametrize("training", [True, False])
def test_fused_normalization_does_what_that_of_keras_does(training):
    chance = np.random.default_rng(0)
    values = chance.normal(3, 2, (64, 5, 5, 4)).astype(np.float32)
    weights = chance.uniform(0.5, 1.5, (4, 4)).astype(np.float32)
    results = []
    for kind in (mnist.FusedNormalization, keras.layers.BatchNormalization):
        layer, inputs = kind(momentum=0.7), mnist.tf.Variable(values)
        layer.build(values.shape)
        layer.set_weights(weights)
        with mnist.tf.GradientTape() as tape:
            outputs = layer(inputs, training=training)
            loss = mnist.tf.reduce_mean(outputs**3)
        gradients = tape.gradient(loss, [inputs, layer.gamma, layer.beta])
        results.append([outputs, *gradients, *layer.get_weights()])
    for fused, expected in zip(*results):
        assert np.allclose(fused, expected, rtol=1e-3, atol=1e-5)


def test_a_step_is_traced_once(subset, tmp_path, monkeypatch):
    """Each tracing delays the first step by a second."""

    def train_step(model, batch):
        traced.append(batch)
        return original(model, batch)

    traced, original = [], mnist.keras.Sequential.train_step
    monkeypatch.setattr(mnist.keras.Sequential, "train_step", train_step)
    settings = mnist.Settings(batch_size=40, epochs=2)
    parts = subset.train.take(slice(100)), subset.test.take(slice(20))
    mnist.train(settings, *parts, tmp_path / "state.npz", {})
    assert len(traced) == 1


@pytest.mark.parametrize("steps", [7, 26])
def test_an_epoch_ends_after_its_steps(steps, subset, tmp_path, monkeypatch):
    """Keras goes on into the next epoch where groups of steps don't fill one."""

    def save_state(path, model, *_):
        ends.append(int(model.optimizer.iterations))

    ends = []
    monkeypatch.setattr(mnist, "save_state", save_state)
    parts = subset.train.take(slice(10 * steps)), subset.test.take(slice(20))
    settings = mnist.Settings(batch_size=10, epochs=2)
    mnist.train(settings, *parts, tmp_path / "state.npz", {})
    assert ends == [steps, 2 * steps]


def test_learning_rate_rises_to_its_peak_and_ends_near_zero():
    model = mnist.start_model(mnist.Settings(epochs=4, learning_rate=0.03), steps=25)
    rates = []
    for step in range(101):
        model.optimizer.iterations.assign(step)
        rates.append(float(model.optimizer.learning_rate))
    assert max(rates) == pytest.approx(0.03, rel=0.01)
    assert rates[0] < 0.01
    assert rates[-1] < 0.0003


@pytest.mark.parametrize(
    "options",
    [
        ["--batch-size=32", "--learning-rate=1e30"],
        ["--batch-size=275", "--learning-rate=1e38"],  # A single step: loss is finite.
    ],
)
def test_divergence_is_a_failure_with_advice(options, subset, earlier, capsys):
    options += ["--epochs=1", "--limit=300", "--outputs", str(earlier.folder)]
    assert mnist.main(["--data", subset.source, *options]) == 1
    *_, error = capsys.readouterr().err.splitlines()
    assert error.startswith("error: ")
    assert "--learning-rate" in error
    assert earlier.now() == earlier.files


def test_divergence_leaves_what_another_run_left(subset, tmp_path):
    state = tmp_path / ".unfinished" / mnist.STATE
    state.parent.mkdir()
    model = mnist.start_model(mnist.Settings(), steps=10)
    mnist.save_state(state, model, [{}], {"seed": "another"})
    before = state.read_bytes()
    options = ["--limit=300", "--batch-size=32", "--epochs=1", "--learning-rate=1e30"]
    options += ["--data", subset.source, "--outputs", str(tmp_path)]
    assert mnist.main(options) == 1
    assert state.read_bytes() == before


def test_batch_larger_than_the_data_is_refused(subset, earlier, capsys):
    options = ["--batch-size", "9999", "--outputs", str(earlier.folder)]
    assert mnist.main(["--data", subset.source, *options]) == 2
    assert "--batch-size 9999" in capsys.readouterr().err
    assert earlier.now() == earlier.files


def test_neither_training_nor_validation_has_a_test_image(
    subset, tmp_path, monkeypatch
):
    def train(settings, training, validation, *_):
        parts = training, validation
        seen.extend(image.tobytes() for part in parts for image in part.images)
        raise FloatingPointError("seen enough")

    seen = []
    monkeypatch.setattr(mnist, "train", train)
    assert mnist.main(["--data", subset.source, "--outputs", str(tmp_path)]) == 1
    assert sorted(seen) == sorted(image.tobytes() for image in subset.train.images)
    assert not set(seen) & {image.tobytes() for image in subset.test.images}
