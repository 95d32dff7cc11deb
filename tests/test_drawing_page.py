"""Drawing page: drawn in and read in a real browser, from a file, without a network.

`python tests/test_drawing_page.py FILE.png` prints figures and takes a screenshot.
"""

import json
import shutil
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import MNIST_HandwritingRecognition as mnist

webdriver = pytest.importorskip("selenium.webdriver", reason="selenium isn't installed")
if not (shutil.which("chromium") and shutil.which("chromedriver")):
    pytest.skip("chromium or chromedriver isn't installed", allow_module_level=True)

MODEL, SUBSET = (
    mnist.OUTPUTS / "model.keras",
    np.load(Path(__file__).with_name("mnist_subset.npz")),
)
FLAGS = """--headless=new --no-sandbox --disable-gpu --no-first-run --disable-sync
    --disable-background-networking --disable-component-update --hide-scrollbars
    --disable-dev-shm-usage --proxy-server=127.0.0.1:9"""  # Where nothing answers.
COUNT, DIGIT = "pad.childElementCount", "answer.querySelector('b')?.textContent"
# Two ways to draw each digit on a pad of 100x100. Strokes are divided by "/"; one joins
# points "x,y" and arcs: centre, both radii, two angles (-90 is above, then clockwise).
DRAWINGS = """
0: 50,50,25,35,-90,270; 52,48,18,34,-60,-430
1: 50,12 50,88; 36,30 54,12 50,88
2: 50,33,22,20,-170,40 28,85 75,85; 46,30,24,18,-160,50 25,82 50,80 78,86
3: 46,32,20,18,-150,90 46,68,24,19,-90,140; 28,15 70,15 46,42 48,64,22,22,-90,150
4: 35,12 26,55 75,55 / 62,25 60,90; 60,88 60,12 22,62 80,62
5: 70,15 36,15 33,45 48,64,24,22,-130,140; 38,16 36,45 46,66,22,20,-120,130/38,16 72,14
6: 62,12 42,35 32,60 50,68,18,19,180,-180; 58,10 38,40 34,64 52,70,18,16,200,-150
7: 25,16 75,16 42,88; 25,18 74,16 45,88 / 38,52 70,50
8: 50,30,17,17,-20,-270 50,67,21,20,-90,270 66,24; 50,30,16,16,0,360/50,67,20,21,0,360
9: 50,33,19,19,0,-360 64,88; 48,32,20,18,-30,-380 67,45 45,60,23,26,-20,110
"""
DRAWINGS = [line[3:].split(";") for line in DRAWINGS.strip().splitlines()]


def trace(stroke):
    """The points (n, 2) of a stroke, 0 to 1."""
    points = []
    for part in stroke.split():
        x, y, width, height, start, end = [*map(float, part.split(",")), 0, 0, 0, 0][:6]
        angles = np.radians(np.linspace(start, end, 24 if width else 1))
        points += zip(x + width * np.cos(angles), y + height * np.sin(angles))
    return np.array(points) / 100


