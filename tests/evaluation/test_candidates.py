"""Base, individual, merged: each candidate against a model that plain transformers loads."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from closeness import assert_close
from pools import SESSION, inputs_of, pool_of
from safetensors.torch import load_file
from tiny_checkpoints import change_config, change_weights
from transformers import ViTForImageClassification, ViTImageProcessor, ViTModel

from sftm_app.errors import InputError, SampleError
from sftm_app.evaluation.accuracy import accuracy
from sftm_app.evaluation.candidates import (
    BASE,
    INDIVIDUAL,
    ModelPool,
    folder_candidate,
    merge_in_memory,
    method_candidate,
)
from sftm_app.evaluation.samples import ImageSamples
from sftm_app.methods import METHODS
from sftm_app.output.save import save
from sftm_app.pipeline import prepare
from sftm_app.planning.recipe import make_recipe


@pytest.fixture(scope="session")
def ready_models(tiny_models: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny models with preprocessing next to the base (tasks have none, so they take the base's)."""
    root = Path(shutil.copytree(tiny_models, tmp_path_factory.mktemp("ready") / "models"))
    processor = ViTImageProcessor(size={"height": 8, "width": 8}, image_mean=[0.5], image_std=[0.5])
    processor.save_pretrained(root / "base")
    return root


@pytest.fixture
def model_pool(ready_models: Path) -> ModelPool:
    return pool_of(ready_models)


@pytest.fixture(scope="session")
def images() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (6, 8, 8)).astype(np.uint8)


def pixels_of(images: np.ndarray) -> torch.Tensor:
    return (torch.from_numpy(images).float()[:, None] / 255 - 0.5) / 0.5


def plain(backbone: ViTModel, task: Path, images: np.ndarray) -> np.ndarray:
    """A backbone that transformers loaded, with a task's head applied by hand."""
    head = load_file(task / "model.safetensors")
    with torch.no_grad():
        state = backbone.eval()(pixels_of(images)).last_hidden_state[:, 0]
        return (state @ head["classifier.weight"].T + head["classifier.bias"]).softmax(-1).numpy()


@pytest.mark.parametrize("task", ["a", "b", "c"])
def test_individual_is_the_task_model(ready_models: Path, model_pool: ModelPool, images: np.ndarray, task: str) -> None:
    model = ViTForImageClassification.from_pretrained(ready_models / task).eval()
    with torch.no_grad():
        wanted = model(pixels_of(images)).logits.softmax(-1).numpy()
    classifier = model_pool.model(INDIVIDUAL, task)
    assert_close(classifier.probabilities(images), wanted)
    assert classifier.labels == tuple(f"label {i} of {task}" for i in range(len(classifier.labels)))


@pytest.mark.parametrize("task", ["a", "b"])
def test_base_is_the_bases_backbone_with_the_tasks_head(
    ready_models: Path, model_pool: ModelPool, images: np.ndarray, task: str
) -> None:
    backbone = ViTModel.from_pretrained(ready_models / "base", add_pooling_layer=False)
    wanted = plain(backbone, ready_models / task, images)
    assert_close(model_pool.model(BASE, task).probabilities(images), wanted)


@pytest.mark.parametrize("method", METHODS)
def test_a_merge_in_memory_is_the_merge_on_the_disk(
    ready_models: Path, images: np.ndarray, tmp_path: Path, method: str
) -> None:
    names = "abc"[: METHODS[method].n_tasks or 3]
    model_pool, tasks = pool_of(ready_models, *names), [ready_models / name for name in names]
    plan = prepare(make_recipe(ready_models / "base", tasks, method), SESSION)
    for _ in save(plan, SESSION, tmp_path / "out"):
        pass
    wanted = plain(ViTModel.from_pretrained(tmp_path / "out", add_pooling_layer=False), ready_models / "b", images)
    for candidate in (method_candidate(method), folder_candidate(tmp_path / "out", "Saved", method)):
        found = model_pool.model(candidate, "b").probabilities(images)
        assert_close(found, wanted)


def test_probabilities(model_pool: ModelPool, images: np.ndarray) -> None:
    classifier = model_pool.model(BASE, "c")
    found = classifier.probabilities(images)
    assert found.shape == (6, 5) and found.dtype == np.float32
    assert_close(found.sum(1), 1)
    assert classifier.probabilities(images[:0]).shape == (0, 5)
    # More than one batch changes nothing.
    many = classifier.probabilities(np.repeat(images, 50, axis=0))
    assert_close(many[::50], found)


def test_accuracy_counts_the_most_probable_class(model_pool: ModelPool, images: np.ndarray) -> None:
    classifier = model_pool.model(INDIVIDUAL, "a")
    best = classifier.probabilities(images).argmax(1)
    assert accuracy(classifier, ImageSamples(images, best)) == 1.0
    wrong = best.copy()
    wrong[:3] = (wrong[:3] + 1) % 3
    assert accuracy(classifier, ImageSamples(images, wrong)) == 0.5
    for unknown in (ImageSamples(images[:0], best[:0]), ImageSamples(images, np.full(6, -1))):
        with pytest.raises(SampleError, match="correct answers are all known"):
            accuracy(classifier, unknown)
    with pytest.raises(SampleError, match="class number 7; the model knows 3"):
        classifier.answer(ImageSamples(images, np.full(6, 7)))


