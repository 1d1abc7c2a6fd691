"""Recipes: YAML both ways, everything else refused with a sentence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from fake_hub import FakeHub

from sftm_app.errors import HubError, NotDownloadedError, RecipeError
from sftm_app.hub.fetching import choose, fetch
from sftm_app.hub.hub_look import look
from sftm_app.hub.hub_process import HubProcess
from sftm_app.methods import METHODS
from sftm_app.methods.params import values_of
from sftm_app.methods.sftm import SFTMParams
from sftm_app.planning.recipe import (
    Output,
    Recipe,
    TaskEntry,
    default_name,
    load_recipe,
    make_recipe,
    parse_size,
    recipe_from_yaml,
    recipe_to_yaml,
)
from sftm_app.weights.hub_names import HubRef

EXAMPLE = """
base: path/to/base
tasks:
  - {path: path/to/task_a, name: a, weight: 2}
  - {path: path/to/task_b}
  - path/to/task_b
method: sftm
params: {variant: mapping, rank: 25%, scaling: 1}
output: {path: merged, dtype: null, max_shard_size: 5GB}
device: auto
"""


def test_the_documented_recipe() -> None:
    assert recipe_from_yaml(EXAMPLE) == Recipe(
        "path/to/base",
        (
            TaskEntry("path/to/task_a", "a", 2.0),
            TaskEntry("path/to/task_b", "task_b", 1.0),
            TaskEntry("path/to/task_b", "task_b-2", 1.0),
        ),
        "sftm",
        SFTMParams(variant="mapping", rank=0.25, scaling=1.0),
        Output("merged", None, "5GB"),
        "auto",
    )


def test_a_recipe_of_version_0_1_0_loads() -> None:
    """One that version 0.1.0 wrote: all of its fields, and none of those that came later."""
    recipe = load_recipe(Path(__file__).with_name("recipe_0_1_0.yaml"))
    assert recipe == Recipe(
        "/m/base",
        (TaskEntry("/m/a", "a", 1.0), TaskEntry("/m/b", "second", 0.5)),
        "sftm",
        SFTMParams(variant="mapping", rank="90% energy", scaling=0.75),
        Output("/m/out", "bfloat16", "2GB", "adapter", 16, 0.9),
        "cpu",
        (("*.gate.weight", "embedding"),),
        split_fused=True,
        memory="4GB",
        measure="auto",
    )
    assert recipe_from_yaml(recipe_to_yaml(recipe)) == recipe
    older = "base: b\ntasks: [{path: t, name: t, weight: 1.0}]\nmethod: task_arithmetic\nparams: {scaling: 0.4}"
    assert recipe_from_yaml(older) == make_recipe("b", ["t"], "task_arithmetic", {"scaling": 0.4})


def test_the_shortest_recipe_has_the_defaults() -> None:
    recipe = recipe_from_yaml("base: b\ntasks: [t]")
    assert recipe == make_recipe("b", ["t"])
    assert recipe.params == SFTMParams()
    assert recipe.output == Output()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", ["plain", "with spaces", "模型", "it's: {odd} #1", "true", "1", "null", "~"])
def test_round_trip(method: str, name: str) -> None:
    recipe = make_recipe(
        Path("/models") / name, [f"/m/{name}", {"path": name, "weight": 0.1}], method, {}, {"path": name}, "cpu"
    )
    assert recipe_from_yaml(recipe_to_yaml(recipe)) == recipe


@pytest.mark.parametrize("rank", [None, 1, 300, 0.5, "90% energy", "99.95% energy"])
def test_round_trip_of_ranks(rank: Any) -> None:
    recipe = make_recipe("b", ["t"], params={"rank": rank, "scaling": 0.3})
    assert recipe_from_yaml(recipe_to_yaml(recipe)) == recipe
    assert recipe.params.rank == rank


@pytest.mark.parametrize("written", ["90% energy", "energy 90%", "energy 0.9", "'0.9 energy'"])
def test_a_share_of_energy_may_be_written_in_several_ways(written: str) -> None:
    recipe = recipe_from_yaml(f"base: b\ntasks: [t]\nparams: {{rank: {written}}}")
    assert recipe.params.rank == "90% energy"
    assert "  rank: 90% energy\n" in recipe_to_yaml(recipe)


def test_the_rank_of_an_adapter_is_a_size() -> None:
    with pytest.raises(RecipeError, match=r"output: rank: '90% energy' is a share .* as the energy instead: 0\.9\."):
        make_recipe("b", ["t"], output={"kind": "adapter", "rank": "90% energy"})


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "expected a table"),
        ("- a", "expected a table"),
        ("base: [", "not valid YAML at line 1"),
        ("base: b\ntasks: [t]\n\tx: 1", "not valid YAML at line 3"),
        ("base: b", "has no `tasks`"),
        ("tasks: [t]", "has no `base`"),
        ("base: b\ntasks: [t]\nmetod: sftm", "recipe: 'metod' is not known. Did you mean 'method'?"),
        ("base: b\ntasks: [t]\nparams: {scalin: 1}", "params of sftm: 'scalin' is not known. Did you mean 'scaling'?"),
        ("base: b\ntasks: [t]\noutput: {dir: x}", "output: 'dir' is not known"),
        ("base: b\ntasks: [{path: t, wieght: 2}]", "tasks, entry 1: 'wieght' is not known. Did you mean 'weight'?"),
        ("base: b\ntasks: [t]\n1: 2", "1 is not known"),
        ("base: b\ntasks: [t]\nmethod: sfmt", "'sfmt' is not known. Did you mean 'sftm'?"),
        ("base: b\ntasks: [t]\nmethod:", "None is not known"),
        ("base: b\ntasks: [t]\nmethod: [sftm]", "is not known"),
        ("base: 3\ntasks: [t]", "base: expected the path"),
        ("base: ''\ntasks: [t]", "base: expected the path"),
        ('base: "a\\0b"\ntasks: [t]', "base: expected the path"),
        ("base: b\ntasks: t", "tasks: expected a list"),
        ("base: b\ntasks: {a: t}", "tasks: expected a list"),
        ("base: b\ntasks:", "tasks: expected a list"),
        ("base: b\ntasks: [3]", "tasks, entry 1: expected a table"),
        ("base: b\ntasks: [t, {name: x}]", "tasks, entry 2: needs a `path`"),
        ("base: b\ntasks: [{path: t, weight: -1.0e+31}]", "the weight is -1e+31. Give a number from"),
        ("base: b\ntasks: [{path: t, weight: 0}]", "other than 0"),
        ("base: b\ntasks: [{path: t, weight: .nan}]", "other than 0"),
        ("base: b\ntasks: [{path: t, weight: .inf}]", "other than 0"),
        ("base: b\ntasks: [{path: t, weight: yes}]", "other than 0"),
        ("base: b\ntasks: [{path: t, weight: 1x}]", "other than 0"),
        (f"base: b\ntasks: [{{path: t, weight: {'9' * 400}}}]", "other than 0"),
        (f"base: b\ntasks: [{{path: t, weight: {'9' * 9000}}}]", "YAML cannot read"),
        ("base: 2020-13-45\ntasks: [t]", "YAML cannot read"),
        ("base: b\ntasks: [t]\ndevice: tpu", "device: 'tpu' is not one of auto, cpu, cuda, mps"),
        ("base: b\ntasks: [t]\ndevice: [cpu]", "is not one of"),
        ("base: b\ntasks: [t]\nmeasure: some", "measure: 'some' is not one of auto, all, none"),
        ("base: b\ntasks: [t]\nmeasure: [all]", "measure: ['all'] is not one of"),
        ("base: b\ntasks: [t]\nparams: 3", "params: expected a table"),
        ("base: b\ntasks: [t]\noutput: out", "output: expected a table"),
        ("base: b\ntasks: [t]\noutput: {path: [x]}", "output: path: expected"),
        ("base: b\ntasks: [t]\noutput: {dtype: int8}", "dtype 'int8' is not one of float32"),
        ("base: b\ntasks: [t]\noutput: {dtype: [float32]}", "is not one of float32"),
        ("base: b\ntasks: [t]\noutput: {max_shard_size: big}", "'big' is not a size"),
        ("base: b\ntasks: [t]\noutput: {max_shard_size: null}", "None is not a size"),
        ("base: b\ntasks: [t]\nmethod: average\nparams: {scaling: 1}", "params of average: 'scaling' is not known"),
        ("base: &b b\ntasks: [*b]", "alias"),
        ("base: !!python/object/apply:os.getcwd []\ntasks: [t]", "not valid YAML"),
        ("[" * 100_000, "nested too deeply"),
        ("[" * 600, "recipe"),
    ],
)
def test_what_is_refused(text: str, said: str) -> None:
    with pytest.raises(RecipeError) as caught:
        recipe_from_yaml(text)
    assert said in str(caught.value)
    assert len(str(caught.value)) < 1000


def test_aliases_of_aliases_do_not_explode() -> None:
    bomb = "a0: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 30))
    with pytest.raises(RecipeError, match="alias"):
        recipe_from_yaml(bomb + "base: *a29\n")


@pytest.mark.parametrize(("text", "n_bytes"), [("5GB", 5 * 10**9), ("500 mb", 5 * 10**8), ("1.5KB", 1500), ("7B", 7)])
def test_sizes(text: str, n_bytes: int) -> None:
    assert parse_size(text) == n_bytes


@pytest.mark.parametrize("text", ["", "5", "5GiB", "-1GB", "0GB", "0.1B", "GB", "9" * 400 + "GB", "1 G B", None])
def test_no_sizes(text: Any) -> None:
    with pytest.raises(RecipeError, match=r"is not a size. Write it like 5GB"):
        parse_size(text)


def test_relative_paths_are_taken_from_the_recipes_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sub").mkdir()
    recipe_file = tmp_path / "sub" / "recipe.yaml"
    recipe_file.write_text("base: ../base\ntasks: [t, /abs/u, ~/v]\noutput: {path: out}")
    monkeypatch.setenv("HOME", "/home/someone")
    monkeypatch.chdir("/")
    recipe = load_recipe(recipe_file)
    assert recipe.base == str(tmp_path / "base")
    assert [task.path for task in recipe.tasks] == [str(tmp_path / "sub" / "t"), "/abs/u", "/home/someone/v"]
    assert recipe.output.path == str(tmp_path / "sub" / "out")


def test_an_unknown_home_is_left_for_the_checkpoint_to_complain_about(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text("base: ~nobody-of-this-name/b\ntasks: [t]")
    assert load_recipe(tmp_path / "r.yaml").base == str(tmp_path / "~nobody-of-this-name" / "b")


def test_recipe_files_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "large.yaml").write_bytes(b"#" * (1024 * 1024 + 1))
    (tmp_path / "wrong.yaml").write_text("base: b")
    (tmp_path / "pipe.yaml").symlink_to("/dev/zero")
    for name, said in {
        "none.yaml": "No such file",
        "binary.yaml": "not text",
        "large.yaml": "is larger than 1048576 bytes",
        "pipe.yaml": "is not a regular file",
        ".": "cannot be read",
        "wrong.yaml": "has no `tasks`",
        "x" * 5000: "cannot be read",
    }.items():
        with pytest.raises(RecipeError, match=said) as caught:
            load_recipe(tmp_path / name)
        assert str(caught.value).startswith(str(tmp_path))


@pytest.mark.parametrize(
    ("path", "taken", "name"),
    [
        ("/m/digits", set(), "digits"),
        ("/m/digits", {"digits"}, "digits-2"),
        ("/m/digits", {"digits", "digits-2"}, "digits-3"),
        ("/m/my model (v2)", set(), "my-model-v2"),
        ("/m/模型", set(), "task"),
        ("/m/_x", set(), "task_x"),
        ("/m/" + "x" * 200, set(), "x" * 56),
        ("/", set(), "task"),
    ],
)
def test_default_names(path: str, taken: set[str], name: str) -> None:
    from sftm_app.preflight.preflight import TASK_NAME

    assert default_name(path, taken) == name
    assert TASK_NAME.fullmatch(name)


def test_yaml_is_plain() -> None:
    """Anybody's YAML reader can read it: no tags of Python."""
    recipe = make_recipe("b", ["t"])
    params = yaml.safe_load(recipe_to_yaml(recipe))["params"]
    assert params == values_of(recipe.params)
    assert list(params)[:3] == ["variant", "rank", "scaling"] and list(params)[-2:] == ["calibration", "depth"]