class Browser(webdriver.Chrome):
    """A browser with the drawing page, and what a user does there."""

    def __init__(self, folder):
        options, driver = webdriver.ChromeOptions(), shutil.which("chromedriver")
        options.binary_location = shutil.which("chromium")
        for flag in (*FLAGS.split(), f"--user-data-dir={folder}"):
            options.add_argument(flag)
        super().__init__(options, webdriver.ChromeService(driver))

    def show(self, model, folder, name="MNIST", width=1200, errors=33):
        """Write the page of `model`, open it in a window of this width; its bytes."""
        metrics = {"test_images": 10000, "test_errors": errors, "data": {"name": name}}
        file = folder / "draw.html"
        file.write_text(mnist.make_drawing_page(model, metrics), "utf-8")
        size = {"width": width, "height": 840, "deviceScaleFactor": 1, "mobile": False}
        self.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        self.execute_cdp_cmd("Emulation.setTouchEmulationEnabled", {"enabled": True})
        self.get(file.as_uri())
        return file.stat().st_size

    def run(self, expression, *arguments):
        """The value of a JavaScript expression."""
        return self.execute_script(f"return {expression}", *arguments)

    def point(self, pointer, step, *spots):
        """Start, Move or End a stroke, with a mouse, a pen or fingers at `spots`."""
        if pointer == "touch":
            fingers = [{"x": x, "y": y, "id": i} for i, (x, y) in enumerate(spots)]
            event = {"type": f"touch{step}", "touchPoints": fingers * (step != "End")}
            return self.execute_cdp_cmd("Input.dispatchTouchEvent", event)
        kind = {"Start": "Pressed", "Move": "Moved", "End": "Released"}[step]
        event = {"type": f"mouse{kind}", "x": spots[0][0], "y": spots[0][1]}
        event |= {"button": "left", "buttons": int(step != "End"), "clickCount": 1}
        return self.execute_cdp_cmd(
            "Input.dispatchMouseEvent", event | {"pointerType": pointer}
        )

    def draw(self, drawing, pointer="mouse", size=1.0, lift=True):
        """Draw on a clear pad, or its part of this `size`; the digit then shown."""
        self.run("clear.click()")
        box = self.run("pad.getBoundingClientRect().toJSON()")
        for stroke in drawing.split("/"):
            points = trace(stroke) * size * box["width"] + (box["left"], box["top"])
            for i, point in enumerate(points.tolist()):
                self.point(pointer, "Move" if i else "Start", point)
            if lift:
                self.point(pointer, "End", point)
        return self.run(DIGIT)


def misread(page):
    """Draw the twenty digits; say which ones are misread."""
    drawn = [
        (str(i), page.draw(way)) for i, ways in enumerate(DRAWINGS) for way in ways
    ]
    return [f"{digit} as {answer}" for digit, answer in drawn if answer != digit]


def compare(page, model, images):
    """The largest difference to Keras of a probability, and how many answers differ."""
    pixels = (images.reshape(-1, 784) / 255).tolist()
    # One at a time: a browser's script has half a minute.
    answers = np.array([page.run("recognize(arguments[0])", image) for image in pixels])
    expected = mnist.predict(model, images.astype(np.uint8))
    return abs(answers - expected).max(), sum(answers.argmax(1) != expected.argmax(1))


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    """One browser for all tests."""
    with Browser(tmp_path_factory.mktemp("profile")) as browser:
        yield browser


@pytest.fixture
def page(browser, tmp_path):
    """The page of the committed network: it asks for nothing and reports no error."""
    browser.model = mnist.keras.saving.load_model(MODEL)
    assert browser.show(browser.model, tmp_path) <= 750_000
    yield browser
    assert browser.run("performance.getEntriesByType('resource').length") == 0
    assert browser.get_log("browser") == []


@pytest.mark.parametrize("step", [4, pytest.param(1, marks=pytest.mark.slow)])
def test_answers_are_those_of_keras(page, step):
    difference, differing = compare(page, page.model, SUBSET["x_test"][::step])
    assert (difference <= 1e-4, differing) == (True, 0)


def test_other_strides_paddings_poolings_and_negative_scales(page, tmp_path):
    model, layers = (
        mnist.keras.Sequential([mnist.keras.Input((28, 28, 1))]),
        mnist.keras.layers,
    )
    for stride, padding, pool in [(1, "same", 2), (2, "valid", 1), (1, "same", 2)]:
        model.add(layers.Conv2D(5, 3, stride, padding, use_bias=False))
        for layer in (layers.MaxPooling2D(pool), layers.BatchNormalization()):
            model.add(layer)
        model.add(layers.ReLU())
    model.add(layers.GlobalAveragePooling2D())
    model.add(layers.Dense(10, "softmax"))
    random = np.random.default_rng(0)
    for weight in model.weights:
        low = 0.5 if "variance" in weight.name else -1
        weight.assign(random.uniform(low, 1, weight.shape))
    page.show(model, tmp_path)
    noise = random.integers(0, 256, (40, 28, 28))  # MNIST has too little at the border.
    assert compare(page, model, noise)[0] <= 1e-4


