"""Training: the split, each distortion, the batches, the loss, the learning rate."""

import numpy as np
import pytest
from makers import BLOTS, RANGES, measure

import MNIST_HandwritingRecognition as mnist


def number(count):
    """Examples whose first two pixels tell their number, and the number the label."""
    numbers, images = np.arange(count), np.zeros((count, 28, 28), np.uint8)
    images[:, 0, 0], images[:, 0, 1] = numbers // 256, numbers % 256
    return np.rec.fromarrays((images, numbers * 7 % 10), mnist.EXAMPLE)


def test_a_run_holds_out_its_validation_and_test_images(trained, subset):
    """No training image is lost, none comes twice, and no test image is among them."""
    parts = trained.training.images, trained.validation.images
    seen = sorted(image.tobytes() for part in parts for image in part)
    assert [len(part) for part in parts] == [2640, 240]
    for rest in (subset.train[240:], subset.train[:-240]):  # At random, so neither.
        assert not np.array_equal(parts[0], rest.images)
    assert seen == sorted(image.tobytes() for image in subset.train.images)
    assert not set(seen) & {image.tobytes() for image in subset.test.images}
    known = {image.tobytes(): label for image, label in subset.train}
    for part in (trained.training, trained.validation):
        assert all(known[image.tobytes()] == label for image, label in part)


# ---- Each distortion ------------------------------------------------------------

NAMES = ["rotation", "shear", "width", "height", "across", "down", "ink"]


def augment(images, *amounts):
    """Distort images (n, 28, 28), 0 to 1, all by the same amounts."""
    images, amounts = images[..., None], np.tile(amounts, (len(images), 1))
    return mnist.augment(np.float32(images), np.float32(amounts)).numpy()[..., 0]


@pytest.mark.parametrize("index", range(7), ids=NAMES)
@pytest.mark.parametrize("sign", [-1, 1])
def test_one_distortion_at_a_time(index, sign):
    """About the centre; it has its amount, and none of the others is there."""
    amounts = sign * RANGES * (np.arange(7) == index)
    (found,) = measure(augment(BLOTS[None] / 255, *amounts))
    assert found / RANGES == pytest.approx(amounts / RANGES, abs=0.1)


def test_shift_and_ink_are_exact(subset):
    """What comes in is 0, no ink is more than 1, and amounts of 0 change nothing."""
    images = np.maximum(subset.train.images[:9], 9) / 255
    assert np.abs(augment(images, *[0] * 7) - images).max() < 1e-6
    moved = augment(images, 0, 0, 0, 0, 2, -1, 0)
    assert np.allclose(moved[:, 1:, :-2], images[:, :-1, 2:], atol=1e-5)
    assert not moved[:, 0].any() and not moved[:, :, -2:].any()
    turned = augment(images, np.pi / 2, 0, 0, 0, 0, 0, 0)
    assert np.allclose(turned, np.rot90(images, axes=(1, 2)), atol=1e-4)
    for ink, factor in ((1, 2), (-1, 0.5)):
        inked = augment(images, 0, 0, 0, 0, 0, 0, ink)
        assert np.allclose(inked, np.minimum(images * factor, 1), atol=1e-5)


# ---- The batches of an epoch ----------------------------------------------------


def draw(examples, epoch, *options):
    """The batches of an epoch, by the options of a command line: images, labels."""
    settings = mnist.parse_arguments([*map(str, options)])
    batches = [*mnist.make_batches(examples, settings, epoch)]
    images, labels = zip(*((x.numpy()[..., 0], y.numpy()) for x, y in batches))
    return images, labels


