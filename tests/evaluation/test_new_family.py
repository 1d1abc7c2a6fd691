"""How a model family is added: a class, a build function, and one line in the table of families."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from pools import SESSION, pool_of
from tiny_language import VOCABULARY, save_set, save_tokenizer
from transformers import AutoTokenizer, BertConfig, BertForMaskedLM

from sftm_app.architecture.roles import Part
from sftm_app.errors import SampleError
from sftm_app.evaluation import families
from sftm_app.evaluation.accuracy import accuracy
from sftm_app.evaluation.building import build_model, load_tokenizer
from sftm_app.evaluation.candidates import BASE, INDIVIDUAL, method_candidate
from sftm_app.evaluation.excitation import excitations
from sftm_app.evaluation.family import Answer, Family, ForwardPass, ModelParts
from sftm_app.evaluation.locating import locate
from sftm_app.evaluation.samples import Samples, TextSamples, as_texts
from sftm_app.evaluation.text_model import TextModel
from sftm_app.ui.evaluate.answers import answers
from sftm_app.ui.evaluate.sample_inputs import family_of
from sftm_app.ui.loading import load_own
from sftm_app.ui.settings import Settings
from sftm_app.ui.studio import Studio

TEXTS = ("the cat <unk> on the mat", "a big red <unk>", "<unk> ran")


@dataclass(frozen=True, eq=False)
class FillMask(TextModel):
    """A masked language model, which fills the gap in a text."""

    @torch.inference_mode()
    def answer(self, samples: Samples) -> list[Answer]:
        texts = as_texts(samples)
        answers = []
        for text, target in zip(texts.inputs, texts.targets, strict=True):
            (row,) = self.encode([text], self.max_tokens)
            logits = self.model(**self.pad([row])).logits[0, row.index(self.tokenizer.mask_token_id)]
            word = self.tokenizer.decode([int(logits.argmax())])
            answers.append(Answer(word, target=target, correct=None if target is None else word == target))
        return answers

    def passes(self, samples: Samples) -> tuple[Iterator[ForwardPass], ...]:
        rows = self.encode(as_texts(samples).inputs, self.max_tokens)
        return (self.text_passes(rows, range(len(rows))),)


def build(parts: ModelParts) -> FillMask:
    return FillMask(build_model(parts), load_tokenizer(parts.folders))


FAMILY = Family(
    "fill_mask",
    "masked language models",
    "text",
    "Write a text with a gap; each model fills it.",
    lambda model_class, config: model_class.__name__.endswith("ForMaskedLM"),
    build,
)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
    base = BertForMaskedLM(BertConfig(vocab_size=VOCABULARY, **sizes))
    root = save_set(tmp_path_factory.mktemp("masked"), base, BertForMaskedLM)
    save_tokenizer(root / "base", "<cls> $A <sep>", mask_token="<unk>")
    return root


@pytest.fixture
def in_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(families, "FAMILIES", (*families.FAMILIES, FAMILY))


def filled(model: BertForMaskedLM, folder: Path, text: str) -> str:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = tokenizer(text, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        logits = model.eval()(ids).logits[0, ids[0].tolist().index(tokenizer.mask_token_id)]
    return tokenizer.decode([int(logits.argmax())])


def test_a_family_that_is_not_in_the_table_cannot_be_tried(models: Path) -> None:
    with pytest.raises(SampleError, match="BertForMaskedLM cannot be tried"):
        pool_of(models).family("a")


def test_a_new_family_answers_and_is_scored(models: Path, in_the_table: None) -> None:
    pool = pool_of(models)
    assert pool.family("a") is FAMILY
    wanted = tuple(filled(BertForMaskedLM.from_pretrained(models / "a"), models / "base", text) for text in TEXTS)
    answers = pool.model(INDIVIDUAL, "a").answer(TextSamples(TEXTS, (None,) * 3))
    assert tuple(answer.text for answer in answers) == wanted
    samples = TextSamples(TEXTS, wanted)
    assert accuracy(pool.model(INDIVIDUAL, "a"), samples) == 1
    assert all(0 <= accuracy(pool.model(one, "b"), samples) <= 1 for one in (BASE, method_candidate("average")))


def test_the_evaluate_tab_tries_a_new_family(models: Path, in_the_table: None, tmp_path: Path) -> None:
    studio = Studio(Settings(models, tmp_path / "output", tmp_path / "packs", "cpu"), SESSION)
    workspace = load_own(studio, "base", ["a", "b"])
    asked = TextSamples(TEXTS[:1], (None,))
    assert family_of(studio, workspace, "a") is FAMILY
    *_, (cards, figure) = answers(studio, workspace, "a", asked, [BASE, INDIVIDUAL])
    wanted = filled(BertForMaskedLM.from_pretrained(models / "a"), models / "base", TEXTS[0])
    assert wanted in cards and figure is None, "it chose from no options, so there are no scores to draw"


def test_a_new_family_can_be_inspected(models: Path, in_the_table: None) -> None:
    pool = pool_of(models)
    model, name = pool.model(INDIVIDUAL, "b"), "bert.encoder.layer.0.attention.self.query.weight"
    place = locate(model.model, pool.tensor(INDIVIDUAL, "b", name), name)
    found = excitations(model, place, Part(), torch.ones(16), TextSamples(TEXTS, (None,) * 3))
    assert sorted(one.sample for one in found.strongest) == [0, 1, 2] and all(one.words for one in found.strongest)
