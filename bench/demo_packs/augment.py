"""Redraw glyphs as if by hand with a mouse: with random thickness, slant, size, wobble and blur."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from bench.demo_packs.data import Sources

SIZE = 28


@dataclass(frozen=True)
class Hand:
    """How freely glyphs are redrawn. Lengths are fractions of the image, angles radians, `line` a probability."""

    line: float = 0.6  # of redrawing the centre line with a random pen instead of using the font's strokes
    turn: float = 0.15
    slant: float = 0.20
    stretch: float = 0.18
    shift: float = 0.07
    wobble: float = 0.05


def draw(sources: Sources, index: Tensor, hand: Hand, generator: torch.Generator) -> Tensor:
    """Redraw the glyphs at `index`: float32 (len(index), 1, SIZE, SIZE) in [0, 1]."""
    n = len(index)
    lines = sources.lines[index].unsqueeze(1).float() / 255
    pictures = sources.pictures[index].unsqueeze(1).float() / 255
    pen = torch.randint(0, 4, (n, 1, 1, 1), generator=generator)
    from_line = torch.rand(n, 1, 1, 1, generator=generator) < hand.line
    thick = widen(lines, 6)
    for number, width in enumerate((3, 4, 5)):
        thick = torch.where(pen == number, widen(lines, width), thick)
    own = torch.where(pen == 0, widen(pictures, 3), torch.where(pen == 1, -widen(-pictures, 2), pictures))
    ink = torch.where(from_line, thick, own)
    ink = functional.grid_sample(ink, paths(n, hand, generator), align_corners=False)
    small = functional.avg_pool2d(ink, 2)
    soft = functional.avg_pool2d(small, 3, stride=1, padding=1)
    mix = torch.rand(n, 1, 1, 1, generator=generator) * 0.5
    return ((1 - mix) * small + mix * soft).mul(1.25).clamp(0, 1)


def widen(ink: Tensor, width: int) -> Tensor:
    """Dilate by a square pen of `width` pixels. The size of the images stays."""
    before = (width - 1) // 2
    after = width - 1 - before
    return functional.max_pool2d(functional.pad(ink, (before, after, before, after), value=-1.0), width, 1)


def paths(n: int, hand: Hand, generator: torch.Generator) -> Tensor:
    """A sampling grid (n, 2 SIZE, 2 SIZE, 2): a random affine map of each image plus a smooth random displacement."""

    def uniform(limit: float) -> Tensor:
        return (torch.rand(n, generator=generator) * 2 - 1) * limit

    angle, slant = uniform(hand.turn), uniform(hand.slant)
    wide, high = 1 + uniform(hand.stretch), 1 + uniform(hand.stretch)
    cos, sin = torch.cos(angle), torch.sin(angle)
    theta = torch.zeros(n, 2, 3)
    theta[:, 0, 0], theta[:, 0, 1] = cos * wide, (slant - sin) * high
    theta[:, 1, 0], theta[:, 1, 1] = sin * wide, cos * high
    theta[:, 0, 2], theta[:, 1, 2] = uniform(2 * hand.shift), uniform(2 * hand.shift)
    grid = functional.affine_grid(theta, [n, 1, 2 * SIZE, 2 * SIZE], align_corners=False)
    coarse = torch.randn(n, 2, 4, 4, generator=generator) * hand.wobble
    bent = functional.interpolate(coarse, size=(2 * SIZE, 2 * SIZE), mode="bicubic", align_corners=True)
    return grid + bent.permute(0, 2, 3, 1)


def normalise(images: Tensor) -> Tensor:
    """Map [0, 1] to [-1, 1], as preprocessor_config.json does: (x - 0.5) / 0.5."""
    return (images - 0.5) / 0.5


@dataclass(frozen=True)
class Pool:
    """Drawings for training or testing: images uint8 (n, SIZE, SIZE) and labels int64 (n,)."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, index: Tensor) -> Tensor:
        """The images at `index`, float32 (len(index), 1, SIZE, SIZE) in [0, 1]."""
        return self.images[index].unsqueeze(1).float() / 255


def draw_pool(sources: Sources, count: int, hand: Hand, seed: int) -> Pool:
    """Make `count` drawings. Every glyph of `sources` is drawn once, in random order, before any is drawn again."""
    generator = torch.Generator().manual_seed(seed)
    n = len(sources.labels)
    rounds = [torch.randperm(n, generator=generator) for _ in range(-(-count // n))]
    index = torch.cat(rounds)[:count]
    parts = [draw(sources, part, hand, generator).squeeze(1) for part in index.split(128)]
    return Pool((torch.cat(parts) * 255).round().to(torch.uint8), sources.labels[index])
