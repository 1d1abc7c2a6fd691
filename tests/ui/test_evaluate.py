"""The Evaluate tab: what it offers for each family, what its handlers answer, where samples come from."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
import pytest
import torch
from PIL import Image
from tiny_language import VOCABULARY, save_set, save_tokenizer
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertModel,
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    CLIPTextConfig,
    CLIPVisionConfig,
    GPT2Config,
    GPT2LMHeadModel,
)

from sftm_app.errors import InputError, SampleError
from sftm_app.evaluation.accuracy import empty_table
from sftm_app.evaluation.candidates import BASE, INDIVIDUAL, method_candidate
from sftm_app.evaluation.samples import ImageSamples
from sftm_app.evaluation.texts import TextSamples
from sftm_app.ui import loading
from sftm_app.ui.evaluate import tab as evaluate_tab
from sftm_app.ui.settings import Settings
from sftm_app.ui.studio import Studio
from sftm_app.ui.trying import labelled, trying
from sftm_app.ui.trying.evaluate_inputs import for_task, image_sample, read_names, text_sample
from sftm_app.ui.workspace import Workspace

KEYS = ["base", "individual", "method:average"]
SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
INPUTS = ("pad", "picture", "text", "choices", "chat", "ask", "pick", "known")


def handlers(studio: Studio) -> dict[str, Callable[..., Any]]:
    """The tab's handlers by their names."""
    with gr.Blocks() as page, gr.Tab() as tab:
        evaluate_tab.build(studio, gr.State(Workspace()), gr.State(""), tab)
    return {event.fn.__name__: event.fn for event in page.fns.values() if event.fn is not None}


def offered(studio: Studio, ws: Workspace, task: str) -> set[str]:
    """Which inputs are to be seen."""
    updates = dict(zip(INPUTS[:-1], for_task(studio, ws, task), strict=False))
    return {name for name, update in updates.items() if update["visible"]}


@pytest.fixture(scope="session")
def text_models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """gpt2: language models with a pack's samples. bert: text classifiers. clip: whole CLIP models."""
    torch.manual_seed(0)
    root = tmp_path_factory.mktemp("text")
    ids = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    config = GPT2Config(vocab_size=VOCABULARY, n_embd=16, n_layer=2, n_head=2, n_positions=128, **ids)
    save_set(root / "gpt2", GPT2LMHeadModel(config), GPT2LMHeadModel)
    template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    save_tokenizer(root / "gpt2" / "base", chat_template=template)
    free = {"inputs": ["the cat", "a dog"], "targets": ["sat", "ran on"], "choices": None}
    chosen = {
        "inputs": ["the cat", "a dog", "a bird"],
        "targets": [" sat", " ran", " ran"],
        "choices": [" sat", " ran"],
    }
    tasks = []
    for name, samples in (("a", free), ("b", chosen)):
        (root / "gpt2" / f"{name}.json").write_text(json.dumps(samples))
        tasks.append({"name": name, "title": name.upper(), "path": name, "samples": f"{name}.json"})
    pack = {"name": "words", "title": "Words", "description": "Random.", "kind": "text", "base": "base", "tasks": tasks}
    (root / "gpt2" / "pack.json").write_text(json.dumps(pack))

    bert = BertModel(BertConfig(vocab_size=VOCABULARY, **SMALL))
    labels = {0: "good", 1: "bad", 2: "so so"}
    numbers = {label: number for number, label in labels.items()}
    save_set(root / "bert", bert, BertForSequenceClassification, id2label=labels, label2id=numbers)
    save_tokenizer(root / "bert" / "base", "<cls> $A <sep>")

    text = CLIPTextConfig(vocab_size=VOCABULARY, max_position_embeddings=12, bos_token_id=1, eos_token_id=2, **SMALL)
    vision = CLIPVisionConfig(image_size=8, patch_size=4, **SMALL)
    whole = CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=8)
    save_set(root / "clip", CLIPModel(whole), CLIPModel)
    save_tokenizer(root / "clip" / "base", "<s> $A </s>")
    eight = {"height": 8, "width": 8}
    CLIPImageProcessorPil(size=eight, crop_size=eight).save_pretrained(root / "clip" / "base")
    return root


