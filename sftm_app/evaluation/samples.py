"""Inputs for trying a model: drawings, uploads, and labelled sets."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from sftm_app.errors import SampleError

GLYPH_SIDE = 28
INK_SIDE = 20
MAX_PIXELS = 50_000_000
IMAGE_ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".bmp")


@dataclass(frozen=True, eq=False)
class ImageSamples:
    """Images uint8 (n, height, width) or (n, height, width, 3), and labels int64 (n,), -1 where not known.

    choices: names of the classes, for models that have none of their own.
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    choices: tuple[str, ...] | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def subset(self, n: int) -> ImageSamples:
        """At most `n` of them, in their order, the same ones each time and as even over the classes as can be."""
        return self.take(self.spread(n))

    def spread(self, n: int) -> list[int]:
        """The positions of subset(n)."""
        chosen: list[int] = balanced(self.labels, n).tolist()
        return chosen

    def take(self, positions: list[int]) -> ImageSamples:
        """The samples at these positions."""
        return ImageSamples(self.images[positions], self.labels[positions], self.choices)


def balanced(labels: NDArray[np.int64], n: int) -> NDArray[np.intp]:
    """Positions of at most `n` of the labels (int64), ascending: the first of every class, then the second, and so on.

    Sets are often stored class by class, so their first `n` would be a few classes only.
    """
    turns = np.zeros(len(labels), np.int64)
    for label in np.unique(labels):
        members = labels == label
        turns[members] = np.arange(members.sum())
    return np.sort(np.argsort(turns, kind="stable")[:n])


def centre_glyph(drawing: NDArray[np.uint8]) -> NDArray[np.uint8] | None:
    """A drawing (height, width), white on black, as the demo's models know glyphs: uint8 (28, 28); None when empty.

    As in MNIST: the ink's bounding box is fitted into 20 x 20 and its centre of mass put into the middle.
    """
    ink = drawing > 40
    if not ink.any():
        return None
    rows, columns = np.flatnonzero(ink.any(1)), np.flatnonzero(ink.any(0))
    box = drawing[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    scale = INK_SIDE / max(box.shape)
    size = tuple(max(1, round(side * scale)) for side in box.shape[::-1])
    resampling = Image.Resampling.BOX if scale < 1 else Image.Resampling.BILINEAR
    mass = np.asarray(Image.fromarray(box.astype(np.float32)).resize(size, resampling), np.float64)
    # Thin strokes fade when made smaller; the models know glyphs whose brightest pixel is white.
    small = np.rint(mass * (255 / mass.max())).astype(np.uint8)
    total = mass.sum()
    # At most the margin that is left around the 20 x 20 box, so that no ink is cut off.
    offsets = []
    for axis, side in enumerate(small.shape):
        positions = np.arange(side) + 0.5
        centre = (mass.sum(1 - axis) * positions).sum() / total
        offsets.append(int(np.clip(round(GLYPH_SIDE / 2 - centre), 0, GLYPH_SIDE - side)))
    glyph = np.zeros((GLYPH_SIDE, GLYPH_SIDE), np.uint8)
    glyph[offsets[0] : offsets[0] + small.shape[0], offsets[1] : offsets[1] + small.shape[1]] = small
    return glyph


def load_image(path: Path, channels: int) -> NDArray[np.uint8]:
    """An image file as uint8, (height, width) for one channel or (height, width, 3) for three.

    Raises
        SampleError: not an image, or larger than 50 million pixels.
    """
    try:
        with Image.open(path) as image:
            if image.width * image.height > MAX_PIXELS:
                raise SampleError(f"{path.name}: is larger than {MAX_PIXELS} pixels. Make it smaller.")
            return np.asarray(image.convert("L" if channels == 1 else "RGB"))
    except (OSError, ValueError, SyntaxError, UnidentifiedImageError, Image.DecompressionBombError):
        raise SampleError(f"{path.name}: is not an image that can be read. Use PNG or JPEG.") from None


def load_labelled_folder(folder: Path, id2label: dict[int, str], channels: int, limit: int = 2000) -> ImageSamples:
    """Labelled images from a folder with one subfolder per class, named by the class or its number.

    At most `limit` images are read, as even over the classes as can be. Images of different sizes are scaled to the
    first one's. A subfolder whose name is both a class and a number ("7" where classes are called by digits) is the
    class of that name.

    Raises
        SampleError: no such folder, no permission, a subfolder that names no class, or no images.
    """
    try:
        files = _labelled_files(folder, id2label)
    except OSError as error:
        where = error.filename or folder
        raise SampleError(f"{where}: cannot be read ({error.strerror}). Change its permissions or copy it.") from None
    if not files:
        raise SampleError(f"{folder}: holds no images. It should hold one subfolder of PNG or JPEG images per class.")
    images: list[NDArray[np.uint8]] = []
    labels = np.array([label for _, label in files], np.int64)
    chosen = balanced(labels, limit)
    for position in chosen:
        image = load_image(files[position][0], channels)
        if images and image.shape != images[0].shape:
            size = images[0].shape[1::-1]
            image = np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BILINEAR))
        images.append(image)
    return ImageSamples(np.stack(images), labels[chosen])


def _labelled_files(folder: Path, id2label: dict[int, str]) -> list[tuple[Path, int]]:
    """Every image file with its class; raises OSError where a folder cannot be looked into."""
    if not folder.is_dir():
        raise SampleError(f"{folder}: there is no such folder. It should hold one subfolder of images per class.")
    index = {str(i): i for i in id2label} | {label: i for i, label in id2label.items()}
    found: list[tuple[Path, int]] = []
    for child in sorted(child for child in folder.iterdir() if child.is_dir()):
        if child.name not in index:
            known = ", ".join(list(id2label.values())[:8])
            raise SampleError(f"{child}: {child.name!r} is not a class of this task. Its classes are {known}, ...")
        files = sorted(file for file in child.iterdir() if file.suffix.lower() in IMAGE_ENDINGS)
        found += [(file, index[child.name]) for file in files]
    return found
