"""Own handwriting: image files of every kind, digits, pages of numbers, no digits."""

import io

import handwriting
import makers
import numpy as np
import pages
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from makers import numbers
from PIL import Image, ImageDraw

import MNIST_HandwritingRecognition as mnist

MODEL = mnist.OUTPUTS / "model.keras"


# ---- Files of every kind --------------------------------------------------------


def test_every_kind_of_image_is_read(page, tmp_path, predict):
    folder = tmp_path / "scans"
    folder.mkdir()
    for name, make in makers.KINDS.items():
        image = make(page)
        image.save(folder / name, exif=image.getexif())
    rows, code, said = predict(folder)
    assert f"Network: {MODEL}\n" in said
    names = [row["image"].split("/")[-1] for row in rows]
    assert dict(zip(names, numbers(rows))) == dict.fromkeys(makers.KINDS, "3")
    assert (code, len(rows)) == (0, len(makers.KINDS))
    with Image.open(tmp_path / "outputs" / "your_digits.png") as picture:
        assert picture.width >= 1200


def test_what_holds_no_digit_is_said_and_others_are_read(page, tmp_path, predict):
    """Each bad one gets its row, whatever is wrong, and its reason."""
    paths = [*makers.write_bad_images(tmp_path), tmp_path / "page.jpg"]
    page.save(paths[-1])
    rows, code, said = predict(*paths)
    assert code == 1
    assert [[*row.values()][1:] for row in rows[:-1]] == [["-"] * 6] * 15
    assert rows[-1]["number"] == "3"
    assert all(f"{path}: " in said for path in paths[:-1])
    assert said.count("stands out from") == 6
    assert "Traceback" not in said


def test_a_name_cannot_split_or_colour_a_row(page, tmp_path, predict):
    page.save(tmp_path / "a\n\t\x1b[31m.png")
    rows, code, _ = predict(tmp_path / "a\n\t\x1b[31m.png")
    assert (code, numbers(rows)) == (0, ["3"])
    assert rows[0]["image"].endswith("a\\n\\t\\x1b[31m.png")


def test_folders_are_read_with_all_images_below_them(page, tmp_path, predict):
    (tmp_path / "in" / "deep").mkdir(parents=True)
    for name in ("b.png", "a.PNG", "deep/c.jpg"):
        page.save(tmp_path / "in" / name)
    (tmp_path / "in" / "notes.txt").write_text("not an image, and not named as one")
    (tmp_path / "in" / "folder.png").mkdir()
    rows, _, _ = predict(tmp_path / "in")
    names = [row["image"].split("/")[-1] for row in rows]
    assert names == ["a.PNG", "b.png", "c.jpg"]
    (tmp_path / "empty").mkdir()
    picture = tmp_path / "outputs" / "your_digits.png"
    before = picture.read_bytes()
    rows, code, said = predict(tmp_path / "empty")
    assert (code, numbers(rows)) == (1, ["-"])
    assert f"{tmp_path / 'empty' / '*'}: No such file or directory\n" in said
    assert picture.read_bytes() == before


@settings(deadline=None, max_examples=100)
@given(data=st.binary(max_size=400), kept=st.integers(0, 300))
def test_any_bytes_end_in_the_one_error_or_in_an_image(data, kept, tmp_path_factory):
    """Arbitrary bytes, and the start of a good file with arbitrary bytes after it."""
    file = io.BytesIO()
    Image.new("L", (40, 40), 200).save(file, "PNG")
    path = tmp_path_factory.getbasetemp() / "fuzzed.png"
    path.write_bytes(file.getvalue()[:kept] + data)
    try:
        grey, longest = mnist.read_image(path)
    except mnist.InputError:
        return
    assert max(grey.shape) == longest


# ---- One digit ------------------------------------------------------------------


