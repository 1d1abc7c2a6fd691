"""What a plan says a merge will take: adds up, follows shapes, ranks and tasks, is measured on the engine itself."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_adapters import build, save_adapter

from sftm_app.engine import cache as factor_cache
from sftm_app.engine.cache import FactorStore, open_store
from sftm_app.linalg.svd import factorise
from sftm_app.methods import METHODS
from sftm_app.output.report import load_report
from sftm_app.output.save import save
from sftm_app.planning import cost
from sftm_app.planning import machine_speed as calibration
from sftm_app.planning.cost import ENTRY_S, KEPT_PASSES, Cost, EntryCost, estimate
from sftm_app.planning.machine_speed import DiskSpeed, MapKind, MapSpeed, Memory, map_speed, operations
from sftm_app.planning.memory import FIRST_USE_BYTES, entry_bytes
from sftm_app.planning.plan import Plan
from sftm_app.planning.planner import check_recipe, make_plan, plan_for
from sftm_app.planning.recipe import make_recipe
from sftm_app.units import format_duration

CPU = torch.device("cpu")
SFTM = METHODS["sftm"]
DISK = DiskSpeed(read=1e6, write=2e6, keep=4e6, hash=8e6)


def planned(recipe: Any) -> Plan:
    return plan_for(recipe, check_recipe(recipe).require())


@pytest.fixture
def known_speeds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Speeds by hand: 3 s of factorising and 4 s of superposing for each map, and DISK."""
    monkeypatch.setattr(cost, "disk_speed", lambda *_: DISK)
    monkeypatch.setattr(cost, "map_speed", lambda *_: MapSpeed(3.0, 4.0, 2.0))
    monkeypatch.setattr(cost, "features_s", lambda *_: 5.0)
    monkeypatch.setattr(cost, "SAMPLED_KINDS", 100)
    monkeypatch.setenv("SFTM_CACHE_GB", "0")


