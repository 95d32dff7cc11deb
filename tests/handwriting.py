"""Measure how well the script reads digits that don't come in MNIST's form.

python tests/handwriting.py paper     1,000 test digits of MNIST on synthetic paper
python tests/handwriting.py mnist     the 10,000 test images, as they are and as PNG
python tests/handwriting.py letters   1,000 letters on such paper, which should get `?`
python tests/handwriting.py pairs     1,000 pairs of touching or close digits, also `?`
python tests/handwriting.py FOLDER    your own images, named by their digit: 7_3.png

For the README's figure, letters need Debian's fonts-comic-neue and fonts-breip. They
and pairs are drawn on sheets of more than 96 pixels.

Every image goes through the script's whole --predict, with the network in outputs/. The
rate leaves out the time for the first forty, which holds the start and the picture.
"""

import argparse
import contextlib
import csv
import io
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import font_manager
from PIL import Image, ImageDraw, ImageFilter, ImageFont
from scipy import ndimage

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import MNIST_HandwritingRecognition as mnist


def draw_page(digit: np.ndarray, chance: np.random.Generator) -> Image.Image:
    """Put a digit, uint8 (28, 28), on a sheet of paper; all else is up to `chance`.

    Its size, place, pen and ink; the sheet's size, colour, ruled lines and specks;
    light that falls off, a shadow's edge, blur, noise, JPEG's losses, and the tag of a
    camera that was held upright or not.
    """
    longest = int(np.exp(chance.uniform(np.log(28), np.log(1500))))
    shape = (longest, max(28, int(longest * chance.uniform(0.5, 1))))[
        :: chance.choice([1, -1])
    ]
    smallest = max(18, longest / 15)
    size = int(
        np.exp(chance.uniform(*np.log([smallest, max(smallest, min(shape)) + 1])))
    )
    ink = choose_pen(digit, size, chance)
    ink = ink[ndimage.find_objects(ink > 0.1, 1)[0]]
    shape = np.maximum(shape, ink.shape)
    cover = draw_background(tuple(shape), size, chance)
    top, left = (int(chance.uniform(0, room + 1)) for room in shape - ink.shape)
    part = cover[top : top + ink.shape[0], left : left + ink.shape[1]]
    np.maximum(part, ink, out=part)
    sheet = chance.uniform(0.6, 1)
    values = sheet * (1 - chance.uniform(0.35, 0.95) * cover)
    if chance.random() < 0.3:
        values = 1 - values
    return photograph(values, size, chance)


def choose_pen(digit: np.ndarray, size: int, chance: np.random.Generator) -> np.ndarray:
    """The digit as ink, 0 to 1, about `size` pixels large, by a pen of any width."""
    image = Image.fromarray(digit).resize((168, 168), Image.Resampling.BICUBIC)
    width = 2 * int(chance.integers(0, 4)) + 1
    if size >= 24 and chance.random() < 0.5:
        pen = chance.choice([ImageFilter.MinFilter, ImageFilter.MaxFilter])
        image = image.filter(pen(width))
    side = round(size * 28 / 20)
    how = Image.Resampling.BICUBIC if side > 168 else Image.Resampling.BOX
    ink = np.asarray(image.resize((side, side), how), np.float32) / 255
    steep = max(1, min(side / 28, 4))  # What was enlarged gets its sharp edges back.
    return np.clip((ink - 0.5) * steep + 0.5, 0, 1) if steep > 1 else ink