def test_light_strokes_and_edges_of_every_kind_do_no_harm(page, predict):
    """A shadow on uneven light; strokes across a tight picture; pencil with grain."""
    values = np.asarray(page, float) * np.linspace(1, 0.6, page.width)
    values[:, 120:] *= 0.8
    dim = Image.fromarray(values.astype(np.uint8))
    tight = makers.draw((300, 400), 255, 0, 11, [(0, 12), (288, 12), (120, 399)])
    grain = np.random.default_rng(0).normal(0, 4, (400, 320))
    faint = np.asarray(page.resize((320, 400)), float) * 0.2 + 190 + grain
    faint = Image.fromarray(faint.clip(0, 255).astype(np.uint8))
    rows, _, _ = predict(dim, tight, faint)
    assert numbers(rows) == ["3", "7", "3"]


def test_digits_on_synthetic_paper_are_read(subset, predict):
    """Most of them; how many exactly is for handwriting.py to measure."""
    chance = np.random.default_rng(0)
    images = handwriting.draw_images("paper", subset.test, 12, [], chance)
    sheets, truth, _ = zip(*images)
    rows, _, _ = predict(*sheets)
    assert sum([row["number"]] == [*true] for row, true in zip(rows, truth)) >= 10


def test_small_images_and_those_in_mnists_form_are_read(subset, predict):
    """Of 14x14 pixels; and as they are: these come through nearly unchanged."""
    images, labels = subset.test.images[:100], subset.test.labels[:100]
    for make, least in ((lambda x: x, 99), (lambda x: 255 - x, 99), (makers.halve, 96)):
        rows, _, _ = predict(*(Image.fromarray(make(image)) for image in images))
        right = [row["number"] == str(label) for row, label in zip(rows, labels)]
        assert (len(rows), sum(right) >= least) == (100, True)


POINTS = st.tuples(st.integers(20, 180), st.integers(20, 130))


@settings(deadline=None, max_examples=60)
@given(points=st.lists(POINTS, min_size=3, unique=True), width=st.integers(4, 14))
def test_fitted_digit_is_in_mnists_form(points, width):
    """Any stroke: background 0, a box of 20, its mass in the centre."""
    ink = np.asarray(makers.draw((200, 150), 0, 230, width, points), np.float32) / 255
    digit = mnist.fit_digit(ink)
    assert (digit.dtype, digit.shape) == (np.uint8, (28, 28))
    rows, columns = np.nonzero(digit)
    assert max(np.ptp(rows), np.ptp(columns)) + 1 in (19, 20)
    assert digit.max() > 200
    for axis in (0, 1):
        mass = digit.sum(axis=1 - axis) @ np.arange(28) / digit.sum()
        box = np.nonzero(digit.any(axis=1 - axis))[0]
        assert abs(mass - 14) <= 0.55 or box[0] == 0 or box[-1] == 27


# ---- Pages ----------------------------------------------------------------------


@pytest.mark.parametrize("name", makers.PAGES)
def test_every_number_is_read_in_order(name, subset, predict):
    lines, difficulties = makers.PAGES[name]
    chance = np.random.default_rng(9)  # This one's digits are legible.
    image, truth = pages.draw_page(subset.test, lines, chance, **difficulties)
    rows, code, _ = predict(image)
    assert (numbers(rows), code) == (truth, 0)


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("scale", [1, 8])
def test_boxes_are_in_pixels_of_the_upright_picture(scale, turned, page, predict):
    """However large it is: 3 and 33, their strokes from 50 to 110, and 40 to 152."""
    sheet = Image.new("L", (560, 200), 225)
    for left in (0, 240, 320):
        sheet.paste(page.crop((40, 0, 120, 200)), (left + 40, 0))
    sheet = sheet.resize((560 * scale, 200 * scale))
    rows, _, _ = predict(makers.turn(sheet) if turned else sheet)
    assert numbers(rows) == ["3", "33"]
    boxes = [[int(row[name]) / scale for name in makers.COLUMNS[3:]] for row in rows]
    for box, expected in zip(boxes, ([50, 40, 60, 112], [290, 40, 140, 112])):
        assert box == pytest.approx(expected, abs=6)


