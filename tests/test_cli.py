"""The command line: same recipe, one sentence per error, exit codes that scripts can trust."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from closeness import assert_close
from tiny_adapters import build, save_adapter
from tiny_checkpoints import change_weights
from tiny_vocabularies import save_model, save_tokenizer, save_tuned

from sftm_app import __version__, api, cli
from sftm_app.errors import Cancelled, ResourceError
from sftm_app.inspection import survey as survey_module
from sftm_app.machine_speed import MachineSpeed, SpeedFile
from sftm_app.methods import METHODS
from sftm_app.methods.params import values_of
from sftm_app.methods.sftm import SFTMParams
from sftm_app.output.progress import Progress
from sftm_app.pipeline import prepare
from sftm_app.planning.recipe import load_recipe, recipe_from_yaml, recipe_to_yaml
from sftm_app.session import Session, open_session
from sftm_app.units import format_duration
from sftm_app.weights.reader import TensorReader

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def sftm(capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs the command line in this process: (exit code, stdout, stderr)."""

    def call(*arguments: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as caught:
            cli.main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return int(caught.value.code or 0), captured.out, captured.err

    return call


@pytest.fixture
def recipe(tiny_models: Path, tmp_path: Path) -> Path:
    file = tmp_path / "recipe.yaml"
    file.write_text(
        f"base: {tiny_models / 'base'}\ntasks:\n  - {{path: {tiny_models / 'a'}}}\n  - {{path: {tiny_models / 'b'}}}\n"
        "method: sftm\nparams: {rank: 4}\noutput: {path: merged}\ndevice: cpu\n"
    )
    return file


def test_merge(sftm: Run, recipe: Path) -> None:
    code, out, err = sftm("merge", recipe)
    output = recipe.parent / "merged"
    assert code == 0
    assert f"Merged 2 tasks with sftm in" in out and str(output) in out  # noqa: F541
    assert "a: readout error" in out and "b: readout error" in out
    assert "100%" in err, "the progress bar goes to stderr"
    assert "s left, " in err and "<" not in err, "the time left is the merge's own, not the bar's guess"
    assert (output / "model.safetensors").exists()
    assert load_recipe(output / "sftm_recipe.yaml") == load_recipe(recipe)


def test_options_win_over_the_recipe(sftm: Run, recipe: Path, tmp_path: Path) -> None:
    code, _, err = sftm(
        "merge", recipe, "--output", tmp_path / "other", "--set", "rank=25%", "--set", "scaling=0.5", "--quiet"
    )
    assert (code, err) == (0, "")
    assert not (tmp_path / "merged").exists()
    saved = load_recipe(tmp_path / "other" / "sftm_recipe.yaml")
    assert (saved.params.rank, saved.params.scaling, saved.params.variant) == (0.25, 0.5, "minimum_variance")


@pytest.mark.parametrize("measure", ["all", "none"])
def test_what_each_task_keeps_is_measured_or_not(sftm: Run, recipe: Path, tmp_path: Path, measure: str) -> None:
    code, out, _ = sftm("merge", recipe, "--method", "average", "--measure", measure, "--quiet")
    assert code == 0 and ("a: readout error" in out) is (measure == "all")
    assert load_recipe(tmp_path / "merged" / "sftm_recipe.yaml").measure == measure
    assert sftm("check", recipe, "--measure", "some")[0] == 2


@pytest.mark.parametrize("method", METHODS)
def test_every_method_by_name(sftm: Run, recipe: Path, tmp_path: Path, method: str) -> None:
    assert sftm("merge", recipe, "--method", method, "--quiet")[0] == 0
    assert json.loads((tmp_path / "merged" / "sftm_report.json").read_text())["method"] == method


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--set", "scalling=1"], "'scalling' is not known. Did you mean 'scaling'?"),
        (["--set", "scaling"], "should read NAME=VALUE"),
        (["--set", "scaling=much"], "'much' is not a number"),
        (["--set", "scaling=1e999"], "outside -2 to 2"),
        (["--set", "scaling=nan"], "not a number"),
        (["--set", "rank=0"], "not a rank"),
        (["--memory", "much"], "--memory: 'much' is not a size"),
        (["--set", "rank="], ""),
        (["--set", "variant=readuot"], "not one of minimum_variance, readout, mapping"),
        (["--method", "sfmt"], "'sfmt' is not known. Did you mean 'sftm'?"),
        (["--method", "average", "--set", "scaling=1"], "'scaling' is not known"),
    ],
)
def test_options_that_are_refused(sftm: Run, recipe: Path, options: list[str], said: str) -> None:
    code, _, err = sftm("merge", recipe, *options, "--quiet")
    if not said:
        assert code == 0  # an empty rank is the full one
        return
    assert code == 2
    assert err.startswith("sftm: ") and said in err and "Traceback" not in err
    assert not (recipe.parent / "merged").exists()


