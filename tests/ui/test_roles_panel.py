"""The roles panel's handlers, and bare files on the Models tab."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from sftm_app.errors import CompatibilityError, InputError
from sftm_app.inspection.layers import map_layers
from sftm_app.methods.settings import merge_settings
from sftm_app.ui.loading import load_own, remember
from sftm_app.ui.merging import recipe_view
from sftm_app.ui.merging.form import recipe_of
from sftm_app.ui.models import roles_panel
from sftm_app.ui.models import tab as models_tab
from sftm_app.ui.models.checkpoints import checkpoint_choices, find_checkpoints, title_of
from sftm_app.ui.studio import Studio
from sftm_app.ui.workspace import Workspace, restore

ROW = "encoder.layer.*.intermediate.dense.weight"


@pytest.fixture
def bare(studio: Studio) -> Workspace:
    """Base and two tasks as bare files in one folder, loaded."""
    root = studio.settings.models_dir
    (root / "bare").mkdir()
    for name in ("base", "a", "b"):
        shutil.copy(root / name / "model.safetensors", root / "bare" / f"{name}.safetensors")
    return load_own(studio, "bare/base.safetensors", ["bare/a.safetensors", "bare/b.safetensors"])


def test_bare_files_and_adapters_are_offered(studio: Studio, bare: Workspace) -> None:
    root = studio.settings.models_dir
    (root / "adapter").mkdir()
    (root / "adapter" / "adapter_config.json").write_text("{}")
    shutil.copy(root / "a" / "model.safetensors", root / "adapter" / "adapter_model.safetensors")
    sharded = root / "sharded"
    sharded.mkdir()
    for name in (
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
        "model.safetensors.index.json",
    ):
        (sharded / name).write_bytes(b"")
    merged = root / "merged" / "heads"
    merged.mkdir(parents=True)
    shutil.copy(root / "a" / "model.safetensors", merged / "a.safetensors")
    shutil.copy(root / "a" / "model.safetensors", merged.parent / "model.safetensors")
    (merged.parent / "sftm_report.json").write_text("{}")
    assert {path.relative_to(root).as_posix() for path in find_checkpoints(root)} == {
        *("a", "b", "base", "c", "adapter", "merged/model.safetensors"),
        *(f"bare/{name}.safetensors" for name in ("a", "b", "base")),
        "sharded/model.safetensors.index.json",
    }
    found = {title_of(one, studio.settings): one.path for one in checkpoint_choices(studio.settings)}
    shown = next(title for title in found if title.startswith("bare/a.safetensors · bare weights · "))
    assert found[shown] == root / "bare" / "a.safetensors"


def test_a_bare_workspace_is_said_to_be_guessed(studio: Studio, bare: Workspace) -> None:
    assert bare.task_names == ("a", "b")
    shown = models_tab.preflight_html(studio, bare)
    assert ">guessed<" in shown and "no config.json" in shown and "2 tasks fit the base" in shown
    table = roles_panel.roles_html(roles_panel.groups_of(studio, bare))
    assert "guessed from its name: norm" in table and ROW in table and "24 × 16" in table


def test_a_written_file_is_another_workspace(studio: Studio, bare: Workspace) -> None:
    before = studio.preflight(bare)
    file = Path(bare.tasks[0].path)
    shutil.copy(bare.base, file)
    assert studio.preflight(bare) is not before


def test_rows_hold_every_tensor_once(studio: Studio, workspace: Workspace) -> None:
    groups = roles_panel.groups_of(studio, workspace)
    names = [name for group in groups for name in group.names]
    assert sorted(names) == sorted(studio.preflight(workspace).base.tensors)
    row = next(group for group in groups if group.pattern == ROW)
    assert (len(row.names), row.shapes, row.role, row.why) == (2, ((24, 16),), "matrix", "owned by Linear")


def test_setting_a_role_changes_preflight_map_and_plan(studio: Studio, workspace: Workspace) -> None:
    made = remember(studio, roles_panel.set_role(studio, workspace, ROW, "embedding"))
    assert made.roles == ((ROW, "embedding"),) and restore(studio.settings.output_dir) == made
    assert roles_panel.current_role(studio, made, ROW) == "embedding"
    assert roles_panel.current_role(studio, workspace, ROW) == "matrix"
    names = {layer.tensor for layer in map_layers(studio.preflight(made))}
    assert not any("intermediate" in name for name in names)
    assert any("intermediate" in layer.tensor for layer in map_layers(studio.preflight(workspace)))
    recipe = recipe_of(made, merge_settings("sftm", {}, made.weights), device="cpu")
    assert recipe.roles == made.roles
    assert "set by the recipe" in recipe_view.plan_html(studio.plan(made, recipe))
    assert "set by you" in roles_panel.roles_html(roles_panel.groups_of(studio, made))


def test_setting_again_replaces_and_resetting_takes_back(studio: Studio, workspace: Workspace) -> None:
    once = roles_panel.set_role(studio, workspace, ROW, "embedding")
    twice = roles_panel.set_role(studio, once, ROW, "copy")
    assert twice.roles == ((ROW, "copy"),)
    both = roles_panel.set_role(studio, twice, "layernorm.*", "bias")
    assert roles_panel.reset_role(studio, both, ROW).roles == (("layernorm.*", "bias"),)
    assert roles_panel.reset_role(studio, twice, ROW) == workspace
    with pytest.raises(InputError, match="No role was set"):
        roles_panel.reset_role(studio, twice, "layernorm.weight")


def test_a_row_means_its_own_tensors_only(studio: Studio, bare: Workspace) -> None:
    """`*` in `encoder.layer.*.output.dense.weight` would mean `...0.attention.output.dense.weight` as well."""
    row = "encoder.layer.*.output.dense.weight"
    made = roles_panel.set_role(studio, bare, row, "copy")
    owners = studio.preflight(made).architecture.owners
    assert owners["encoder.layer.0.output.dense.weight"].kind == "copy"
    assert owners["encoder.layer.0.attention.output.dense.weight"].kind == "linear"
    assert roles_panel.reset_role(studio, made, row).roles == ()
    typed = roles_panel.set_role(studio, bare, "encoder.*.output.dense.weight", "copy")
    owners = studio.preflight(typed).architecture.owners
    assert owners["encoder.layer.0.attention.output.dense.weight"].kind == "copy"


def test_what_cannot_be_set_is_said_and_changes_nothing(studio: Studio, workspace: Workspace) -> None:
    with pytest.raises(CompatibilityError, match="is set to matrix"):
        roles_panel.set_role(studio, workspace, "layernorm.weight", "matrix")
    with pytest.raises(CompatibilityError, match="no tensor of the base"):
        roles_panel.set_role(studio, workspace, "nothing.*", "copy")
    with pytest.raises(InputError, match="No tensors are chosen"):
        roles_panel.set_role(studio, workspace, " ", "copy")
    with pytest.raises(InputError, match="is not a role"):
        roles_panel.set_role(studio, workspace, ROW, "head")


def test_roles_of_an_uploaded_recipe_reach_the_workspace(studio: Studio, tmp_path: Path) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text("base: base\ntasks: [a, b]\nroles:\n  '*.bias': norm\n")
    loaded, recipe = recipe_view.open_recipe(studio, file)
    assert loaded.roles == recipe.roles == (("*.bias", "norm"),)
    assert restore(studio.settings.output_dir).roles == loaded.roles