@pytest.mark.parametrize("count", [320, 300])
def test_each_epoch_is_a_shuffle_of_its_own(count):
    """In whole batches, each image with its label, undistorted if so wished."""
    examples, orders = number(count), []
    for epoch in (0, 1):
        drawn = draw(examples, epoch, "--batch-size", 32, "--augmentation", 0)
        assert {len(images) for images in drawn[0]} == {32}
        images, labels = map(np.concatenate, drawn)
        pixels = np.rint(images * 255).astype(int)
        numbers = pixels[:, 0, 0] * 256 + pixels[:, 0, 1]
        assert np.array_equal(pixels, examples.images[numbers])
        assert np.array_equal(labels, np.eye(10)[examples.labels[numbers]])
        assert len(set(numbers)) == len(numbers) == count // 32 * 32
        assert np.abs(np.diff(numbers)).mean() > 50  # A third of the count, by chance.
        orders.append(numbers.tolist())
    assert orders[0] != orders[1]
    assert (set(orders[0]) == set(orders[1])) == (count == 320)


def test_seed_and_epoch_decide_the_batches(subset):
    """Distortions included, and nothing else does: so a run can go on."""
    runs = {(5, 2): 0, (5, 3): 0, (6, 2): 0}
    for seed, epoch in [*runs, (5, 2)]:
        options = "--seed", seed, "--batch-size", 32
        images, _ = draw(subset.train[:64], epoch, *options)
        runs[seed, epoch], before = np.array(images), runs[seed, epoch]
    assert np.array_equal(runs[5, 2], before)
    assert not np.allclose(runs[5, 2], runs[5, 3])
    assert not np.allclose(runs[5, 2], runs[6, 2])


@pytest.mark.parametrize(
    ("epoch", "options", "strength"),
    [
        (0, [], 1),
        (0, ["--augmentation", 0.5], 0.5),
        # The last fifth of 20 epochs begins with the 17th, number 16.
        *zip((16, 17, 19), [["--epochs", 20]] * 3, (1, 0.75, 0.25)),
    ],
)
def test_distortions_have_their_ranges_and_fade_out(epoch, options, strength):
    """Each fills its range evenly, and none depends on another."""
    pair = np.tile(BLOTS, (640, 1, 1)), np.zeros(640)
    examples = np.rec.fromarrays(pair, mnist.EXAMPLE)
    images, _ = draw(examples, epoch, *options)
    found = measure(np.concatenate(images)) / RANGES / strength
    assert found.min(axis=0) == pytest.approx(-1, abs=0.12)
    assert found.max(axis=0) == pytest.approx(1, abs=0.12)
    assert found.mean(axis=0) == pytest.approx(0, abs=0.1)
    assert found.std(axis=0) == pytest.approx(3**-0.5, abs=0.05)  # As if uniform.
    assert np.abs(np.corrcoef(found.T) - np.eye(7)).max() < 0.2


def test_loss_has_smooth_labels_and_the_rate_rises_then_falls_along_a_cosine():
    """Half of a label for all ten digits; half of the peak halfway up, and down."""
    settings = mnist.parse_arguments(["--label-smoothing=0.5", "--learning-rate=0.03"])
    model, label = mnist.start_model(settings, 100), np.eye(10, dtype=np.float32)[:1]
    answers = np.array([[0.91] + [0.01] * 9], np.float32)
    expected = -0.55 * np.log(0.91) - 9 * 0.05 * np.log(0.01)
    loss = float(model.compute_loss(y=label, y_pred=answers))
    assert loss == pytest.approx(expected, rel=1e-4)
    for step, share in {0: 0, 10: 0.5, 20: 1, 60: 0.5, 100: 0}.items():
        model.optimizer.iterations.assign(step)
        rate = float(model.optimizer.learning_rate)
        assert rate == pytest.approx(0.03 * share, abs=1e-6), step


def test_an_epoch_ends_after_its_steps(subset, tmp_path):
    """Keras does several at once, but 7 and 7 are 14."""
    parts = subset.train[:70], subset.test[:20]
    settings = mnist.parse_arguments(["--batch-size=10", "--epochs=2"])
    model, history = mnist.train(settings, *parts, tmp_path / "checkpoint.npz")
    with np.load(tmp_path / "checkpoint.npz") as file:
        assert file[str(len(model.variables))] == 14
    assert [row["epoch"] for row in history] == [1, 2]