def test_whose_tokenizer_is_an_option(sftm: Run, tmp_path: Path) -> None:
    base = save_model(tmp_path / "base")
    for seed, (name, token) in enumerate({"a": "<tool>", "b": "<think>"}.items(), start=1):
        save_tokenizer(save_tuned(tmp_path / name, base, seed), added=(token,))
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("base: base\ntasks: [a, b]\noutput: {path: out}\ndevice: cpu\n")
    code, _, said = sftm("check", recipe)
    assert code == 2 and "row 10 is '<tool>' in a, '<think>' in b" in said
    code, _, said = sftm("check", recipe, "--tokenizer", "task c")
    assert code == 2 and "'task c' is not one of base, union, task a, task b" in said
    code, out, _ = sftm("merge", recipe, "--quiet", "--tokenizer", "union")
    assert code == 0 and "  a, 12 tensors: merged 8, averaged 4." in out
    assert "Token '<tool>': the base has no such token, so its row is taken from a." in out
    assert "tokenizer: union" in (tmp_path / "out" / "sftm_recipe.yaml").read_text()


def test_an_adapter_is_merged_into_an_adapter(sftm: Run, tmp_path: Path) -> None:
    build("gpt2").save_pretrained(tmp_path / "base")
    for seed, name in enumerate(("a", "b"), start=1):
        save_adapter(tmp_path / name, "gpt2", seed)
    recipe = tmp_path / "adapters.yaml"
    recipe.write_text("base: base\ntasks: [a, b]\ndevice: cpu\noutput: {path: merged, kind: adapter}\n")
    code, out, err = sftm("merge", recipe, "--quiet")
    assert code == 0 and out.startswith("Merged 2 tasks with sftm") and "Traceback" not in err
    assert (tmp_path / "merged" / "adapter_model.safetensors").exists()


