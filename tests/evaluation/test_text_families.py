"""Models that read text, each against transformers called directly, one text at a time."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from closeness import assert_close
from pools import SESSION, pool_of
from tiny_checkpoints import change_config, change_weights
from tiny_language import VOCABULARY, save_set, save_tokenizer
from transformers import (
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
    BertModel,
    GPT2Config,
    GPT2ForSequenceClassification,
    GPT2Model,
    RobertaConfig,
    RobertaForSequenceClassification,
    RobertaModel,
)

from sftm_app.errors import CompatibilityError, SampleError
from sftm_app.evaluation.accuracy import accuracy
from sftm_app.evaluation.candidates import BASE, INDIVIDUAL, method_candidate
from sftm_app.evaluation.samples import ImageSamples, TextSamples
from sftm_app.evaluation.sentence_encoder import SentenceEncoder, pool, read_pooling
from sftm_app.output.save import save
from sftm_app.pipeline import prepare
from sftm_app.planning.recipe import make_recipe

TEXTS = ("the cat sat on the mat", "a big red bird flew", "dog", "the small dog ran under a blue sky and sat")
SMALL = {"vocab_size": VOCABULARY, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
SMALL |= {"intermediate_size": 24, "max_position_embeddings": 32}


def labels_of(name: str) -> dict[int, str]:
    return {i: f"label {i} of {name}" for i in range(3 if name == "a" else 4)}


def numbers_of(name: str) -> dict[str, int]:
    return {label: i for i, label in labels_of(name).items()}


@pytest.fixture(scope="module")
def classifiers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Sets by model type. Only the base has a tokenizer."""
    torch.manual_seed(0)
    root = tmp_path_factory.mktemp("classifiers")
    gpt2 = {"vocab_size": VOCABULARY, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 32}
    made = {
        "bert": (BertModel(BertConfig(**SMALL), add_pooling_layer=True), BertForSequenceClassification),
        "roberta": (RobertaModel(RobertaConfig(**SMALL, pad_token_id=1)), RobertaForSequenceClassification),
        "gpt2": (GPT2Model(GPT2Config(**gpt2, bos_token_id=1, eos_token_id=2)), GPT2ForSequenceClassification),
    }
    for name, (base, task_class) in made.items():
        save_set(root / name, base, task_class, id2label=labels_of, label2id=numbers_of)
        save_tokenizer(root / name / "base", "$A" if name == "gpt2" else "<cls> $A <sep>")
    return {name: root / name for name in made}


def probabilities_of(model: Any, folder: Path, text: str) -> torch.Tensor:
    """One text through a model of transformers, nothing padded."""
    tokens = AutoTokenizer.from_pretrained(folder)(text, return_tensors="pt")
    with torch.no_grad():
        return model.eval()(input_ids=tokens["input_ids"]).logits.softmax(-1)[0]


@pytest.mark.parametrize("name", ["bert", "roberta", "gpt2"])
def test_a_text_classifier_says_what_transformers_says(classifiers: dict[str, Path], name: str) -> None:
    models = classifiers[name]
    model_pool = pool_of(models)
    assert model_pool.family("a").name == "text_classifier"
    own = {"gpt2": GPT2ForSequenceClassification, "bert": BertForSequenceClassification}
    model = own.get(name, RobertaForSequenceClassification).from_pretrained(models / "b")
    answers = model_pool.model(INDIVIDUAL, "b").answer(TextSamples(TEXTS, (None,) * 4))
    for text, answer in zip(TEXTS, answers, strict=True):
        wanted = probabilities_of(model, models / "base", text)
        assert answer.scores == pytest.approx(wanted.tolist(), abs=1e-5)
        assert answer.options == tuple(labels_of("b").values())
        assert answer.text == answer.options[int(wanted.argmax())] and answer.correct is None


def test_a_merge_has_the_merged_backbone_and_the_tasks_head(classifiers: dict[str, Path], tmp_path: Path) -> None:
    models = classifiers["bert"]
    plan = prepare(make_recipe(models / "base", [models / "a", models / "b"], "average"), SESSION)
    for _ in save(plan, SESSION, tmp_path / "out"):
        pass
    model = BertForSequenceClassification.from_pretrained(models / "b")
    model.bert.load_state_dict(BertModel.from_pretrained(tmp_path / "out").state_dict())
    found = pool_of(models).model(method_candidate("average"), "b").answer(TextSamples(TEXTS[:1], (None,)))[0]
    assert found.scores == pytest.approx(probabilities_of(model, models / "base", TEXTS[0]).tolist(), abs=1e-5)
    model.bert.load_state_dict(BertModel.from_pretrained(models / "base").state_dict())
    found = pool_of(models).model(BASE, "b").answer(TextSamples(TEXTS[:1], (None,)))[0]
    assert found.scores == pytest.approx(probabilities_of(model, models / "base", TEXTS[0]).tolist(), abs=1e-5)