def test_models_of_the_hub_are_found_where_they_were_downloaded(hub: FakeHub, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("base: org/base\ntasks: [org/a@main, 'hub:org/b', {path: org/a, name: again}, ./org/c]")
    with pytest.raises(NotDownloadedError) as caught:
        load_recipe(recipe)
    assert "org/base, org/a@main, org/b, org/a. Download them with `sftm fetch org/base" in str(caught.value)
    assert (caught.value.base, caught.value.tasks[1]) == ("org/base", "hub:org/b")
    assert not hub.served, "reading a recipe contacts nobody"

    chosen = choose("org/base", ["org/a", "org/b"], None, lambda text: None)
    folders = fetch(look(chosen, HubProcess()), HubProcess()).folders
    loaded = load_recipe(recipe)
    named = {ref.repo_id: str(path) for ref, path in folders.items() if isinstance(ref, HubRef)}
    assert loaded.base == named["org/base"]
    assert [task.path for task in loaded.tasks] == [
        named["org/a"],
        named["org/b"],
        named["org/a"],
        str(tmp_path / "org" / "c"),
    ]
    assert [task.name for task in loaded.tasks] == ["a-main", "b", "again", "c"]

    # A folder of this name next to the recipe takes precedence, except over `hub:`.
    (tmp_path / "org" / "b").mkdir(parents=True)
    recipe.write_text("base: org/base\ntasks: [org/b, 'hub:org/b']")
    assert [task.path for task in load_recipe(recipe).tasks] == [str(tmp_path / "org" / "b"), named["org/b"]]
    recipe.write_text("base: hub:nothing/x/y\ntasks: [org/b]")
    with pytest.raises(HubError, match="neither a folder"):
        load_recipe(recipe)


def test_a_repository_in_a_hub_cache_gives_its_own_name() -> None:
    assert make_recipe("b", ["/cache/models--org--tuned"]).tasks[0].name == "tuned"