def test_a_merge_beyond_its_memory_is_refused_with_exit_code_3(
    sftm: Run, recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SFTM_CACHE_GB", "1")  # which --cache-gb changes
    code, _, err = sftm("merge", recipe, "--memory", "10KB", "--quiet")
    assert code == 3 and "its budget (`memory`) is 10 kB. No rank fits" in err
    assert not (recipe.parent / "merged").exists()
    # And so says check beforehand, which takes what changes the plan.
    code, out, err = sftm("check", recipe, "--memory", "10KB")
    assert code == 3 and "2 tasks fit" in out and "its budget (`memory`) is 10 kB. No rank fits" in err
    recipe.write_text(recipe.read_text() + "memory: 10KB\n")
    assert sftm("check", recipe)[0] == 3
    code, out, _ = sftm("check", recipe, "--memory", "4GB", "--set", "rank=1", "--device", "cpu", "--cache-gb", "0")
    assert code == 0 and "The merge fits the budget of 4 GB" in out
    assert sftm("check", recipe, "--set", "rank=much")[0] == 2
    assert sftm("merge", recipe, "--memory", "4GB", "--quiet")[0] == 0
    assert "memory: 4GB" in (recipe.parent / "merged" / "sftm_recipe.yaml").read_text()


def test_bad_input_is_one_sentence_and_exit_code_2(sftm: Run, recipe: Path, models: Path) -> None:
    text = recipe.read_text()
    cases = {
        "no such file": (text, lambda: None, ["merge", "nowhere.yaml"]),
        "there is no such folder": (text.replace("/a}", "/missing}"), lambda: None, []),
        "is the base itself": (text.replace("/a}", "/base}"), lambda: None, []),
        "has neither model.safetensors": (None, lambda: (models / "a" / "model.safetensors").unlink(), []),
    }
    for said, (content, damage, arguments) in cases.items():
        damage()
        broken = recipe.parent / "broken.yaml"
        broken.write_text(content or text.replace(text.split()[1].removesuffix("/base"), str(models)))
        code, out, err = sftm(*(arguments or ["merge", broken]), "--quiet")
        assert (code, out) == (2, ""), said
        assert err.startswith("sftm: ") and said in err.lower() + err and "Traceback" not in err
        assert not (recipe.parent / "merged").exists()


def test_all_problems_are_listed(sftm: Run, recipe: Path, models: Path) -> None:
    for name in "ab":
        change_weights(models / name / "model.safetensors", lambda tensors: tensors.pop("vit.layernorm.bias"))
    text = recipe.read_text()
    recipe.write_text(text.replace(text.split()[1].removesuffix("/base"), str(models)))
    for command in ("merge", "check", "inspect"):
        code, _, err = sftm(command, recipe)
        assert code == 2
        assert "a: 1 tensors of the base are missing" in err and "b: 1 tensors of the base are missing" in err


def test_no_output_named(sftm: Run, recipe: Path) -> None:
    recipe.write_text(recipe.read_text().replace("output: {path: merged}\n", ""))
    code, _, err = sftm("merge", recipe)
    assert code == 2 and "Give --output FOLDER" in err


def test_an_existing_output(sftm: Run, recipe: Path) -> None:
    (recipe.parent / "merged").mkdir()
    code, _, err = sftm("merge", recipe, "--quiet")
    assert code == 2 and "exists already" in err


@pytest.mark.parametrize(
    ("error", "code"), [(KeyboardInterrupt(), 130), (Cancelled("Cancelled."), 130), (ResourceError("No room."), 3)]
)
def test_exit_codes(sftm: Run, recipe: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(api, "merge_recipe", fail)
    found, _, err = sftm("merge", recipe, "--quiet")
    assert found == code and err.startswith("sftm: ")


def test_check(sftm: Run, recipe: Path) -> None:
    code, out, err = sftm("check", recipe)
    assert (code, err) == (0, "")
    assert "2 tasks fit the base (base, ViTModel)." in out
    assert "kept separately" in out


def test_check_says_what_the_plan_does(
    sftm: Run, recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Durations in words, on a slow machine; no weights are read, and nothing is written."""
    slow = MachineSpeed(products=1e6, eigen=1e6, hashing=1e6)
    monkeypatch.setattr(SpeedFile, "get", lambda self: slow)
    plan = prepare(load_recipe(recipe), open_session())
    monkeypatch.setattr("sftm_app.preflight.preflight._differs", lambda *_: True)
    monkeypatch.setattr(TensorReader, "__call__", lambda *_, **__: pytest.fail("a tensor is read"))
    before = sorted(tmp_path.rglob("*"))
    code, out, _ = sftm("check", recipe)
    assert code == 0 and sorted(tmp_path.rglob("*")) == before
    assert all(sentence in out.splitlines() for sentence in plan.cost.sentences())
    assert plan.cost.seconds > 1 and f"The merge takes {format_duration(plan.cost.seconds)} and " in out


def test_inspect(sftm: Run, recipe: Path) -> None:
    code, out, _ = sftm("inspect", recipe)
    lines = out.splitlines()
    assert code == 0 and len(lines) == 14
    assert lines[0].endswith("warnings") and all(line.split()[-1].isdigit() for line in lines[1:])
    assert {line.split()[-1] for line in lines[1:]} != {"0"}, "rank 4 drops much of a random change"
    code, out, _ = sftm("inspect", recipe, "--layer", "encoder.layer.0.output.dense")
    assert code == 0 and "a: gains" in out and "for 90%" in out
    assert "warning: The rank drops " in out and "energy (rank 4)" in out
    code, _, err = sftm("inspect", recipe, "--layer", "x")
    assert code == 2 and "There is no layer 'x'" in err


def test_inspect_as_json_is_about_the_recipes_own_merge(sftm: Run, recipe: Path, session: Session) -> None:
    recipe.write_text(recipe.read_text().replace("/b}", "/b, weight: 2.5}"))
    code, out, _ = sftm("inspect", recipe, "--json")
    content = json.loads(out)
    assert code == 0 and len(content["layers"]) == 13
    assert content["settings"] == {
        "method": "sftm",
        "params": values_of(SFTMParams(rank=4)),
        "weights": {"a": 1.0, "b": 2.5},
    }
    assert all(entry["prediction"]["ranks"] == {"a": 4, "b": 4} for entry in content["layers"])
    report = api.merge_recipe(load_recipe(recipe), recipe.parent / "out", session)
    merged = {record.name: record.figures for record in report.tensors}
    for entry in content["layers"]:
        errors = list(entry["prediction"]["readout_errors"].values())
        assert_close(errors, merged[entry["name"]].readout_errors, 2e-3, what="what the merge then does")


def test_inspect_without_a_weight_matrix_is_a_sentence(
    sftm: Run, recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(survey_module, "map_layers", lambda *_: ())
    code, out, err = sftm("inspect", recipe)
    assert (code, out) == (2, "") and err.startswith("sftm: Base and tasks share no weight matrix")
    code, _, err = sftm("inspect", recipe, "--layer", "x")
    assert code == 2 and "There is no layer 'x'. Base and tasks have no weight matrix in common" in err


@pytest.mark.parametrize("arguments", [[], ["nonsense"], ["merge"], ["merge", "r.yaml", "--device", "abacus"]])
def test_wrong_usage(sftm: Run, arguments: list[str]) -> None:
    code, _, err = sftm(*arguments)
    assert code == 2 and "usage: sftm" in err


def test_help_and_version(sftm: Run) -> None:
    assert sftm("--version")[1].strip() == f"SFTM Studio {__version__}"
    code, out, _ = sftm("--help")
    assert code == 0 and all(command in out for command in ("merge", "inspect", "check", "ui"))
    for command in ("merge", "inspect", "check", "ui"):
        assert sftm(command, "--help")[0] == 0


def test_every_option_has_a_help_line() -> None:
    parser = cli.build_parser()
    commands = next(action for action in parser._actions if hasattr(action, "choices") and action.choices).choices
    for name, command in commands.items():  # type: ignore[union-attr]
        for action in command._actions:
            assert action.help, (name, action.dest)


def test_the_ui_command_passes_its_options_on(sftm: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from sftm_app.ui import app, settings

    seen = {}
    monkeypatch.setattr(settings, "make_settings", lambda *given: given)
    monkeypatch.setattr(
        app, "serve", lambda given, browser, door: seen.update(settings=given, browser=browser, door=door)
    )
    assert sftm("ui", "--port", 7999, "--models-dir", tmp_path, "--device", "cpu", "--no-browser")[0] == 0
    assert seen == {"settings": ([tmp_path], None, "cpu", 7999), "browser": False, "door": None}


# Output waits in the process, as it does for most people.
BUFFERED = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}


@pytest.mark.skipif(os.name != "posix", reason="closes streams by a POSIX shell")
def test_a_process_says_everything_before_it_ends(tmp_path: Path) -> None:
    def run(*arguments: object, closing: str = "") -> tuple[int, str, str]:
        command = shlex.join([sys.executable, "-m", "sftm_app", *map(str, arguments)])
        done = subprocess.run(command + closing, shell=True, capture_output=True, text=True, timeout=60, env=BUFFERED)
        return done.returncode, done.stdout, done.stderr

    code, out, err = run("cache", "--cache-dir", tmp_path)
    assert (code, err) == (0, "") and out.startswith(f"{tmp_path}: 0 entries")
    code, out, err = run("check", tmp_path / "none.yaml")
    assert (code, out) == (2, "") and err.startswith("sftm: ") and "none.yaml" in err
    # Without a reader there is nothing to report.
    for closing in (" >&-", " 2>&-"):
        assert run("cache", "--cache-dir", tmp_path, closing=closing)[0] == 0


def test_ctrl_c_in_a_real_process_leaves_nothing(recipe: Path, tmp_path: Path) -> None:
    """The slow method is made by a recipe of many large steps: here the process is stopped once its output appears."""
    slow = (
        "import sys, time; import sftm_app.output.executors as e; real = e.run\n"
        "def run(*given):\n"
        "    for step in real(*given):\n"
        "        yield step\n"
        "        time.sleep(0.2)\n"
        "e.run = run\n"
        "from sftm_app.cli import main; main(sys.argv[1:])\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", slow, "merge", str(recipe), "--quiet"],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    deadline = time.monotonic() + 60
    while not (tmp_path / "merged.partial").exists():
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=10)
    assert (process.returncode, err) == (130, "sftm: cancelled, nothing was written.\n")
    assert not list(tmp_path.glob("merged*"))


@pytest.mark.skipif(os.name != "posix", reason="kills a copy of this process")
@pytest.mark.parametrize("option", ["--resume", "--no-resume"])
def test_what_a_killed_merge_left(sftm: Run, recipe: Path, tmp_path: Path, session: Session, option: str) -> None:
    assert sftm("merge", recipe, "--output", tmp_path / "whole", option, "--quiet")[0] == 0, "where nothing was left"
    seen: list[str] = []

    def die(step: Progress) -> None:
        seen.append(step.name)
        if len(seen) == 7:
            os.kill(os.getpid(), signal.SIGKILL)

    child = os.fork()
    if child == 0:
        try:
            api.merge_recipe(load_recipe(recipe), tmp_path / "merged", session, die)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    code, _, err = sftm("merge", recipe, "--quiet")
    assert code == 2 and "holds 7 of" in err and "Add --resume to continue it" in err and "--no-resume" in err
    code, _, err = sftm("merge", recipe, "--quiet", "--resume", "--set", "scaling=0.5")
    assert code == 2 and "params: scaling was 1.0 and is 0.5" in err and "Traceback" not in err
    code, out, _ = sftm("merge", recipe, "--quiet", option)
    assert code == 0 and ("Resumed: 7 tensors were finished already." in out) == (option == "--resume")
    one, two = (tmp_path / name / "model.safetensors" for name in ("merged", "whole"))
    assert one.read_bytes() == two.read_bytes()
    assert not list(tmp_path.glob("*.partial"))


def test_the_downloaded_recipe_is_the_same_recipe(sftm: Run, recipe: Path, tmp_path: Path) -> None:
    """What the app writes with recipe_to_yaml, the command line reads back unchanged."""
    loaded = load_recipe(recipe)
    (tmp_path / "down.yaml").write_text(recipe_to_yaml(loaded))
    assert load_recipe(tmp_path / "down.yaml") == loaded == recipe_from_yaml(recipe_to_yaml(loaded))
    assert sftm("check", tmp_path / "down.yaml")[0] == 0
