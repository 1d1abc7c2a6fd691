"""Models whose tokenizers differ are tried with the tokenizer that their rows are in the order of (A15)."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from pools import SESSION
from tiny_vocabularies import WORDS, save_model, save_tokenizer, save_tuned
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from sftm_app.evaluation.building import build_model, load_tokenizer
from sftm_app.evaluation.family import ModelParts
from sftm_app.evaluation.task_model import individual_parts, merged_parts
from sftm_app.evaluation.task_tensors import read_all
from sftm_app.planning.planner import open_inputs
from sftm_app.planning.recipe import make_recipe

CPU = torch.device("cpu")


def answers(model: object, tokenizer: object) -> Tensor:
    """The scores of every word after a text."""
    with torch.no_grad():
        logits = model(**tokenizer("w1 w5 w2", return_tensors="pt")).logits[0, -1]  # type: ignore[operator]
    return torch.stack([logits[tokenizer.get_vocab()[word]] for word in WORDS])  # type: ignore[attr-defined]


def built(parts: ModelParts) -> Tensor:
    return answers(build_model(parts), load_tokenizer(parts.folders))


def stored(folder: Path) -> Tensor:
    return answers(AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder))


@pytest.mark.parametrize("choice", ["base", "union", "task shuffled"])
def test_base_and_tasks_answer_as_they_do_alone(tmp_path: Path, choice: str) -> None:
    base = save_model(tmp_path / "base", rows=10)
    save_tokenizer(save_tuned(tmp_path / "shuffled", base, 1), WORDS[::-1])
    save_tokenizer(save_tuned(tmp_path / "a", base, 2, rows=11), added=["<tool>"])
    paths = [tmp_path / "shuffled", tmp_path / "a"]
    found = open_inputs(make_recipe(base, paths, tokenizer=choice), SESSION).require()
    for index, path in enumerate(paths):
        torch.testing.assert_close(built(individual_parts(found, index, CPU)), stored(path))
        of_base = merged_parts(found, index, read_all(found.base), "base", CPU)
        torch.testing.assert_close(built(of_base), stored(base))