def test_confidence_of_a_number_is_the_product_of_its_digits(subset, tmp_path, predict):
    chance = np.random.default_rng(1)
    image, _ = pages.draw_page(subset.test, ["12 34567"], chance)
    rows, _, _ = predict(image)
    path = tmp_path / "image 0.png"
    ((*_, found, _),) = mnist.read_files([path], *mnist.load_network(MODEL))
    assert numbers(rows) == ["12", "34567"]
    for row, digits in zip(rows, found):
        product = np.prod(digits.confidence)
        assert float(row["confidence"]) == pytest.approx(product, abs=1e-4)
        assert product < digits.confidence.min() <= 1


def test_digits_are_sorted_into_lines_and_at_wide_gaps_into_numbers():
    """The lines slope by 0.2; a gap of half a height is none, one of a height is."""
    digits = []
    for line, gaps in enumerate(([20, 40, 20], [40, 20], [20])):
        lefts = np.cumsum([0, *(gap + 20 for gap in gaps)])
        digits += [makers.place(f"{line}", x, 70 * line + 0.2 * x) for x in lefts]
    digits = np.concatenate(digits[::-1]).view(np.recarray)
    read = ["".join(number.text) for number in mnist.sort_into_numbers(digits)]
    assert read == ["00", "00", "1", "11", "22"]


@pytest.mark.parametrize("pair", ["47", "52", "68"])
def test_touching_digits_are_parted_or_unknown(pair, subset, predict):
    """Never are they one sure digit."""
    seeds = map(np.random.default_rng, range(6))
    draws = [pages.draw_page(subset.test, ["~".join(pair)], s, size=60) for s in seeds]
    rows, _, _ = predict(*(image for image, _ in draws))
    assert numbers(rows).count(pair) >= 3
    for row in (row for row in rows if row["number"] not in ("-", pair)):
        assert "?" in row["number"] or float(row["confidence"]) < 0.9


@pytest.mark.parametrize(("radius", "stem"), [(12, 100), (14, 120)])
def test_a_nine_with_a_long_stem_is_no_one(radius, stem, predict):
    end = 40 + stem + radius
    strokes = [(60, 40), (56, 180)], [(150 + radius, 40 + radius), (146 + radius, end)]
    image = makers.draw((300, 240), 220, 40, 7, *strokes)
    box = (150 - radius, 40, 150 + radius, 40 + 2 * radius)
    ImageDraw.Draw(image).ellipse(box, outline=40, width=7)
    assert numbers(predict(image)[0]) == ["19"]


def test_the_pieces_of_a_digit_stay_together(predict):
    """A five with a loose bar, an open four, and between them a one."""
    strokes = [[(136, 64), (102, 66)], [(90, 70), (86, 108)], [(196, 70), (190, 168)]]
    strokes += [[(286, 70), (268, 124), (320, 124)], [(332, 76), (326, 170)]]
    image = makers.draw((420, 240), 220, 40, 9, *strokes)
    ImageDraw.Draw(image).arc((64, 100, 130, 170), 230, 140, fill=40, width=9)
    assert numbers(predict(image)[0]) == ["514"]


def test_pale_parts_of_a_stroke_belong_to_it(predict):
    """Half of a zero is half as dark as the other."""
    image, box = Image.new("L", (200, 200), 220), (60, 40, 130, 150)
    ImageDraw.Draw(image).ellipse(box, outline=133, width=9)
    ImageDraw.Draw(image).arc(box, 90, 270, fill=40, width=9)
    assert numbers(predict(image)[0]) == ["0"]


@pytest.mark.parametrize(("darkness", "text"), [(0.05, "?"), (1, "1")])
def test_a_pale_stroke_among_unknown_ink_is_no_digit(darkness, text):
    stroke, letter = makers.place("1", 10, 10), makers.place("3", 10, 10)
    stroke.darkness, letter.strangeness = darkness, 9
    proposals = [(0, frozenset({1}), [0])]
    views = stroke, stroke[:0], letter, stroke[:0]
    found = [(False, proposals[: len(digits)], digits) for digits in views]
    ((digit,),), _ = mnist.read_page(found)
    assert digit.text == text


