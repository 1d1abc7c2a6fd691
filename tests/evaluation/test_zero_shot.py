"""CLIP against class names: heads from the text tower, logits by hand."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from closeness import assert_close
from pools import SESSION, pool_of
from tiny_checkpoints import change_weights
from tiny_language import VOCABULARY, save_tokenizer
from transformers import (
    AutoTokenizer,
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    CLIPTextConfig,
    CLIPVisionConfig,
    CLIPVisionModel,
)

from sftm_app.architecture.reading import read_architecture
from sftm_app.errors import SampleError
from sftm_app.evaluation.accuracy import accuracy
from sftm_app.evaluation.candidates import BASE, INDIVIDUAL, ModelPool, method_candidate
from sftm_app.evaluation.samples import ImageSamples, TextSamples
from sftm_app.evaluation.zero_shot import TEMPLATES, ZeroShot
from sftm_app.preflight.matching import Match, Source
from sftm_app.preflight.preflight import Preflight
from sftm_app.weights.checkpoint import open_checkpoint

NAMES = ("cat", "big_dog", "red bird")
SIZE = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """base: a whole CLIP model; a, b: whole fine-tunes; tower: the vision tower of a, alone."""
    torch.manual_seed(0)
    root = tmp_path_factory.mktemp("clip")
    text = CLIPTextConfig(**SIZE, vocab_size=VOCABULARY, max_position_embeddings=12, bos_token_id=1, eos_token_id=2)
    vision = CLIPVisionConfig(**SIZE, image_size=8, patch_size=4)
    base = CLIPModel(CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=8))
    base.save_pretrained(root / "base")
    save_tokenizer(root / "base", "<s> $A </s>")
    eight = {"height": 8, "width": 8}
    CLIPImageProcessorPil(size=eight, crop_size=eight).save_pretrained(root / "base")
    for name in "ab":
        task = CLIPModel.from_pretrained(root / "base")
        with torch.no_grad():
            for parameter in task.parameters():
                parameter.add_(0.2 * torch.randn_like(parameter))
        task.save_pretrained(root / name)
    tower = CLIPVisionModel(task.config.vision_config)
    tower.load_state_dict(CLIPModel.from_pretrained(root / "a").vision_model.state_dict())
    tower.save_pretrained(root / "tower")
    return root


@pytest.fixture
def images() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (5, 8, 8, 3)).astype(np.uint8)


def by_hand(model: CLIPModel, models: Path, images: np.ndarray, names: tuple[str, ...] = NAMES) -> np.ndarray:
    tokenizer = AutoTokenizer.from_pretrained(models / "base")
    processor = CLIPImageProcessorPil.from_pretrained(models / "base")
    rows = []
    with torch.no_grad():
        for name in names:
            found = []
            for template in TEMPLATES:
                tokens = tokenizer(template.format(name.replace("_", " ")), return_tensors="pt")
                vector = model.get_text_features(input_ids=tokens["input_ids"]).pooler_output[0]
                found.append(vector / vector.norm())
            mean = torch.stack(found).mean(0)
            rows.append(mean / mean.norm())
        pixels = processor(images=list(images), return_tensors="pt")["pixel_values"]
        seen = model.get_image_features(pixel_values=pixels).pooler_output
        logits = model.logit_scale.exp() * (seen / seen.norm(dim=-1, keepdim=True)) @ torch.stack(rows).T
    return logits.softmax(-1).numpy()


def test_the_head_is_made_from_names(models: Path, images: np.ndarray) -> None:
    model_pool = pool_of(models, "a", "b")
    assert model_pool.family("a").name == "zero_shot" and model_pool.family("a").choices == "Class names"
    tried = model_pool.model(INDIVIDUAL, "b")
    wanted = by_hand(CLIPModel.from_pretrained(models / "b").eval(), models, images)
    answers = tried.answer(ImageSamples(images, np.full(5, -1), NAMES))
    assert_close([answer.scores for answer in answers], wanted)
    assert [answer.text for answer in answers] == [NAMES[i] for i in wanted.argmax(1)]
    assert all(answer.target is None and answer.correct is None for answer in answers)
    assert accuracy(tried, ImageSamples(images, wanted.argmax(1), NAMES)) == 1
    assert accuracy(tried, ImageSamples(images, (wanted.argmax(1) + 1) % 3, NAMES)) == 0


def test_other_names_make_another_head_and_the_same_ones_none(models: Path, images: np.ndarray) -> None:
    tried = pool_of(models, "a").model(INDIVIDUAL, "a")
    assert isinstance(tried, ZeroShot)
    assert tried.head(NAMES) is tried.head(NAMES)
    assert tried.head(NAMES[::-1]).tolist() == tried.head(NAMES).flip(0).tolist()
    for names in (None, ("cat",)):
        with pytest.raises(SampleError, match="write at least two"):
            tried.answer(ImageSamples(images, np.full(5, -1), names))
    with pytest.raises(SampleError, match="reads images; these samples are texts"):
        tried.answer(TextSamples(("cat",), (None,)))


def test_a_merge_of_whole_models(models: Path, images: np.ndarray) -> None:
    left, right = (CLIPModel.from_pretrained(models / name) for name in "ab")
    other = dict(right.named_parameters())
    with torch.no_grad():
        for name, parameter in left.named_parameters():
            parameter.copy_((parameter + other[name]) / 2)
    answers = (
        pool_of(models, "a", "b")
        .model(method_candidate("average"), "a")
        .answer(ImageSamples(images, np.full(5, -1), NAMES))
    )
    assert_close([a.scores for a in answers], by_hand(left.eval(), models, images))


def test_a_vision_tower_needs_a_whole_base(models: Path) -> None:
    tower = open_checkpoint(models / "tower")
    match = Match({name: name for name in tower.tensors}, ())
    found = Preflight(tower, (Source("tower", tower),), read_architecture(tower.config), (match,), (), ())
    with pytest.raises(SampleError, match="take a whole CLIPModel as the base"):
        ModelPool(found, SESSION).family("tower")


@pytest.mark.parametrize("prefix", ["", "vision_model."])
def test_a_vision_tower_alone_takes_the_bases_text_tower(
    models: Path, images: np.ndarray, tmp_path: Path, prefix: str
) -> None:
    """Older versions of transformers wrote the whole model's prefix into a tower's files, newer ones leave it out."""
    for name in ("base", "tower"):
        shutil.copytree(models / name, tmp_path / name)

    def rename(tensors: dict[str, torch.Tensor]) -> None:
        for name in list(tensors):
            tensors[prefix + name.removeprefix("vision_model.")] = tensors.pop(name)

    change_weights(tmp_path / "tower" / "model.safetensors", rename)
    model_pool = pool_of(tmp_path, "tower")
    assert model_pool.family("tower").name == "zero_shot"
    model = CLIPModel.from_pretrained(models / "base").eval()
    samples = ImageSamples(images, np.full(5, -1), NAMES)
    scores = [answer.scores for answer in model_pool.model(BASE, "tower").answer(samples)]
    assert_close(scores, by_hand(model, models, images))
    model.vision_model.load_state_dict(CLIPModel.from_pretrained(models / "a").vision_model.state_dict())
    wanted = by_hand(model, models, images)
    for candidate in (INDIVIDUAL, method_candidate("average")):
        found = [answer.scores for answer in model_pool.model(candidate, "tower").answer(samples)]
        assert_close(found, wanted)
