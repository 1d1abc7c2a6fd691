"""The Evaluate tab: what it offers for each family, what its handlers answer, where samples come from."""

from __future__ import annotations

import io
import json
import shutil
import threading
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image
from pyarrow import parquet
from tab_values import values_of
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
from sftm_app.evaluation.candidates import BASE, INDIVIDUAL, method_candidate
from sftm_app.evaluation.samples import ImageSamples, TextSamples
from sftm_app.session import Session
from sftm_app.ui import loading
from sftm_app.ui.evaluate import answers, labelled
from sftm_app.ui.evaluate.sample_inputs import SampleInputs, image_sample, read_names, text_sample
from sftm_app.ui.evaluate.tab import EvaluateTab
from sftm_app.ui.keeping import Parts
from sftm_app.ui.settings import Settings
from sftm_app.ui.studio import Studio
from sftm_app.ui.workspace import Workspace

pytestmark = pytest.mark.usefixtures("no_server")

KEYS = ["base", "individual", "method:average"]
SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}


def open_tab(studio: Studio) -> EvaluateTab:
    with gr.Blocks(), gr.Tab() as tab:
        return EvaluateTab(studio, gr.State(Workspace()), tab, Parts(studio.keeper))


def asked(tab: EvaluateTab, ws: Workspace, task: str = "a", **changes: Any) -> Any:
    """The values of the tab's inputs; those of the boxes by their own names."""
    boxes = {name: changes.pop(name) for name in tuple(changes) if hasattr(tab.boxes, name)}
    empty = {"text": "", "choices": "", "chat": False, "picture": None, "pad": None}
    table = {getattr(tab.table, name): changes.pop(name) for name in ("where", "limit") if name in changes}
    found = values_of(tab, tab.inputs | tab.table.inputs, workspace=ws, task=task, models=KEYS, sample=None)
    found |= {getattr(tab, name): value for name, value in changes.items()}
    return found | table | {getattr(tab.boxes, name): value for name, value in (empty | boxes).items()}


def measured(tab: EvaluateTab, values: Any) -> Any:
    """What the table shows once the ticked models are measured."""
    tab.table.begin(values)
    for thread in threading.enumerate():
        if thread.name == "compare":
            thread.join(60)
    return tab.table.watch(values)


def suited(studio: Studio, ws: Workspace, task: str) -> dict[str, Any]:
    """The updates of the inputs for a task, by name."""
    with gr.Blocks():
        boxes = SampleInputs(studio)
    updates = boxes.suit(ws, task)
    return {name: updates[component] for name, component in vars(boxes).items() if component in boxes.all}


def offered(studio: Studio, ws: Workspace, task: str) -> set[str]:
    """Which inputs are visible."""
    return {name for name, update in suited(studio, ws, task).items() if name != "known" and update["visible"]}


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
def text_studio(text_models: Path, tmp_path: Path, session: Session) -> Studio:
    """gpt2 as a pack, all three as a person's own models."""
    packs, output = tmp_path / "text_packs", tmp_path / "text_output"
    shutil.copytree(text_models / "gpt2", packs / "words")
    models = Path(shutil.copytree(text_models, tmp_path / "text_models"))
    output.mkdir()
    return Studio(Settings(models, output, packs, "cpu"), session)


@pytest.fixture
def words(text_studio: Studio) -> Workspace:
    return loading.pack_workspace(text_studio.packs[0])


def own(studio: Studio, name: str) -> Workspace:
    return loading.load_own(studio, f"{name}/base", [f"{name}/a", f"{name}/b"])


# Images


def test_each_model_answers_for_one_image(studio: Studio, workspace: Workspace) -> None:
    image = np.zeros((8, 8), np.uint8)
    models = [BASE, INDIVIDUAL, method_candidate("average")]
    lines, figure = list(answers.answers(studio, workspace, "b", ImageSamples(image[None], np.array([2])), models))[-1]
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


def test_keys_from_the_browser_must_be_on_offer(studio: Studio, workspace: Workspace) -> None:
    with pytest.raises(InputError, match="No model is chosen"):
        answers.chosen_candidates(studio, workspace, ["folder:/etc", "method:nothing"])


def test_a_colour_picture_is_tried_on_a_gray_model(studio: Studio, workspace: Workspace) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (30, 20, 3)).astype(np.uint8)
    ((lines, _),) = answers.answers(studio, workspace, "a", image_sample(picture, ""), [BASE])
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
    assert "Classes: good · bad · so so" in suited(text_studio, own(text_studio, "bert"), "a")["known"]
    assert offered(studio, Workspace(), "") == set()


def test_a_family_that_cannot_be_tried_says_so(studio: Studio) -> None:
    bare = studio.settings.models_dir / "bare"
    shutil.copytree(studio.settings.models_dir / "base", bare)
    from tiny_checkpoints import change_weights

    change_weights(bare / "model.safetensors", lambda t: [tensor.add_(0.1) for tensor in t.values()])
    ws = loading.load_own(studio, "base", ["bare"])
    assert offered(studio, ws, "bare") == set()
    assert "ViTModel cannot be tried" in suited(studio, ws, "bare")["known"]


def test_the_tab_opens_on_texts(text_studio: Studio, words: Workspace) -> None:
    tab = open_tab(text_studio)
    found = tab.open_workspace(asked(tab, words))
    assert ".jsonl" in found[tab.table.where]["info"] and found[tab.table.limit] == 50
    assert found[tab.chart]["visible"] is False, "what is written freely has no scores"


