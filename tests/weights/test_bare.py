"""Weights without config.json: opening, matching, guessing roles, and roles set by a person."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from closeness import assert_close
from safetensors.torch import load_file, save_file
from tiny_checkpoints import change_weights
from transformers import BertConfig, BertModel, GPT2Config, GPT2Model, ViTConfig, ViTModel

from sftm_app.api import check, merge, merge_recipe
from sftm_app.architecture.guess import guess_architecture
from sftm_app.architecture.roles import assign
from sftm_app.errors import CheckpointError, CompatibilityError, RecipeError
from sftm_app.planning.planner import open_inputs
from sftm_app.planning.recipe import default_name, make_recipe, recipe_from_yaml, recipe_to_yaml
from sftm_app.session import Session
from sftm_app.weights.checkpoint import open_checkpoint

_SIZES: dict[str, Any] = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
}


def bert() -> BertModel:
    return BertModel(BertConfig(**_SIZES, vocab_size=30, max_position_embeddings=12))


def gpt2() -> GPT2Model:
    return GPT2Model(GPT2Config(n_embd=16, n_layer=2, n_head=2, vocab_size=30, n_positions=12))


def vit() -> ViTModel:
    return ViTModel(ViTConfig(**_SIZES, image_size=8, patch_size=4, num_channels=1), add_pooling_layer=False)


def fine_tunes(make: Any, root: Path) -> Path:
    """`base` and three changed copies of it below `root`, each a folder with config."""
    torch.manual_seed(0)
    model = make()
    model.save_pretrained(root / "base")
    for seed, name in enumerate("abc", start=1):
        torch.manual_seed(seed)
        tuned = make()
        tuned.load_state_dict(model.state_dict())
        with torch.no_grad():
            for parameter in tuned.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
        tuned.save_pretrained(root / name)
    return root


def strip(root: Path, *names: str) -> list[Path]:
    """Bare copies of the folders: one file per folder, named after it, all in one folder."""
    bare = root / "bare"
    bare.mkdir(exist_ok=True)
    for name in names:
        shutil.copy(root / name / "model.safetensors", bare / f"{name}.safetensors")
    return [bare / f"{name}.safetensors" for name in names]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def assert_same(left: Path, right: Path) -> None:
    ours, theirs = weights(left), weights(right)
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert_close(tensor, theirs[name], what=name)


@pytest.mark.parametrize("make", [vit, bert, gpt2])
def test_a_bare_merge_equals_the_one_with_configs(make: Any, tmp_path: Path) -> None:
    root = fine_tunes(make, tmp_path)
    merge(root / "base", [root / name for name in "abc"], tmp_path / "with", device="cpu")
    base, *tasks = strip(root, "base", "a", "b", "c")
    report = merge(base, tasks, tmp_path / "without", device="cpu")
    assert_same(tmp_path / "with", tmp_path / "without")
    assert [entry.name for entry in report.inputs] == ["base", "a", "b", "c"]
    assert all("guessed" in record.why or record.role == "buffer" for record in report.tensors)
    assert not (tmp_path / "without" / "config.json").exists()
    again = open_checkpoint(tmp_path / "without")
    assert again.bare and set(again.tensors) == set(weights(tmp_path / "without"))
    shutil.copy(root / "base" / "config.json", tmp_path / "without")
    _, loading = type(make()).from_pretrained(tmp_path / "without", output_loading_info=True)
    assert not loading["unexpected_keys"] and all("pooler" in name for name in loading["missing_keys"])


def test_fused_maps_are_guessed_and_split_on_request(tmp_path: Path, session: Session) -> None:
    root = fine_tunes(gpt2, tmp_path)
    base, *tasks = strip(root, "base", "a", "b")
    known = make_recipe(root / "base", [root / "a", root / "b"], device="cpu", split_fused=True)
    merge_recipe(known, tmp_path / "with", session)
    report = merge_recipe(make_recipe(base, tasks, device="cpu", split_fused=True), tmp_path / "without", session)
    assert_same(tmp_path / "with", tmp_path / "without")
    assert "h.0.attn.c_attn.weight [query]" in {record.name for record in report.tensors}


def test_bare_tasks_of_a_base_with_config_and_vice_versa(tmp_path: Path) -> None:
    root = fine_tunes(gpt2, tmp_path)
    merge(root / "base", [root / "a", root / "b"], tmp_path / "with", device="cpu")
    base, a, b = strip(root, "base", "a", "b")
    found = check(root / "base", [a, root / "b"])
    assert not found.problems and found.architecture.owners["h.0.attn.c_proj.weight"].module == "Conv1D"
    merge(root / "base", [a, root / "b"], tmp_path / "bare-task", device="cpu")
    merge(base, [root / "a", b], tmp_path / "bare-base", device="cpu")
    for output in ("bare-task", "bare-base"):
        assert_same(tmp_path / "with", tmp_path / output)
    assert (tmp_path / "bare-task" / "config.json").exists() and not (tmp_path / "bare-base" / "config.json").exists()


@pytest.mark.parametrize("bare_base", [True, False])
@pytest.mark.parametrize("bare_task", [True, False])
def test_prefixes_and_heads_of_bare_tasks(tiny_models: Path, tmp_path: Path, bare_base: bool, bare_task: bool) -> None:
    """The base is a plain ViT, the tasks are classifiers whose names begin with `vit.` and whose heads differ."""
    paths = strip(Path(shutil.copytree(tiny_models, tmp_path / "m")), "base", "a", "b")
    files = {path.stem: path for path in paths}
    base = files["base"] if bare_base else tiny_models / "base"
    tasks = [files[name] if bare_task else tiny_models / name for name in "ab"]
    found = check(base, tasks)
    assert not found.problems
    assert all(set(match.names) == set(found.base.tensors) for match in found.matches)
    assert all(match.heads == ("classifier.bias", "classifier.weight") for match in found.matches)
    assert found.matches[0].names["layernorm.weight"] == "vit.layernorm.weight"


def test_a_bare_base_with_the_prefix_and_tasks_without(tmp_path: Path) -> None:
    root = fine_tunes(bert, tmp_path)
    wrap = {"base"}
    for name in wrap:
        tensors = {f"bert.{key}": value for key, value in weights(root / name).items()}
        save_file(tensors, root / name / "model.safetensors")
    base, a = strip(root, "base", "a")
    for task in (a, root / "a"):
        found = check(base, [task])
        assert not found.problems and len(found.matches[0].names) == len(found.base.tensors)


def test_a_bare_task_that_lacks_or_adds_tensors_is_refused(tmp_path: Path) -> None:
    root = fine_tunes(bert, tmp_path)
    base, a, b, c = strip(root, "base", "a", "b", "c")
    change_weights(a, lambda tensors: tensors.pop("encoder.layer.1.output.dense.weight"))
    change_weights(b, lambda tensors: tensors.update({"encoder.layer.2.extra.weight": torch.ones(2, 2)}))
    change_weights(c, lambda tensors: [tensors.pop(f"pooler.dense.{leaf}") for leaf in ("weight", "bias")])
    problems = check(base, [a, b, c]).problems
    assert len(problems) == 2
    assert "encoder.layer.1.output.dense.weight" in problems[0] and "missing" in problems[0]
    assert "encoder.layer.2.extra.weight" in problems[1]


def infos(root: Path, **tensors: torch.Tensor) -> Any:
    save_file({name.replace("__", "."): tensor for name, tensor in tensors.items()}, root / "t.safetensors")
    return open_checkpoint(root / "t.safetensors").tensors


@pytest.mark.parametrize(
    ("name", "shape", "role", "why"),
    [
        ("block.3.ff.weight", (4, 3), "matrix", "from its shape"),
        ("block.3.ff.bias", (4,), "bias", "from its name"),
        ("block.3.ln_1.bias", (4,), "norm", "from its name"),
        ("final.gamma", (4,), "norm", "from its name"),
        ("scale.weight", (4,), "norm", "from its shape"),
        ("tok_embeddings.weight", (9, 4), "embedding", "from its name"),
        ("transformer.wpe.weight", (9, 4), "embedding", "from its name"),
        ("shared.weight", (9, 4), "embedding", "from its name"),
        ("block.0.relative_attention_bias.weight", (9, 2), "embedding", "from its name"),
        ("visual.class_embedding", (4,), "embedding", "from its name"),
        ("visual.cls_token", (1, 1, 4), "embedding", "from its name"),
        ("embed_projection.weight", (4, 3), "matrix", "from its shape"),
        ("patch_embed.proj.weight", (4, 1, 2, 2), "matrix", "convolution"),
        ("wave.conv.weight", (4, 2, 3), "matrix", "convolution"),
        ("mlp.shared_expert_gate.weight", (1, 4), "matrix", "from its shape"),
        ("logit_scale", (), "embedding", "single number"),
    ],
)
def test_guesses_by_name_and_shape(tmp_path: Path, name: str, shape: tuple[int, ...], role: str, why: str) -> None:
    tensors = infos(tmp_path, **{name: torch.zeros(shape)})
    found = assign(tensors[name], guess_architecture(tensors).owners[name])
    assert found.role.value == role and found.why.startswith("guessed") and why in found.why


def test_integers_are_copied_and_experts_are_stacks(tmp_path: Path) -> None:
    tensors = infos(tmp_path, ids=torch.arange(3), mlp__experts__down_proj=torch.zeros(5, 4, 3))
    owners = guess_architecture(tensors).owners
    assert assign(tensors["ids"], owners["ids"]).role.value == "buffer"
    stack = assign(tensors["mlp.experts.down_proj"], owners["mlp.experts.down_proj"])
    assert [part.shape_in((5, 4, 3)) for part in stack.parts] == [(4, 3)] * 5


def test_the_bias_shows_how_a_matrix_is_stored(tmp_path: Path) -> None:
    tensors = infos(
        tmp_path,
        h__0__c_fc__weight=torch.zeros(4, 6),
        h__0__c_fc__bias=torch.zeros(6),
        h__0__c_proj__weight=torch.zeros(4, 4),
        h__0__c_proj__bias=torch.zeros(4),
        h__0__dense__weight=torch.zeros(6, 4),
        h__0__dense__bias=torch.zeros(6),
        h__0__other__dense__weight=torch.zeros(4, 4),
        h__0__other__dense__bias=torch.zeros(4),
        h__1__c_fc__weight=torch.zeros(4, 6),
        h__1__c_fc__bias=torch.zeros(6),
        lm_head__weight=torch.zeros(9, 4),
    )
    kinds = {name: owner.kind for name, owner in guess_architecture(tensors).owners.items() if "weight" in name}
    assert kinds["h.0.c_fc.weight"] == "linear_transposed" and kinds["h.0.dense.weight"] == "linear"
    assert kinds["h.0.c_proj.weight"] == "linear_transposed", "square: as most in the file"
    assert kinds["h.0.other.dense.weight"] == "linear", "square: as those of its name"
    assert kinds["lm_head.weight"] == "linear", "no bias tells otherwise"


def test_roles_of_a_recipe_override_guesses_and_are_reported(tiny_models: Path, tmp_path: Path) -> None:
    last = "encoder.layer.1.output.dense.weight"
    roles = {"*.weight": "copy", "encoder.layer.*.output.dense.weight": "norm", last: "matrix"}
    report = merge(
        tiny_models / "base", [tiny_models / "a", tiny_models / "b"], tmp_path / "out", device="cpu", roles=roles
    )
    records = {record.name: record for record in report.tensors}
    first = last.replace("layer.1", "layer.0")
    assert (records[first].rule, records[first].why) == ("average", "set by the recipe")
    assert records[last].rule == "method"
    assert records["layernorm.weight"].rule == "copy" and records["layernorm.bias"].rule == "average"
    merged, base = weights(tmp_path / "out"), weights(tiny_models / "base")
    assert torch.equal(merged["layernorm.weight"], base["layernorm.weight"])
    mean = sum(weights(tiny_models / name)[f"vit.{first}"] for name in "ab") / 2
    assert_close(merged[first], mean)
    assert report.recipe["roles"] == roles


def test_a_transposed_matrix_by_the_recipe(tmp_path: Path) -> None:
    """With the orientation of c_proj set, a bare file without biases merges like the one with its config."""
    root = fine_tunes(gpt2, tmp_path)
    names = ("base", "a", "b")
    for name in names:
        change_weights(
            root / name / "model.safetensors",
            lambda tensors: [tensors.pop(key) for key in list(tensors) if key.endswith(("c_fc.bias", "c_proj.bias"))],
        )
    base, *tasks = strip(root, *names)
    name = "h.0.mlp.c_fc.weight"
    assert check(base, tasks).architecture.owners[name].kind == "linear"
    found = check(base, tasks, roles={"h.*.mlp.c_*.weight": "matrix_transposed"})
    assert not found.problems
    part = assign(found.base.tensors[name], found.architecture.owners[name]).parts[0]
    assert found.base.tensors[name].shape == (16, 64) and part.shape_in((16, 64)) == (64, 16)


def test_roles_that_do_not_fit_are_problems(tiny_models: Path) -> None:
    def problems(roles: dict[str, str]) -> tuple[str, ...]:
        return check(tiny_models / "base", [tiny_models / "a"], roles).problems

    assert "no tensor of the base has a name like 'layernrm.weight'" in problems({"layernrm.weight": "norm"})[0]
    assert "Did you mean 'layernorm.weight'?" in problems({"layernrm.weight": "norm"})[0]
    assert "'layernorm.*' is set to matrix" in problems({"layernorm.*": "matrix"})[0]
    assert "like 1 more that match" in problems({"layernorm.*": "matrix"})[0]
    with pytest.raises(CompatibilityError, match="is set to matrix"):
        merge(tiny_models / "base", [tiny_models / "a"], tiny_models / "never", roles={"layernorm.weight": "matrix"})
    with pytest.raises(RecipeError, match=r"'matrx' is not known\. Did you mean 'matrix'\?"):
        check(tiny_models / "base", [tiny_models / "a"], {"*": "matrx"})
    with pytest.raises(RecipeError, match="is not a pattern"):
        make_recipe("b", ["a"], roles={3: "norm"})  # type: ignore[dict-item]


def test_integers_can_only_be_copied(tmp_path: Path) -> None:
    save_file({"ids": torch.arange(3), "w.weight": torch.ones(2, 2)}, tmp_path / "base.safetensors")
    save_file({"ids": torch.arange(3), "w.weight": torch.zeros(2, 2)}, tmp_path / "a.safetensors")
    base, a = tmp_path / "base.safetensors", tmp_path / "a.safetensors"
    assert "has integers, which can only be copied" in check(base, [a], {"ids": "embedding"}).problems[0]
    assert not check(base, [a], {"ids": "copy"}).problems


def test_roles_through_yaml(tiny_models: Path, session: Session) -> None:
    roles = {"*.bias": "norm", "encoder.layer.*.weight": "embedding"}
    recipe = make_recipe(tiny_models / "base", [tiny_models / "a"], roles=roles)
    again = recipe_from_yaml(recipe_to_yaml(recipe))
    assert again == recipe and again.roles == tuple(roles.items())
    assert open_inputs(again, session).architecture.owners["layernorm.bias"].kind == "norm"


def test_a_sharded_set_without_config(tmp_path: Path) -> None:
    root = fine_tunes(bert, tmp_path / "models")
    for name in ("base", "a"):
        BertModel.from_pretrained(root / name).save_pretrained(root / f"{name}-sharded", max_shard_size="10KB")
        (root / f"{name}-sharded" / "config.json").unlink()
    folder = root / "base-sharded"
    shard = next(folder.glob("*-of-*.safetensors"))
    opened = [open_checkpoint(path) for path in (folder, shard, folder / "model.safetensors.index.json")]
    assert all(one.bare and len(one.files) == len(weights(root / "base")) for one in opened)
    merge(root / "base", [root / "a"], tmp_path / "with", device="cpu")
    merge(folder, [root / "a-sharded"], tmp_path / "out", device="cpu", max_shard_size="10KB")
    assert open_checkpoint(tmp_path / "out").bare
    written = {k: v for file in (tmp_path / "out").glob("*.safetensors") for k, v in load_file(file).items()}
    for name, tensor in weights(tmp_path / "with").items():
        assert_close(tensor, written[name])
    (folder / "model.safetensors.index.json").unlink()
    with pytest.raises(CheckpointError, match=r"index\.json, which lists the shards, is not next to"):
        open_checkpoint(shard)


def test_paths_that_are_not_bare_checkpoints(tmp_path: Path, models: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    with pytest.raises(CheckpointError, match=r"has no config\.json"):
        open_checkpoint(folder)
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x02")
    for path in (folder, folder / "pytorch_model.bin"):
        with pytest.raises(CheckpointError, match=r"is a pickle|are a pickle") as caught:
            open_checkpoint(path)
        assert "run `sftm convert FOLDER`" in str(caught.value)
    save_file({"w": torch.ones(1)}, folder / "one.safetensors")
    assert open_checkpoint(folder).path == folder.resolve()
    save_file({"w": torch.ones(1)}, folder / "two.safetensors")
    with pytest.raises(CheckpointError, match=r"2 sets of weights and no config\.json: one\.safetensors, two"):
        open_checkpoint(folder)
    assert open_checkpoint(folder / "two.safetensors").bare
    save_file({"w": torch.ones(1)}, models / "a" / "other.safetensors")
    with pytest.raises(CheckpointError, match=r"does not belong to the config\.json next to it"):
        open_checkpoint(models / "a" / "other.safetensors")
    assert not open_checkpoint(models / "a" / "model.safetensors").bare
    (models / "a" / "config.json").write_text(json.dumps({}))
    with pytest.raises(CheckpointError, match=r"config\.json: is empty"):
        open_checkpoint(models / "a")


def test_names_of_bare_tasks(tmp_path: Path) -> None:
    assert default_name(tmp_path / "greek.safetensors", set()) == "greek"
    assert default_name(tmp_path / "greek" / "model.safetensors", set()) == "greek"
    assert default_name(tmp_path / "greek" / "model.safetensors.index.json", set()) == "greek"
