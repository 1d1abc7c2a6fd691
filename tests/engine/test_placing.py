"""A GPU that is too small for a layer: the CPU takes that one. No GPU is needed to see it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from sftm_app.engine import placing
from sftm_app.engine.placing import GPU_SHARE, gpu_budget, where_it_fits
from sftm_app.engine.run import run
from sftm_app.errors import ResourceError
from sftm_app.linalg.workspace import LayerSize
from sftm_app.methods import METHODS
from sftm_app.pipeline import prepare
from sftm_app.planning.budget import memory_model
from sftm_app.planning.memory import entry_bytes, tasks_at_once
from sftm_app.planning.plan import Plan
from sftm_app.session import Session
from sftm_app.weights.reader import open_reader

CPU, GPU = torch.device("cpu"), torch.device("cuda")
PlanFor = Callable[..., Plan]


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, int]]:
    """The figures of a GPU that is not there; emptied: how often its cache was."""
    figures = {"free": 10**12, "reserved": 0, "allocated": 0, "emptied": 0}
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (figures["free"], 10**12))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: figures["reserved"])
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: figures["allocated"])
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: figures.update(emptied=figures["emptied"] + 1))
    yield figures


@pytest.fixture
def on_gpu(recipe_for: Callable[..., Any], session: Session) -> PlanFor:
    """Plans for a GPU; keyword arguments as for make_recipe."""
    return lambda **changes: dataclasses.replace(prepare(recipe_for(**changes), session), device=GPU)


def test_a_layer_that_does_not_fit_goes_to_the_cpu(on_gpu: PlanFor, gpu: dict[str, int]) -> None:
    plan = on_gpu()
    sizes = {entry.name: entry_bytes(entry, memory_model(plan, 1)) for entry in plan.entries}
    limit = sorted(sizes.values())[-len(sizes) // 4]
    gpu["free"] = int(limit / GPU_SHARE) + 1
    places = {entry.name: where_it_fits(plan, entry, 1, lambda device: device.type) for entry in plan.entries}
    sums = {entry.name for entry in plan.entries if entry.rule in ("sum", "average")}
    assert sums and places == {
        name: "cuda" if size <= limit and name not in sums else "cpu" for name, size in sizes.items()
    }
    assert set(places.values()) == {"cpu", "cuda"}


def test_a_gpu_holds_two_tasks_of_a_layer_at_a_time_whatever_the_cpu_does() -> None:
    devices = [torch.device(kind) for kind in ("cpu", "mps", "cuda")]
    assert [tasks_at_once(device, 3) for device in devices] == [3, 3, 2]
    sftm = METHODS["sftm"]
    size = LayerSize(512, 512, (512,) * 4, (False,) * 4, 4 * 512**2, 0)
    sizes = [dataclasses.replace(size, n_at_once=n_tasks) for n_tasks in (1, 2, 3)]
    one, two, three = (sftm.workspace(size, sftm.params(variant="readout")) for size in sizes)
    assert one < two < three


def test_what_the_allocator_holds_unused_is_free_and_the_recipe_may_allow_less(
    on_gpu: PlanFor, gpu: dict[str, int]
) -> None:
    gpu |= {"free": 1000, "reserved": 600, "allocated": 100}
    assert gpu_budget(on_gpu()) == int(GPU_SHARE * 1500)
    assert gpu_budget(on_gpu(memory="1KB")) == 1000
    assert gpu_budget(on_gpu(memory="1MB")) == int(GPU_SHARE * 1500)


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED")]
)
def test_a_layer_whose_memory_runs_out_is_begun_again_on_the_cpu(
    on_gpu: PlanFor, gpu: dict[str, int], error: Exception
) -> None:
    plan, tried = on_gpu(), []

    def merge(device: torch.device) -> str:
        tried.append(device.type)
        if device.type == "cuda":
            raise error
        return "merged"

    superposed = next(entry for entry in plan.entries if entry.rule == "method")
    assert where_it_fits(plan, superposed, 1, merge) == "merged"
    assert tried == ["cuda", "cpu"] and gpu["emptied"] == 1


def test_on_other_devices_nothing_is_looked_at(on_gpu: PlanFor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(placing, "gpu_budget", lambda plan: pytest.fail("there is no GPU"))
    plan = dataclasses.replace(on_gpu(), device=CPU)
    assert {where_it_fits(plan, entry, 1, str) for entry in plan.entries} == {"cpu"}
    mps = dataclasses.replace(plan, device=torch.device("mps"))
    assert {where_it_fits(mps, entry, 1, str) for entry in mps.entries if entry.rule == "method"} == {"cpu"}
    assert {where_it_fits(mps, entry, 1, str) for entry in mps.entries if entry.rule == "copy"} <= {"mps"}


def test_a_merge_on_a_full_gpu_is_that_of_the_cpu_and_says_so(
    on_gpu: PlanFor, gpu: dict[str, int], session: Session
) -> None:
    gpu["free"] = 0
    plan = on_gpu()
    expected = {made.entry.name: made for made in run(dataclasses.replace(plan, device=CPU), session)}
    n_superposed = 0
    for made in run(plan, session):
        assert torch.equal(made.tensor, expected[made.entry.name].tensor)
        for record in made.records:
            if record.rule == "method":
                assert record.figures.device == "cpu"
                n_superposed += 1
        assert all(record.figures.device is None for record in expected[made.entry.name].records)
    assert n_superposed


def test_memory_that_runs_out_on_the_cpu_too_is_a_sentence(
    on_gpu: PlanFor, gpu: dict[str, int], session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: object) -> None:
        raise torch.OutOfMemoryError("out of memory")

    monkeypatch.setattr("sftm_app.engine.run._merge_entry", fail)
    with pytest.raises(ResourceError, match="Out of memory at"):
        list(run(on_gpu(), session))


@pytest.mark.gpu
@pytest.mark.parametrize("rank", [None, 3])
def test_a_gpu_gives_the_cpus_result(on_gpu: PlanFor, session: Session, rank: int | None) -> None:
    plan = on_gpu(params={"rank": rank})
    base = plan.preflight.base
    with open_reader(base) as read:
        for made in run(plan, session):
            (other,) = run(dataclasses.replace(plan, device=CPU, entries=(made.entry,)), session)
            expected = other.tensor.double()
            change = float((expected - read(made.entry.name).double()).norm())
            assert float((made.tensor.double() - expected).norm()) <= 1e-4 * change + 1e-12
