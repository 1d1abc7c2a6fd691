"""Linear maps inside tensors (fused, transposed, stacks of experts) and models inside models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import transformers as hf
from direct_merge import arrays, direct_merge, distance, merge_matrix
from family_builders import FAMILIES, TASKS, Family, save_family, save_task, shaken
from test_families import TOLERANCE, load_sound
from test_files import merge_tasks, rename

from sftm_app.api import check, merge_recipe
from sftm_app.errors import RecipeError
from sftm_app.pipeline import prepare
from sftm_app.planning.recipe import make_recipe, recipe_from_yaml, recipe_to_yaml
from sftm_app.session import Session


def changes_of(root: Path, name: str) -> list[np.ndarray]:
    base = arrays(root / "base")[name]
    return [arrays(root / task)[name] - base for task in TASKS]


QKV = ["query", "key", "value"]


@pytest.mark.parametrize(
    ("family", "name", "labels", "sizes"),
    [
        ("gpt2", "transformer.h.1.attn.c_attn.weight", QKV, [8, 8, 8]),
        ("phi3", "model.layers.1.self_attn.qkv_proj.weight", QKV, [8, 4, 4]),
        ("phi3", "model.layers.0.mlp.gate_up_proj.weight", ["gate", "up"], [12, 12]),
        ("siglip", "vision_model.head.attention.in_proj_weight", QKV, [8, 8, 8]),
        ("dinov2 swiglu", "encoder.layer.0.mlp.weights_in.weight", ["gate", "up"], None),
    ],
)
@pytest.mark.parametrize("split", [True, False])
def test_fused_matrices(
    family: str, name: str, labels: list[str], sizes: list[int] | None, split: bool, tmp_path: Path
) -> None:
    same = Family(**{**vars(FAMILIES[family]), "task": FAMILIES[family].base})
    report = merge_tasks(save_family(tmp_path, same), split_fused=split)
    lines = [record for record in report.tensors if record.name.partition(" [")[0] == name]
    words = f"{', '.join(labels[:-1])} and {labels[-1]}"
    base, found = arrays(tmp_path / "base")[name], arrays(tmp_path / "out")[name]
    transposed = family == "gpt2"
    maps = [change.T if transposed else change for change in changes_of(tmp_path, name)]
    if split:
        assert [line.name for line in lines] == [f"{name} [{label}]" for label in labels]
        assert all(line.why.endswith(f"split into {words}") for line in lines)
        sizes = sizes or [len(maps[0]) // len(labels)] * len(labels)
        blocks = [np.split(matrix, np.cumsum(sizes)[:-1]) for matrix in maps]
        D = np.concatenate([merge_matrix(part) for part in zip(*blocks, strict=True)])
    else:
        assert [line.name for line in lines] == [name]
        assert lines[0].why.endswith(f"{words} in one matrix, merged whole")
        D = merge_matrix(maps)
    assert distance(found, base + (D.T if transposed else D), base) < TOLERANCE
    load_sound(FAMILIES[family].base, tmp_path / "out")


@pytest.mark.parametrize(
    ("family", "name"),
    [
        ("neox", "gpt_neox.layers.0.attention.query_key_value.weight"),
        ("gpt-oss", "model.layers.0.mlp.experts.gate_up_proj"),
    ],
)
def test_interleaved_maps_are_never_split(family: str, name: str, tmp_path: Path, session: Session) -> None:
    save_family(tmp_path, FAMILIES[family])
    tasks = [tmp_path / task for task in TASKS]
    plan = prepare(make_recipe(tmp_path / "base", tasks, device="cpu", split_fused=True), session)
    (entry,) = (entry for entry in plan.entries if entry.name == name)
    assert "are interleaved, so the matrix is merged whole" in entry.why
    assert all(part.rows is None for part in entry.parts)


@pytest.mark.parametrize("split", [True, False])
def test_every_expert_of_a_stack_is_its_own_matrix(split: bool, tmp_path: Path) -> None:
    report = merge_tasks(save_family(tmp_path, FAMILIES["granite moe"]), split_fused=split)
    name = "model.layers.0.block_sparse_moe.input_linear.weight"
    lines = [record.name for record in report.tensors if record.name.startswith(name)]
    halves = [" gate", " up"] if split else [""]
    assert lines == [f"{name} [expert {e}{half}]" for e in range(3) for half in halves]
    base, found = arrays(tmp_path / "base")[name], arrays(tmp_path / "out")[name]
    for e in range(3):
        D = merge_matrix([change[e] for change in changes_of(tmp_path, name)], blocks=len(halves))
        assert distance(found[e], base[e] + D, base[e]) < TOLERANCE


def test_experts_stored_separately_and_routers_are_matrices(tmp_path: Path) -> None:
    save_family(tmp_path, FAMILIES["mixtral"])
    report = merge_tasks(tmp_path)
    roles = {record.name: (record.role, record.why) for record in report.tensors}
    layer = "model.layers.1.block_sparse_moe"
    assert roles[f"{layer}.experts.2.w3.weight"] == ("matrix", "owned by MixtralExperts")
    assert roles[f"{layer}.gate.weight"] == ("matrix", "owned by MixtralTopKRouter")


@pytest.mark.parametrize(
    ("family", "name", "owner"),
    [
        ("t5", "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight", "Embedding"),
        ("swin", "encoder.layers.0.blocks.0.attention.self.relative_position_bias_table", "SwinRelativePositionBias"),
    ],
)
def test_relative_position_biases_are_embeddings(family: str, name: str, owner: str, tmp_path: Path) -> None:
    save_family(tmp_path, FAMILIES[family])
    report = merge_tasks(tmp_path)
    (line,) = (record for record in report.tensors if record.name == name)
    assert (line.role, line.rule, line.why) == ("embedding", "average", f"owned by {owner}")


def save_towers(root: Path) -> tuple[Path, list[Path]]:
    """A CLIP model in root/base, and fine-tunes of its vision tower with the names that those on the hub have."""
    save_family(root, FAMILIES["clip"])
    towers = [root / f"tower {name}" for name in TASKS]
    for seed, folder in enumerate(towers, start=4):
        save_task(folder, root / "base", "CLIPVisionModel", seed)
        if not any(name.startswith("vision_model.") for name in arrays(folder)):
            rename(folder, "", "vision_model.")
    return root / "base", towers


def test_fine_tuned_vision_towers_are_merged_into_clip(tmp_path: Path, session: Session) -> None:
    base, towers = save_towers(tmp_path)
    found = check(base, [{"path": str(tower), "name": f"t{i}"} for i, tower in enumerate(towers)])
    assert found.problems == ()
    assert [match.heads for match in found.matches] == [()] * 3
    assert "t0, t1, t2 (each): is a 'clip_vision_model', a part of the base; the rest is as in the base." in found.notes
    recipe = make_recipe(base, towers, output={"path": str(tmp_path / "out")}, device="cpu")
    merge_recipe(recipe, tmp_path / "out", session)
    check_tower(arrays(base), arrays(tmp_path / "out"), [arrays(tower) for tower in towers])
    load_sound("CLIPModel", tmp_path / "out")


def test_fine_tuned_clips_are_merged_into_a_vision_tower(tmp_path: Path, session: Session) -> None:
    _, towers = save_towers(tmp_path)
    tasks = [tmp_path / name for name in TASKS]
    found = check(towers[0], tasks)
    assert found.problems == ()
    (outside,) = (note for note in found.notes if "outside the base's part and left out" in note)
    assert outside.startswith("a, b, c (each): ")
    assert [match.heads for match in found.matches] == [()] * 3
    recipe = make_recipe(towers[0], tasks, output={"path": str(tmp_path / "out")}, device="cpu")
    merge_recipe(recipe, tmp_path / "out", session)
    check_tower(arrays(towers[0]), arrays(tmp_path / "out"), [arrays(task) for task in tasks])
    load_sound("CLIPVisionModel", tmp_path / "out")


def check_tower(base: dict[str, Any], found: dict[str, Any], tasks: list[dict[str, Any]]) -> None:
    assert set(found) == set(base)
    for name, ours in base.items():
        expected = direct_merge(name, ours, [task[name] for task in tasks if name in task])
        assert distance(found[name], expected, ours) < TOLERANCE, name


def test_a_projected_tower_keeps_its_projection(tmp_path: Path) -> None:
    base, _ = save_towers(tmp_path)
    save_task(tmp_path / "p", base, "CLIPVisionModelWithProjection", 9)
    found = check(base, [tmp_path / "p"])
    assert (found.problems, found.matches[0].heads) == ((), ())
    assert "visual_projection.weight" in found.matches[0].names


def test_a_tower_of_another_size_is_refused(tmp_path: Path) -> None:
    base, _ = save_towers(tmp_path)
    settings = FAMILIES["clip vision"].settings
    for name, changes in {"wide": {"intermediate_size": 16}, "flat": {"num_hidden_layers": 1}}.items():
        shaken(hf.CLIPVisionModel(hf.CLIPVisionConfig(**(settings | changes))), 1, 0.1).save_pretrained(tmp_path / name)
    problems = check(base, [tmp_path / "wide", tmp_path / "flat"]).problems
    assert (
        "wide: tensor 'vision_model.encoder.layers.0.mlp.fc1.bias' has shape [16], in the base it is [12]." in problems
    )
    assert any(problem.startswith("flat: 16 tensors of the base are missing") for problem in problems)


def test_parts_that_the_base_lacks_are_refused(tmp_path: Path) -> None:
    save_family(tmp_path, FAMILIES["clip vision"])
    vit = hf.ViTConfig(**FAMILIES["vit"].settings)
    hf.ViTModel(vit).save_pretrained(tmp_path / "vit")
    (problem,) = check(tmp_path / "base", [tmp_path / "vit"]).problems
    assert problem.startswith("vit: is a 'vit' model, the base is a 'clip_vision_model' model.")


def test_the_recipe_remembers_the_split() -> None:
    recipe = make_recipe("base", ["a"], split_fused=True)
    assert recipe_from_yaml(recipe_to_yaml(recipe)) == recipe
    assert not recipe_from_yaml("base: base\ntasks: [a]").split_fused
    with pytest.raises(RecipeError, match="split_fused: 'no' is neither true nor false"):
        make_recipe("base", ["a"], split_fused="no")  # type: ignore[arg-type]
