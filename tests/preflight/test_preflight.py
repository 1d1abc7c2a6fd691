"""Every mismatch between base and tasks is found from the headers, before anything is computed."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny_checkpoints import change_config, change_weights, save_base, save_task
from transformers import BertConfig, BertModel, ViTConfig, ViTForImageClassification, ViTModel

from sftm_app.errors import CheckpointError, CompatibilityError, InputError
from sftm_app.preflight.matching import Source
from sftm_app.preflight.preflight import Preflight, preflight, refuse_unchanged
from sftm_app.weights.checkpoint import open_checkpoint

DENSE = "encoder.layer.1.intermediate.dense.weight"


def compare(models: Path, *tasks: str, base: str = "base") -> Preflight:
    sources = [Source(name, open_checkpoint(models / name)) for name in tasks]
    return preflight(open_checkpoint(models / base), sources)


def weights(models: Path, name: str) -> Path:
    return models / name / "model.safetensors"


def test_tasks_that_fit(tiny_models: Path) -> None:
    found = compare(tiny_models, "a", "b", "c")
    assert found.problems == ()
    assert found.require() is found
    refuse_unchanged(found)
    base = set(open_checkpoint(tiny_models / "base").tensors)
    for match in found.matches:
        assert match.names == {name: f"vit.{name}" for name in base}
        assert set(match.heads) == {"classifier.weight", "classifier.bias"}
    # A note on several tasks is one line.
    assert [note for note in found.notes if "kept separately" in note] == [
        "a, b, c (each): classifier.bias, classifier.weight belong to its own head, which is kept separately, "
        "not merged."
    ]
    (alone,) = (note for note in compare(tiny_models, "a").notes if "kept separately" in note)
    assert alone.startswith("a: classifier")


def test_another_architecture(models: Path) -> None:
    config = BertConfig(vocab_size=11, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8)
    BertModel(config).save_pretrained(models / "bert")
    found = compare(models, "a", "bert")
    assert found.problems == (
        "bert: is a 'bert' model, the base is a 'vit' model. Only checkpoints fine-tuned from the base can be merged "
        "into it.",
    )


def test_reshaped_transposed_missing_and_unexpected_all_at_once(models: Path) -> None:
    def damage(tensors: dict[str, torch.Tensor]) -> None:
        tensors[f"vit.{DENSE}"] = tensors[f"vit.{DENSE}"].T.contiguous()
        tensors["vit.layernorm.weight"] = torch.zeros(17)
        del tensors["vit.layernorm.bias"]
        tensors["vit.extra.weight"] = torch.zeros(2)

    change_weights(weights(models, "a"), damage)
    change_weights(weights(models, "b"), lambda tensors: tensors.pop("vit.embeddings.cls_token"))
    found = compare(models, "a", "b", "c")
    said = "\n".join(found.problems)
    assert f"a: tensor '{DENSE}' has shape [16, 24], in the base it is [24, 16], which is its transpose" in said
    assert "a: tensor 'layernorm.weight' has shape [17], in the base it is [16]." in said
    assert "a: 1 tensors of the base are missing from it: layernorm.bias" in said
    assert "a: holds 1 tensors that the base lacks: vit.extra.weight" in said
    assert "b: 1 tensors of the base are missing from it: embeddings.cls_token" in said
    assert not any(problem.startswith("c") for problem in found.problems)
    with pytest.raises(CompatibilityError) as caught:
        found.require()
    assert caught.value.problems == found.problems
    assert str(caught.value).count("\n") == len(found.problems) - 1


def test_long_lists_are_cut_and_counted(models: Path) -> None:
    def damage(tensors: dict[str, torch.Tensor]) -> None:
        for name in [name for name in tensors if "layernorm" in name]:
            tensors[name] = torch.zeros(3)

    n = sum("layernorm" in name for name in load_file(weights(models, "a")))
    change_weights(weights(models, "a"), damage)
    problems = compare(models, "a").problems
    assert problems[-1].startswith(f"a: {n - 5} more tensors have another shape. It was not fine-tuned from this base")
    assert len(problems) == 6


@pytest.mark.parametrize("n_layers", [1, 3])
def test_another_number_of_layers(models: Path, n_layers: int) -> None:
    """A task smaller than the base must not be taken for one that merely lacks some tensors."""
    other = save_base(models / "other_base", num_hidden_layers=n_layers)
    save_task(models / "other", other, 5, 3)
    said = " ".join(compare(models, "other").problems)
    assert "encoder.layer." in said
    assert ("missing from it" if n_layers == 1 else "that the base lacks") in said


def test_a_backbone_with_a_pooler_takes_classifiers_without_one(models: Path) -> None:
    torch.manual_seed(0)
    config = ViTConfig.from_pretrained(models / "base")
    ViTModel(config, add_pooling_layer=True).save_pretrained(models / "pooled")
    save_task(models / "t", models / "pooled", 3, 3)
    found = compare(models, "t", base="pooled")
    assert found.problems == ()
    assert any("2 tensors are in no task and are copied from the base: pooler" in note for note in found.notes)


def test_quantised_task(models: Path) -> None:
    def quantise(tensors: dict[str, torch.Tensor]) -> None:
        tensors[f"vit.{DENSE}"] = tensors[f"vit.{DENSE}"].to(torch.int8)

    change_weights(weights(models, "a"), quantise)
    problems = compare(models, "a").problems
    assert len(problems) == 1
    assert f"integers on one side and floating-point numbers on the other: {DENSE}" in problems[0]


def test_names_of_tasks(models: Path) -> None:
    base, task = open_checkpoint(models / "base"), open_checkpoint(models / "a")
    bad = ["", "../x", "a/b", ".hidden", "-x", "a b", "x" * 65, "é", "a\n", "<b>"]
    problems = preflight(base, [Source(name, task) for name in bad]).problems
    assert len([problem for problem in problems if "cannot be a file name" in problem]) == len(bad)
    twice = preflight(base, [Source("t", task), Source("u", task), Source("t", task)]).problems
    assert twice == ("The name 't' is given to 2 tasks. Give each task its own name.",)


@pytest.mark.parametrize("weight", [0.0, float("nan"), float("inf")])
def test_weights_of_tasks(tiny_models: Path, weight: float) -> None:
    base, task = open_checkpoint(tiny_models / "base"), open_checkpoint(tiny_models / "a")
    assert any("other than 0" in problem for problem in preflight(base, [Source("t", task, weight)]).problems)


def test_no_task(tiny_models: Path) -> None:
    assert compare(tiny_models).problems == ("No task checkpoint is chosen. Add at least one.",)


@pytest.mark.parametrize("how", ["same path", "dots", "link"])
def test_the_base_as_a_task(models: Path, how: str) -> None:
    path = {"same path": models / "base", "dots": models / "a" / ".." / "base", "link": models / "link"}[how]
    if how == "link":
        path.symlink_to(models / "base")
    found = preflight(open_checkpoint(models / "base"), [Source("t", open_checkpoint(path))])
    assert any("is the base itself" in problem for problem in found.problems)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_task_equal_to_the_base_by_content(models: Path, dtype: torch.dtype) -> None:
    """Also in half precision, since rounding is not fine-tuning, and with its own head."""
    config = ViTConfig.from_pretrained(models / "base", num_labels=3)
    model = ViTForImageClassification(config)
    model.vit.load_state_dict(ViTModel.from_pretrained(models / "base", add_pooling_layer=False).state_dict())
    model.to(dtype).save_pretrained(models / "same")
    found = compare(models, "a", "same")
    assert found.problems == ()
    with pytest.raises(InputError, match=r"^same: every merged tensor equals the base's"):
        refuse_unchanged(found)


def test_one_changed_tensor_is_enough(models: Path) -> None:
    shutil.copytree(models / "base", models / "t")
    change_weights(weights(models, "t"), lambda tensors: tensors["layernorm.bias"].add_(1e-3))
    refuse_unchanged(compare(models, "t"))


def test_task_with_and_without_prefix(models: Path) -> None:
    """A fine-tuned bare backbone fits as well as one inside a classifier."""
    shutil.copytree(models / "base", models / "bare")
    change_weights(weights(models, "bare"), lambda tensors: tensors[DENSE].add_(0.1))
    found = compare(models, "a", "bare")
    assert found.problems == ()
    assert found.matches[0].names[DENSE] == f"vit.{DENSE}"
    assert found.matches[1].names[DENSE] == DENSE
    assert found.matches[1].heads == ()
    prefixed = compare(models, "bare", "b", base="a")
    assert prefixed.problems == ()
    assert prefixed.matches[0].names[f"vit.{DENSE}"] == DENSE
    assert prefixed.matches[1].names[f"vit.{DENSE}"] == f"vit.{DENSE}"


def labelled(models: Path, name: str, labels: list[str], base: str = "base") -> None:
    save_task(models / name, models / base, sum(map(ord, name)), len(labels))
    change_config(models / name, id2label=dict(enumerate(labels)))


def test_a_head_of_the_same_size_for_other_classes_is_another_head(models: Path) -> None:
    for name, labels in {"pets": ["cat", "dog"], "cars": ["bus", "van"], "again": ["cat", "dog"]}.items():
        labelled(models, name, labels)
    found = compare(models, "cars", "again", base="pets")
    assert found.problems == ()
    for match in found.matches:  # "again" has the base's classes, but heads of some tasks only are never merged
        assert set(match.heads) == {"classifier.weight", "classifier.bias"}
        assert not any("classifier" in name for name in match.names)
    alone = compare(models, "again", base="pets")
    assert alone.matches[0].heads == ()
    assert alone.matches[0].names["classifier.weight"] == "classifier.weight"


def test_a_base_with_a_classifier_of_another_size(tiny_models: Path) -> None:
    found = compare(tiny_models, "b", "c", base="a")
    assert found.problems == ()
    assert all(set(match.heads) == {"classifier.weight", "classifier.bias"} for match in found.matches)


def test_mixed_types_are_a_note(models: Path) -> None:
    save_task(models / "half", models / "base", 3, 3, torch.float16)
    found = compare(models, "a", "half")
    assert found.problems == ()
    assert any("The types differ (float16, float32)" in note for note in found.notes)


def test_roles_are_guessed_when_the_model_type_is_unknown(models: Path) -> None:
    for name in ("base", "a"):
        change_config(models / name, model_type="nonsense", auto_map={"AutoModel": "x.Y"})
    found = compare(models, "a").require()
    assert "The model type 'nonsense' is not known" in found.notes[0]
    assert "(`auto_map`) is never run. What each tensor is was guessed" in found.notes[0]
    assert found.architecture.owners["encoder.layer.0.intermediate.dense.weight"].kind == "linear"


def test_the_base_is_named_when_its_config_is_not_valid(models: Path) -> None:
    change_config(models / "base", hidden_size="wide")
    with pytest.raises(CheckpointError, match=f"^{models / 'base'}: config.json is not a valid 'vit' config"):
        compare(models, "a")


@pytest.mark.parametrize("changes", [{"hidden_size": "wide"}])
def test_a_task_with_an_unusable_config_is_one_problem_among_others(models: Path, changes: dict[str, Any]) -> None:
    change_config(models / "a", **changes)
    change_weights(weights(models, "b"), lambda tensors: tensors.pop("vit.layernorm.bias"))
    problems = compare(models, "a", "b").problems
    assert [problem[:2] for problem in problems] == ["a:", "b:"]


def test_settings_that_do_not_affect_shapes_are_a_note(models: Path) -> None:
    change_config(models / "a", num_attention_heads=4)
    found = compare(models, "a", "b")
    assert [note for note in found.notes if "config differs" in note] == [
        "a: its config differs in num_attention_heads (4, in the base 2); the merged model has the base's."
    ]


def test_one_checkpoint_picked_twice_is_noted(tiny_models: Path) -> None:
    base, task = open_checkpoint(tiny_models / "base"), open_checkpoint(tiny_models / "a")
    other = open_checkpoint(tiny_models / "b")
    found = preflight(base, [Source("one", task), Source("b", other), Source("two", task)])
    assert found.problems == ()
    assert any(note.startswith("one and two are one and the same checkpoint") for note in found.notes)
    assert not any("the same checkpoint" in note for note in preflight(base, [Source("a", task)]).notes)