@pytest.fixture
def text_studio(text_models: Path, tmp_path: Path) -> Studio:
    """gpt2 as a pack, all three as a person's own models."""
    packs, output = tmp_path / "text_packs", tmp_path / "text_output"
    shutil.copytree(text_models / "gpt2", packs / "words")
    models = Path(shutil.copytree(text_models, tmp_path / "text_models"))
    output.mkdir()
    return Studio(Settings(models, output, packs, "cpu"))


@pytest.fixture
def words(text_studio: Studio) -> Workspace:
    return loading.pack_workspace(text_studio.packs[0])


def own(studio: Studio, name: str) -> Workspace:
    return loading.load_own(studio, f"{name}/base", [f"{name}/a", f"{name}/b"])


# Images


def test_each_model_answers_for_one_image(studio: Studio, workspace: Workspace) -> None:
    image = np.zeros((8, 8), np.uint8)
    models = [BASE, INDIVIDUAL, method_candidate("average")]
    lines, figure = trying.answer(studio, workspace, "b", ImageSamples(image[None], np.array([2])), models)
    assert lines.count("sf-stat-value") == 3 and "The right answer is label 2 of b" in lines
    assert [trace.name for trace in figure.data] == ["Base", "Individual", "Plain average"]
    for trace in figure.data:
        assert sum(trace.x) == pytest.approx(1, abs=1e-3)


def test_samples_come_from_the_pack_or_from_a_folder(studio: Studio, workspace: Workspace) -> None:
    assert len(labelled.samples_of(studio, workspace, "a", "")) == 12
    own = loading.load_own(studio, "base", ["a", "b"])
    with pytest.raises(SampleError, match="no labelled samples"):
        labelled.samples_of(studio, own, "a", "")
    with pytest.raises(InputError, match="outside"):
        labelled.samples_of(studio, own, "a", "/etc")
    folder = studio.settings.models_dir / "pictures" / "a" / "label 1 of a"
    folder.mkdir(parents=True)
    Image.new("L", (8, 8)).save(folder / "x.png")
    found = labelled.samples_of(studio, own, "a", "pictures")
    assert found.images.shape == (1, 8, 8) and found.labels.tolist() == [1]


def test_the_table_shows_means_and_marks_the_best_merge() -> None:
    models = (BASE, INDIVIDUAL, method_candidate("average"), method_candidate("sftm"))
    measured = empty_table(("a", "b"), models)
    assert "·" in trying.table_html(measured)
    for row, values in enumerate([(0.5, 0.8, 0.6, 0.7), (0.4, 1.0, 0.9, 0.8)]):
        for column, value in enumerate(values):
            measured = measured.with_value(row, column, value)
    shown = trying.table_html(measured)
    assert "<strong>70.0%</strong>" in shown and "<strong>90.0%</strong>" in shown
    assert "<strong>80.0%</strong>" not in shown, "the individual model is no merge"
    assert "75.0%" in shown and "·" not in shown


def test_keys_from_the_browser_must_be_on_offer(studio: Studio, workspace: Workspace) -> None:
    with pytest.raises(InputError, match="No model is chosen"):
        trying.chosen_candidates(studio, workspace, "", ["folder:/etc", "method:nothing"])


def test_a_colour_picture_is_tried_on_a_gray_model(studio: Studio, workspace: Workspace) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (30, 20, 3)).astype(np.uint8)
    lines, _ = trying.answer(studio, workspace, "a", image_sample(picture, ""), [BASE])
    assert "What each model says" in lines


def test_tasks_without_labelled_images_are_left_out_and_named(studio: Studio) -> None:
    own = loading.load_own(studio, "base", ["a", "b"])
    folder = studio.settings.models_dir / "pictures" / "a" / "label 1 of a"
    folder.mkdir(parents=True)
    Image.new("L", (8, 8)).save(folder / "x.png")
    samples, left_out = labelled.all_samples(studio, own, "pictures")
    assert list(samples) == ["a"] and "no folder 'b'" in left_out[0]
    with pytest.raises(SampleError):
        labelled.all_samples(studio, own, "")


# Texts


