"""Synthetic pages of numbers, written with digits of MNIST, as a camera sees them.

`draw_page` writes given lines with given difficulties; `draw_image` draws one image of
a set that `handwriting.py` measures: pages, pairs of digits, letters.
"""

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib import font_manager
from PIL import Image, ImageDraw, ImageFilter, ImageFont
from scipy import ndimage

LIKE_DIGITS = "BDGIJOQSZbgijloqsyz"  # Left out: a digit is no wrong answer to these.
LETTERS = [c for c in map(chr, range(65, 123)) if c.isalpha() and c not in LIKE_DIGITS]
FONTS = sorted(Path(matplotlib.get_data_path()).glob("fonts/ttf/DejaVuS*[!y].ttf"))
HANDS = re.compile("(ComicNeue-.*|Breip)[.][ot]tf")  # Fonts like a hand's letters.
INKS = [(0.12, 0.12, 0.14), (0.12, 0.2, 0.55), (0.15, 0.17, 0.35), (0.6, 0.12, 0.15)]
LIGHTS = ["gradient", "vignette", "lamp", "shadow"]
RULES = ["lines", "squares", "boxes"]
NAMED = ["slope", "wave", "uneven", "specks", "inverted", "table", "blur"]
DEGREES = {1: 0, 6: 90, 3: 180, 8: 270}  # EXIF's tag of a photo, and how it is turned.


@dataclass(frozen=True)
class Difficulties:
    """What makes a page hard to read. Lengths are in heights of a digit."""

    size: int = 48  # The height of a digit, in pixels.
    pen: int = 0  # From -3 to 3: makes strokes thinner or thicker, by an MNIST pixel.
    gap: float = 0.2  # Between digits.
    space: float = 1.4  # Between numbers.
    pitch: float = 1.8  # From line to line.
    margin: tuple[float, float] = (0.7, 2.5)  # The smallest and the largest.
    slope: float = 0.0  # Of the lines, in degrees.
    wave: float = 0.0  # How far the lines go up and down.
    uneven: float = 0.0  # How far digits stand above or below, or differ in size.
    rules: str = ""  # One of RULES; "boxes" need a gap of at least .4.
    specks: int = 0
    erased: float = 0.0  # How far the same, erased, is still to be seen between lines.
    ink: tuple = INKS[0]
    contrast: float = 0.9  # How far the ink covers the paper.
    inverted: bool = False  # White on black.
    table: bool = False  # A dark one, around the paper.
    light: str = ""  # One of LIGHTS.
    blur: float = 0.0  # In pixels.
    grain: float = 0.01  # Standard deviation, where white is 1.
    tag: int = 1  # EXIF's, for a photo that is turned.
    fonts: Sequence[Path] = tuple(FONTS)  # For letters; the same everywhere.


class Glyph(NamedTuple):
    """Ink of one character, from 0 to 1, and where its upper left corner is."""

    ink: np.ndarray
    left: int
    top: int


def find_fonts() -> list[Path]:
    """Find Comic Neue and BREIP (Debian: fonts-comic-neue, fonts-breip), or FONTS."""
    found = sorted(map(Path, font_manager.findSystemFonts()))
    return [font for font in found if HANDS.fullmatch(font.name)] or FONTS


# ---- Lines of digits -----------------------------------------------------------------


def draw_letter(letter: str, font: Path) -> np.ndarray:
    """Draw a letter as large as MNIST's digits are, uint8 (168, 168): six times 28."""
    image = Image.new("L", (168, 168))
    left, top, right, bottom = ImageFont.truetype(font, 100).getbbox(letter)
    typeface = ImageFont.truetype(font, 100 * 120 / max(right - left, bottom - top))
    ImageDraw.Draw(image).text((84, 84), letter, 255, typeface, anchor="mm")
    return np.asarray(image)


