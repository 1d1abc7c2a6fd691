"""The demos that come with the app: their size, and that the models of `wordplay` do what the pack says."""

from __future__ import annotations

from statistics import fmean

from sftm_app.evaluation.accuracy import accuracy
from sftm_app.evaluation.candidates import BASE, INDIVIDUAL, ModelPool, method_candidate
from sftm_app.evaluation.packs import find_packs, load_samples
from sftm_app.planning.planner import open_inputs
from sftm_app.planning.recipe import make_recipe
from sftm_app.resources import asset_path
from sftm_app.session import Session

MOST_BYTES = 30 * 2**20
N_SAMPLES = 40


def test_the_demos_stay_small() -> None:
    files = [file for file in asset_path("demo").rglob("*") if file.is_file()]
    assert 0 < sum(file.stat().st_size for file in files) <= MOST_BYTES


def test_the_models_of_wordplay_solve_their_tasks_and_merges_lie_between(session: Session) -> None:
    """Individual models are clearly good, the base is clearly worse, and the average closes a part of the gap."""
    pack = next(pack for pack in find_packs(asset_path("demo")) if pack.name == "wordplay")
    recipe = make_recipe(pack.base, [{"path": task.path, "name": task.name} for task in pack.tasks])
    model_pool = ModelPool(open_inputs(recipe, session), session)
    samples = {task.name: load_samples(task).subset(N_SAMPLES) for task in pack.tasks}
    shown = (BASE, INDIVIDUAL, method_candidate("average"))
    found = {c.key: [accuracy(model_pool.model(c, task), samples[task]) for task in samples] for c in shown}
    base, individual, average = (found[candidate.key] for candidate in shown)
    assert len(samples) == 5
    assert min(individual) >= 0.75  # 40 samples: two standard errors below 0.87
    assert fmean(base) + 0.3 < fmean(individual)
    assert fmean(base) < fmean(average) < fmean(individual)
