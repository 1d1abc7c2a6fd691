"""The tasks of the demo pack `wordplay`: answers, sides, tokenizer, gaps, and trainings that are interrupted."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from bench.demo_packs import letters
from bench.demo_packs.training import Schedule
from bench.demo_packs.word_tasks import (
    forms,
    is_held_out,
    listed_forms,
    pig_latin,
    roman,
    split,
    with_ed,
    with_ing,
    with_s,
)

VALUES = {"m": 1000, "d": 500, "c": 100, "l": 50, "x": 10, "v": 5, "i": 1}


@pytest.mark.parametrize(
    ("word", "answer"),
    [("string", "ingstray"), ("apple", "appleay"), ("quick", "ickquay"), ("rhythm", "ythmrhay")],
)
def test_pig_latin(word: str, answer: str) -> None:
    assert pig_latin(word) == answer


def test_roman_numerals_mean_their_number() -> None:
    """A sign before a larger one is subtracted; no sign stands four times in a row."""
    for number in range(1, 4000):
        values = [VALUES[sign] for sign in roman(number)]
        after = [*values[1:], 0]
        assert sum(-v if v < next_v else v for v, next_v in zip(values, after, strict=True)) == number
        assert not any(sign * 4 in roman(number) for sign in VALUES)


@pytest.mark.parametrize(
    ("regular", "word", "form"),
    [
        (with_s, "city", "cities"), (with_s, "boy", "boys"), (with_s, "church", "churches"),
        (with_s, "seaman", "seamen"),
        (with_ed, "carry", "carried"), (with_ed, "bake", "baked"), (with_ed, "play", "played"),
        (with_ing, "make", "making"), (with_ing, "see", "seeing"), (with_ing, "die", "dying"),
    ],
)  # fmt: skip
def test_regular_forms(regular: Callable[[str], str], word: str, form: str) -> None:
    assert regular(word) == form


def test_forms_are_exceptional_where_listed_and_known_to_the_dictionary(tmp_path: Path) -> None:
    (tmp_path / "verb.exc").write_text("abetted abet\nabetting abet\nwent go\nfreed free\n", encoding="utf-8")
    words = {"abet", "go", "walk", "free", "glimf"}
    spoken = {"abetted", "abeted", "walked", "freed", "goed"}
    found = forms(words, listed_forms(tmp_path, "verb"), with_ed, "ed", spoken)
    # `go` has no form in ed, and the dictionary does not have `glimfed`.
    assert found == [("abet", "abetted"), ("free", "freed"), ("walk", "walked")]


def test_no_word_family_and_no_number_is_on_both_sides() -> None:
    words = ["".join(random.Random(n).choices("abcde", k=6)) for n in range(400)]
    sides = split("plural", [(word, word + "s") for word in words], 0)
    families = [{text.removeprefix("plural: ")[:4] for text, _ in side} for side in (sides.train, sides.test)]
    assert families[0] and families[1] and not families[0] & families[1]
    assert len(sides.train) + len(sides.test) == len(words)
    for n in range(1, 4000):
        assert is_held_out((str(n), roman(n))) == is_held_out((roman(n), str(n)))


def test_the_tokenizer_has_one_token_for_each_prompt_and_letter() -> None:
    words = letters.tokenizer(["plural", "roman"])
    ids = words(["plural: city", "roman:1987", "Plural:  City"])["input_ids"]
    assert [len(line) for line in ids] == [1 + 4 + 1, 1 + 4 + 1, 1 + 4 + 1]
    assert ids[0] == ids[2] and words.unk_token_id not in ids[0] + ids[1]
    assert words.decode(ids[0], skip_special_tokens=True) == "plural: city"


def test_gaps_are_filled_by_their_target() -> None:
    chance = random.Random(0)
    for _ in range(200):
        source, target = letters.corrupt("straightforward", chance)
        for n in range(letters.N_SENTINELS):
            _, mark, rest = target.partition(f"<extra_id_{n}>")
            source = source.replace(f"<extra_id_{n}>", rest.split("<")[0]) if mark else source
        assert source == "straightforward"


@pytest.mark.parametrize("average", [False, True])
def test_a_training_that_is_interrupted_ends_as_one_that_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, average: bool
) -> None:
    monkeypatch.setattr(letters, "SAVE_EVERY", 2)
    words = letters.tokenizer(["copy"])
    pairs = [("copy: cat", "cat"), ("copy: dog", "dog")]

    def trained(saved: Path, fail_at: int | None) -> dict[str, Tensor]:
        model = letters.fresh(len(words), 0)

        def loss_of(step: int) -> Tensor:
            if step == fail_at:
                raise KeyboardInterrupt
            loss: Tensor = model(**letters.batch(words, [pairs[step % 2]])).loss
            return loss

        letters.optimise(model, loss_of, Schedule(steps=8, batch=1, lr=1e-3, warmup=2), average, saved)
        return model.state_dict()

    whole = trained(tmp_path / "whole.unfinished", None)
    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path / "parts.unfinished", 5)
    parts = trained(tmp_path / "parts.unfinished", None)
    start = letters.fresh(len(words), 0).state_dict()
    assert all(torch.equal(whole[key], parts[key]) for key in whole)
    assert not torch.equal(whole["shared.weight"], start["shared.weight"])