def draw_background(shape: tuple, size: int, chance: np.random.Generator) -> np.ndarray:
    """Ruled lines and specks for a digit of `size`: their cover, 0 to 1, of `shape`."""
    cover, (y, x) = np.zeros(shape, np.float32), np.indices(shape, np.float32)
    if size >= 40 and chance.random() < 0.25:
        pitch, slope = size * chance.uniform(0.5, 1.2), np.tan(chance.normal(0, 0.017))
        strength = chance.uniform(0.1, 0.6)
        for across in (y + slope * x, x - slope * y)[: chance.integers(1, 3)]:
            distance = (across + chance.uniform(0, pitch)) % pitch
            line = np.clip(max(1, size / 60) + 0.5 - distance, 0, 1)
            cover = np.maximum(cover, strength * line)
    for _ in range(chance.integers(0, 6) if chance.random() < 0.3 else 0):
        place, radius = chance.uniform(0, shape), size * chance.uniform(0.01, 0.03)
        cover[np.hypot(y - place[0], x - place[1]) <= max(radius, 0.6)] = 0.8
    return cover


def photograph(
    values: np.ndarray, size: int, chance: np.random.Generator
) -> Image.Image:
    """What a camera makes of a page, grey from 0 to 1, with a digit of `size`."""

    def sometimes(share: float, most: float) -> float:
        """Nothing or, in a share of the cases, up to `most`."""
        return chance.uniform(0, most) if chance.random() < share else 0

    y, x = (
        place / side - 0.5
        for place, side in zip(np.indices(values.shape), values.shape)
    )
    angle = chance.uniform(0, 2 * np.pi)
    along = (x * np.cos(angle) + y * np.sin(angle)) * 1.4  # From -1 to 1.
    light = 1 - sometimes(0.4, 0.5) * (along + 1) / 2
    light *= 1 - 2 * sometimes(0.2, 0.4) * (x**2 + y**2)
    if max(values.shape) >= 100:
        edge = (along - chance.uniform(-0.5, 0.5)) * max(values.shape)
        soft = np.clip(edge / chance.uniform(0.7, 8), -50, 50)
        light *= 1 - sometimes(0.25, 0.5) / (1 + np.exp(-soft))
    image = Image.fromarray((values * light * 255).astype(np.uint8))
    image = image.filter(ImageFilter.GaussianBlur(sometimes(0.4, max(0.6, size / 60))))
    grain = chance.normal(0, 1, values.shape) * sometimes(0.5, 0.06) * 255
    image = Image.fromarray(np.clip(np.asarray(image) + grain, 0, 255).astype(np.uint8))
    turned, tag = [(0, 1), (90, 6), (180, 3), (270, 8)][chance.integers(0, 4)]
    image = image.rotate(turned, expand=True)
    if chance.random() < 0.5:
        file = io.BytesIO()
        image.save(file, "JPEG", quality=int(chance.integers(30, 95)))
        image = Image.open(file)
    image.getexif()[0x0112] = tag  # How to turn it upright.
    return image


# Without those that look like a digit in some hand: B G I O Q S Z b c g i j l o q s z.
LETTERS = "ACDEFHJKLMNPRTUVWXYadefhkmnprtuvwxy"
FONTS = ("comicneue", "breip")  # Like handwriting: fonts-comic-neue, fonts-breip.


def draw_letter(chance: np.random.Generator) -> np.ndarray:
    """A letter in one of the fonts, or in DejaVu without these: uint8 (56, 56)."""
    found = map(Path, font_manager.findSystemFonts())
    found = sorted(path for path in found if path.name.lower().startswith(FONTS))
    found = found or [font_manager.findfont("DejaVu Sans")]
    image = Image.new("L", (56, 56))
    font = ImageFont.truetype(found[chance.integers(len(found))], 40)
    letter, style = chance.choice([*LETTERS]), {"anchor": "mm", "stroke_width": 1}
    ImageDraw.Draw(image).text((28, 28), letter, 255, font, **style)
    return np.asarray(image)


def draw_pair(images: np.ndarray, chance: np.random.Generator) -> np.ndarray:
    """Two of the images side by side, at most 2 pixels apart or over each other."""
    canvas, gap = np.zeros((44, 44), np.uint8), chance.integers(-2, 3)
    left, right = (
        image[:, image.any(axis=0)]
        for image in images[chance.integers(len(images), size=2)]
    )
    canvas[8:36, 22 - left.shape[1] : 22] = left
    place = canvas[8:36, 22 + gap : 22 + gap + right.shape[1]]
    np.maximum(place, right[:, : place.shape[1]], out=place)
    return canvas


