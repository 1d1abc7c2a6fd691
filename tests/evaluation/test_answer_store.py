"""Answers that are kept: read back exactly, for the same model and samples only, whatever state the files are in."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from pools import SESSION, inputs_of
from test_candidates import ready_models as ready_models

from sftm_app.evaluation import measuring
from sftm_app.evaluation.answer_sheet import AnswerSheet
from sftm_app.evaluation.answer_store import SETS_KEPT, AnswerStore, samples_digest
from sftm_app.evaluation.candidates import BASE, INDIVIDUAL, folder_candidate, method_candidate
from sftm_app.evaluation.comparison import Comparison, compare
from sftm_app.evaluation.measuring import Benchmark, measure
from sftm_app.evaluation.model_keys import merge_id, model_key
from sftm_app.evaluation.samples import ImageSamples, TextSamples
from sftm_app.output.save import save
from sftm_app.pipeline import prepare
from sftm_app.planning.planner import open_inputs
from sftm_app.planning.recipe import make_recipe

SHEET = AnswerSheet(("x", "<b>"), ("x", "ж"), (True, False))


def test_answers_are_read_back_for_the_same_model_task_and_samples_only(tmp_path: Path) -> None:
    store = AnswerStore(tmp_path / "measured")
    assert store.load("m", "a", "s") is None
    store.save("m", "a", "s", SHEET)
    assert AnswerStore(tmp_path / "measured").load("m", "a", "s") == SHEET
    assert [store.load(*key) for key in (("n", "a", "s"), ("m", "b", "s"), ("m", "a", "t"))] == [None] * 3
    other = replace(SHEET, correct=(True, True), chosen=False)
    store.save("m", "a", "s", other)
    store.save("m", "b", "s", SHEET)
    assert (store.load("m", "a", "s"), store.load("m", "b", "s")) == (other, SHEET)
    store.forget("m")
    assert store.load("m", "a", "s") is None and not list((tmp_path / "measured").iterdir())


def test_only_the_latest_sets_of_samples_are_kept(tmp_path: Path) -> None:
    store = AnswerStore(tmp_path)
    for number in range(SETS_KEPT + 2):
        store.save("m", "a", str(number), SHEET)
    kept = [store.load("m", "a", str(number)) is not None for number in range(SETS_KEPT + 2)]
    assert kept == [False, False] + [True] * SETS_KEPT


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"model": "m"}', "\xff\xfe", "length", "letters"])
def test_a_damaged_file_counts_for_nothing_and_is_replaced(tmp_path: Path, damage: str) -> None:
    store = AnswerStore(tmp_path)
    store.save("m", "a", "s", SHEET)
    (file,) = tmp_path.iterdir()
    if damage in ("length", "letters"):
        content = json.loads(file.read_text())
        content["entries"][0]["correct"] = "1" if damage == "length" else "1x"
        damage = json.dumps(content)
    file.write_bytes(damage.encode("latin-1"))
    assert store.load("m", "a", "s") is None
    store.save("m", "a", "s", SHEET)
    assert store.load("m", "a", "s") == SHEET


def test_samples_are_told_apart() -> None:
    images = ImageSamples(np.zeros((2, 4, 4), np.uint8), np.array([0, 1]))
    changed = images.images.copy()
    changed[1, 3, 3] = 1
    texts = TextSamples(("a", "b"), ("x", "y"))
    sets = [
        images,
        replace(images, images=changed),
        replace(images, labels=np.array([1, 1])),
        replace(images, images=images.images.reshape(2, 2, 8)),
        replace(images, choices=("p", "q")),
        texts,
        replace(texts, inputs=("a", "c")),
        replace(texts, targets=("x", "z")),
        replace(texts, choices=("x", "y")),
        replace(texts, chat=True),
    ]
    assert len({samples_digest(one) for one in sets}) == len(sets)
    assert samples_digest(texts) == samples_digest(TextSamples(("a", "b"), ("x", "y")))


@pytest.fixture
def benchmark(ready_models: Path, tmp_path: Path) -> Benchmark:
    random = np.random.default_rng(1)
    samples = {
        task: ImageSamples(random.integers(0, 256, (6, 8, 8)).astype(np.uint8), random.integers(0, 3, 6))
        for task in ("a", "b")
    }
    found = inputs_of(ready_models / "base", [ready_models / task for task in samples])
    return Benchmark(found, samples, SESSION, answers=AnswerStore(tmp_path / "measured"))


def test_no_model_is_asked_twice(benchmark: Benchmark, monkeypatch: pytest.MonkeyPatch) -> None:
    empty = Comparison({task: len(one) for task, one in benchmark.samples.items()})
    average = method_candidate("average")
    first = list(compare(benchmark, empty.with_candidates([average])))[-1]

    def never(*arguments: object) -> None:
        raise AssertionError("nothing has to be merged or built")

    for name in ("run", "_model"):
        monkeypatch.setattr(measuring, name, never)
    again = list(compare(benchmark, empty.with_candidates([average])))[-1]
    assert [row.measurement.sheets for row in again.rows] == [row.measurement.sheets for row in first.rows]
    assert [row.accuracy for row in again.rows] == [row.accuracy for row in first.rows]


def test_only_what_is_missing_is_asked(benchmark: Benchmark) -> None:
    whole = list(measure(benchmark, BASE, None))[-1]
    fewer = replace(benchmark, samples={**benchmark.samples, "b": benchmark.samples["b"].take([0, 1])})
    steps = list(measure(fewer, BASE, None))
    assert steps[-1].n_known == 6 and [step.n_answers for step in steps] == [8]
    assert steps[-1].sheets["b"].answers == whole.sheets["b"].answers[:2]


def test_a_merge_on_disk_answers_as_the_same_merge_in_memory(benchmark: Benchmark, tmp_path: Path) -> None:
    found = benchmark.found
    recipe = make_recipe(found.base.path, [task.checkpoint.path for task in found.tasks], "average")
    for _ in save(prepare(recipe, SESSION), SESSION, tmp_path / "merged"):
        pass
    on_disk = folder_candidate(tmp_path / "merged", "Mine", "average")
    assert benchmark.plan(on_disk) is None
    given = list(measure(benchmark, on_disk, None))[-1]
    average = method_candidate("average")
    assert given.sheets == list(measure(benchmark, average, benchmark.plan(average)))[-1].sheets
    assert benchmark.known(on_disk) == given.sheets


def test_keys_change_with_what_the_answers_depend_on(benchmark: Benchmark, ready_models: Path, tmp_path: Path) -> None:
    found = benchmark.found
    candidates = [
        BASE,
        INDIVIDUAL,
        method_candidate("average"),
        method_candidate("sftm"),
        method_candidate("sftm", {"scaling": 0.5}),
        method_candidate("sftm", {}, (1.0, 2.0)),
        folder_candidate(tmp_path, "x", "sftm"),
        folder_candidate(ready_models / "a", "x", "sftm"),
    ]
    keys = [model_key(found, one, SESSION) for one in candidates]
    assert len({*keys, model_key(found, method_candidate("sftm"), SESSION, split_fused=True)}) == len(keys) + 1
    assert keys == [model_key(found, one, SESSION) for one in candidates]
    renamed = inputs_of(ready_models / "base", [{"path": ready_models / name, "name": f"{name}2"} for name in "ab"])
    recipe = make_recipe(ready_models / "base", [ready_models / name for name in "ab"], roles={"*.bias": "norm"})
    for other in (renamed, open_inputs(recipe, SESSION)):
        changed = [model_key(other, one, SESSION) != key for one, key in zip(candidates, keys, strict=True)]
        assert changed == [False, False, True, True, True, True, False, False], "only merges in memory depend on it"
    fewer = inputs_of(ready_models / "base", [ready_models / "a"])
    assert model_key(fewer, BASE, SESSION) != keys[0]


def test_a_copy_of_a_merge_is_the_same_merge(tmp_path: Path) -> None:
    for name, content in (("one", "{1}"), ("copy", "{1}"), ("other", "{2}")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "sftm_report.json").write_text(content)
    one, copy, other = (merge_id(tmp_path / name) for name in ("one", "copy", "other"))
    assert one == copy != other
    (tmp_path / "bare").mkdir()
    before = merge_id(tmp_path / "bare")
    (tmp_path / "bare" / "x.safetensors").write_bytes(b"1")
    assert merge_id(tmp_path / "bare") != before
