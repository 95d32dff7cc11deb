"""Own handwriting: image files of every kind, MNIST's form, and the answers."""

import csv
import io
import zipfile

import handwriting
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from makers import KINDS, fields
from PIL import Image, ImageDraw, ImageFilter

import MNIST_HandwritingRecognition as mnist

NETWORK = mnist.OUTPUTS / "model.keras"
MODEL = str(NETWORK)


@pytest.fixture
def page():
    """A three in dark ink on light paper, grey, with some paper around it."""
    image = Image.new("L", (160, 200), 225)
    pen = ImageDraw.Draw(image)
    pen.arc((50, 40, 110, 100), 180, 90, fill=40, width=9)
    pen.arc((50, 92, 110, 152), 270, 180, fill=40, width=9)
    return image.filter(ImageFilter.GaussianBlur(1))


def predict(capsys, *paths, outputs):
    """The exit code, the rows under the header, and what standard error says."""
    options = ["--model", MODEL, "--outputs", str(outputs)]
    code = mnist.main(["--predict", *map(str, paths), *options])
    said = capsys.readouterr()
    header, *rows = csv.reader(io.StringIO(said.out), delimiter="\t")
    assert header == ["image", "digit", "confidence", "runner-up", "its confidence"]
    return code, rows, said.err


def test_every_kind_of_image_is_read(page, tmp_path, capsys):
    folder = tmp_path / "scans"
    folder.mkdir()
    for name, make in KINDS.items():
        image = make(page)
        image.save(folder / name, exif=image.getexif())
    code, rows, said = predict(capsys, folder, outputs=tmp_path)
    assert f"Network: {MODEL}\n" in said
    assert {row[0].split("/")[-1]: row[1] for row in rows} == dict.fromkeys(KINDS, "3")
    assert code == 0
    with Image.open(tmp_path / "your_digits.png") as picture:
        assert picture.width >= 1200


def test_uneven_light_is_taken_away(page, tmp_path, capsys):
    values = np.asarray(page, float)
    along = np.indices(values.shape)[1]
    values *= 1 - 0.4 * along / along.max()
    values[:, 120:] *= 0.8
    Image.fromarray(values.clip(0, 255).astype(np.uint8)).save(tmp_path / "dim.png")
    _, rows, _ = predict(capsys, tmp_path / "dim.png", outputs=tmp_path)
    assert rows[0][1] == "3"


def test_strokes_right_across_a_tight_picture_are_no_ruled_lines(tmp_path, capsys):
    image = Image.new("L", (300, 400), 255)
    ImageDraw.Draw(image).line([(0, 12), (288, 12), (120, 399)], fill=0, width=11)
    image.save(tmp_path / "seven.png")
    _, rows, _ = predict(capsys, tmp_path / "seven.png", outputs=tmp_path)
    assert rows[0][1] == "7"


def test_pale_strokes_in_a_small_picture_are_not_lost():
    """An upright stroke takes two fifths of the light that its foot takes."""
    image = Image.new("L", (60, 72), 220)
    pen = ImageDraw.Draw(image)
    pen.line([(30, 14), (30, 52)], fill=160, width=3)
    pen.line([(18, 54), (42, 54)], fill=70, width=3)
    digit = mnist.find_digit(np.asarray(image, np.float32) / 255)
    assert np.ptp(np.flatnonzero(digit.any(axis=1))) + 1 == 20
    assert np.ptp(np.flatnonzero(digit.any(axis=0))) + 1 < 15


def test_faint_pencil_is_read(tmp_path, capsys):
    """It takes a sixth of the light, and the paper has some grain."""
    image = Image.new("L", (300, 360), 235)
    pen = ImageDraw.Draw(image)
    pen.arc((100, 80, 200, 170), 180, 90, fill=195, width=4)
    pen.arc((100, 167, 200, 280), 270, 180, fill=195, width=4)
    grain = np.random.default_rng(0).normal(0, 4, (360, 300))
    values = (np.asarray(image) + grain).clip(0, 255).astype(np.uint8)
    Image.fromarray(values).save(tmp_path / "pencil.png")
    _, rows, _ = predict(capsys, tmp_path / "pencil.png", outputs=tmp_path)
    assert rows[0][1] == "3"


