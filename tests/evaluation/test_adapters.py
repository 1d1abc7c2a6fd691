"""LoRA adapters as tasks: the base with one adapter, as PEFT runs it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from pools import pool_of
from tiny_language import VOCABULARY, save_tokenizer
from transformers import (
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
    BertModel,
    GPT2Config,
    GPT2LMHeadModel,
)

from sftm_app.evaluation.candidates import BASE, INDIVIDUAL, folder_candidate, method_candidate
from sftm_app.evaluation.samples import TextSamples

TEXTS = ("the cat sat on", "a big red")
CHOICES = (" mat", " bird", " sky")


def save_adapter(base: Any, folder: Path, seed: int, **config: Any) -> None:
    """An adapter with random factors, and a random head where it has one."""
    torch.manual_seed(seed)
    model = get_peft_model(base, LoraConfig(r=2, lora_alpha=4, **config))
    with torch.no_grad():
        for _, parameter in model.named_parameters():
            if parameter.requires_grad:
                parameter.copy_(0.5 * torch.randn_like(parameter))
    model.save_pretrained(folder)


@pytest.fixture(scope="module")
def writers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    root = tmp_path_factory.mktemp("writers")
    ids = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    config = GPT2Config(vocab_size=VOCABULARY, n_embd=16, n_layer=2, n_head=2, n_positions=128, **ids)
    GPT2LMHeadModel(config).save_pretrained(root / "base")
    save_tokenizer(root / "base")
    for seed, name in enumerate("ab"):
        base = GPT2LMHeadModel.from_pretrained(root / "base")
        save_adapter(base, root / name, seed, task_type="CAUSAL_LM", target_modules=["c_attn", "c_fc"])
    return root


def chances(model: Any, tokenizer: Any, text: str) -> list[float]:
    """The probability of each one-word choice after a text, among the choices."""
    with torch.no_grad():
        logits = model(torch.tensor([tokenizer(text)["input_ids"]])).logits[0, -1]
    words = [tokenizer(choice)["input_ids"][0] for choice in CHOICES]
    return logits[words].softmax(0).tolist()


def test_an_adapter_writes_as_in_peft(writers: Path) -> None:
    model_pool = pool_of(writers)
    assert model_pool.family("a").name == "causal_lm"
    tokenizer = AutoTokenizer.from_pretrained(writers / "base")
    samples = TextSamples(TEXTS, (None, None), CHOICES)
    for name in "ab":
        model = PeftModel.from_pretrained(GPT2LMHeadModel.from_pretrained(writers / "base"), writers / name).eval()
        for text, answer in zip(TEXTS, model_pool.model(INDIVIDUAL, name).answer(samples), strict=True):
            assert answer.scores == pytest.approx(chances(model, tokenizer, text), abs=1e-5)
    base = GPT2LMHeadModel.from_pretrained(writers / "base").eval()
    for text, answer in zip(TEXTS, model_pool.model(BASE, "a").answer(samples), strict=True):
        assert answer.scores == pytest.approx(chances(base, tokenizer, text), abs=1e-5)


def test_a_merge_of_adapters_and_one_on_the_disk(writers: Path) -> None:
    """Their average, made by PEFT from the two; and an adapter's folder as if a run had made it."""
    model_pool = pool_of(writers)
    model = PeftModel.from_pretrained(GPT2LMHeadModel.from_pretrained(writers / "base"), writers / "a", "a")
    model.load_adapter(writers / "b", "b")
    model.add_weighted_adapter(["a", "b"], [0.5, 0.5], "ab", "cat")
    model.set_adapter("ab")
    tokenizer = AutoTokenizer.from_pretrained(writers / "base")
    samples = TextSamples(TEXTS, (None, None), CHOICES)
    for text, answer in zip(TEXTS, model_pool.model(method_candidate("average"), "b").answer(samples), strict=True):
        assert answer.scores == pytest.approx(chances(model.eval(), tokenizer, text), abs=1e-5)
    saved = model_pool.model(folder_candidate(writers / "a", "Saved", "sftm"), "b").answer(samples)
    assert [a.scores for a in saved] == [a.scores for a in model_pool.model(INDIVIDUAL, "a").answer(samples)]


def test_an_adapter_with_a_head_of_its_own(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=24,
    )
    BertModel(config).save_pretrained(tmp_path / "base")
    save_tokenizer(tmp_path / "base", "<cls> $A <sep>")
    for name, n_labels in (("a", 3), ("b", 4)):
        base = BertForSequenceClassification.from_pretrained(tmp_path / "base", num_labels=n_labels)
        save_adapter(base, tmp_path / name, n_labels, task_type="SEQ_CLS", target_modules=["query", "value"])
    model_pool = pool_of(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "base")
    for name, n_labels in (("a", 3), ("b", 4)):
        assert model_pool.family(name).name == "text_classifier"
        base = BertForSequenceClassification.from_pretrained(tmp_path / "base", num_labels=n_labels)
        model = PeftModel.from_pretrained(base, tmp_path / name).eval()
        for text, answer in zip(
            TEXTS, model_pool.model(INDIVIDUAL, name).answer(TextSamples(TEXTS, (None, None))), strict=True
        ):
            with torch.no_grad():
                wanted = model(**tokenizer(text, return_tensors="pt")).logits.softmax(-1)[0]
            assert answer.scores == pytest.approx(wanted.tolist(), abs=1e-5)
            assert answer.options == tuple(f"LABEL_{i}" for i in range(n_labels))
        with model.disable_adapter(), torch.no_grad():
            # PEFT takes the trained head away too, so the adapter's head is put on the base's own states.
            states = model.base_model.model.bert(**tokenizer(TEXTS[0], return_tensors="pt")).pooler_output
        head = model.base_model.model.classifier.modules_to_save["default"]
        wanted = head(states).softmax(-1)[0].detach().tolist()
        assert model_pool.model(BASE, name).answer(TextSamples(TEXTS[:1], (None,)))[0].scores == pytest.approx(
            wanted, abs=1e-5
        )