def test_models_answer_one_after_the_other(text_studio: Studio, words: Workspace) -> None:
    tab = open_tab(text_studio)
    steps = list(tab.ask_written(asked(tab, words, text="the cat")))
    assert len(steps) == 3
    assert [step[tab.verdict].count("…") for step in steps] == [2, 1, 0]
    sample, verdict, chart = (steps[-1][component] for component in (tab.sample, tab.verdict, tab.chart))
    assert sample == TextSamples(("the cat",), (None,)) and chart["visible"] is False
    model_pool = text_studio.model_pool(words)
    for candidate in (BASE, INDIVIDUAL, method_candidate("average")):
        (answer,) = model_pool.model(candidate, "a").answer(sample)
        for word in answer.text.split():
            assert word in verdict


def test_choices_are_shown_as_bars(text_studio: Studio, words: Workspace) -> None:
    tab = open_tab(text_studio)
    last = list(tab.ask_written(asked(tab, words, "b", text="the cat", choices=" sat\n ran")))[-1]
    assert last[tab.sample].choices == (" sat", " ran") and last[tab.chart]["visible"]
    assert last[tab.verdict].count("% sure") == 3
    for trace in last[tab.chart]["value"].data:
        assert len(trace.x) == 2 and sum(trace.x) == pytest.approx(1, abs=1e-4)


def test_a_picked_text_is_shown_with_its_answer(text_studio: Studio, words: Workspace) -> None:
    tab = open_tab(text_studio)
    first, *later = tab.ask_picked(asked(tab, words, "b", chat=True))
    sample, boxes = first[tab.sample], tab.boxes
    text, listed, chat = first[boxes.text], first[boxes.choices], first[boxes.chat]
    assert (text, listed, chat) == (sample.inputs[0], " sat\n ran", False), "a pack's texts are whole prompts"
    assert f"The right answer is {sample.targets[0].strip()}" in later[-1][tab.verdict]
    assert not boxes.all & later[-1].keys(), "the inputs are left alone while the models answer"
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
    texts = TextSamples(("the cat", "a dog"), (None, None))
    first, second = (answer.text for answer in text_studio.model_pool(ws).model(INDIVIDUAL, "a").answer(texts))
    other = next(label for label in ("good", "bad") if label != second)
    (text_studio.settings.models_dir / "mine.csv").write_text(f"text,label\nthe cat,{first}\na dog,{other}\n")
    samples, left_out = labelled.all_samples(text_studio, ws, "mine.csv")
    assert list(samples) == ["a", "b"] and not left_out
    tab = open_tab(text_studio)
    table = measured(tab, asked(tab, ws, where="mine.csv", limit=50))[tab.table.table]
    assert "50.0%" in table and "·" not in table
    right = [text_studio.model_pool(ws).model(INDIVIDUAL, name).answer(samples[name]) for name in "ab"]
    for given in right:
        assert f"{sum(bool(one.correct) for one in given) / 2:.1%}" in table


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
    tab = open_tab(text_studio)
    (waiting,) = tab.ask_image(asked(tab, ws, picture=image))
    assert "Write the names" in waiting[tab.verdict] and waiting[tab.chart] is None
    names = "cat, big_dog\nred bird"
    last = list(tab.ask_written(asked(tab, ws, sample=waiting[tab.sample], choices=names)))[-1]
    assert last[tab.sample].choices == ("cat", "big_dog", "red bird") and last[tab.verdict].count("% sure") == 3
    assert [len(trace.x) for trace in last[tab.chart]["value"].data] == [3, 3, 3]
    with pytest.raises(SampleError, match="There is no image yet"):
        list(tab.ask_written(asked(tab, ws, choices="cat, dog")))


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
    tab = open_tab(text_studio)
    shown = measured(tab, asked(tab, ws, where="pictures", limit=50))
    assert "·" not in shown[tab.table.table] and shown[tab.table.bars]["visible"]


def test_names() -> None:
    assert read_names(" cat, dog\nred car,,cat ") == ("cat", "dog", "red car")
    assert read_names(" \n") is None


def test_parquet_of_texts_and_of_images(text_studio: Studio) -> None:
    root = text_studio.settings.models_dir
    parquet.write_table(pa.table({"text": ["the cat", "a dog"], "label": [0, 1]}), root / "mine.parquet")
    found = labelled.samples_of(text_studio, own(text_studio, "bert"), "a", "mine.parquet")
    assert found == TextSamples(("the cat", "a dog"), ("0", "1"))
    held = io.BytesIO()
    Image.new("RGB", (8, 8)).save(held, "PNG")
    (root / "images").mkdir()
    table = pa.table({"image": [held.getvalue()] * 2, "label": ["dog", "cat"]})
    parquet.write_table(table, root / "images" / "a.parquet")
    for where, names, classes in (
        ("images", None, ("cat", "dog")),
        ("images/a.parquet", ("dog", "cat"), ("dog", "cat")),
    ):
        samples = labelled.samples_of(text_studio, own(text_studio, "clip"), "a", where, names)
        assert isinstance(samples, ImageSamples) and samples.choices == classes
        assert [classes[label] for label in samples.labels.tolist()] == ["dog", "cat"]