def test_what_holds_no_digit_is_said_and_the_others_are_answered(
    page, tmp_path, capsys
):
    """Each bad one gets its row, whatever is wrong, and its reason."""
    noise = np.random.default_rng(0).normal(220, 6, (90, 120)).astype(np.uint8)
    light = np.tile(np.linspace(90, 240, 120), (90, 1)).astype(np.uint8)
    for name, values in {"noise": noise, "light": light, "dot": [[7]]}.items():
        Image.fromarray(np.asarray(values, np.uint8)).save(tmp_path / f"{name}.png")
    Image.new("1", (8000, 8000)).save(tmp_path / "huge.png")  # 64 megapixels.
    page.resize((400, 500)).save(tmp_path / "whole.jpg")
    (tmp_path / "half.jpg").write_bytes((tmp_path / "whole.jpg").read_bytes()[:3000])
    (tmp_path / "text.png").write_text("no image")
    (tmp_path / "script.png").write_text(
        "%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9"
    )
    (tmp_path / "photo.heic").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic")
    bad = "noise.png light.png dot.png huge.png half.jpg text.png script.png photo.heic"
    bad = [*bad.split(), "missing.png", "x" * 300 + ".png"]
    paths = [tmp_path / name for name in [*bad, "whole.jpg"]]
    code, rows, said = predict(capsys, *paths, outputs=tmp_path)
    assert code == 1
    assert [row[1:] for row in rows[:-1]] == [["-"] * 4] * len(bad)
    assert rows[-1][1] == "3"
    for path in paths[:-1]:
        assert f"{path}: " in said
    assert "64" not in said.split("huge.png: ")[1].split()[0]
    assert "Traceback" not in said
    with Image.open(tmp_path / "your_digits.png") as picture:
        assert picture.width >= 1200


def test_a_name_cannot_split_or_colour_a_row(page, tmp_path, capsys):
    page.save(tmp_path / "a\n\t\x1b[31m.png")
    code, rows, _ = predict(capsys, tmp_path / "a\n\t\x1b[31m.png", outputs=tmp_path)
    assert (code, len(rows), rows[0][1]) == (0, 1, "3")
    assert rows[0][0].endswith("a\\n\\t\\x1b[31m.png")


def test_picture_shows_the_end_of_a_name_a_reason_and_a_frame(tmp_path):
    """Forty at most, two a row; a page that is all white has a frame."""
    white, blank = np.ones((40, 60), np.float32), np.zeros((28, 28), np.uint8)
    sure = np.eye(10)[3]
    good = "folder/with/a/long/name/seven.png", white, blank, "", sure
    bad = "bad.png", white, blank, "no ink stands out", sure
    letter = "A.png", white, blank, "", np.zeros(10)
    axes = mnist.draw_readings([good, bad, letter]).axes
    assert axes[0].get_title() == "...g/name/seven.png"
    assert axes[0].get_frame_on() and not axes[1].get_frame_on()
    assert axes[1].get_title() == "3  100.0%"
    assert [patch.get_height() for patch in axes[2].patches] == sure.tolist()
    assert axes[4].texts[0].get_text() == "no ink stands out"
    assert not axes[5].patches
    assert axes[7].get_title() == "?"
    assert not any(patch.get_height() for patch in axes[8].patches)


def test_folders_are_read_with_all_images_below_them(page, tmp_path, capsys):
    (tmp_path / "in" / "deep").mkdir(parents=True)
    for name in ("b.png", "a.PNG", "deep/c.jpg"):
        page.save(tmp_path / "in" / name)
    (tmp_path / "in" / "notes.txt").write_text("not an image, and not named as one")
    (tmp_path / "in" / "folder.png").mkdir()
    _, rows, _ = predict(capsys, tmp_path / "in", outputs=tmp_path / "outputs")
    assert [row[0].split("/")[-1] for row in rows] == ["a.PNG", "b.png", "c.jpg"]
    (tmp_path / "empty").mkdir()
    code, rows, said = predict(capsys, tmp_path / "empty", outputs=tmp_path)
    assert (code, rows[0][1]) == (1, "-")
    assert f"{tmp_path / 'empty' / '*'}: No such file or directory\n" in said
    assert len(list(tmp_path.glob("*.png"))) == 0  # An earlier picture stays.


def test_without_scipy_the_missing_package_is_named(
    page, tmp_path, monkeypatch, capsys
):
    page.save(tmp_path / "page.png")
    monkeypatch.setattr(mnist, "ndimage", None)
    assert mnist.main(["--predict", str(tmp_path / "page.png")]) == 2
    assert "pip install scipy" in capsys.readouterr().err


def broken(model):
    """The same network with a weight that is no number."""
    weights = model.get_weights()
    weights[0][...] = np.nan
    copy = mnist.build_model()
    copy.set_weights(weights)
    return copy


def test_what_is_no_network_for_digits_is_refused_in_a_sentence(tmp_path, capsys):
    """Nothing, another file, other shapes, no probabilities, NaN, code, no digits."""
    keras, layers = mnist.keras, mnist.layers
    (good, known), start = mnist.load_network(NETWORK), keras.Input((28, 28, 1))
    few, flat = known | {"means": known["means"][:3]}, layers.Flatten()
    networks = {
        "wide": keras.Sequential([keras.Input((32, 32, 1)), flat, layers.Dense(10)]),
        "logits": keras.Sequential([start, *good.layers[:-1], layers.Dense(10)]),
        "nan": broken(good),
        "code": keras.Sequential([start, layers.Lambda(lambda x: x)]),
        "three digits": good,
        "no digits": good,
    }
    for name, network in networks.items():
        network.save(path := tmp_path / f"{name}.keras")
        if name != "no digits":
            with zipfile.ZipFile(path, "a") as file, file.open("digits.npz", "w") as to:
                np.savez(to, **(few if name == "three digits" else known))
    (tmp_path / "text.keras").write_text("not a network")
    for name in (*networks, "text", "missing"):
        path = tmp_path / f"{name}.keras"
        assert mnist.main(["--predict", "x.png", "--model", str(path)]) == 2
        said = capsys.readouterr().err
        assert said.startswith(f"error: {path}") and said.count("\n") == 1, name