def test_weights_of_the_workspace_count_in_memory_too(ready_models: Path) -> None:
    tasks = [{"path": ready_models / "a", "weight": 3.0}, {"path": ready_models / "b"}]
    found = merge_in_memory(inputs_of(ready_models / "base", tasks), "average", {}, SESSION)
    name = "layernorm.weight"
    a, b = (load_file(ready_models / t / "model.safetensors")[f"vit.{name}"] for t in "ab")
    assert_close(found[name], (3 * a + b) / 4)


def test_other_weights_are_tried_without_changing_the_workspace(ready_models: Path, images: np.ndarray) -> None:
    model_pool = pool_of(ready_models)
    tried = method_candidate("average", weights=(3.0, 1.0, 0.5))
    assert tried.title.endswith(" (weights 3, 1, 0.5)") and tried.kind == "average"
    name = "layernorm.weight"
    a, b, c = (load_file(ready_models / t / "model.safetensors")[f"vit.{name}"] for t in "abc")
    assert_close(model_pool.tensor(tried, "a", name), (3 * a + b + 0.5 * c) / 4.5)
    assert_close(model_pool.tensor(method_candidate("average"), "a", name), (a + b + c) / 3)
    chances = model_pool.model(tried, "b").probabilities(images)
    assert abs(chances - model_pool.model(method_candidate("average"), "b").probabilities(images)).max() > 1e-4
    tasks = [{"path": ready_models / n, "weight": weight} for n, weight in zip("abc", (3.0, 1.0, 0.5), strict=True)]
    own = ModelPool(inputs_of(ready_models / "base", tasks), SESSION)
    assert_close(chances, own.model(method_candidate("average"), "b").probabilities(images), 1e-6)
    with pytest.raises(InputError, match="2 weights for 3 tasks"):
        model_pool.model(method_candidate("average", weights=(1.0, 2.0)), "a")


def test_parameters_and_weights_tell_candidates_apart() -> None:
    plain = method_candidate("sftm")
    assert (plain.key, plain.title) == ("method:sftm", method_candidate("sftm", {}, None).title)
    made = [
        plain,
        method_candidate("sftm", {"scaling": 0.5}),
        method_candidate("sftm", {"scaling": 0.5}, (1.0, 2.0)),
        method_candidate("sftm", weights=(1.0, 2.0)),
        method_candidate("sftm", weights=(2.0, 1.0)),
    ]
    assert len({candidate.key for candidate in made}) == len({candidate.title for candidate in made}) == 5
    assert made[2].title.endswith("(scaling 0.5, weights 1, 2)")


def test_models_are_kept_and_tasks_are_known(model_pool: ModelPool) -> None:
    assert model_pool.task_names == ("a", "b", "c")
    assert model_pool.model(BASE, "a") is model_pool.model(BASE, "a")
    with pytest.raises(InputError, match=r"There is no task 'x'. Choose one of a, b, c"):
        model_pool.model(BASE, "x")


def test_a_task_without_preprocessing_anywhere(tiny_models: Path) -> None:
    with pytest.raises(SampleError, match=r"has no preprocessor_config\.json"):
        pool_of(tiny_models).model(BASE, "a")


def copied(ready_models: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(ready_models, tmp_path / "copy"))


def test_a_task_that_is_no_image_classifier(ready_models: Path, tmp_path: Path) -> None:
    models = copied(ready_models, tmp_path)
    change_config(models / "a", architectures=["ViTModel"])
    change_weights(models / "a" / "model.safetensors", lambda t: [t.pop(f"classifier.{n}") for n in ("weight", "bias")])
    with pytest.raises(SampleError, match="The model class ViTModel cannot be tried"):
        pool_of(models).model(BASE, "a")


def test_half_a_head_is_not_made_up(ready_models: Path, tmp_path: Path) -> None:
    models = copied(ready_models, tmp_path)
    change_weights(models / "a" / "model.safetensors", lambda tensors: tensors.pop("classifier.bias"))
    with pytest.raises(SampleError, match=r"do not fit ViTForImageClassification: missing classifier\.bias\."):
        pool_of(models).model(INDIVIDUAL, "a")


def test_a_head_of_another_shape_is_not_made_up(ready_models: Path, tmp_path: Path) -> None:
    models = copied(ready_models, tmp_path)
    change_weights(
        models / "a" / "model.safetensors", lambda tensors: tensors.update({"classifier.bias": torch.zeros(7)})
    )
    with pytest.raises(SampleError, match=r"do not fit ViTForImageClassification: mismatched classifier\.bias\."):
        pool_of(models).model(INDIVIDUAL, "a")


def test_a_folder_that_was_not_merged_from_this_base(ready_models: Path, model_pool: ModelPool) -> None:
    with pytest.raises(SampleError, match=r"Other: lacks '.*', so it was not merged from this base"):
        model_pool.model(folder_candidate(ready_models / "a", "Other", "sftm"), "b")


def test_problems_are_refused_at_once(ready_models: Path) -> None:
    found = inputs_of(ready_models / "base", [ready_models / "base"])
    with pytest.raises(InputError, match="is the base itself"):
        ModelPool(found, SESSION)