def test_the_right_class_is_known_by_its_name_or_number(classifiers: dict[str, Path]) -> None:
    model = pool_of(classifiers["bert"]).model(INDIVIDUAL, "a")
    said = [answer.text for answer in model.answer(TextSamples(TEXTS, (None,) * 4))]
    numbers = [str(list(labels_of("a").values()).index(name)) for name in said]
    assert accuracy(model, TextSamples(TEXTS, (said[0], numbers[1], said[2], numbers[3]))) == 1
    other = next(label for label in labels_of("a").values() if label != said[0])
    assert accuracy(model, TextSamples(TEXTS, (other, *said[1:]))) == 0.75
    for unknown in ("label 9", "3", "²"):
        with pytest.raises(SampleError, match="is not one of the options"):
            model.answer(TextSamples(TEXTS[:1], (unknown,)))
    with pytest.raises(SampleError, match="reads text; these samples are images"):
        model.answer(ImageSamples(torch.zeros(1, 8, 8).numpy().astype("uint8"), torch.zeros(1).long().numpy()))


@pytest.mark.parametrize(("name", "reads"), [("bert", 32), ("roberta", 30), ("gpt2", 32)])
def test_a_long_text_is_cut_where_the_model_ends(classifiers: dict[str, Path], name: str, reads: int) -> None:
    model = pool_of(classifiers[name]).model(INDIVIDUAL, "a")
    words = reads - (0 if name == "gpt2" else 2)
    whole, cut = model.answer(TextSamples(("cat " * 500, "cat " * words), (None, None)))
    assert whole.scores == pytest.approx(cut.scores, abs=1e-6)


@pytest.mark.parametrize("change", [{"problem_type": "multi_label_classification"}, {"problem_type": "regression"}])
def test_what_is_no_choice_of_one_class_is_refused(classifiers: dict[str, Path], tmp_path: Path, change: Any) -> None:
    import shutil

    models = Path(shutil.copytree(classifiers["bert"], tmp_path / "copy"))
    change_config(models / "a", **change)
    with pytest.raises(SampleError, match="does not choose one of several classes"):
        pool_of(models).model(INDIVIDUAL, "a")


def test_a_missing_tokenizer_and_a_broken_one(classifiers: dict[str, Path], tmp_path: Path) -> None:
    import shutil

    models = Path(shutil.copytree(classifiers["bert"], tmp_path / "copy"))
    (models / "base" / "tokenizer.json").write_text("{")
    with pytest.raises(CompatibilityError, match=r"tokenizer\.json: is not valid JSON"):
        pool_of(models).model(INDIVIDUAL, "a")
    (models / "base" / "tokenizer.json").unlink()
    with pytest.raises(SampleError, match="has no tokenizer, and neither has the base"):
        pool_of(models).model(INDIVIDUAL, "a")


# Sentence encoders


@pytest.fixture(scope="module")
def encoders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    root = save_set(tmp_path_factory.mktemp("encoders"), BertModel(BertConfig(**SMALL)), BertModel)
    save_tokenizer(root / "base", "<cls> $A <sep>")
    return root


