"""Models that write: greedy text and the most likely choice, against loops over transformers' logits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from pools import pool_of
from tiny_language import VOCABULARY, save_set, save_tokenizer
from transformers import (
    AutoTokenizer,
    BartConfig,
    BartForConditionalGeneration,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

from sftm_app.errors import CompatibilityError, SampleError
from sftm_app.evaluation.accuracy import accuracy
from sftm_app.evaluation.candidates import BASE, INDIVIDUAL, method_candidate
from sftm_app.evaluation.samples import TextSamples
from sftm_app.evaluation.writing import MAX_NEW_TOKENS

TEXTS = ("the cat sat on", "a big red", "dog", "the small dog ran under a blue sky and")
CHOICES = (" the mat", " a bird", " sky", " the big blue sky")
IDS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
CLASSES = {
    "t5": T5ForConditionalGeneration,
    "bart": BartForConditionalGeneration,
    "gpt2": GPT2LMHeadModel,
    "llama": LlamaForCausalLM,
}
TEMPLATES = {"t5": "$A </s>", "bart": "<s> $A </s>", "gpt2": "$A", "llama": "<s> $A"}


def tiny_config(name: str) -> Any:
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_layers": 2, "decoder_layers": 2}
    small = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
    ids = {**IDS, "vocab_size": VOCABULARY}
    if name == "t5":
        return T5Config(d_model=16, d_kv=8, d_ff=24, num_layers=2, num_heads=2, decoder_start_token_id=0, **ids)
    if name == "bart":
        sizes = {"d_model": 16, "encoder_ffn_dim": 24, "decoder_ffn_dim": 24, "max_position_embeddings": 128}
        return BartConfig(**sizes, **heads, decoder_start_token_id=2, forced_eos_token_id=None, **ids)
    if name == "gpt2":
        return GPT2Config(n_embd=16, n_layer=2, n_head=2, n_positions=128, **ids)
    return LlamaConfig(**small, max_position_embeddings=128, num_key_value_heads=1, **ids)


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("writers")
    for name, model_class in CLASSES.items():
        torch.manual_seed(0)
        save_set(root / name, model_class(tiny_config(name)), model_class)
        save_tokenizer(root / name / "base", TEMPLATES[name])
    return {name: root / name for name in CLASSES}


def logits_of(model: Any, prompt: list[int], written: list[int]) -> torch.Tensor:
    """Logits of the token after `written`, all of it read again."""
    with torch.no_grad():
        if model.config.is_encoder_decoder:
            started = torch.tensor([[model.config.decoder_start_token_id, *written]])
            return model(input_ids=torch.tensor([prompt]), decoder_input_ids=started).logits[0, -1]
        return model(input_ids=torch.tensor([prompt + written])).logits[0, -1]


def greedy(model: Any, prompt: list[int], most: int) -> list[int]:
    written: list[int] = []
    while len(written) < most:
        written.append(int(logits_of(model, prompt, written).argmax()))
        if written[-1] == IDS["eos_token_id"]:
            break
    return written


def log_likelihood(model: Any, prompt: list[int], choice: list[int]) -> float:
    steps = [logits_of(model, prompt, choice[:i]).log_softmax(-1)[token] for i, token in enumerate(choice)]
    return float(sum(steps))


@pytest.mark.parametrize("name", list(CLASSES))
@pytest.mark.parametrize("task", ["a", "b"])
def test_greedy_writing(sets: dict[str, Path], name: str, task: str) -> None:
    models = sets[name]
    model_pool = pool_of(models)
    assert model_pool.family(task).name == ("seq2seq" if name in ("t5", "bart") else "causal_lm")
    model = CLASSES[name].from_pretrained(models / task).eval()
    tokenizer = AutoTokenizer.from_pretrained(models / "base")
    answers = model_pool.model(INDIVIDUAL, task).answer(TextSamples(TEXTS, (None,) * 4))
    for text, answer in zip(TEXTS, answers, strict=True):
        wanted = greedy(model, tokenizer(text)["input_ids"], MAX_NEW_TOKENS)
        assert answer.text == tokenizer.decode(wanted, skip_special_tokens=True)
        assert (answer.options, answer.correct) == ((), None)


@pytest.mark.parametrize("name", list(CLASSES))
def test_the_most_likely_choice(sets: dict[str, Path], name: str) -> None:
    models = sets[name]
    model = CLASSES[name].from_pretrained(models / "b").eval()
    tokenizer = AutoTokenizer.from_pretrained(models / "base")
    answers = pool_of(models).model(INDIVIDUAL, "b").answer(TextSamples(TEXTS, CHOICES, CHOICES))
    for text, answer, target in zip(TEXTS, answers, CHOICES, strict=True):
        prompt = tokenizer(text)["input_ids"]
        if model.config.is_encoder_decoder:
            rows = [tokenizer(choice)["input_ids"] for choice in CHOICES]
        else:
            rows = [tokenizer(choice, add_special_tokens=False)["input_ids"] for choice in CHOICES]
        wanted = torch.tensor([log_likelihood(model, prompt, row) for row in rows]).softmax(-1)
        assert answer.scores == pytest.approx(wanted.tolist(), abs=1e-4)
        assert answer.text == CHOICES[int(wanted.argmax())] and answer.target == target
        assert answer.correct == (answer.text == target)


@pytest.mark.parametrize("name", list(CLASSES))
def test_what_is_written_is_right_when_it_equals_the_target(sets: dict[str, Path], name: str) -> None:
    model = pool_of(sets[name]).model(BASE, "a")
    said = [answer.text for answer in model.answer(TextSamples(TEXTS, (None,) * 4))]
    # An answer that is longer than any target is cut, and is wrong anyway.
    targets = (f" {said[0]}\n", "the cat", said[2], "the cat")
    wanted = [said[i].strip() == targets[i].strip() for i in range(4)]
    assert wanted[0] and wanted[2]
    assert [answer.correct for answer in model.answer(TextSamples(TEXTS, targets))] == wanted
    assert accuracy(model, TextSamples(TEXTS, targets)) == sum(wanted) / 4


def test_a_merge_writes_too(sets: dict[str, Path]) -> None:
    """The average of two tasks, made by hand, against the one in memory."""
    models = sets["gpt2"]
    left, right = (GPT2LMHeadModel.from_pretrained(models / name) for name in "ab")
    other = dict(right.named_parameters())
    with torch.no_grad():
        for name, parameter in left.named_parameters():
            parameter.copy_((parameter + other[name]) / 2)
    tokenizer = AutoTokenizer.from_pretrained(models / "base")
    (found,) = pool_of(models).model(method_candidate("average"), "a").answer(TextSamples(TEXTS[:1], (None,)))
    wanted = greedy(left.eval(), tokenizer(TEXTS[0])["input_ids"], MAX_NEW_TOKENS)
    assert found.text == tokenizer.decode(wanted, skip_special_tokens=True)


@pytest.mark.parametrize("name", list(CLASSES))
def test_a_text_that_is_too_long_is_refused(sets: dict[str, Path], name: str) -> None:
    model = pool_of(sets[name]).model(BASE, "a")
    for choices in (None, CHOICES):
        with pytest.raises(SampleError, match=r"tokens long; this model reads at most"):
            model.answer(TextSamples(("cat " * 5000,), (None,), choices))


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_a_text_that_nearly_fills_the_window_is_continued_to_its_end(sets: dict[str, Path], name: str) -> None:
    model = pool_of(sets[name]).model(BASE, "a")
    tokenizer = AutoTokenizer.from_pretrained(sets[name] / "base")
    words = 125 - len(tokenizer("")["input_ids"])
    (answer,) = model.answer(TextSamples(("cat " * words,), (None,)))
    assert 1 <= len(answer.text.split()) <= 3
    with pytest.raises(SampleError, match="is 128 tokens long; this model reads at most 127"):
        model.answer(TextSamples(("cat " * (words + 3),), (None,)))


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_an_empty_beginning_can_be_continued(sets: dict[str, Path], name: str) -> None:
    models = sets[name]
    own = GPT2LMHeadModel if name == "gpt2" else LlamaForCausalLM
    model = own.from_pretrained(models / "a").eval()
    tokenizer = AutoTokenizer.from_pretrained(models / "base")
    tried = pool_of(models).model(INDIVIDUAL, "a")
    wanted = greedy(model, [IDS["bos_token_id"]], MAX_NEW_TOKENS)
    assert tried.answer(TextSamples(("",), (None,)))[0].text == tokenizer.decode(wanted, skip_special_tokens=True)
    rows = [tokenizer(choice, add_special_tokens=False)["input_ids"] for choice in CHOICES]
    chances = torch.tensor([log_likelihood(model, [IDS["bos_token_id"]], row) for row in rows]).softmax(-1)
    assert tried.answer(TextSamples(("",), (None,), CHOICES))[0].scores == pytest.approx(chances.tolist(), abs=1e-4)


def test_a_chat_template_is_put_around_the_message(sets: dict[str, Path], tmp_path: Path) -> None:
    import shutil

    models = Path(shutil.copytree(sets["llama"], tmp_path / "copy"))
    with pytest.raises(SampleError, match="has no chat template"):
        pool_of(models).model(BASE, "a").answer(TextSamples(("dog",), (None,), chat=True))
    template = "{% for m in messages %}<s>red {{ m['content'] }}{% endfor %}"
    template += "{% if add_generation_prompt %} blue{% endif %}"
    save_tokenizer(models / "base", TEMPLATES["llama"], chat_template=template)
    tried = pool_of(models).model(BASE, "a")
    # The template writes <s> itself; without one the tokenizer does.
    for choices in (None, CHOICES):
        (chat,) = tried.answer(TextSamples(("dog",), (None,), choices, chat=True))
        (plain,) = tried.answer(TextSamples(("red dog blue",), (None,), choices))
        assert chat == plain


def test_settings_of_generation_do_not_count_but_special_tokens_do(sets: dict[str, Path], tmp_path: Path) -> None:
    import json
    import shutil

    models = Path(shutil.copytree(sets["gpt2"], tmp_path / "copy"))
    tried = pool_of(models).model(INDIVIDUAL, "a")
    plain = tried.answer(TextSamples(TEXTS, (None,) * 4))
    file = models / "a" / "generation_config.json"
    said = json.loads(file.read_text())
    file.write_text(json.dumps(said | {"do_sample": True, "num_beams": 3, "repetition_penalty": 5.0, "max_length": 4}))
    assert pool_of(models).model(INDIVIDUAL, "a").answer(TextSamples(TEXTS, (None,) * 4)) == plain
    tokenizer = AutoTokenizer.from_pretrained(models / "base")
    first = tokenizer(plain[0].text)["input_ids"][0]
    file.write_text(json.dumps(said | {"eos_token_id": [2, first]}))
    (stopped,) = pool_of(models).model(INDIVIDUAL, "a").answer(TextSamples(TEXTS[:1], (None,)))
    assert stopped.text == tokenizer.decode([first])
    file.write_text("{")
    with pytest.raises(CompatibilityError, match=r"generation_config\.json: is not valid JSON"):
        pool_of(models).model(INDIVIDUAL, "a")
