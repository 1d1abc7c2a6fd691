"""The samples of the real benches: no image is in two splits, and answers are scored in the order of the prompts."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("fontTools", reason="the letters are drawn from font files")

from bench.demo_packs.data import Sources
from bench.demo_packs.scripts import SCRIPTS
from bench.real import images, prompts
from bench.real.classifiers import Split


def test_no_image_is_in_two_splits_and_copies_are_dropped() -> None:
    generator = np.random.default_rng(0)
    single = generator.integers(0, 256, (60, 28, 28), np.uint8)
    pictures = images.Pictures(np.concatenate([single, single]), np.tile(np.arange(60) % 3, 2), ("a", "b", "c"))
    splits = images.draw(pictures, {"test": 15, "val": 6, "train": 30})
    assert {name: len(part.pixels) for name, part in splits.items()} == {"test": 15, "val": 6, "train": 30}
    taken = [image.tobytes() for part in splits.values() for image in part.pixels]
    assert len(set(taken)) == 51
    number_of = {image.tobytes(): number % 3 for number, image in enumerate(single)}
    for name, part in splits.items():
        assert [number_of[image.tobytes()] for image in part.pixels] == part.numbers.tolist()
        assert set(np.bincount(part.numbers)) == {len(part.numbers) // 3}, name


def test_letters_of_a_split_are_drawn_from_its_own_designs() -> None:
    digits = SCRIPTS[0]

    def sources(ink: int) -> Sources:
        pictures = torch.full((10, 56, 56), ink, dtype=torch.uint8)
        return Sources(pictures, pictures, torch.arange(10), torch.zeros(10, dtype=torch.int64))

    splits = images.letters({"test": sources(0), "train": sources(255)}, digits, {"test": 20, "train": 30})
    assert splits["test"].pixels.shape == (20, 28, 28) and splits["test"].pixels.max() == 0
    assert splits["train"].pixels.shape == (30, 28, 28) and splits["train"].pixels.min(axis=0).max() == 255
    assert np.bincount(splits["train"].numbers).tolist() == [3] * 10


class Letters:
    """A tokenizer whose tokens are the characters' codes, padded with 0 on the left."""

    def __call__(self, texts: list[str], padding: bool = False, **options: Any) -> dict[str, Any]:
        codes = [[ord(character) for character in text] for text in texts]
        if not padding:
            return {"input_ids": codes}
        longest = max(map(len, codes))
        return {"input_ids": torch.tensor([[0] * (longest - len(row)) + row for row in codes])}

    def encode(self, text: str, add_special_tokens: bool) -> list[int]:
        return [ord(character) for character in text]


class Echo(nn.Module):
    """Says the last character again."""

    def forward(self, input_ids: Tensor, logits_to_keep: int) -> SimpleNamespace:
        return SimpleNamespace(logits=nn.functional.one_hot(input_ids[:, -logits_to_keep:], 128).float())


def test_answers_are_scored_in_the_order_of_the_prompts() -> None:
    asked = ["long text a", "b", "longest text of all b", "xa", "sentence b"]
    labels = [0, 1, 0, 0, 1]  # the third label is wrong on purpose
    expected = ["ab"[label] == text[-1] for text, label in zip(asked, labels, strict=True)]
    assert prompts.correct(Echo(), Letters(), ("a", "b"), Split(asked, labels)) == expected
    assert expected == [True, True, False, True, True]