def test_letters_scribbles_and_ruled_lines_are_unknown(subset, predict):
    """Alone and in a number; left out beside numbers. They have no confidence.

    Halves of a scribble can look like 8s: one in ten may be read.
    """
    chance = np.random.default_rng(0)
    letters = [pages.draw_page(subset.test, [c], chance)[0] for c in "FLNkrt"]
    scribbles = makers.draw_scribbles(40, chance)
    cover = pages.draw_rules((300, 400), [], 20, 30, pages.Difficulties(rules="lines"))
    ruled = Image.fromarray(np.uint8(225 - 70 * cover))
    among, _ = pages.draw_page(subset.test, ["27 81"], chance, margin=(2, 2), space=3)
    among.paste(scribbles[1].resize((60, 60)), (among.width // 2 - 30, 100))
    chance = np.random.default_rng(9)
    within, _ = pages.draw_page(subset.test, ["27F9 314"], chance)
    rows, code, _ = predict(*letters, *scribbles, ruled, among, within)
    assert {*numbers(rows[:6])} <= {"?", "-"} and int(rows[0]["height"]) > 40
    assert sum(text not in "?-" for text in numbers(rows[6:46])) <= 4
    assert (numbers(rows[46:]), code) == (["-", "27", "81", "27?9", "314"], 1)
    assert {float(row["confidence"]) for row in rows if "?" in row["number"]} == {0}


def test_dark_rules_hide_no_digits_and_large_ones_are_kept(page, predict):
    """Few between long rules; in a tight crop, the first is 1.8 times as high."""
    three, ruled = page.crop((50, 40, 110, 152)), Image.new("L", (1800, 1600), 225)
    for y in range(20, 1600, 180):
        ImageDraw.Draw(ruled).line((0, y, 1800, y), 40, 6)
    tight = Image.new("L", (290, 202), 225)
    tight.paste(three.resize((108, 202)), (0, 0))
    for i in range(2):
        ruled.paste(three, (600 + 80 * i, 234))
        tight.paste(three, (140 + 90 * i, 90))
    assert numbers(predict(ruled, tight)[0]) == ["33", "333"]


def test_two_digits_on_a_small_image_are_two(page, predict):
    """Below 96 pixels, where most images hold one digit."""
    small = Image.new("L", (64, 40), 225)
    for x in (10, 35):
        small.paste(page.crop((50, 40, 110, 152)).resize((19, 30)), (x, 5))
    assert numbers(predict(small, small.crop((0, 0, 32, 40)))[0]) == ["33", "3"]


def test_specks_and_lines_from_edge_to_edge_are_no_part_of_a_digit(page, predict):
    dirty, table = np.array(page), np.array(page)
    dirty[20:23, 130:133] = dirty[170:172, 30:32] = dirty[:16, 66:76] = 50
    table[[20, 21, 180, 181]] = table[:, [15, 16, 140, 141]] = 50
    rows, _, _ = predict(page, *map(Image.fromarray, (dirty, table)))
    boxes = [[int(row[name]) for name in makers.COLUMNS[3:]] for row in rows]
    assert numbers(rows) == ["3"] * 3
    assert boxes[1] == pytest.approx(boxes[0], abs=4) == boxes[2]


def test_what_is_no_digit_is_strange(trained, subset):
    """One validation digit in 200 exceeds 1, and most that are no digits do."""
    held_out, model = trained.validation, trained.model
    known = mnist.describe_digits(model, held_out)
    features = mnist.extract_features(model, held_out.images)
    answers, strangeness = mnist.recognize(model, known, features)
    assert np.allclose(answers, mnist.predict(model, held_out.images), atol=1e-6)
    assert (strangeness > 1).mean() == pytest.approx(1 / 200, abs=1 / 240)
    images, labels = makers.fields(subset.test)
    strokes = makers.draw_zigzags(60, np.random.default_rng(0))
    mirrored = images[np.isin(labels, [4, 7])][:, :, ::-1]
    model, known = mnist.load_network(MODEL)
    pairs = np.concatenate([images[:-1, :, 4:24], images[1:, :, 4:24]], axis=2)
    drawn = [pages.draw_letter(c, font) for c in pages.LETTERS for font in pages.FONTS]
    # By the last block's features alone, 78 % of letters and 81 % of pairs are strange.
    letters, pairs = (
        np.stack([mnist.fit_digit(np.float32(ink)) for ink in some])
        for some in (drawn, pairs)
    )
    cases = [(images, 0, 0.02), (strokes, 0.7, 1), (mirrored, 0.7, 1)]
    cases += [(letters, 0.85, 1), (pairs, 0.85, 1)]
    for shapes, least, most in cases:
        features = mnist.extract_features(model, shapes)
        share = (mnist.recognize(model, known, features)[1] > 1).mean()
        assert least <= share <= most


# ---- The picture, the network, the instrument -----------------------------------


def test_picture_shows_boxes_texts_and_what_the_network_saw():
    """One digit has ten bars, a `?` a dashed box; a long name shows its end."""
    grey = np.ones((40, 60), np.float32)
    two = [makers.place("3", 30, 10), makers.place("?", 60, 20)]
    for number in two:
        number.box /= 120
    readings = [
        ("folder/with/a/name/that/is/much/too/long/seven.png", grey, 60, two[:1], ""),
        ("two.png", grey, 120, two, ""),
        ("bad.png", grey, 60, [], "no ink stands out"),
    ]
    axes = mnist.draw_readings(readings).axes
    assert axes[0].get_title() == "...name/that/is/much/too/long/seven.png"
    (bars,) = axes[1].child_axes
    heights = [bar.get_height() for bar in bars.patches]
    assert heights == two[0].probabilities[0].tolist()
    assert axes[1].texts[0].get_text() == "3 75%"
    assert [text.get_text() for text in axes[2].texts] == ["3", "?"]
    assert [line.get_linestyle() for line in axes[2].lines] == ["-", "--"]
    x, y = axes[2].lines[1].get_data()
    frame = np.array([min(x), max(x), min(y), max(y)])
    assert frame == pytest.approx(np.array([60, 80, 20, 60]) / 120)
    assert axes[2].images[0].get_extent() == pytest.approx([0, 1, 2 / 3, 0])
    assert not axes[3].child_axes
    assert (axes[3].images[0].get_array() == 99).sum() == 2 * 28 * 28
    assert axes[5].get_title() == "no ink stands out"


def test_without_scipy_the_missing_package_is_named(monkeypatch, capsys):
    monkeypatch.setattr(mnist, "ndimage", None)
    assert mnist.main(["--predict", "page.png"]) == 2
    assert "pip install scipy" in capsys.readouterr().err


def test_what_is_no_network_for_digits_is_refused_in_a_sentence(tmp_path, capsys):
    """Nothing, another file, other shapes, no probabilities, NaN, code, no digits."""
    makers.write_bad_networks(tmp_path, MODEL)
    paths = [*tmp_path.iterdir(), tmp_path / "missing.keras"]
    assert len(paths) == 9
    for path in paths:
        assert mnist.main(["--predict", "x.png", "--model", str(path)]) == 2
        said = capsys.readouterr().err
        assert said.startswith(f"error: {path}") and said.count("\n") == 1, path


def test_predict_reads_with_the_network_in_outputs(page, trained, tmp_path, capsys):
    page.save(tmp_path / "page.png")
    read = ["--predict", str(tmp_path / "page.png"), "--outputs"]
    for folder, network in ((trained.folder,) * 2, (tmp_path, mnist.OUTPUTS)):
        mnist.main([*read, str(folder)])
        assert f"Network: {network / 'model.keras'}\n" in capsys.readouterr().err
        (folder / "your_digits.png").unlink()


@pytest.mark.parametrize(("truth", "read", "errors"), makers.ANSWERS)
def test_the_instrument_counts_errors(truth, read, errors):
    rows = [{"number": number, "confidence": "0.95"} for number in read]
    assert handwriting.score(truth, rows)["errors"] == errors