def test_predict_reads_with_the_network_in_outputs(page, trained, tmp_path, capsys):
    page.save(tmp_path / "page.png")
    read = ["--predict", str(tmp_path / "page.png"), "--outputs"]
    for folder, network in (
        (trained.folder, trained.folder),
        (tmp_path, mnist.OUTPUTS),
    ):
        mnist.main([*read, str(folder)])
        assert f"Network: {network / 'model.keras'}\n" in capsys.readouterr().err
        (folder / "your_digits.png").unlink()


def test_digits_on_synthetic_paper_are_read(subset, tmp_path, capsys):
    """Most of them; how many exactly is for handwriting.py to measure."""
    handwriting.write_pages(tmp_path, subset.test, 12)
    _, rows, _ = predict(capsys, tmp_path, outputs=tmp_path / "outputs")
    right = [row[0].split("/")[-1][0] == row[1] for row in rows]
    assert len(right) == 12
    assert sum(right) >= 11


def test_what_is_no_single_digit_gets_a_question_mark(subset, tmp_path, capsys):
    """Most letters and pairs of digits; how many exactly is for handwriting.py."""
    for kind in ("letters", "pairs"):
        (tmp_path / kind).mkdir()
        handwriting.write_pages(tmp_path / kind, subset.test, 20)
        code, rows, said = predict(capsys, tmp_path / kind, outputs=tmp_path)
        unclear = [row for row in rows if row[1:] == ["?", "-", "-", "-"]]
        assert code == 1 and len(unclear) >= 12
        assert said.count("it looks like no single digit\n") == len(unclear)


def test_one_validation_digit_in_200_is_strange(trained):
    features = mnist.extract_features(trained.model, trained.validation.images)
    known = mnist.describe_digits(trained.model, trained.validation)
    answers, strangeness = mnist.recognize(trained.model, known, features)
    expected = mnist.predict(trained.model, trained.validation.images)
    assert np.allclose(answers, expected, atol=1e-6)
    assert (strangeness > 1).mean() == pytest.approx(1 / 200, abs=1 / 240)


def test_digits_of_14x14_pixels_are_read(subset):
    model, _ = mnist.load_network(NETWORK)
    images, labels = fields(subset.test[:100])
    small = [Image.fromarray(255 - x).reduce(2) for x in images]
    greys = [np.asarray(image, np.float32) / 255 for image in small]
    answers = mnist.predict(model, np.stack([mnist.find_digit(x) for x in greys]))
    assert (answers.argmax(axis=1) == labels).sum() >= 96


def test_round_trip_of_mnist_changes_few_answers(subset):
    """Images that are in MNIST's form already come through nearly unchanged."""
    model, _ = mnist.load_network(NETWORK)
    prepared = [
        mnist.find_digit(image / np.float32(255)) for image in subset.test.images[:120]
    ]
    before = mnist.predict(model, subset.test.images[:120]).argmax(axis=1)
    after = mnist.predict(model, np.stack(prepared)).argmax(axis=1)
    assert (before != after).sum() <= 1


@settings(deadline=None, max_examples=60)
@given(
    points=st.lists(
        st.tuples(st.integers(20, 180), st.integers(20, 130)),
        min_size=3,
        max_size=6,
        unique=True,
    ),
    width=st.integers(4, 14),
    ink=st.integers(0, 120),
)
def test_prepared_digit_is_in_mnists_form(points, width, ink):
    """Any stroke: background 0, a box of at most 20, its mass in the centre."""
    image = Image.new("L", (200, 150), 230)
    ImageDraw.Draw(image).line(points, fill=ink, width=width)
    digit = mnist.find_digit(np.asarray(image, np.float32) / 255)
    assert (digit.dtype, digit.shape) == (np.uint8, (28, 28))
    rows, columns = np.nonzero(digit)
    assert max(np.ptp(rows), np.ptp(columns)) + 1 in (19, 20)
    assert digit.max() > 200
    for axis in (0, 1):
        mass = digit.sum(axis=1 - axis) @ np.arange(28) / digit.sum()
        box = np.nonzero(digit.any(axis=1 - axis))[0]
        at_border = box[0] == 0 or box[-1] == 27
        assert abs(mass - 14) <= 0.55 or at_border


@settings(deadline=None, max_examples=100)
@given(data=st.binary(max_size=400), kept=st.integers(0, 300))
def test_any_bytes_end_in_the_one_error_or_in_an_image(data, kept, tmp_path_factory):
    """Arbitrary bytes, and the start of a good file with arbitrary bytes after it."""
    file = io.BytesIO()
    Image.new("L", (40, 40), 200).save(file, "PNG")
    path = tmp_path_factory.getbasetemp() / "fuzzed.png"
    path.write_bytes(file.getvalue()[:kept] + data)
    try:
        grey = mnist.read_image(path)
    except mnist.InputError:
        return
    assert grey.ndim == 2
