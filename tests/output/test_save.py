"""The published folder: complete or absent, and loaded by transformers without a question."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
import yaml
from closeness import assert_close
from output_cases import finish
from safetensors import safe_open
from safetensors.torch import load_file
from tiny_checkpoints import change_weights, save_task
from transformers import ViTForImageClassification, ViTModel

from sftm_app import __version__
from sftm_app.engine.run import run
from sftm_app.errors import CheckpointError, NumericalError, OutputError, ResourceError
from sftm_app.output.progress import LAST_STEP, Progress
from sftm_app.output.publish import publish
from sftm_app.output.report import Report
from sftm_app.output.save import check_output, save
from sftm_app.pipeline import prepare
from sftm_app.planning.recipe import Recipe, load_recipe, make_recipe
from sftm_app.session import Session
from sftm_app.weights import copying, writer
from sftm_app.weights import partial as partial_module
from sftm_app.weights.partial import check_disk_space, output_folder


def save_all(recipe: Recipe, session: Session, output: Path) -> tuple[Report, list[Progress]]:
    return finish(prepare(recipe, session), session, output)


def listing(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_the_whole_folder(models: Path, tmp_path: Path, session: Session) -> None:
    for name in ("preprocessor_config.json", "tokenizer.json", "tokenizer_config.json", "vocab.txt", "merges.txt"):
        (models / "base" / name).write_text(name)
    for name in ("modeling_evil.py", "pytorch_model.bin", "optimizer.pt", "notes.md"):
        (models / "base" / name).write_text("not to be copied")
    output = tmp_path / "deep" / "er" / "merged"
    report, seen = save_all(make_recipe(models / "base", [models / t for t in "ab"], device="cpu"), session, output)
    assert listing(output) == [
        "README.md", "config.json", "heads/a.json", "heads/a.safetensors", "heads/b.json", "heads/b.safetensors",
        "merges.txt", "model.safetensors", "preprocessor_config.json", "sftm_recipe.yaml", "sftm_report.json",
        "tokenizer.json", "tokenizer_config.json", "vocab.txt",
    ]  # fmt: skip
    assert (output / "tokenizer.json").read_text() == "tokenizer.json"
    assert list(output.parent.iterdir()) == [output]
    assert json.loads((output / "config.json").read_text()) == json.loads((models / "base" / "config.json").read_text())
    n = len(report.tensors)
    assert [step.done for step in seen] == [*range(1, n + 1), n]
    assert (seen[-1].name, seen[-1].fraction) == (LAST_STEP, 1.0)
    assert {step.total for step in seen} == {len(report.tensors)}
    fractions = [step.fraction for step in seen]
    assert fractions == sorted(fractions) and fractions[0] > 0 and fractions[-1] == pytest.approx(1)
    assert all(step.remaining_s is not None and min(step.remaining_s, step.elapsed_s) >= 0 for step in seen)


def test_transformers_loads_it_without_a_missing_or_unexpected_key(
    tmp_path: Path, recipe_for: Callable, session: Session
) -> None:
    recipe = recipe_for("abc")
    save_all(recipe, session, tmp_path / "out")
    model, info = ViTModel.from_pretrained(tmp_path / "out", add_pooling_layer=False, output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys")), info
    merged = {step.entry.name: step.tensor for step in run(prepare(recipe, session), session)}
    with safe_open(tmp_path / "out" / "model.safetensors", "pt") as file:
        assert set(file.keys()) == set(merged)
        assert file.metadata() == {"format": "pt"}
        assert all(torch.equal(file.get_tensor(name), merged[name]) for name in merged)
    fresh = ViTModel(model.config, add_pooling_layer=False)
    model(torch.zeros(1, 1, 8, 8))
    assert sum(p.numel() for p in fresh.parameters()) == sum(t.numel() for t in merged.values())


def test_sharded_output_equals_the_single_file(tmp_path: Path, recipe_for: Callable, session: Session) -> None:
    save_all(recipe_for("ab"), session, tmp_path / "single")
    save_all(recipe_for("ab", output={"max_shard_size": "6KB"}), session, tmp_path / "shards")
    files = sorted(path.name for path in (tmp_path / "shards").glob("*.safetensors"))
    assert files == [f"model-{i:05d}-of-{len(files):05d}.safetensors" for i in range(1, len(files) + 1)]
    assert len(files) > 2
    single = load_file(tmp_path / "single" / "model.safetensors")
    shards: dict[str, torch.Tensor] = {}
    for file in files:
        tensors = load_file(tmp_path / "shards" / file)
        size = sum(t.numel() * 4 for t in tensors.values())
        assert size <= 6000 or len(tensors) == 1
        shards |= tensors
    assert set(shards) == set(single) and all(torch.equal(shards[name], single[name]) for name in single)
    index = json.loads((tmp_path / "shards" / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(t.numel() * 4 for t in single.values())
    model, info = ViTModel.from_pretrained(tmp_path / "shards", add_pooling_layer=False, output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    other = ViTModel.from_pretrained(tmp_path / "single", add_pooling_layer=False)
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), other.parameters(), strict=True))


def test_heads_and_labels_are_written(
    tiny_models: Path, tmp_path: Path, recipe_for: Callable, session: Session
) -> None:
    save_all(recipe_for("abc"), session, tmp_path / "out")
    for task in "abc":
        stored = load_file(tiny_models / task / "model.safetensors")
        heads = load_file(tmp_path / "out" / "heads" / f"{task}.safetensors")
        assert set(heads) == {"classifier.weight", "classifier.bias"}
        assert all(torch.equal(heads[name], stored[name]) for name in heads)
        config = json.loads((tmp_path / "out" / "heads" / f"{task}.json").read_text())
        assert config["id2label"]["0"] == f"label 0 of {task}"


def test_the_code_on_the_card_gives_the_merged_model_with_a_tasks_head(
    tmp_path: Path, recipe_for: Callable, monkeypatch: pytest.MonkeyPatch, session: Session
) -> None:
    save_all(recipe_for("ab"), session, tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    code = card.split("```python\n")[1].split("```")[0]
    monkeypatch.chdir(tmp_path / "out")
    room: dict[str, Any] = {}
    exec(code, room)
    model = room["model"].eval()
    backbone = ViTModel.from_pretrained(tmp_path / "out", add_pooling_layer=False).eval()
    head = load_file(tmp_path / "out" / "heads" / "a.safetensors")
    pixels = torch.randn(2, 1, 8, 8)
    with torch.no_grad():
        wanted = backbone(pixels).last_hidden_state[:, 0] @ head["classifier.weight"].T + head["classifier.bias"]
        assert_close(model(pixels).logits, wanted)
    assert model.config.id2label[0] == "label 0 of a"


def test_the_front_matter_of_the_card(tmp_path: Path, recipe_for: Callable, session: Session) -> None:
    report, _ = save_all(recipe_for("ab", params={"scaling": 0.5}), session, tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    _, front, body = card.split("---\n", 2)
    assert yaml.safe_load(front) == {
        "base_model": ["base", "a", "b"],
        "base_model_relation": "merge",
        "library_name": "transformers",
        "tags": ["merge", "sftm-studio", "sftm"],
    }
    assert "**SFTM** (variant minimum_variance, rank auto, scaling 0.5" in body
    assert "arXiv 2502.10698" in body
    assert f"| a | a | 1 | {report.readout_errors['a']:.3g} |" in body
    assert str(tmp_path) not in card


def test_the_card_of_a_merge_that_measured_nothing(tmp_path: Path, recipe_for: Callable, session: Session) -> None:
    save_all(recipe_for("ab", method="average", measure="none"), session, tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    assert "| task | checkpoint | weight |\n|---|---|---|\n| a | a | 1 |" in card and "error" not in card


def test_the_card_shows_the_errors_of_any_method(tmp_path: Path, recipe_for: Callable, session: Session) -> None:
    report, _ = save_all(recipe_for("ab", method="ties", measure="all"), session, tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    assert "| task | checkpoint | weight | readout error |\n|---|---|---|---|\n" in card
    assert f"| b | b | 1 | {report.readout_errors['b']:.3g} |" in card


def test_the_report(tiny_models: Path, tmp_path: Path, recipe_for: Callable, session: Session) -> None:
    report, _ = save_all(recipe_for("ab", params={"calibration": 0.0, "rank": None}), session, tmp_path / "out")
    stored = json.loads((tmp_path / "out" / "sftm_report.json").read_text())
    assert stored == json.loads(report.to_json())
    assert (stored["version"], stored["method"]) == (__version__, "sftm")
    assert [(entry["name"], entry["weight"]) for entry in stored["inputs"]] == [("base", None), ("a", 1.0), ("b", 1.0)]
    for entry in stored["inputs"]:
        content = (tiny_models / entry["name"] / "model.safetensors").read_bytes()
        assert entry["sha256"] == {"model.safetensors": hashlib.sha256(content).hexdigest()}
    merged = load_file(tmp_path / "out" / "model.safetensors")
    assert {record["name"]: tuple(record["shape"]) for record in stored["tensors"]} == {
        name: tuple(tensor.shape) for name, tensor in merged.items()
    }
    for record in stored["tensors"]:
        assert record["rule"] in ("method", "sum", "average") and record["why"] and record["seconds"] >= 0
        if record["rule"] == "method":
            assert len(record["figures"]["ranks"]) == 2
            assert max(record["figures"]["readout_errors"]) < 1e-3
            assert record["figures"]["factorised_by"] == ["gesdd", "gesdd"]
    files = [tmp_path / "out" / "model.safetensors", *(tmp_path / "out" / "heads").glob("*.safetensors")]
    tensors = sum(t.numel() * t.element_size() for file in files for t in load_file(file).values())
    assert stored["output_bytes"] == tensors
    assert stored["heads"] == {task: ["classifier.bias", "classifier.weight"] for task in "ab"} or set(
        stored["heads"]["a"]
    ) == {"classifier.bias", "classifier.weight"}
    assert set(report.readout_errors) == {"a", "b"} and max(report.readout_errors.values()) < 1e-3
    assert stored["machine"]["device"] == "cpu"


def test_the_saved_recipe_repeats_the_merge(tmp_path: Path, recipe_for: Callable, session: Session) -> None:
    recipe = recipe_for("ab", params={"rank": 2, "scaling": 0.9})
    save_all(recipe, session, tmp_path / "one")
    again = load_recipe(tmp_path / "one" / "sftm_recipe.yaml")
    assert again == recipe
    save_all(again, session, tmp_path / "two")
    one, two = (tmp_path / name / "model.safetensors" for name in ("one", "two"))
    assert one.read_bytes() == two.read_bytes()


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_the_config_names_the_type_written(tmp_path: Path, recipe_for: Callable, dtype: str, session: Session) -> None:
    save_all(recipe_for("ab", output={"dtype": dtype}), session, tmp_path / "out")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["dtype"] == dtype and "torch_dtype" not in config
    assert ViTModel.from_pretrained(tmp_path / "out", add_pooling_layer=False).dtype == getattr(torch, dtype)


def test_a_merged_model_can_be_merged_again(
    tiny_models: Path, tmp_path: Path, recipe_for: Callable, session: Session
) -> None:
    save_all(recipe_for("ab"), session, tmp_path / "one")
    save_all(
        make_recipe(tiny_models / "base", [tmp_path / "one", tiny_models / "c"], device="cpu"),
        session,
        tmp_path / "two",
    )
    ViTModel.from_pretrained(tmp_path / "two")


def test_a_base_with_a_classifier_of_its_own(tiny_models: Path, tmp_path: Path, session: Session) -> None:
    save_all(make_recipe(tiny_models / "a", [tiny_models / "b"], device="cpu"), session, tmp_path / "out")
    model, info = ViTForImageClassification.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    stored = load_file(tiny_models / "a" / "model.safetensors")
    assert torch.equal(model.classifier.weight, stored["classifier.weight"])


# ---- what must not be left behind ----


@pytest.mark.parametrize("kind", ["folder", "empty folder", "file", "dangling link"])
def test_an_output_that_exists_is_refused_and_stays(
    tmp_path: Path, recipe_for: Callable, kind: str, session: Session
) -> None:
    output = tmp_path / "out"
    if "folder" in kind:
        output.mkdir()
        if kind == "folder":
            (output / "precious").write_text("mine")
    elif kind == "file":
        output.write_text("mine")
    else:
        output.symlink_to(tmp_path / "nowhere")
    with pytest.raises(OutputError, match=f"{output}: exists already"):
        save_all(recipe_for("a"), session, output)
    assert not (tmp_path / "out.partial").exists()
    assert kind != "folder" or (output / "precious").read_text() == "mine"


def test_an_output_that_appears_meanwhile_is_not_overwritten(
    tmp_path: Path, recipe_for: Callable, session: Session
) -> None:
    steps = save(prepare(recipe_for("a"), session), session, tmp_path / "out")
    next(steps)
    (tmp_path / "out").mkdir()
    with pytest.raises(OutputError, match="exists already"):
        list(steps)
    assert list((tmp_path / "out").iterdir()) == []
    assert not (tmp_path / "out.partial").exists()


def test_an_output_inside_an_input_is_refused(models: Path, session: Session) -> None:
    recipe = make_recipe(models / "base", [models / "a"], device="cpu")
    (models / "link").symlink_to(models / "a")
    for output in (
        models / "base",
        models / "a" / "merged",
        models / "link" / "x" / "y",
        models / "b" / ".." / "a" / "z",
    ):
        before = listing(models)
        with pytest.raises(OutputError, match="is inside the input"):
            save_all(recipe, session, output)
        assert listing(models) == before


def test_a_parent_that_cannot_be_written(tmp_path: Path, recipe_for: Callable, session: Session) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(OutputError, match="cannot be written"):
        save_all(recipe_for("a"), session, tmp_path / "file" / "out")
    with pytest.raises(OutputError, match="cannot be written"):
        save_all(recipe_for("a"), session, tmp_path / ("x" * 300))


def test_no_write_permission(
    tmp_path: Path, recipe_for: Callable, monkeypatch: pytest.MonkeyPatch, session: Session
) -> None:
    plan = prepare(recipe_for("a"), session)

    def refuse(*_: Any, **__: Any) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(OutputError, match=r"out: cannot be written \(Permission denied\)"):
        next(save(plan, session, tmp_path / "out"))
    assert list(tmp_path.iterdir()) == []


def test_too_little_room_is_said_before_any_compute(
    tmp_path: Path, recipe_for: Callable, monkeypatch: pytest.MonkeyPatch, session: Session
) -> None:
    plan = prepare(recipe_for("a"), session)
    monkeypatch.setattr(partial_module.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 10})())
    with pytest.raises(ResourceError, match=r"needs .*B, but the disk has"):
        check_output(plan, tmp_path / "out")


@pytest.mark.parametrize("after", [1, 5, 20])
def test_closing_early_leaves_nothing(tmp_path: Path, recipe_for: Callable, after: int, session: Session) -> None:
    steps = save(prepare(recipe_for("ab"), session), session, tmp_path / "out")
    for _ in range(after):
        next(steps)
    assert (tmp_path / "out.partial").is_dir()
    steps.close()
    assert list(tmp_path.iterdir()) == []


def test_an_error_in_the_middle_leaves_nothing(models: Path, tmp_path: Path, session: Session) -> None:
    change_weights(models / "a" / "model.safetensors", lambda t: t["vit.layernorm.weight"].fill_(float("nan")))
    with pytest.raises(NumericalError):
        save_all(make_recipe(models / "base", [models / "a"], device="cpu"), session, tmp_path / "x" / "out")
    assert listing(tmp_path / "x") == []


def test_nan_in_a_head_is_refused_before_the_merge(models: Path, tmp_path: Path, session: Session) -> None:
    change_weights(models / "a" / "model.safetensors", lambda t: t["classifier.bias"].fill_(float("inf")))
    steps = save(
        prepare(make_recipe(models / "base", [models / "a"], device="cpu"), session), session, tmp_path / "x" / "out"
    )
    with pytest.raises(NumericalError, match=r"'classifier\.bias' holds 3 values"):
        next(steps)
    assert listing(tmp_path / "x") == []


@pytest.mark.parametrize(("number", "kind"), [(errno.ENOSPC, ResourceError), (errno.EIO, OutputError)])
def test_a_disk_that_fails_in_the_middle(
    tmp_path: Path,
    recipe_for: Callable,
    monkeypatch: pytest.MonkeyPatch,
    number: int,
    kind: type[Exception],
    session: Session,
) -> None:
    def fail(*_: Any) -> None:
        raise OSError(number, os.strerror(number))

    steps = save(prepare(recipe_for("a"), session), session, tmp_path / "out")
    next(steps)
    monkeypatch.setattr(writer.TensorFile, "write", fail)
    with pytest.raises(kind, match=str(tmp_path / "out")):
        next(steps)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("n_bytes_room", [0, 1])
def test_the_disk_is_found_full_before_the_first_tensor(
    tmp_path: Path, recipe_for: Callable, monkeypatch: pytest.MonkeyPatch, n_bytes_room: int, session: Session
) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    if not hasattr(os, "posix_fallocate"):
        pytest.skip("this system cannot reserve space")
    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(ResourceError, match="the disk is full"):
        next(save(prepare(recipe_for("a"), session), session, tmp_path / "out"))
    assert list(tmp_path.iterdir()) == []


def lock(folder: Path, content: str | None) -> None:
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(b"half")
    if content is not None:
        (folder / "lock.json").write_text(content)


@pytest.mark.parametrize(
    "content",
    [json.dumps({"pid": os.getpid(), "started": 1.0}), '{"pid": 4194999, "started": 1}'],
    ids=["another process got its number", "no such process"],
)
def test_what_a_dead_run_left_is_recovered(
    tmp_path: Path, recipe_for: Callable, content: str, session: Session
) -> None:
    lock(tmp_path / "out.partial", content)
    save_all(recipe_for("a"), session, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert "lock.json" not in listing(tmp_path / "out")


def test_a_run_that_died_before_its_lock_is_recovered(tmp_path: Path, recipe_for: Callable, session: Session) -> None:
    (tmp_path / "out.partial").mkdir()
    save_all(recipe_for("a"), session, tmp_path / "out")


def test_a_live_run_is_not_disturbed(tmp_path: Path, recipe_for: Callable, session: Session) -> None:
    lock(tmp_path / "out.partial", json.dumps({"pid": os.getpid(), "started": psutil.Process().create_time()}))
    with pytest.raises(OutputError, match="another run is writing it"):
        save_all(recipe_for("a"), session, tmp_path / "out")
    assert (tmp_path / "out.partial" / "model.safetensors").read_bytes() == b"half"
    first = save(prepare(recipe_for("a"), session), session, tmp_path / "other")
    next(first)
    with pytest.raises(OutputError, match="another run is writing it"):
        save_all(recipe_for("a"), session, tmp_path / "other")
    for _ in first:
        pass
    assert (tmp_path / "other" / "model.safetensors").exists()


def test_a_partial_folder_of_others_is_never_removed(tmp_path: Path, recipe_for: Callable, session: Session) -> None:
    lock(tmp_path / "out.partial", None)
    with pytest.raises(OutputError, match="was not left by a merge"):
        save_all(recipe_for("a"), session, tmp_path / "out")
    assert (tmp_path / "out.partial" / "model.safetensors").exists()


@pytest.mark.skipif(os.name != "posix", reason="modes of files are POSIX")
@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002])
def test_files_follow_the_umask(tmp_path: Path, recipe_for: Callable, mask: int, session: Session) -> None:
    before = os.umask(mask)
    try:
        save_all(recipe_for("a"), session, tmp_path / "out")
    finally:
        os.umask(before)
    for path in (tmp_path / "out").rglob("*"):
        assert stat.S_IMODE(path.stat().st_mode) == (0o777 if path.is_dir() else 0o666) & ~mask, path


def test_unicode_spaces_and_length(tiny_models: Path, tmp_path: Path, session: Session) -> None:
    output = tmp_path / "my models 模型 🙂" / ("x" * 240)
    save_all(make_recipe(tiny_models / "base", [tiny_models / "a"], device="cpu"), session, output)
    ViTModel.from_pretrained(output)


def test_an_empty_tensor_at_the_start(models: Path, tmp_path: Path, session: Session) -> None:
    for name in ("base", "a"):
        prefix = "" if name == "base" else "vit."
        key = f"{prefix}aaa.empty"
        change_weights(models / name / "model.safetensors", lambda t, key=key: t.update({key: torch.zeros(0, 3)}))
    save_all(make_recipe(models / "base", [models / "a"], device="cpu"), session, tmp_path / "out")
    assert load_file(tmp_path / "out" / "model.safetensors")["aaa.empty"].shape == (0, 3)


def test_publish_copies_all_or_nothing(
    tmp_path: Path, recipe_for: Callable, monkeypatch: pytest.MonkeyPatch, session: Session
) -> None:
    save_all(recipe_for("ab"), session, tmp_path / "model")
    publish(tmp_path / "model", tmp_path / "final")
    assert listing(tmp_path / "final") == listing(tmp_path / "model")
    for name in listing(tmp_path / "model"):
        assert (tmp_path / "final" / name).read_bytes() == (tmp_path / "model" / name).read_bytes()
    with pytest.raises(OutputError, match="exists already"):
        publish(tmp_path / "model", tmp_path / "final")
    with pytest.raises(OutputError, match="is inside the model"):
        publish(tmp_path / "model", tmp_path / "model" / "copy")
    assert listing(tmp_path / "final") == listing(tmp_path / "model")

    with pytest.raises(CheckpointError, match="cannot be read"):
        publish(tmp_path / "none", tmp_path / "third")

    synced: list[int] = []
    fsync = os.fsync
    monkeypatch.setattr(os, "fsync", lambda descriptor: (synced.append(descriptor), fsync(descriptor)))
    publish(tmp_path / "model", tmp_path / "third")
    assert len(synced) >= len(listing(tmp_path / "model")) + 3, "every file, and every folder of names"
    monkeypatch.undo()

    monkeypatch.setattr(partial_module.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 10})())
    with pytest.raises(ResourceError, match=r"needs .*B, but the disk has"):
        publish(tmp_path / "model", tmp_path / "fourth")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["final", "model", "third"]


def test_publish_works_where_a_killed_run_left_its_lock(tmp_path: Path, recipe_for: Callable, session: Session) -> None:
    save_all(recipe_for("a"), session, tmp_path / "model")
    before = listing(tmp_path / "model")
    (tmp_path / "model" / "lock.json").write_text("{}")
    publish(tmp_path / "model", tmp_path / "final")
    assert listing(tmp_path / "final") == before


@pytest.mark.parametrize(
    ("number", "kind", "said"),
    [
        (errno.ENOSPC, ResourceError, "the disk is full"),
        (errno.EIO, OutputError, r"cannot be written \(Input/output error"),
    ],
)
def test_publish_names_the_first_error_of_the_disk(
    tmp_path: Path,
    recipe_for: Callable,
    monkeypatch: pytest.MonkeyPatch,
    number: int,
    kind: type[Exception],
    said: str,
    session: Session,
) -> None:
    save_all(recipe_for("ab"), session, tmp_path / "model")

    def fail(_: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(kind, match=said):
        publish(tmp_path / "model", tmp_path / "final")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_file_of_the_base_that_cannot_be_read_is_no_failure_to_write(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, session: Session
) -> None:
    vocabulary = models / "base" / "vocab.txt"
    vocabulary.write_text("words")

    def refuse(path: Any, *rest: Any, **named: Any) -> Any:
        if path == vocabulary:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return open(path, *rest, **named)

    monkeypatch.setattr(copying, "open", refuse, raising=False)
    with pytest.raises(CheckpointError, match=r"vocab\.txt: cannot be read \(Permission denied\)"):
        save_all(make_recipe(models / "base", [models / "a"], device="cpu"), session, tmp_path / "x" / "out")
    assert listing(tmp_path / "x") == []


@pytest.mark.parametrize("change", ["rewritten", "removed"])
def test_an_input_that_changes_before_it_is_hashed_fails_the_run(
    models: Path, tmp_path: Path, change: str, session: Session
) -> None:
    file = models / "a" / "model.safetensors"
    steps = save(
        prepare(make_recipe(models / "base", [models / "a"], device="cpu"), session), session, tmp_path / "x" / "out"
    )
    while next(steps).name != LAST_STEP:
        pass
    if change == "removed":
        file.unlink()
    else:
        change_weights(file, lambda tensors: tensors["vit.layernorm.weight"].mul_(2))
    with pytest.raises(CheckpointError, match=r"a/model\.safetensors: (was changed while in use|cannot be read)"):
        next(steps)
    assert listing(tmp_path / "x") == []


def test_no_permission_below_the_output_is_a_sentence(recipe_for: Callable, as_ordinary_user: Path) -> None:
    locked = as_ordinary_user / "locked"
    locked.mkdir()
    locked.chmod(0)
    with pytest.raises(OutputError, match=r"out: cannot be written \(Permission denied\)"):
        check_disk_space(locked / "deep" / "out", 1)
    with (
        pytest.raises(OutputError, match=r"out: cannot be written \(Permission denied\)"),
        output_folder(locked / "out"),
    ):
        pass


def test_types_of_every_kind_are_written_as_safetensors_reads_them(tmp_path: Path) -> None:
    tensors = {
        "f64": torch.randn(3, dtype=torch.float64), "f32": torch.randn(2, 2), "f16": torch.randn(3).half(),
        "bf16": torch.randn(5).bfloat16(), "f8": torch.randn(3).to(torch.float8_e4m3fn),
        "bool": torch.tensor([True, False]),
        "i64": torch.arange(3), "u8": torch.arange(3, dtype=torch.uint8), "scalar": torch.tensor(1.5),
        "empty": torch.zeros(0, 2), "strided": torch.arange(6.0).reshape(2, 3).T, "名前": torch.zeros(1),
    }  # fmt: skip
    writer.write_tensors(tmp_path / "all.safetensors", tensors, {"task": "模型"})
    found = load_file(tmp_path / "all.safetensors")
    assert set(found) == set(tensors)
    for name, tensor in tensors.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name].double(), tensor.double())
    from sftm_app.weights.header import read_header

    assert all(info.offset % info.dtype.itemsize == 0 for info in read_header(tmp_path / "all.safetensors").tensors)


def test_a_writer_refuses_what_was_not_announced(tmp_path: Path) -> None:
    announced = [writer.OutputTensor("a", torch.float32, (2,)), writer.OutputTensor("b", torch.float32, (1,))]
    file = writer.TensorFile(tmp_path / "x.safetensors", announced, {})
    for name, tensor, said in (
        ("a", torch.zeros(3), "instead of"),
        ("b", torch.zeros(1, dtype=torch.float64), "instead of"),
        ("c", torch.zeros(1), "not announced"),
    ):
        with pytest.raises(ValueError, match=said):
            file.write(name, tensor)
    file.abandon()
    again = writer.TensorFile(tmp_path / "y.safetensors", announced, {})
    again.write("a", torch.zeros(2))
    with pytest.raises(ValueError, match="is written twice"):
        again.write("a", torch.zeros(2))
    with pytest.raises(ValueError, match="1 tensors were never written"):
        again.close()
    again.abandon()


def test_half_precision_checkpoints_end_to_end(models: Path, tmp_path: Path, session: Session) -> None:
    for seed, name in ((1, "ha"), (2, "hb")):
        save_task(models / name, models / "base", seed, 3, torch.float16)
    save_all(make_recipe(models / "ha", [models / "hb"], device="cpu"), session, tmp_path / "out")
    model = ViTForImageClassification.from_pretrained(tmp_path / "out")
    assert model.dtype == torch.float16
