"""Glyph images from font files: which fonts cover a script, which share a design, and their images."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from fontTools.misc.transform import Transform  # type: ignore[import-untyped]
from fontTools.pens.recordingPen import DecomposingRecordingPen  # type: ignore[import-untyped]
from fontTools.pens.transformPen import TransformPen  # type: ignore[import-untyped]
from fontTools.ttLib import TTFont  # type: ignore[import-untyped]
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from bench.demo_packs.packages import Package

CANVAS = 56  # twice the model's resolution, so that strokes can be thickened before they shrink
INK = 40  # longest side of the ink on the canvas; 20 of 28, as in MNIST
MAX_PER_FAMILY = 4  # a family with twenty weights must not outweigh one with a single weight


@dataclass(frozen=True)
class Font:
    """One font file.

    Attributes:
        path: of the file.
        package: the package that it came from.
        family: its family name.
        covers: the characters of all scripts that it draws completely.
        outlines: the hash of each character's outline, independent of position and size.
    """

    path: Path
    package: str
    family: str
    covers: frozenset[str]
    outlines: dict[str, str]


def outline_hash(font: TTFont, glyph_name: str) -> str | None:
    """The hash of a glyph's outline, moved to the origin and scaled to one size; None for an empty glyph."""
    glyphs = font.getGlyphSet()
    pen = DecomposingRecordingPen(glyphs)
    glyphs[glyph_name].draw(pen)
    points = [point for _, arguments in pen.value for point in arguments if point is not None]
    if len(points) < 3:
        return None
    low_x, low_y = min(p[0] for p in points), min(p[1] for p in points)
    size = max(max(p[0] for p in points) - low_x, max(p[1] for p in points) - low_y)
    if size <= 0:
        return None
    moved = DecomposingRecordingPen(glyphs)
    pen.replay(TransformPen(moved, Transform(100 / size, 0, 0, 100 / size, -100 * low_x / size, -100 * low_y / size)))
    text = repr([(verb, [(round(x), round(y)) for x, y in (a for a in args if a)]) for verb, args in moved.value])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def read_font(path: Path, package: str, alphabets: Sequence[str]) -> Font | None:
    """Open a font file and hash the outlines of every alphabet that it covers; None if it covers none."""
    try:
        font = TTFont(path, lazy=True)
        cmap = font.getBestCmap() or {}
        names = font["name"]
        family = names.getDebugName(16) or names.getDebugName(1) or path.stem
        outlines: dict[str, str] = {}
        for alphabet in alphabets:
            if not all(ord(c) in cmap for c in alphabet):
                continue
            hashes = {c: outline_hash(font, cmap[ord(c)]) for c in alphabet}
            found = {c: h for c, h in hashes.items() if h is not None}
            # a font that shows one box for several letters does not cover the script
            if len(found) == len(alphabet) and len(set(found.values())) >= 0.95 * len(alphabet):
                outlines.update(found)
    except Exception as error:  # fontTools raises all kinds of errors for broken tables
        print(f"Left out {path.name}: {error}", flush=True)
        return None
    return Font(path, package, family, frozenset(outlines), outlines) if outlines else None


def read_fonts(packages: Sequence[Package], alphabets: Sequence[str]) -> list[Font]:
    """Every .ttf and .otf file of the packages that covers at least one alphabet, in a fixed order."""
    logging.getLogger("fontTools").setLevel(logging.ERROR)
    fonts = []
    for package in packages:
        files = [p for p in package.folder.rglob("*") if p.suffix.lower() in (".ttf", ".otf") and p.is_file()]
        for path in sorted(p for p in files if not p.is_symlink()):
            font = read_font(path, package.name, alphabets)
            if font is not None:
                fonts.append(font)
    return fonts


def group_designs(fonts: Sequence[Font], alphabet: str) -> list[list[Font]]:
    """Fonts that cover `alphabet`, in groups that the split must not divide.

    Two fonts are in one group if their family names begin alike (`family_key`) or if 30 % of the alphabet's outlines
    are identical, because many fonts borrow a script from another. Copies, with all outlines identical, are dropped. A
    group keeps at most MAX_PER_FAMILY fonts, spread over its members.
    """
    able = [font for font in fonts if set(alphabet) <= font.covers]
    seen: set[tuple[str, ...]] = set()
    unique = []
    for font in able:
        signature = tuple(font.outlines[c] for c in alphabet)
        if signature not in seen:
            seen.add(signature)
            unique.append(font)
    leader = list(range(len(unique)))

    def find(i: int) -> int:
        while leader[i] != i:
            i = leader[i]
        return i

    for i, first in enumerate(unique):
        for j in range(i):
            same = sum(first.outlines[c] == unique[j].outlines[c] for c in alphabet)
            kin = family_key(first.family) == family_key(unique[j].family)
            if kin or same >= 0.3 * len(alphabet):
                leader[find(i)] = find(j)
    groups: dict[int, list[Font]] = {}
    for i, font in enumerate(unique):
        groups.setdefault(find(i), []).append(font)
    return [spread(group, MAX_PER_FAMILY) for _, group in sorted(groups.items())]


def family_key(family: str) -> str:
    """The beginning of a family name in lower case: `Noto Sans Hebrew` and `Noto Sans` are one design family."""
    words = family.lower().replace("-", " ").replace("_", " ").split()
    return " ".join(words[:2] if words[0] in ("noto", "bpg", "gfs", "tex", "cmu", "free", "dejavu") else words[:1])


def spread(group: list[Font], count: int) -> list[Font]:
    """At most `count` members of a group, evenly spaced."""
    if len(group) <= count:
        return group
    return [group[round(i * (len(group) - 1) / (count - 1))] for i in range(count)]


def render(font: Font, alphabet: str) -> NDArray[np.uint8] | None:
    """Images of an alphabet: white ink on black, centred, with longest side INK.

    Returns:
        uint8 (len(alphabet), CANVAS, CANVAS); None if a character is drawn as nothing.
    """
    face = ImageFont.truetype(str(font.path), 120, layout_engine=ImageFont.Layout.BASIC)
    images = np.zeros((len(alphabet), CANVAS, CANVAS), np.uint8)
    for index, character in enumerate(alphabet):
        page = Image.new("L", (360, 360))
        ImageDraw.Draw(page).text((110, 80), character, font=face, fill=255)
        box = page.getbbox()
        if box is None:
            return None
        images[index] = centre(page.crop(box))
    return images


def centre(ink: Image.Image) -> NDArray[np.uint8]:
    """Scale ink to a longest side of INK and centre it: uint8 (CANVAS, CANVAS)."""
    scale = INK / max(ink.size)
    size = (max(1, round(ink.width * scale)), max(1, round(ink.height * scale)))
    canvas = Image.new("L", (CANVAS, CANVAS))
    canvas.paste(
        ink.resize(size, Image.Resampling.BOX if scale < 0.5 else Image.Resampling.BICUBIC),
        ((CANVAS - size[0]) // 2, (CANVAS - size[1]) // 2),
    )
    return np.asarray(canvas, np.uint8)
