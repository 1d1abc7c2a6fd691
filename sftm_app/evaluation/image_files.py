"""Images from drawings, files and folders."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from sftm_app.errors import CheckpointError, SampleError
from sftm_app.evaluation.samples import ImageSamples, balanced
from sftm_app.weights.header import open_regular

GLYPH_SIDE = 28
INK_SIDE = 20
# Darker pixels of a drawing count as background.
INK_THRESHOLD = 40
MAX_PIXELS = 50_000_000
IMAGE_ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
FORMATS = ("PNG", "JPEG", "WEBP", "BMP")


def centre_glyph(drawing: NDArray[np.uint8]) -> NDArray[np.uint8] | None:
    """Scale and centre a drawing like the glyphs that the demo's models were trained on.

    As in MNIST, the bounding box of the ink is scaled to fit 20 x 20, and its centre of mass moves to the middle.

    Args:
        drawing: uint8 (height, width), white on black.

    Returns:
        uint8 (28, 28); None for an empty drawing.
    """
    ink = drawing > INK_THRESHOLD
    if not ink.any():
        return None
    rows, columns = np.flatnonzero(ink.any(1)), np.flatnonzero(ink.any(0))
    box = drawing[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    scale = INK_SIDE / max(box.shape)
    size = tuple(max(1, round(side * scale)) for side in box.shape[::-1])
    resampling = Image.Resampling.BOX if scale < 1 else Image.Resampling.BILINEAR
    mass = np.asarray(Image.fromarray(box.astype(np.float32)).resize(size, resampling), np.float64)
    # Thin strokes fade when they shrink; the brightest pixel of the glyphs in training is white.
    glyph = np.rint(mass * (255 / mass.max())).astype(np.uint8)
    margins = []
    for axis, side in enumerate(glyph.shape):
        centre = np.average(np.arange(side) + 0.5, weights=mass.sum(1 - axis))
        # Clipped so that no ink leaves the image.
        before = int(np.clip(round(GLYPH_SIDE / 2 - centre), 0, GLYPH_SIDE - side))
        margins.append((before, GLYPH_SIDE - side - before))
    return np.pad(glyph, margins)


def load_image(path: Path, channels: int) -> NDArray[np.uint8]:
    """Read an image file.

    Args:
        path: of the file.
        channels: 1 for grey, 3 for colour.

    Returns:
        uint8 (height, width) or (height, width, 3).

    Raises:
        SampleError: the file is not an image, or it has more than 50 million pixels.
    """
    try:
        # A pipe would wait for ever.
        with os.fdopen(open_regular(path), "rb") as file:
            return decode_image(file, path.name, channels)
    except (CheckpointError, OSError):
        raise SampleError(f"{path.name}: cannot be read as an image. Use PNG or JPEG.") from None


def decode_image(file: IO[bytes], name: str, channels: int) -> NDArray[np.uint8]:
    """The same from an open file. name: what errors call it."""
    try:
        # Some of Pillow's other formats start programs.
        with Image.open(file, formats=FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                raise SampleError(f"{name}: is larger than {MAX_PIXELS} pixels. Make it smaller.")
            return np.asarray(image.convert("L" if channels == 1 else "RGB"))
    except (OSError, ValueError, SyntaxError, UnidentifiedImageError, Image.DecompressionBombError):
        raise SampleError(f"{name}: cannot be read as an image. Use PNG or JPEG.") from None


def load_labelled_folder(folder: Path, id2label: dict[int, str], channels: int, limit: int = 2000) -> ImageSamples:
    """Read labelled images from a folder that has one subfolder per class.

    Images of different sizes are scaled to the size of the first one.

    Args:
        folder: its subfolders are named after the classes or their numbers. If a name is both (classes called "7"),
            it means the class of that name.
        id2label: the classes by number.
        channels: 1 for grey, 3 for colour.
        limit: how many images to read at most, evenly over the classes.

    Raises:
        SampleError: the folder does not exist, cannot be read or holds no images, or a subfolder names no class.
    """
    try:
        files = _labelled_files(folder, id2label)
    except OSError as error:
        where = error.filename or folder
        raise SampleError(f"{where}: cannot be read ({error.strerror}). Change its permissions or copy it.") from None
    if not files:
        raise SampleError(f"{folder}: holds no images. It should hold one subfolder of PNG or JPEG images per class.")
    chosen = [files[i] for i in balanced((label for _, label in files), limit)]
    images = (load_image(file, channels) for file, _ in chosen)
    return ImageSamples(of_one_size(images), np.array([label for _, label in chosen], np.int64))


def of_one_size(given: Iterable[NDArray[np.uint8]]) -> NDArray[np.uint8]:
    """Images scaled to the size of the first one, in one array. given: at least one image."""
    images: list[NDArray[np.uint8]] = []
    for image in given:
        if images and image.shape != images[0].shape:
            size = images[0].shape[1::-1]
            image = np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BILINEAR))
        images.append(image)
    return np.stack(images)


def class_index(id2label: dict[int, str]) -> dict[str, int]:
    """The number of a class by its number or name. If a name is both, it means the class of that name."""
    return {str(i): i for i in id2label} | {label: i for i, label in id2label.items()}


def no_class(name: str, id2label: dict[int, str]) -> str:
    """The sentence on a name that means no class."""
    known = ", ".join(list(id2label.values())[:8])
    return f"{name!r} is not a class of this task. Its classes are {known}, ..."


def _labelled_files(folder: Path, id2label: dict[int, str]) -> list[tuple[Path, int]]:
    """Every image file with its class. Raises OSError if a folder cannot be listed."""
    if not folder.is_dir():
        raise SampleError(f"{folder}: this folder does not exist. It should hold one subfolder of images per class.")
    index = class_index(id2label)
    found: list[tuple[Path, int]] = []
    root = folder.resolve()
    for child in sorted(child for child in folder.iterdir() if child.is_dir()):
        if child.name not in index:
            raise SampleError(f"{child}: {no_class(child.name, id2label)}")
        files = sorted(file for file in child.iterdir() if file.suffix.lower() in IMAGE_ENDINGS)
        for file in files:
            if not file.resolve().is_relative_to(root):
                raise SampleError(f"{file}: is a link that leads out of {folder}. Put the image itself there.")
        found += [(file, index[child.name]) for file in files]
    return found