def keep_small_factors(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """Those of the tiny models' layers, in `folder`, whose files count as changed only just now."""
    monkeypatch.setattr(factor_cache, "MIN_SIDE", 2)
    monkeypatch.setenv("SFTM_CACHE_GB", "1")
    monkeypatch.setenv("SFTM_CACHE_DIR", str(folder))


def test_every_tensor_has_its_seconds_memory_and_disk_and_they_add_up(
    recipe_for: Callable[..., Any], known_speeds: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cost, "n_processors", lambda: 4)
    monkeypatch.setattr(cost.torch, "get_num_threads", lambda: 4)
    plan = planned(recipe_for(params={"rank": 3}))
    found = estimate(plan)
    assert [each.name for each in found.entries] == [entry.name for entry in plan.entries]
    for each, entry in zip(found.entries, plan.entries, strict=True):
        n_bytes = entry.output.n_bytes
        superposed = entry.rule == "superpose"
        read = n_bytes * (1 + 3 * (2 if superposed else 1))  # base once; tasks once, or twice where they are superposed
        assert each.read_bytes == read and each.written_bytes == n_bytes
        assert each.memory_bytes == entry_bytes(entry, plan.preflight, plan.recipe.params)
        assert each.seconds == pytest.approx(ENTRY_S + 7.0 * superposed + read / 1e6 + n_bytes / 2e6)
    checkpoints = [plan.preflight.base, *(task.checkpoint for task in plan.preflight.tasks)]
    inputs = sum(stamp.size_bytes for checkpoint in checkpoints for stamp in checkpoint.stamps.values())
    assert found.hashing_s == pytest.approx(inputs / 8e6 / 4)
    # A processor that nothing else wants is done with it long before the rest.
    monkeypatch.setattr(cost, "n_processors", lambda: torch.get_num_threads() + 1)
    assert estimate(plan).hashing_s == 0.0
    assert found.seconds == pytest.approx(sum(each.seconds for each in found.entries) + found.hashing_s)
    assert (found.peak_bytes, found.written_bytes) == (plan.peak_bytes, plan.output_bytes)
    first = found.costliest(1)[0]
    assert first.seconds == max(each.seconds for each in found.entries)


def test_keeping_factors_costs_hashing_and_writing_them(
    recipe_for: Callable[..., Any], known_speeds: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    plan = planned(recipe_for())
    without = {each.name: each.seconds for each in estimate(plan).entries}
    monkeypatch.setenv("SFTM_CACHE_GB", "1")
    monkeypatch.setenv("SFTM_CACHE_DIR", str(tmp_path))
    assert {each.name: each.seconds for each in estimate(plan).entries} == without  # all maps are below MIN_SIDE
    monkeypatch.setattr(factor_cache, "MIN_SIDE", 2)
    for each, entry in zip(estimate(plan).entries, plan.entries, strict=True):
        more = 0.0
        if entry.rule == "superpose":
            m, n = entry.parts[0].shape_in(entry.output.shape)
            # Once more read for its address, hashed, and written; and what comes of it.
            more = 3 * 4 * (m * n / 1e6 + m * n / 8e6 + (m + n) * min(m, n) / 4e6) + 4 * m * n / 4e6
        assert each.seconds - without[each.name] == pytest.approx(more)


def test_factors_that_are_kept_are_read_instead_of_made(
    recipe_for: Callable[..., Any], known_speeds: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    keep_small_factors(monkeypatch, tmp_path / "factors")
    plan = planned(recipe_for())
    before = estimate(plan)
    list(save(plan, tmp_path / "out"))
    heavier = tuple(dataclasses.replace(task, weight=2.0) for task in plan.recipe.tasks)
    others = [(recipe_for(params={"variant": "mapping"}), 1000), (recipe_for(params={"rank": 3}), 3)]
    others += [(dataclasses.replace(plan.recipe, tasks=heavier), 1000)]
    for other, count in others:
        again = planned(other)
        for each, earlier, entry in zip(estimate(again).entries, before.entries, plan.entries, strict=True):
            less = 0.0
            if entry.rule == "superpose":
                m, n = entry.parts[0].shape_in(entry.output.shape)
                less = 3 + 12 * (m + n) * (min(m, n) / 4e6 - min(count, m, n) / 1e6)
                less += 2 * 12 * m * n / 1e6  # which no factorisation reads again
            assert earlier.seconds - each.seconds == pytest.approx(less)
    changed = planned(recipe_for("ab", params={"rank": 3}))
    assert cost._what_is_kept(changed, open_store()) == cost._Kept(1.0)  # type: ignore[arg-type]
    assert cost._what_is_kept(changed, FactorStore(tmp_path / "none", 1000)) == cost._Kept(0.0)


def test_a_layer_that_is_kept_but_for_its_scaling_is_hashed_and_read(
    recipe_for: Callable[..., Any], known_speeds: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    keep_small_factors(monkeypatch, tmp_path / "factors")
    list(save(planned(recipe_for()), tmp_path / "out"))
    again = planned(recipe_for(params={"scaling": 0.5}))
    assert cost._what_is_kept(again, open_store()) == cost._Kept(1.0, whole=True)  # type: ignore[arg-type]
    for each, entry in zip(estimate(again).entries, again.entries, strict=True):
        if entry.rule == "superpose":
            n_bytes = entry.output.n_bytes
            assert each.seconds == pytest.approx(ENTRY_S + n_bytes * (4 / 1e6 + 3 / 8e6 + KEPT_PASSES / 1e6 + 1 / 2e6))


def test_files_that_nothing_touched_since_are_neither_hashed_nor_read(
    recipe_for: Callable[..., Any], known_speeds: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    keep_small_factors(monkeypatch, tmp_path / "factors")
    monkeypatch.setattr(cost, "n_processors", lambda: 1)
    plan = planned(recipe_for())
    first = estimate(plan)
    assert first.hashing_s > 0 and estimate(plan) == first, "an estimate leaves nothing that a later one would go by"
    list(save(plan, tmp_path / "out"))
    again = planned(recipe_for(params={"scaling": 0.5}))
    assert cost._what_is_kept(again, open_store()) == cost._Kept(1.0, True, True)  # type: ignore[arg-type]
    found = estimate(again)
    assert found.hashing_s == 0
    for each, entry in zip(found.entries, again.entries, strict=True):
        if entry.rule == "superpose":
            n_bytes = entry.output.n_bytes
            assert each.read_bytes == n_bytes
            assert each.seconds == pytest.approx(ENTRY_S + n_bytes * (1 / 1e6 + KEPT_PASSES / 1e6 + 1 / 2e6))
            # The base's tensor and what is added to it.
            assert each.memory_bytes == 2 * n_bytes < entry_bytes(entry, again.preflight, again.recipe.params)
    assert found.peak_bytes == FIRST_USE_BYTES + max(each.memory_bytes for each in found.entries)
    thin = planned(recipe_for(params={"rank": 1}))
    assert cost._what_is_kept(thin, open_store()).whole is False  # type: ignore[arg-type]
    list(save(thin, tmp_path / "thin"))
    scaled = planned(recipe_for(params={"rank": 1, "scaling": 0.5}))
    for each, entry in zip(estimate(scaled).entries, scaled.entries, strict=True):
        if entry.rule == "superpose":
            m, n = entry.parts[0].shape_in(entry.output.shape)
            # Three features in float64, once more scaled; the product as it is added, in both types.
            assert each.memory_bytes == 4 * m * n + 2 * 8 * (m + n) * 3 + 12 * m * n


def test_summing_and_copying_is_reading_and_writing(recipe_for: Callable[..., Any], known_speeds: None) -> None:
    plan = planned(recipe_for(method="task_arithmetic"))
    for each, entry in zip(estimate(plan).entries, plan.entries, strict=True):
        assert each.seconds == pytest.approx(ENTRY_S + entry.output.n_bytes * (4 / 1e6 + 1 / 2e6))


def test_an_adapter_reads_its_pairs_and_is_written_small(tmp_path: Path, known_speeds: None) -> None:
    build("llama").save_pretrained(tmp_path / "base")
    tasks = [save_adapter(tmp_path / name, "llama", seed) for seed, name in enumerate("ab", 1)]
    plan = planned(make_recipe(tmp_path / "base", tasks, output={"kind": "adapter"}, device="cpu"))
    changed = [
        (each, entry)
        for each, entry in zip(estimate(plan).entries, plan.entries, strict=True)
        if entry.rule == "superpose" and any(entry.sources)
    ]
    assert len(changed) >= 4
    for each, entry in changed:
        pairs = sum(4 * sum(entry.parts[0].shape_in(entry.output.shape)) * s.rank for s in entry.sources)  # type: ignore
        assert each.read_bytes == entry.output.n_bytes + 2 * pairs
        assert each.written_bytes == entry.adapter_bytes(None) < 4 * entry.output.n_bytes


def test_a_kind_that_was_not_sampled_follows_from_one_that_was(
    recipe_for: Callable[..., Any], known_speeds: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cost, "SAMPLED_KINDS", 1)
    plan = planned(recipe_for())
    asked: list[MapKind] = []
    monkeypatch.setattr(cost, "map_speed", lambda m, me, p, kind, *_: (asked.append(kind), MapSpeed(3.0, 4.0, 1.0))[1])
    found = cost._map_speeds(plan, Memory())
    (like,) = asked
    assert len(found) >= 3 and found[like] == MapSpeed(3.0, 4.0, 1.0)
    for kind, speed in found.items():
        ratio = kind.m * kind.n * kind.k / (like.m * like.n * like.k)
        rest = operations(kind, plan.recipe.params) / operations(like, plan.recipe.params)
        assert speed.factorise_s == pytest.approx(3 * ratio) and speed.rest_s == pytest.approx(4 * rest)


def test_operations_grow_as_the_work_does() -> None:
    params = SFTM.params()

    def of(kind: MapKind, **changes: Any) -> float:
        return operations(kind, dataclasses.replace(params, **changes)) - calibration.CALLS

    kind = MapKind(1024, 1024, 4)
    assert of(MapKind(2048, 2048, 4)) / of(kind) == pytest.approx(8, rel=0.05)
    assert 2 < of(MapKind(1024, 1024, 8)) / of(kind) < 4.5
    assert of(kind, rank=0.25) < of(kind) / 2 and of(kind, variant="mapping") > of(kind)
    # Of eight square tasks, whose D* and sum take 2 * 8 * 2 k^3, forming A takes 28 * 4 k^3.
    eight = MapKind(1024, 1024, 8)
    assert 3 < of(eight) / (operations(eight, SFTM.params(), solved=True) - calibration.CALLS) < 6
    thin = MapKind(4096, 4096, 0, (16,) * 8)
    assert of(thin) < of(MapKind(4096, 4096, 8)) / 100


def test_two_samples_tell_how_the_rate_grows() -> None:
    def seconds(c: float) -> float:
        return 8 * c**3 + 2 * c**2

    assert calibration._extrapolated((0.25, seconds(0.25)), (0.5, seconds(0.5))) == pytest.approx(10)
    assert calibration._extrapolated((0.0, 0.0), (0.5, 1.0)) == pytest.approx(8)
    # Noise does not make the answer absurd: between half and all of what the last rate gives.
    assert calibration._extrapolated((0.25, 5.0), (0.5, 1.0)) == pytest.approx(4 + 2)
    assert calibration._extrapolated((0.25, 0.001), (0.5, 1.0)) == pytest.approx(8)


def test_small_maps_are_sampled_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, ...]] = []
    monkeypatch.setattr(
        "sftm_app.engine.features.factorise", lambda D, rank=None: (seen.append(tuple(D.shape)), factorise(D, rank))[1]
    )
    started = time.perf_counter()
    found = map_speed(Memory(), SFTM, SFTM.params(), MapKind(40, 24, 2), CPU)
    took = time.perf_counter() - started
    assert set(seen) == {(40, 24)} and found.n_reads >= 1
    assert 0 < found.factorise_s < took and 0 < found.rest_s < took


def test_samples_are_taken_by_one_thread_and_what_more_gain_is_asked_of_a_product(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    threads: set[int] = set()
    merge = SFTM.merge_matrix

    def seen(layer: Any, params: Any) -> Any:
        threads.add(torch.get_num_threads())
        return merge(layer, params)

    before = torch.get_num_threads()
    memory, kind = Memory(), MapKind(40, 24, 2)
    try:
        torch.set_num_threads(2)
        found = map_speed(memory, dataclasses.replace(SFTM, merge_matrix=seen), SFTM.params(), kind, CPU)
        assert threads == {1} and torch.get_num_threads() == 2
        (sample,) = (values for key, values in memory.values.items() if "MapKind" in key)
        (gain,) = (values for key, values in memory.values.items() if "'threads'" in key)
        assert gain[1] >= 1 and found.rest_s == pytest.approx(sample[2] / gain[1])
        assert found.factorise_s == sample[1], "as many tasks as there are threads are factorised at a time as it is"
        gain[1] = 1.5
        assert map_speed(memory, SFTM, SFTM.params(), kind, CPU).rest_s == pytest.approx(sample[2] / 1.5)
        thin = MapKind(40, 24, 0, (2, 2))
        alone = map_speed(memory, SFTM, SFTM.params(), thin, CPU)
        (sample,) = (values for key, values in memory.values.items() if repr(thin) in key)
        assert alone.rest_s == sample[2], "such maps are merged by one thread"
    finally:
        torch.set_num_threads(before)


def test_what_is_slow_the_first_time_only_is_not_extrapolated(monkeypatch: pytest.MonkeyPatch) -> None:
    first = [0.3]

    def slow_once(D: torch.Tensor, rank: Any = None) -> Any:
        if first:
            time.sleep(first.pop())
        return factorise(D, rank)

    monkeypatch.setattr("sftm_app.engine.features.factorise", slow_once)
    found = map_speed(Memory(), SFTM, SFTM.params(), MapKind(768, 768, 2), CPU)
    assert not first and found.factorise_s < 20  # as seconds of a side of 96, those would be more than 100


def test_large_maps_are_sampled_small_and_seldom_more_than_is_worth_it(monkeypatch: pytest.MonkeyPatch) -> None:
    sampled: list[MapKind] = []
    rate = 1e-9  # seconds for an entry and a row

    def sample(kind: MapKind, method: Any, params: Any, device: Any) -> MapSpeed:
        sampled.append(kind)
        return MapSpeed(rate * kind.n_dense * kind.m * kind.n * kind.k, 1e-12 * operations(kind, params), 1.0)

    monkeypatch.setattr(calibration, "_sample", sample)
    kind = MapKind(8192, 4096, 6)
    found = map_speed(Memory(), SFTM, SFTM.params(), kind, CPU)
    assert found.factorise_s == pytest.approx(rate * 6 * 8192 * 4096 * 4096)
    assert found.rest_s == pytest.approx(1e-12 * operations(kind, SFTM.params()))
    spent = sum(rate * each.n_dense * each.m * each.n * each.k for each in sampled)
    assert spent < 2 * calibration.SAMPLE_S and sampled[-1].k < 4096 and len(sampled) > 1
    sampled.clear()
    rate = 1e-12
    map_speed(Memory(), SFTM, SFTM.params(), MapKind(200, 200, 2), CPU)
    assert sampled == [MapKind(96, 96, 2)] * 2  # once to warm up; it takes too little to be worth a larger one


def test_nearby_ranks_share_a_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def measure(kind: MapKind, method: Any, params: Any, *_: Any) -> MapSpeed:
        asked.append(params.rank)
        return MapSpeed(1.0, 2.0, 1.0)

    monkeypatch.setattr(calibration, "_map_speed", measure)
    memory, kind = Memory(), MapKind(1024, 1024, 4)
    for rank in (100, 128, 0.125, 150):
        found = map_speed(memory, SFTM, SFTM.params(rank=rank), kind, CPU)
        ratio = operations(kind, SFTM.params(rank=rank)) / operations(kind, SFTM.params(rank=0.125))
        assert found.rest_s == pytest.approx(2 * ratio) and found.factorise_s == 1
    for rank in (None, 1000, "90% energy", None):
        map_speed(memory, SFTM, SFTM.params(rank=rank, scaling=0.5), kind, CPU)
    assert asked == [0.125, None, "90% energy"]


def test_what_was_measured_is_remembered_for_a_day(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, made = tmp_path / "below" / "speeds.json", []

    def measure() -> list[float]:
        made.append(1)
        return [1.5, 2.5]

    assert Memory(path).recall(measure, "a", 1) == [1.5, 2.5] and Memory(path).recall(measure, "a", 1) == [1.5, 2.5]
    assert len(made) == 1
    Memory(path).recall(measure, "a", 2)
    assert len(made) == 2
    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    Memory(path).recall(measure, "a", 1)
    torch.set_num_threads(threads)
    assert len(made) == 3
    now = time.time()
    monkeypatch.setattr(calibration.time, "time", lambda: now + calibration.REMEMBERED_S + 1)
    Memory(path).recall(measure, "a", 1)
    assert len(made) == 4 and len(json.loads(path.read_text())) == 1, "old ones are dropped"
    for damaged in ("", "{", "[1]", '{"a": 1}', '{"a": ["x"]}'):
        path.write_text(damaged)
        Memory(path).recall(measure, "a", 1)
    assert len(made) == 9
    assert [file.name for file in path.parent.iterdir()] == ["speeds.json"]


def test_a_place_that_cannot_be_written_is_no_error(tmp_path: Path, recipe_for: Callable[..., Any]) -> None:
    (tmp_path / "file").write_text("in the way")
    memory = Memory(tmp_path / "file" / "speeds.json")
    assert memory.recall(lambda: [1.0], "x") == memory.recall(lambda: [2.0], "x") == [1.0]
    found = calibration.disk_speed(memory, planned(recipe_for()), tmp_path / "file")
    assert all(rate > 0 for rate in dataclasses.astuple(found))


def test_a_merge_of_tiny_models_is_estimated_in_little_time_and_about_right(recipe_for: Callable[..., Any]) -> None:
    plan = planned(recipe_for())
    memory = Memory()
    estimate(plan, memory)
    started = time.perf_counter()
    found = estimate(plan, memory)
    assert time.perf_counter() - started < 1 and 0 < found.seconds < 10


def test_the_report_holds_what_was_expected_and_what_it_took(
    recipe_for: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = make_plan(recipe_for())
    assert plan.cost is not None
    steps = save(plan, tmp_path / "out")
    with pytest.raises(StopIteration) as end:
        while True:
            next(steps)
    report = load_report(tmp_path / "out" / "sftm_report.json")
    machine = report.machine
    assert end.value.value.machine == machine
    assert machine["seconds_predicted"] == pytest.approx(plan.cost.seconds)
    assert machine["tensor_seconds_predicted"] == {e.name: pytest.approx(e.seconds) for e in plan.cost.costliest()}
    assert machine["tensor_seconds"] == pytest.approx(sum(record.seconds for record in report.tensors))
    assert machine["hashing_seconds"] >= 0 and machine["tensor_seconds"] + machine["hashing_seconds"] < report.seconds
    assert report.time == f"{report.seconds:.1f} s ({format_duration(plan.cost.seconds)} expected)"
    assert dataclasses.replace(report, machine={}).time == f"{report.seconds:.1f} s"


def test_times_are_no_more_exact_than_they_are() -> None:
    assert [format_duration(seconds) for seconds in (0.3, 1.2, 41.6)] == ["under 1 s", "about 1 s", "about 42 s"]
    assert [format_duration(seconds) for seconds in (99.6, 1234, 7200)] == [
        "about 2 min",
        "about 21 min",
        "about 2.0 h",
    ]


def test_sentences_name_what_takes_longest() -> None:
    times = {"a": 2.0, "b": 30.0, "c": 0.5}
    entries = tuple(EntryCost(name, seconds, 1, 2_000_000, 3) for name, seconds in times.items())
    found = Cost(entries, 1.5, 5_000_000, 7_000_000)
    assert found.sentences() == [
        "A merge takes about 34 s and 5 MB of memory (besides Python and torch, which start in some seconds and take "
        "about 0.3 GB), reads 6 MB and writes 7 MB.",
        "Longest: b (30.0 s), a (2.0 s).",
    ]
    assert len(dataclasses.replace(found, entries=entries[2:]).sentences()) == 1