def write_character(image: np.ndarray, size: int, pen: int) -> np.ndarray:
    """Enlarge a digit, uint8 (28, 28), to ink, from 0 to 1, of about `size` pixels."""
    large = Image.fromarray(image).resize((168, 168), Image.Resampling.BICUBIC)
    change = ImageFilter.MinFilter if pen < 0 else ImageFilter.MaxFilter
    large = large.filter(change(2 * abs(pen) + 1))
    side = round(size * 28 / 20)
    how = Image.Resampling.BICUBIC if side > 168 else Image.Resampling.BOX
    ink = np.asarray(large.resize((side, side), how), np.float32) / 255
    sharpness = np.clip(side / 28, 1, 4)  # What was enlarged has lost its sharp edges.
    ink = np.clip((ink - 0.5) * sharpness + 0.5, 0, 1)
    return ink[ndimage.find_objects(ink > 0.1, 1)[0]]


def nearest(before: Glyph, ink: np.ndarray, top: int, reach: int) -> int:
    """The column where `ink` would just touch the glyph before it.

    Strokes meet when they are in the same row or less than `reach` pixels from it.
    """
    rows = range(
        min(before.top, top), max(before.top + len(before.ink), top + len(ink))
    )
    right, left = np.full((2, len(rows)), -np.inf)
    for edge, mask, start in (
        (right, before.ink[:, ::-1] > 0.3, before.top - rows[0]),
        (left, ink > 0.3, top - rows[0]),
    ):
        distance = np.where(mask.any(axis=1), -mask.argmax(axis=1), -np.inf)
        edge[start : start + len(mask)] = distance
    right = ndimage.maximum_filter1d(right, 2 * reach + 1)
    meeting = (right + left).max()
    width = before.ink.shape[1]
    return before.left + width + (int(meeting) if np.isfinite(meeting) else 0)