def write_pages(folder: Path, examples: Any, count: int, seed: int = 0) -> None:
    """Write `count` sheets of the folder's name: digits as 7_0012.png, others as x_."""
    chance = np.random.default_rng(seed)
    for number in range(count):
        which = chance.integers(len(examples.labels))
        name, image = examples.labels[which], examples.images[which]
        if folder.name == "letters":
            name, image = "x", draw_letter(chance)
        elif folder.name == "pairs":
            name, image = "x", draw_pair(examples.images, chance)
        page = draw_page(image, chance)
        while name == "x" and max(page.size) <= 96:  # What is small is made for digits.
            page = draw_page(image, chance)
        page.save(folder / f"{name}_{number:04d}.png", exif=page.getexif())


def predict(paths: list[Path]) -> list[dict[str, str]]:
    """The rows that the script's --predict prints."""
    with tempfile.TemporaryDirectory() as outputs:
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            mnist.main(["--predict", *map(str, paths), "--outputs", outputs])
    return list(csv.DictReader(printed.getvalue().splitlines(), delimiter="\t"))


def report(name: str, right: np.ndarray, sure: np.ndarray) -> None:
    """Print how many are right, of all and of those with a confidence of .9 or more."""
    print(
        f"{name}: {right.sum():,} of {len(right):,} right ({right.mean():.2%}); "
        f"sure of {sure.sum():,}, of them {right[sure].sum():,} right "
        f"({right[sure].mean() if sure.any() else 0:.2%})"
    )


def measure(folder: Path) -> None:
    """Read all images in `folder`, and print what came of it."""
    ends = [time.perf_counter()]
    for _ in range(2):  # The first call compiles, too.
        predict(sorted(folder.glob("?_*.png"))[:40])
        ends.append(time.perf_counter())
    rows = predict(sorted(folder.glob("?_*.png")))
    seconds = time.perf_counter() - ends[2] - (ends[2] - ends[1])
    wanted = [Path(row["image"]).name[0].replace("x", "?") for row in rows]
    right = np.array([row["digit"] == digit for row, digit in zip(rows, wanted)])
    sure = np.array([float(row["confidence"].replace("-", "0")) >= 0.9 for row in rows])
    report(folder.name, right, sure)
    missed = [row for row, hit in zip(rows, right) if not hit]
    for row in missed[:30]:
        print(
            f"  {Path(row['image']).name} read as {row['digit']} ({row['confidence']})"
        )
    if len(rows) > 40:
        print(f"  {(len(rows) - 40) / seconds:.0f} images/s")


def main() -> None:
    """Measure what the command line asks for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", help="paper, mnist, letters, pairs, or a folder")
    parser.add_argument("--count", type=int, default=1000, help="pages (default 1000)")
    parser.add_argument(
        "--keep", type=Path, help="write the images here, and keep them"
    )
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(options.keep or temporary, options.what)
        if options.what not in ("paper", "mnist", "letters", "pairs"):
            measure(Path(options.what))
            return
        folder.mkdir(parents=True)
        test = mnist.find_mnist()[1]
        if options.what != "mnist":
            write_pages(folder, test, options.count)
        else:
            model, _ = mnist.load_network(mnist.OUTPUTS / "model.keras")
            answers = mnist.predict(model, test.images)
            right = answers.argmax(axis=1) == test.labels
            report("as they are", right, answers.max(axis=1) >= 0.9)
            for number, (image, label) in enumerate(test):
                Image.fromarray(image).save(folder / f"{label}_{number:04d}.png")
        measure(folder)


if __name__ == "__main__":
    main()