def test_each_family_is_asked_in_its_own_way(studio: Studio, workspace: Workspace, text_studio: Studio) -> None:
    assert offered(studio, workspace, "a") == {"pad", "pick"}
    assert offered(studio, loading.load_own(studio, "base", ["a", "b"]), "a") == {"picture", "pick"}
    words = loading.pack_workspace(text_studio.packs[0])
    assert offered(text_studio, words, "a") == {"text", "choices", "chat", "ask", "pick"}
    assert offered(text_studio, own(text_studio, "bert"), "a") == {"text", "ask", "pick"}
    assert offered(text_studio, own(text_studio, "clip"), "a") == {"picture", "choices", "ask", "pick"}
    known = for_task(text_studio, own(text_studio, "bert"), "a")[-1]
    assert "Classes: good · bad · so so" in known
    assert offered(studio, Workspace(), "") == set()


def test_a_family_that_cannot_be_tried_says_so(studio: Studio) -> None:
    bare = studio.settings.models_dir / "bare"
    shutil.copytree(studio.settings.models_dir / "base", bare)
    from tiny_checkpoints import change_weights

    change_weights(bare / "model.safetensors", lambda t: [tensor.add_(0.1) for tensor in t.values()])
    ws = loading.load_own(studio, "base", ["bare"])
    assert offered(studio, ws, "bare") == set()
    assert "ViTModel cannot be tried here" in for_task(studio, ws, "bare")[-1]


def test_the_tab_opens_on_texts(text_studio: Studio, words: Workspace) -> None:
    found = handlers(text_studio)["open_workspace"](words, "")
    where, limit = found[5], found[6]
    assert ".jsonl" in where["info"] and limit == 50
    chart = found[11]
    assert chart["visible"] is False, "what is written freely has no scores"


def test_models_answer_one_after_the_other(text_studio: Studio, words: Workspace) -> None:
    steps = list(handlers(text_studio)["asked"](words, "a", KEYS, "", None, "the cat", "", False))
    assert len(steps) == 3
    assert [step[1].count("…") for step in steps] == [2, 1, 0]
    sample, verdict, chart = steps[-1]
    assert sample == TextSamples(("the cat",), (None,)) and chart["visible"] is False
    model_pool = text_studio.model_pool(words)
    for candidate in (BASE, INDIVIDUAL, method_candidate("average")):
        (answer,) = model_pool.model(candidate, "a").answer(sample)
        for word in answer.said.split():
            assert word in verdict


def test_choices_are_shown_as_bars(text_studio: Studio, words: Workspace) -> None:
    steps = list(handlers(text_studio)["asked"](words, "b", KEYS, "", None, "the cat", " sat\n ran", False))
    sample, verdict, chart = steps[-1]
    assert sample.choices == (" sat", " ran") and chart["visible"]
    assert verdict.count("% sure") == 3
    for trace in chart["value"].data:
        assert len(trace.x) == 2 and sum(trace.x) == pytest.approx(1, abs=1e-4)


def test_a_picked_text_is_shown_with_its_answer(text_studio: Studio, words: Workspace) -> None:
    first, *later = handlers(text_studio)["picked"](words, "b", KEYS, "", "", "", True)
    sample = first[0]
    text, listed, chat = first[5], first[6], first[7]
    assert (text, listed, chat) == (sample.inputs[0], " sat\n ran", False), "a pack's texts are whole prompts"
    assert f"The right answer is {sample.targets[0].strip()}" in later[-1][1]
    assert text_sample(text, listed, False, sample) == sample, "asked again, the answer is still known"
    assert text_sample(text + " sat", listed, False, sample).targets == (None,)
    assert text_sample(text, " sat\n not", False, sample).targets == (None,)


def test_what_is_no_text_is_refused() -> None:
    for text, choices, sentence in (
        ("  ", "", "There is no text yet"),
        ("a" * 20_001, "", "20001 characters"),
        ("a", "one", "only one choice"),
        ("a", "\n".join(map(str, range(1001))), "1001 choices"),
    ):
        with pytest.raises(SampleError, match=sentence):
            text_sample(text, choices, False, None)