def test_twenty_drawn_digits(page):
    assert len(misread(page)) <= 1


@pytest.mark.parametrize("pointer", ["mouse", "touch", "pen"])
def test_any_pointer_draws_at_any_size(page, pointer):
    for digit, size in [(0, 1), (1, 1), (4, 1), (7, 1), (4, 0.3)]:
        assert page.draw(DRAWINGS[digit][0], pointer, size) == str(digit)
        assert page.run(COUNT) == 1 + (digit == 4)


def test_digit_takes_the_form_of_mnist(page):
    page.draw(DRAWINGS[7][0], size=0.5)
    ink = np.reshape(page.run("fitDigit()"), (28, 28))
    assert ink.max() == 1
    assert np.ptp(np.nonzero(ink > 0.3)[0]) in (18, 19, 20)
    centre = [ink.sum(axis) @ np.arange(28) / ink.sum() for axis in (0, 1)]
    assert centre == pytest.approx([14, 14], abs=0.5)
    page.draw(DRAWINGS[1][0])  # A vertical line.
    assert sum(page.run("fitDigit()")[14 * 28 : 15 * 28]) == pytest.approx(2.7, abs=0.2)


def test_undo_and_clear(page):
    for undo, clear in [("undo.click()", "clear.click()"), ("\ue003", "\ue00c")]:
        page.draw(DRAWINGS[4][0])
        for action, left in ((undo, 1), (clear, 0)):
            if action.isascii():
                page.run(action)
            else:  # The key Backspace or Escape.
                webdriver.ActionChains(page).send_keys(action).perform()
            assert page.run(COUNT) == left
    assert "Waiting" in page.run("answer.textContent")
    assert page.run(DIGIT) is None


def test_strokes_are_read_while_they_are_drawn(page):
    assert page.draw(DRAWINGS[0][0], lift=False) == "0"
    assert page.run("answer.ariaBusy") == "true"


def test_second_finger_draws_nothing(page):
    for step, *fingers in [("Start", 150), ("Start", 150, 250), ("Move", 150)]:
        page.point("touch", step, *[(x, 300) for x in fingers])
    assert page.run(f"[{COUNT}, pad.getBBox().width, stroke !== null]") == [1, 0, True]
    page.point("touch", "End")
    assert page.run(f"[{COUNT}, stroke !== null]") == [1, False]


@pytest.mark.parametrize("width", [360, 1600])
def test_page_says_what_it_is_at_any_width(page, tmp_path, width):
    assert "9,967 of 10,000 test images of MNIST" in page.run("document.body.innerText")
    page.show(page.model, tmp_path, "<b>other</b> {{network}}", width)
    assert "<b>other</b> {{network}}" in page.run("document.body.innerText")
    assert page.run("document.documentElement.scrollWidth") == width


if __name__ == "__main__":
    folder, network = Path(tempfile.mkdtemp()), mnist.keras.saving.load_model(MODEL)
    with Browser(folder / "profile") as page:
        figures = json.loads((mnist.OUTPUTS / "metrics.json").read_text())
        errors = figures["test_errors"]
        print("bytes:", page.show(network, folder, errors=errors))
        print("difference to Keras, answers:", compare(page, network, SUBSET["x_test"]))
        print("misread of twenty:", misread(page))
        page.draw(DRAWINGS[2][0])
        clock = (
            "(start => { read(); return performance.now() - start })(performance.now())"
        )
        print("ms a reading:", np.median([page.run(clock) for _ in range(50)]))
        page.save_screenshot(sys.argv[1])
