"""Measure how well the script reads digits that don't come in MNIST's form.

python tests/handwriting.py paper     1,000 digits, each on a synthetic sheet of paper
python tests/handwriting.py mnist     the 10,000 test images, as they are and as PNG
python tests/handwriting.py pages     300 synthetic pages of numbers (see pages.py)
python tests/handwriting.py pairs     200 pairs of digits, close or touching
python tests/handwriting.py letters   1,000 letters that look like no digit, each alone
python tests/handwriting.py FOLDER    your own images, named by their digit (7_3.png),
                                      or with a truth.tsv: image, numbers

The digits are MNIST's test images or, for development, the 5,000 training images that a
default run holds out (--part validation). Every image goes through the script's whole
--predict, with the network in outputs/. The rate leaves out the time for the first
forty, which holds the start and the picture. Letters are of Comic Neue and BREIP
(Debian's fonts-comic-neue and fonts-breip), if they are found, else of Matplotlib's own
fonts, without BDGIJOQSZbgijloqsyz, which look like digits.

Digits: one minus the edit distance between all that was read on an image and the truth,
spaces left out, over the number of true digits. A `?` is right where a letter stands,
and wrong elsewhere. On an image without digits each digit read is an error, a `?` not.
Split: the same with the lengths of the numbers instead of their digits, and exact: with
whole numbers. These, and what is sure (a confidence of 0.9), mean something only if
truth.tsv has a space between all numbers.
"""

import argparse
import contextlib
import csv
import io
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageFilter
from scipy import ndimage

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import pages

import MNIST_HandwritingRecognition as mnist

COUNTS = {"paper": 1000, "mnist": 10000, "pages": 300, "pairs": 200, "letters": 1000}


# ---- Sheets of paper with one digit --------------------------------------------------


def draw_sheet(digit: np.ndarray, chance: np.random.Generator) -> Image.Image:
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


# ---- Sets of images ------------------------------------------------------------------


def draw_images(
    what: str, digits: Any, count: int, fonts: list[Path], chance: np.random.Generator
) -> Iterator[tuple[Image.Image, list[str], str]]:
    """Draw the images of a set: each, its true numbers, and its difficulties."""
    for number in range(count):
        which = chance.integers(len(digits.labels)) if what == "paper" else number
        if what == "paper":
            sheet = draw_sheet(digits.images[which], chance)
            yield sheet, [str(digits.labels[which])], ""
        elif what == "mnist":
            image = Image.fromarray(digits.images[which])
            yield image, [str(digits.labels[which])], ""
        else:
            yield pages.draw_image(what, digits, number, fonts, chance)


def write_images(folder: Path, images: Iterable[tuple]) -> None:
    """Write a set of images, every other page as JPEG, and its truth.tsv."""
    table = [("image", "numbers", "difficulties")]
    for number, (image, numbers, names) in enumerate(images):
        lossy = image.mode == "RGB" and number % 2
        name = f"{number:05d}.{'jpg' if lossy else 'png'}"
        image.save(folder / name, quality=80, exif=image.getexif())
        table.append((name, " ".join(numbers), names))
    text = "".join("\t".join(row) + "\n" for row in table)
    (folder / "truth.tsv").write_text(text)


# ---- Measuring -----------------------------------------------------------------------


def read_truth(folder: Path) -> dict[Path, tuple[list[str], list[str]]]:
    """The true numbers and the difficulties of each image in a folder."""
    table = folder / "truth.tsv"
    if not table.exists():
        files = sorted(folder.glob("[0-9]_*"))
        return {file: ([file.name[0]], []) for file in files}
    _, *rows = csv.reader(table.read_text().splitlines(), delimiter="\t")
    return {
        folder / name: (numbers.replace("-", "").split(), " ".join(names).split())
        for name, numbers, *names in rows
    }


def read(paths: Sequence[Path]) -> list[dict[str, str]]:
    """The rows that the script's --predict prints, one for each number."""
    printed = io.StringIO()
    with tempfile.TemporaryDirectory() as outputs, contextlib.redirect_stdout(printed):
        mnist.main(["--predict", *map(str, paths), "--outputs", outputs])
    return list(csv.DictReader(printed.getvalue().splitlines(), delimiter="\t"))