def test_a_classifier_reads_a_persons_own_table(text_studio: Studio) -> None:
    ws = own(text_studio, "bert")
    asked = TextSamples(("the cat", "a dog"), (None, None))
    first, second = (answer.said for answer in text_studio.model_pool(ws).model(INDIVIDUAL, "a").answer(asked))
    other = next(label for label in ("good", "bad") if label != second)
    (text_studio.settings.models_dir / "mine.csv").write_text(f"text,label\nthe cat,{first}\na dog,{other}\n")
    samples, left_out = labelled.all_samples(text_studio, ws, "mine.csv")
    assert list(samples) == ["a", "b"] and not left_out
    steps = list(handlers(text_studio)["measure"](ws, KEYS, "", "mine.csv", 50, "a", "", False))
    assert steps[0][0].count("·") > 6 and "50.0%" in steps[-1][0]
    right = [text_studio.model_pool(ws).model(INDIVIDUAL, name).answer(samples[name]) for name in "ab"]
    for answers in right:
        assert f"{sum(bool(one.right) for one in answers) / 2:.1%}" in steps[-1][0]


def test_one_file_a_task(text_studio: Studio) -> None:
    ws = own(text_studio, "bert")
    folder = text_studio.settings.models_dir / "sets"
    folder.mkdir()
    with pytest.raises(SampleError, match="has no file of texts named a"):
        labelled.samples_of(text_studio, ws, "a", "sets")
    (folder / "b.jsonl").write_text('{"input": "the cat", "target": "good"}\n')
    samples, left_out = labelled.all_samples(text_studio, ws, "sets")
    assert samples == {"b": TextSamples(("the cat",), ("good",))} and "named a" in left_out[0]
    (folder / "b.csv").write_text("text,label\nx,good\n")
    with pytest.raises(SampleError, match="has 2 files of texts named b"):
        labelled.samples_of(text_studio, ws, "b", "sets")
    with pytest.raises(SampleError, match="There are no labelled samples for these models"):
        labelled.samples_of(text_studio, ws, "b", "")
    with pytest.raises(InputError, match="outside"):
        labelled.samples_of(text_studio, ws, "b", "/etc/passwd")


# CLIP


def test_clip_is_given_names(text_studio: Studio) -> None:
    ws = own(text_studio, "clip")
    image = np.random.default_rng(0).integers(0, 256, (9, 7, 3)).astype(np.uint8)
    call = handlers(text_studio)
    ((sample, verdict, chart),) = call["uploaded"](ws, "a", KEYS, "", image, "")
    assert "Write the names" in verdict and chart is None
    steps = list(call["asked"](ws, "a", KEYS, "", sample, "", "cat, big_dog\nred bird", False))
    sample, verdict, chart = steps[-1]
    assert sample.choices == ("cat", "big_dog", "red bird") and verdict.count("% sure") == 3
    assert [len(trace.x) for trace in chart["value"].data] == [3, 3, 3]
    with pytest.raises(gr.Error, match="There is no image yet"):
        list(call["asked"](ws, "a", KEYS, "", None, "", "cat, dog", False))


def test_folders_of_images_name_the_classes_for_clip(text_studio: Studio) -> None:
    ws = own(text_studio, "clip")
    root = text_studio.settings.models_dir / "pictures"
    for name in ("dog", "cat"):
        (root / name).mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(root / name / "x.png")
    samples = labelled.samples_of(text_studio, ws, "a", "pictures")
    assert isinstance(samples, ImageSamples) and samples.choices == ("cat", "dog") and samples.labels.tolist() == [0, 1]
    more = labelled.samples_of(text_studio, ws, "a", "pictures", ("bird", "dog", "cat"))
    assert more.choices == ("bird", "dog", "cat") and sorted(more.labels.tolist()) == [1, 2]
    with pytest.raises(SampleError, match="'cat' is not a class"):
        labelled.samples_of(text_studio, ws, "a", "pictures", ("bird", "dog"))
    steps = list(handlers(text_studio)["measure"](ws, KEYS, "", "pictures", 50, "a", "", False))
    assert "·" not in steps[-1][0] and steps[-1][1]["visible"]


def test_names() -> None:
    assert read_names(" cat, dog\nred car,,cat ") == ("cat", "dog", "red car")
    assert read_names(" \n") is None