def write_line(
    digits: Any,
    text: str,
    start: float,
    chance: np.random.Generator,
    page: Difficulties,
) -> list[Glyph]:
    """Write numbers on a line that begins at (0, start), with digits of MNIST.

    Letters are printed. What stands on either side of a `~` touches.
    """
    glyphs: list[Glyph] = []
    phase, end, size = chance.uniform(0, 2 * np.pi), 0, page.size
    for before, character in zip("^" + text, text):
        if character in "~ ":
            continue
        if character.isdigit():
            same = np.flatnonzero(digits.labels == int(character))
            image = digits.images[chance.choice(same)]
        else:
            image = draw_letter(character, page.fonts[chance.integers(len(page.fonts))])
        taller, higher = chance.uniform(-page.uneven, page.uneven, 2)
        ink = write_character(image, round(size * (1 + taller)), page.pen)
        higher += page.wave * np.sin(end / size / 3 + phase)
        bottom = start + end * np.tan(np.radians(page.slope)) - higher * size
        top = round(bottom) - len(ink)
        if before == " ":
            end += round(page.space * size)
        elif before == "~":
            end = nearest(glyphs[-1], ink, top, 0) - round(0.06 * size) - 1
        elif before != "^":
            end = nearest(glyphs[-1], ink, top, size // 8) + round(page.gap * size) + 1
        glyphs.append(Glyph(ink, end, top))
        end += ink.shape[1]
    return glyphs


# ---- Paper and light -----------------------------------------------------------------


def draw_rules(
    shape: tuple, glyphs: list[Glyph], left: int, top: int, page: Difficulties
) -> np.ndarray:
    """Ruled lines or squares, the first through (left, top), or boxes: 0 or 1."""
    if page.rules == "boxes":
        image, margin = Image.new("1", shape[::-1]), page.size // 5
        for ink, x, y in glyphs:
            right, bottom = x + ink.shape[1] + margin, y + ink.shape[0] + margin
            box = (x - margin, y - margin, right, bottom)
            ImageDraw.Draw(image).rectangle(box, outline=1, width=page.size // 25 + 1)
        return np.asarray(image)
    y, x = np.indices(shape, np.float32)
    tangent, thick = np.tan(np.radians(page.slope)), page.size // 30 + 1
    apart = page.pitch * page.size / (3 if page.rules == "squares" else 1)
    lines = (y - top - tangent * (x - left)) % apart < thick
    upright = (x - left + tangent * (y - top)) % apart < thick
    return lines | upright if page.rules == "squares" else lines


def cast_light(shape: tuple, kind: str, chance: np.random.Generator) -> np.ndarray:
    """One of LIGHTS on a photo: a factor for each pixel, at most 1."""
    y, x = (i / side - 0.5 for i, side in zip(np.indices(shape, np.float32), shape))
    angle, strength = chance.uniform(0, 2 * np.pi), chance.uniform(0.1, 0.5)
    along = (x * np.cos(angle) + y * np.sin(angle)) * 1.4  # From -1 to 1.
    if kind == "gradient":
        return 1 - strength * (along + 1) / 2
    if kind == "shadow":
        edge = (along - chance.uniform(-0.5, 0.5)) * max(shape) / chance.uniform(0.7, 8)
        return 1 - strength / (1 + np.exp(-np.clip(edge, -50, 50)))
    down, right = chance.uniform(-0.5, 0.5, 2) if kind == "lamp" else (0, 0)
    distance = (x - right) ** 2 + (y - down) ** 2
    return 1 - 1.2 * strength * np.minimum(2 * distance, 1)


def lay_on_table(paper: np.ndarray, chance: np.random.Generator) -> np.ndarray:
    """Turn a page, (height, width, 3), by up to 6 degrees, on a dark table."""
    sheet = Image.fromarray((paper * 255).astype(np.uint8)).convert("RGBA")
    sheet = sheet.rotate(chance.uniform(-6, 6), Image.Resampling.BICUBIC, expand=True)
    around = chance.uniform(0.02, 0.2, 4) * max(sheet.size)
    left, top, right, bottom = map(int, around)
    size = (sheet.width + left + right, sheet.height + top + bottom)
    table = Image.new("RGBA", size, tuple(chance.integers(15, 75, 3).tolist()))
    table.alpha_composite(sheet, (left, top))
    return np.asarray(table.convert("RGB"), np.float32) / 255


def draw_page(
    digits: Any,
    lines: Sequence[str],
    chance: np.random.Generator,
    **difficulties: Any,
) -> tuple[Image.Image, list[str]]:
    """Photograph a page of lines of numbers, written with these digits of MNIST.

    Returns the photo, and the numbers that are to be read. See write_line for how to
    have letters and touching digits, and Difficulties for the others.
    """
    page = Difficulties(**difficulties)
    starts = np.arange(len(lines)) * page.pitch * page.size
    glyphs: list[Glyph] = []
    for text, start in zip(lines, starts):
        glyphs += write_line(digits, text, start, chance, page)
    left, up, right, down = (chance.uniform(*page.margin, 4) * page.size).astype(int)
    up -= min(glyph.top for glyph in glyphs)
    glyphs = [Glyph(ink, x + left, y + up) for ink, x, y in glyphs]
    bottoms, rights = zip(*(np.add(g.ink.shape, (g.top, g.left)) for g in glyphs))
    cover = np.zeros((max(bottoms) + down, max(rights) + right), np.float32)
    if page.rules:
        rules = draw_rules(cover.shape, glyphs, left, up + page.size // 10, page)
        cover += chance.uniform(0.15, 0.5) * rules
    for y, x in chance.integers(0, cover.shape, (page.specks, 2)):
        width = 1 + chance.integers(page.size // 20 + 1)
        cover[y : y + width, x : x + width] = 0.8
    for ink, x, y in glyphs:
        part = cover[y : y + ink.shape[0], x : x + ink.shape[1]]
        np.maximum(part, ink, out=part)
    between = round(page.pitch * page.size / 2)
    erased = page.erased * np.roll(cover, between, axis=0)
    cover = np.maximum(cover, erased)
    paper = chance.uniform(0.7, 1) - chance.uniform(0, 0.08, 3)
    values = paper + page.contrast * cover[..., None] * (page.ink - paper)
    values = 1 - values if page.inverted else values
    values = lay_on_table(values, chance) if page.table else values
    numbers = re.sub(r"[^0-9 ]", "?", " ".join(lines).replace("~", "")).split()
    return photograph(values, chance, page), numbers


def photograph(
    values: np.ndarray, chance: np.random.Generator, page: Difficulties
) -> Image.Image:
    """Photograph what is there, (height, width, 3) from 0 to 1."""
    if page.light:
        values = values * cast_light(values.shape[:2], page.light, chance)[..., None]
    values = ndimage.gaussian_filter(values, (page.blur, page.blur, 0))
    noise = chance.standard_normal((*values.shape[:2], 1), np.float32)
    values = (values + page.grain * noise).clip(0, 1) * 255
    image = Image.fromarray(values.astype(np.uint8))
    image = image.rotate(DEGREES[page.tag], expand=True)
    image.getexif()[0x0112] = page.tag
    return image


# ---- Sets of images ------------------------------------------------------------------


def choose_difficulties(chance: np.random.Generator) -> Difficulties:
    """Choose what is difficult about a page; each difficulty is on some of them."""

    def sometimes(share: float, value: Any, otherwise: Any = 0) -> Any:
        """Return `value` in that share of the cases."""
        return value if chance.random() < share else otherwise

    size = int(np.exp(chance.uniform(np.log(20), np.log(90))))
    rules = sometimes(0.35, str(chance.choice(RULES)), "")
    inverted = sometimes(0.1, True)
    return Difficulties(
        size=size,
        pen=int(chance.integers(-1, 4)),
        gap=0.4 if rules == "boxes" else chance.uniform(0.1, 0.4),
        space=chance.uniform(1.2, 2.2),
        pitch=chance.uniform(1.7, 3),
        slope=sometimes(0.3, chance.uniform(-15, 15)) * (rules != "boxes"),
        wave=sometimes(0.15, chance.uniform(0.1, 0.3)) * (not rules),
        uneven=sometimes(0.3, chance.uniform(0.05, 0.2)),
        rules=rules,
        specks=sometimes(0.15, int(chance.integers(1, 10))),
        ink=INKS[chance.integers(len(INKS))],
        contrast=chance.uniform(0.6, 1),
        inverted=inverted,
        table=sometimes(0.2, not inverted),
        light=sometimes(0.5, str(chance.choice(LIGHTS)), ""),
        blur=sometimes(0.3, chance.uniform(0, size / 30)),
        grain=sometimes(0.3, chance.uniform(0.01, 0.05), 0.01),
        tag=sometimes(0.2, int(chance.choice(list(DEGREES))), 1),
    )


def choose_lines(chance: np.random.Generator) -> list[str]:
    """Choose up to ten lines of up to four numbers of up to ten digits.

    A page in eight is a column of single digits. On a page in eight two digits touch,
    and on as many a number ends with a letter.
    """
    column = chance.random() < 1 / 8
    rows, words, longest = (10, 1, 1) if column else chance.integers(1, (11, 5, 11))
    lines = []
    for _ in range(rows):
        lengths = chance.integers(1, longest + 1, chance.integers(1, words + 1))
        numbers = ["".join(map(str, chance.integers(0, 10, each))) for each in lengths]
        lines.append(" ".join(numbers))
    place = chance.integers(rows)
    if chance.random() < 1 / 8:
        lines[place] = re.sub(r"(\d)(\d)", r"\1~\2", lines[place], count=1)
    if chance.random() < 1 / 8 and not column:
        lines[place] += str(chance.choice(LETTERS))
    return lines


def draw_image(
    what: str, digits: Any, number: int, fonts: list[Path], chance: np.random.Generator
) -> tuple[Image.Image, list[str], str]:
    """Draw an image of "pages", "pairs" or "letters": it, its numbers, difficulties."""
    page = replace(choose_difficulties(chance), fonts=[fonts[number % len(fonts)]])
    plain = Difficulties(size=page.size, fonts=page.fonts)
    if what == "pages":
        lines = choose_lines(chance)
    elif what == "pairs":
        lines = [chance.choice(["", "~"]).join(map(str, chance.integers(0, 10, 2)))]
        page = replace(plain, gap=chance.uniform(0, 0.08))
    else:
        lines, page = [str(chance.choice(LETTERS))], plain
    image, numbers = draw_page(digits, lines, chance, **asdict(page))
    names = [page.rules, page.light, *(name for name in NAMED if getattr(page, name))]
    names += ["touching"] * ("~" in "".join(lines))
    names += ["letter"] * ("?" in "".join(numbers))
    return image, [] if what == "letters" else numbers, " ".join(names)