def cosine_of(model: Any, folder: Path, left: str, right: str) -> float:
    """Mean-pooled by hand, one text at a time."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    vectors = []
    for text in (left, right):
        ids = tokenizer(text, return_tensors="pt")["input_ids"]
        with torch.no_grad():
            vectors.append(model(input_ids=ids).last_hidden_state[0].mean(0))
    return float(torch.cosine_similarity(*vectors, dim=0))


def test_a_sentence_encoder_finds_the_closest_candidate(encoders: Path) -> None:
    model_pool = pool_of(encoders)
    assert model_pool.family("a").name == "sentence_encoder" and model_pool.family("a").scores == "cosine similarity"
    model = BertModel.from_pretrained(encoders / "a").eval()
    query, *candidates = TEXTS
    wanted = [cosine_of(model, encoders / "base", query, candidate) for candidate in candidates]
    (answer,) = model_pool.model(INDIVIDUAL, "a").answer(TextSamples(("\n".join(TEXTS),), (None,)))
    assert answer.scores == pytest.approx(wanted, abs=1e-5)
    assert answer.options == tuple(candidates) and answer.text == candidates[wanted.index(max(wanted))]
    (chosen,) = model_pool.model(INDIVIDUAL, "a").answer(TextSamples((query,), (candidates[1],), tuple(candidates)))
    assert chosen.scores == pytest.approx(wanted, abs=1e-5) and chosen.target == candidates[1]
    assert chosen.correct == (wanted[1] == max(wanted))


@pytest.mark.parametrize("text", ["", "only a query", "a query\nand one candidate", "a query\nthe same\nthe same"])
def test_a_query_needs_two_candidates(encoders: Path, text: str) -> None:
    with pytest.raises(SampleError, match="at least two candidates"):
        pool_of(encoders).model(BASE, "a").answer(TextSamples((text,), (None,)))


def test_pooling() -> None:
    states = torch.arange(12.0).reshape(1, 4, 3)
    mask = torch.tensor([[1, 1, 1, 0]])
    assert pool(states, mask, "mean").tolist() == [[3, 4, 5]]
    assert pool(states, mask, "cls").tolist() == [[0, 1, 2]]
    assert pool(states, mask, "max").tolist() == pool(states, mask, "lasttoken").tolist() == [[6, 7, 8]]


@pytest.mark.parametrize(
    ("said", "way"),
    [
        ({}, "mean"),
        ({"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": False}, "mean"),
        ({"pooling_mode_mean_tokens": False, "pooling_mode_cls_token": True}, "cls"),
        ({"pooling_mode": "max"}, "max"),
    ],
)
def test_the_pooling_that_a_folder_names(tmp_path: Path, said: dict[str, Any], way: str) -> None:
    (tmp_path / "1_Pooling").mkdir()
    (tmp_path / "1_Pooling" / "config.json").write_text(json.dumps(said))
    assert read_pooling(tmp_path) == way


def test_pooling_that_is_not_known_is_refused(tmp_path: Path) -> None:
    assert read_pooling(tmp_path) == "mean"
    (tmp_path / "1_Pooling").mkdir()
    file = tmp_path / "1_Pooling" / "config.json"
    for said in ('{"pooling_mode": "weighted"}', '{"pooling_mode_cls_token": true, "pooling_mode_mean_tokens": true}'):
        file.write_text(said)
        with pytest.raises(SampleError, match="pools by"):
            read_pooling(tmp_path)
    file.write_text("{")
    with pytest.raises(SampleError, match="cannot be read as a JSON object"):
        read_pooling(tmp_path)
    (tmp_path / "modules.json").write_text('[{"type": "sentence_transformers.models.Dense"}]')
    with pytest.raises(SampleError, match=r"applies sentence_transformers.models.Dense after the encoder"):
        read_pooling(tmp_path)


def test_a_folders_own_pooling_and_length_are_used(encoders: Path, tmp_path: Path) -> None:
    import shutil

    models = Path(shutil.copytree(encoders, tmp_path / "copy"))
    (models / "base" / "1_Pooling").mkdir()
    (models / "base" / "1_Pooling" / "config.json").write_text('{"pooling_mode_cls_token": true}')
    (models / "base" / "sentence_bert_config.json").write_text('{"max_seq_length": 5}')
    model = pool_of(models).model(INDIVIDUAL, "a")
    assert isinstance(model, SentenceEncoder) and (model.pooling, model.max_tokens) == ("cls", 5)
    tokens = AutoTokenizer.from_pretrained(models / "base")("a big red", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        wanted = BertModel.from_pretrained(models / "a").eval()(tokens).last_hidden_state[0, 0]
    assert_close(model.embed((TEXTS[1],))[0], wanted / wanted.norm())


def test_a_file_without_a_config_is_the_bases_model(encoders: Path, tmp_path: Path) -> None:
    """Unless it holds a head of an unknown kind."""
    import shutil

    models = Path(shutil.copytree(encoders, tmp_path / "copy"))
    wanted = pool_of(models).model(INDIVIDUAL, "b").answer(TextSamples(("\n".join(TEXTS),), (None,)))
    (models / "b" / "config.json").unlink()
    model_pool = pool_of(models)
    assert model_pool.family("b").name == "sentence_encoder"
    assert model_pool.model(INDIVIDUAL, "b").answer(TextSamples(("\n".join(TEXTS),), (None,))) == wanted
    change_weights(models / "b" / "model.safetensors", lambda t: t.update({"classifier.weight": torch.zeros(3, 16)}))
    with pytest.raises(SampleError, match=r"has no config\.json that says what model it is"):
        pool_of(models).family("b")