def edit_distance(first: Sequence, second: Sequence) -> int:
    """The fewest insertions, deletions and substitutions (Levenshtein) between two."""
    row = list(range(len(second) + 1))
    for i, one in enumerate(first):
        corner, row[0] = row[0], i + 1
        for j, other in enumerate(second):
            change = corner + (one != other)
            corner = row[j + 1]
            row[j + 1] = min(change, corner + 1, row[j] + 1)
    return row[-1]


def score(truth: list[str], rows: list[dict[str, str]]) -> Counter:
    """Count what came of one image, from its true numbers and from the rows read."""
    rows = [row for row in rows if row["number"] != "-"]
    numbers = [row["number"] for row in rows]
    sure = [row["number"] for row in rows if float(row["confidence"]) >= 0.9]
    unknown = "".join(numbers).count("?")
    if not truth:
        numbers = list(filter(None, (number.replace("?", "") for number in numbers)))
    return Counter(
        images=1,
        right=numbers == truth,
        digits=len("".join(truth)),
        errors=edit_distance("".join(truth), "".join(numbers)),
        unknown=unknown,
        numbers=len(truth),
        unsplit=edit_distance(list(map(len, truth)), list(map(len, numbers))),
        misread=edit_distance(truth, numbers),
        sure=len(sure),
        sure_and_wrong=sum(number not in truth for number in sure),
        one_sure_digit=numbers == sure and len("".join(sure)) == 1,
    )


def report(name: str, counts: Counter) -> None:
    """Print a line of the table with the sum of such counts."""
    print(
        f"{name:12}{counts['images']:7}{counts['right'] / counts['images']:9.2%}",
        end="",
    )
    for whole, *wrongs in (("digits", "errors"), ("numbers", "unsplit", "misread")):
        print(f"{counts[whole]:9}", end="")
        for wrong in wrongs if counts[whole] else ():
            print(f"{1 - counts[wrong] / counts[whole]:9.2%}", end="")
    print()


def measure(folder: Path, shown: int) -> None:
    """Read all images of a folder; print the first errors, and what came of it."""
    truth = read_truth(folder)
    ends = [time.perf_counter()]
    for _ in range(2):  # The first call compiles, too.
        if len(truth) > 40:
            read(list(truth)[:40])
        ends.append(time.perf_counter())
    answers = defaultdict(list)
    for row in read(list(truth)):
        answers[Path(row["image"]).name].append(row)
    seconds = time.perf_counter() - ends[2] - (ends[2] - ends[1])
    totals: dict[str, Counter] = defaultdict(Counter)
    for path, (numbers, names) in truth.items():
        counts = score(numbers, answers[path.name])
        for name in ("all", *names):
            totals[name].update(counts)
        if not counts["right"] and (shown := shown - 1) >= 0:
            said = " ".join(row["number"] for row in answers[path.name])
            errors = f"{counts['errors']} errors"
            print(f"{path.name}: {errors}, {' '.join(numbers)} read as {said}")
    print(", ".join(f"{name} {count}" for name, count in totals["all"].items()))
    print(f"{'':12} images    right   digits    right  numbers    split    exact")
    for name in sorted(totals):
        report(name, totals[name])
    if len(truth) > 40:
        print(f"{(len(truth) - 40) / seconds:.1f} images/s after the first 40")


def main() -> None:
    """Measure what the command line asks for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", help="one of the above, or a folder of images")
    parser.add_argument("--count", type=int, help="how many images to draw")
    parser.add_argument("--keep", type=Path, help="write them here, and keep them")
    parser.add_argument("--part", choices=["test", "validation"], default="test")
    parser.add_argument("--fonts", type=Path, nargs="+", default=pages.find_fonts())
    options = parser.parse_args()
    what = options.what
    if what not in COUNTS:
        measure(Path(what), shown=1000)
        return
    train, test, _ = mnist.find_mnist()
    held_out = np.random.default_rng(0).permutation(len(train))[:5000]
    digits = test if options.part == "test" else train[held_out]
    count = min(options.count or COUNTS[what], len(digits.labels))
    if what == "mnist":
        model, _ = mnist.load_network(mnist.OUTPUTS / "model.keras")
        probabilities = mnist.predict(model, digits.images[:count])
        right = probabilities.argmax(axis=1) == digits.labels[:count]
        print(f"as they are: {right.sum():,} of {len(right):,} right")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(options.keep or temporary, what)
        folder.mkdir(parents=True)
        chance = np.random.default_rng(0)
        write_images(folder, draw_images(what, digits, count, options.fonts, chance))
        measure(folder, shown=30)


if __name__ == "__main__":
    main()
