"""What a plan says a merge takes: it adds up, follows shapes, ranks and tasks, and knows what is cached."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hollow_models import hollow
from tiny_adapters import build, save_adapter

from sftm_app.engine.run import run
from sftm_app.machine_speed import MachineSpeed
from sftm_app.methods import METHODS
from sftm_app.output.report import load_report
from sftm_app.output.save import save
from sftm_app.pipeline import prepare
from sftm_app.planning import cost as cost_module
from sftm_app.planning.budget import memory_model
from sftm_app.planning.cost import CACHED_PASSES, ENTRY_S, READING, STEPS_S, WRITING
from sftm_app.planning.keys import is_cached
from sftm_app.planning.memory import FIRST_USE_BYTES, entry_bytes
from sftm_app.planning.plan import Cost, EntryCost, Plan
from sftm_app.planning.planner import make_plan, open_inputs
from sftm_app.planning.recipe import Recipe, make_recipe
from sftm_app.session import Session
from sftm_app.units import format_duration
from sftm_app.weights.reader import TensorReader

PRODUCTS, EIGEN, HASHING = 1e9, 1e8, 8e6


class KnownSpeed:
    """The speed of a machine that does not change."""

    def get(self) -> MachineSpeed:
        return MachineSpeed(PRODUCTS, EIGEN, HASHING)


@pytest.fixture
def session(session: Session) -> Session:
    """A session without a cache, on a machine of known speed."""
    return dataclasses.replace(session, speed=KnownSpeed())


@pytest.fixture
def cached_session(cached_session: Session, small_layers_cached: None) -> Session:
    """A session with a cache of its own, also for tiny layers, on a machine of known speed."""
    return dataclasses.replace(cached_session, speed=KnownSpeed())


def save_all(plan: Plan, session: Session, output: Path) -> None:
    for _ in save(plan, session, output):
        pass


def costs(plan: Plan) -> dict[str, EntryCost]:
    return {cost.name: cost for cost in plan.cost.entries}


@pytest.fixture
def seconds(tmp_path: Path, session: Session) -> Callable[..., float]:
    """The predicted seconds of merging hollow models of m x n; keyword arguments as for make_recipe."""
    made: dict[tuple[int, int], list[Path]] = {}

    def predict(m: int, n: int, n_tasks: int = 2, **changes: Any) -> float:
        if (m, n) not in made:
            made[m, n] = [hollow(tmp_path / f"{m}x{n} {index}", m, n) for index in range(5)]
        folders = made[m, n]
        recipe = make_recipe(folders[0], folders[1 : 1 + n_tasks], **{"device": "cpu"} | changes)
        return make_plan(recipe, open_inputs(recipe, session), session).cost.seconds

    return predict


def test_every_tensor_has_its_seconds_memory_and_disk_and_they_add_up(
    recipe_for: Callable[..., Any], session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cost_module, "n_processors", lambda: session.n_threads)
    plan = prepare(recipe_for(params={"rank": 3}), session)
    cost = plan.cost
    assert [one.name for one in cost.entries] == [entry.name for entry in plan.entries]
    model = memory_model(plan, session.n_threads)
    for one, entry in zip(cost.entries, plan.entries, strict=True):
        n_bytes = entry.output.n_bytes
        assert one.read_bytes == n_bytes * (1 + 3) and one.written_bytes == n_bytes
        assert one.memory_bytes == entry_bytes(entry, model)
        moved = ENTRY_S + one.read_bytes / READING + n_bytes / WRITING
        if entry.rule == "method":
            assert one.seconds > moved + 3 * STEPS_S, "factorising, superposing and measuring take time"
        else:
            assert one.seconds == pytest.approx(moved)
    inputs = sum(stamp.size_bytes for one in plan.preflight.checkpoints for stamp in one.stamps.values())
    assert cost.hashing_s == pytest.approx(inputs / HASHING / session.n_threads)
    assert cost.seconds == pytest.approx(sum(one.seconds for one in cost.entries) + cost.hashing_s)
    assert cost.read_bytes == sum(one.read_bytes for one in cost.entries)
    assert (cost.peak_bytes, cost.written_bytes) == (plan.peak_bytes, plan.output_bytes)
    assert cost.costliest(1)[0].seconds == max(one.seconds for one in cost.entries)
    # Processors that nothing else uses hash meanwhile.
    monkeypatch.setattr(cost_module, "n_processors", lambda: session.n_threads + 100)
    assert prepare(recipe_for(params={"rank": 3}), session).cost.hashing_s < cost.hashing_s / 2


@pytest.mark.parametrize("measure", ["all", "none"])
@pytest.mark.parametrize("method", METHODS)
def test_seconds_grow_with_the_size_of_a_layer(seconds: Callable[..., float], method: str, measure: str) -> None:
    sizes = [(512, 512), (1024, 1024), (2048, 2048), (2048, 4096)]
    found = [seconds(m, n, 2, method=method, measure=measure) for m, n in sizes]
    assert found == sorted(found) and found[0] < found[1] < found[2] < found[3]
    if method == "sftm" or measure == "all":
        assert found[1] / found[0] > 5, "factorising takes eight times as long for twice the side"


@pytest.mark.parametrize("method", [name for name, method in METHODS.items() if method.n_tasks is None])
def test_seconds_grow_with_the_tasks(seconds: Callable[..., float], method: str) -> None:
    one, two, four = (seconds(1024, 1024, n_tasks, method=method) for n_tasks in (1, 2, 4))
    # Spectral methods share one number of directions among the tasks.
    assert one < two < four and four > (1.0 if method in ("tsv_m", "iso_c", "iso_cts") else 1.5) * one


@pytest.mark.parametrize("variant", ["readout", "mapping"])
def test_seconds_grow_with_the_rank(seconds: Callable[..., float], variant: str) -> None:
    ranks = (16, 0.1, 256, 0.5, None)
    found = [seconds(1024, 1024, 3, params={"variant": variant, "rank": rank}) for rank in ranks]
    assert found == sorted(found) and found[0] < found[2] < found[-1]
    shares = [
        seconds(1024, 1024, 3, params={"variant": variant, "rank": rank})
        for rank in ("50% energy", "auto", "99% energy")
    ]
    assert [found[0], *shares, found[-1]] == sorted([found[0], *shares, found[-1]])


def test_seconds_follow_the_speed_of_the_machine(
    recipe_for: Callable[..., Any], session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cost_module, "n_processors", lambda: session.n_threads)
    slow = prepare(recipe_for(), session)
    monkeypatch.setattr(KnownSpeed, "get", lambda self: MachineSpeed(10 * PRODUCTS, 10 * EIGEN, 10 * HASHING))
    fast = prepare(recipe_for(), session)
    for one, other, entry in zip(slow.cost.entries, fast.cost.entries, slow.entries, strict=True):
        assert (one.seconds > other.seconds) is (entry.rule == "method"), entry.name
    assert slow.cost.hashing_s > fast.cost.hashing_s


def test_measuring_costs_what_it_takes(recipe_for: Callable[..., Any], session: Session) -> None:
    plans = [prepare(recipe_for(method="average", measure=measure), session) for measure in ("all", "auto", "none")]
    measured, usual, bare = map(costs, plans)
    assert measured == usual, "these layers are small"
    for entry in plans[0].entries:
        one, other = measured[entry.name], bare[entry.name]
        if entry.rule == "method":
            assert one.seconds > other.seconds and one.memory_bytes > other.memory_bytes
        else:
            assert one == other
    # Summing and copying is reading and writing.
    for entry in plans[2].entries:
        n_bytes = entry.output.n_bytes
        steps = len(entry.sources) * n_bytes / 4 / PRODUCTS if entry.rule == "method" else 0.0
        assert bare[entry.name].seconds == pytest.approx(ENTRY_S + 4 * n_bytes / READING + n_bytes / WRITING + steps)


def test_a_plan_reads_and_writes_nothing(
    recipe_for: Callable[..., Any], cached_session: Session, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    recipe = recipe_for()
    found = open_inputs(recipe, cached_session).require()
    before = sorted(tmp_path.rglob("*.safetensors"))
    monkeypatch.setattr(TensorReader, "__call__", lambda *_, **__: pytest.fail("a tensor is read"))
    monkeypatch.setattr(cached_session.cache, "put", lambda *_: pytest.fail("something is cached"))
    assert make_plan(recipe, found, cached_session).cost.seconds > 0
    assert sorted(tmp_path.rglob("*.safetensors")) == before


def test_large_models_are_planned_in_no_time(seconds: Callable[..., float], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TensorReader, "__call__", lambda *_, **__: pytest.fail("a tensor is read"))
    assert seconds(16384, 4096, 4) > 100


def test_layers_that_are_cached_are_only_read_and_scaled(
    recipe_for: Callable[..., Any], cached_session: Session, tmp_path: Path
) -> None:
    plan = prepare(recipe_for(), cached_session)
    save_all(plan, cached_session, tmp_path / "out")
    again = prepare(recipe_for(params={"scaling": 0.5}), cached_session)
    assert again.cost.hashing_s == 0, "hashes are cached too"
    for one, before, entry in zip(again.cost.entries, plan.cost.entries, plan.entries, strict=True):
        n_bytes = entry.output.n_bytes
        if entry.rule == "method":
            assert one.read_bytes == n_bytes
            assert one.seconds == pytest.approx(ENTRY_S + (1 + CACHED_PASSES) * n_bytes / READING + n_bytes / WRITING)
            # The base's tensor and what is added to it.
            assert one.memory_bytes == 2 * n_bytes < before.memory_bytes
        else:
            assert one == before
    assert again.cost.peak_bytes == FIRST_USE_BYTES + max(one.memory_bytes for one in again.cost.entries)
    assert again.peak_bytes == plan.peak_bytes, "what it takes if the cache is cleared meanwhile"
    for changes in ({"params": {"rank": 3}}, {"params": {"variant": "mapping"}}, {"measure": "none"}, {"tasks": "ab"}):
        other = prepare(recipe_for(**changes), cached_session)
        assert not any(is_cached(other, entry, cached_session.cache, other.device) for entry in other.entries)


def test_a_thin_layer_that_is_cached_is_scaled_and_added_in_pieces(
    recipe_for: Callable[..., Any], cached_session: Session, tmp_path: Path
) -> None:
    save_all(prepare(recipe_for(params={"rank": 1}), cached_session), cached_session, tmp_path / "thin")
    scaled = prepare(recipe_for(params={"rank": 1, "scaling": 0.5}), cached_session)
    for one, entry in zip(scaled.cost.entries, scaled.entries, strict=True):
        if entry.rule == "method":
            m, n = entry.parts[0].shape_in(entry.output.shape)
            # Three features in float64, once more scaled; the product as it is added, in both types.
            assert one.memory_bytes == 4 * m * n + 2 * 8 * (m + n) * 3 + 12 * m * n


def test_a_cancelled_merge_leaves_no_cheap_prediction(
    recipe_for: Callable[..., Any], cached_session: Session, tmp_path: Path
) -> None:
    """Only layers that are cached count as cached: once, one of them stood for all."""
    plan = prepare(recipe_for(), cached_session)
    steps = save(plan, cached_session, tmp_path / "out")
    merged = []
    for step in steps:
        merged.append(step.name)
        if sum(entry.rule == "method" for entry in plan.entries if entry.name in merged) == 2:
            break
    steps.close()
    assert not (tmp_path / "out").exists()
    again = prepare(recipe_for(), cached_session)
    cheaper = [
        entry.name
        for entry, one, before in zip(plan.entries, again.cost.entries, plan.cost.entries, strict=True)
        if one.seconds < before.seconds
    ]
    assert cheaper == [entry.name for entry in plan.entries if entry.name in merged and entry.rule == "method"]
    assert again.cost.peak_bytes == plan.cost.peak_bytes, "the largest layer is not cached"
    assert again.cost.seconds > 0.5 * plan.cost.seconds


def test_a_tensor_counts_as_cached_only_where_each_of_its_parts_is(cached_session: Session, tmp_path: Path) -> None:
    root = tmp_path / "gpt2"
    build("gpt2").save_pretrained(root / "base")
    for seed in (1, 2):
        model = build("gpt2")
        torch.manual_seed(seed)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
        model.save_pretrained(root / str(seed))
    recipe = make_recipe(root / "base", [root / "1", root / "2"], device="cpu", split_fused=True)
    plan = prepare(recipe, cached_session)
    entry = next(entry for entry in plan.entries if len(entry.parts) == 3)
    before = costs(plan)[entry.name]
    for n_parts in (1, 2, 3):
        part_of = dataclasses.replace(entry, parts=entry.parts[:n_parts])
        list(run(dataclasses.replace(plan, entries=(part_of,)), cached_session))
        after = costs(prepare(recipe, cached_session))[entry.name]
        if n_parts < 3:
            assert after.read_bytes == before.read_bytes and after.memory_bytes == before.memory_bytes
            assert after.seconds > 0.3 * before.seconds
        else:
            assert after.read_bytes < before.read_bytes and after.memory_bytes < before.memory_bytes


def test_factors_that_are_cached_need_not_be_computed(
    recipe_for: Callable[..., Any], cached_session: Session, tmp_path: Path
) -> None:
    before = costs(prepare(recipe_for(params={"variant": "mapping"}), cached_session))
    save_all(prepare(recipe_for(), cached_session), cached_session, tmp_path / "out")
    plan = prepare(recipe_for(params={"variant": "mapping"}), cached_session)
    for entry in plan.entries:
        assert (costs(plan)[entry.name].seconds < before[entry.name].seconds) is (entry.rule == "method")


def test_an_adapter_reads_its_pairs_and_is_written_small(tmp_path: Path, session: Session) -> None:
    build("llama").save_pretrained(tmp_path / "base")
    tasks = [save_adapter(tmp_path / name, "llama", seed) for seed, name in enumerate("ab", 1)]
    plan = prepare(make_recipe(tmp_path / "base", tasks, output={"kind": "adapter"}, device="cpu"), session)
    changed = [entry for entry in plan.entries if entry.rule == "method" and any(entry.sources)]
    assert len(changed) >= 4
    for entry in changed:
        one = costs(plan)[entry.name]
        shape = entry.parts[0].shape_in(entry.output.shape)
        assert one.read_bytes == entry.output.n_bytes + sum(4 * sum(shape) * pair.rank for pair in entry.pairs)
        assert one.written_bytes == entry.adapter_bytes(None) < 4 * entry.output.n_bytes


def test_the_report_holds_what_was_predicted_and_what_it_took(
    recipe_for: Callable[..., Recipe], session: Session, tmp_path: Path
) -> None:
    plan = prepare(recipe_for(), session)
    steps = save(plan, session, tmp_path / "out")
    with pytest.raises(StopIteration) as end:
        while True:
            next(steps)
    report = load_report(tmp_path / "out" / "sftm_report.json")
    machine = report.machine
    assert end.value.value.machine == machine
    assert machine.seconds_predicted == pytest.approx(plan.cost.seconds)
    assert machine.tensor_seconds_predicted == {e.name: pytest.approx(e.seconds) for e in plan.cost.costliest()}
    assert machine.tensor_seconds == pytest.approx(sum(record.seconds for record in report.tensors))
    assert machine.hashing_seconds >= 0 and machine.tensor_seconds + machine.hashing_seconds < report.seconds
    assert report.time == f"{report.seconds:.1f} s ({format_duration(plan.cost.seconds)} expected)"
    alone = dataclasses.replace(report, machine=dataclasses.replace(machine, seconds_predicted=None))
    assert alone.time == f"{report.seconds:.1f} s"


def test_times_are_no_more_exact_than_they_are() -> None:
    assert [format_duration(seconds) for seconds in (0.3, 1.2, 41.6)] == ["under 1 s", "about 1 s", "about 42 s"]
    assert [format_duration(seconds) for seconds in (99.6, 1234, 7200)] == [
        "about 2 min",
        "about 21 min",
        "about 2.0 h",
    ]


def test_sentences_name_what_takes_longest() -> None:
    times = {"a": 6.0, "b": 300.0, "c": 0.5}
    entries = tuple(EntryCost(name, seconds, 1, 2_000_000, 3) for name, seconds in times.items())
    found = Cost(entries, 1.5, 5_000_000, 7_000_000)
    assert found.sentences() == [
        "The merge takes about 5 min and 5 MB of memory (Python and torch take a few seconds and about 0.3 GB more). "
        "It reads 6 MB and writes 7 MB.",
        "These take longest: b (about 5 min), a (about 6 s).",
    ]
    assert len(dataclasses.replace(found, entries=entries[2:]).sentences()) == 1
    assert "It fits." in dataclasses.replace(found, budget="It fits.").sentences()
