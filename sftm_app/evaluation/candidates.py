"""The models that are compared: the base, the tasks' own models, merges in memory and merges on disk."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from threading import Lock
from typing import Any

from cachetools import LRUCache
from torch import Tensor

from sftm_app.caching import keep
from sftm_app.engine.run import run
from sftm_app.errors import InputError
from sftm_app.evaluation.building import has_chat_template
from sftm_app.evaluation.families import family_of
from sftm_app.evaluation.family import EvaluationModel, Family
from sftm_app.evaluation.task_model import individual_parts, merged_parts, model_spec
from sftm_app.evaluation.task_tensors import individual_tensor, individual_tensors, read_all
from sftm_app.methods import get_method
from sftm_app.pipeline import prepare
from sftm_app.planning.device import resolve_device
from sftm_app.planning.plan import Plan
from sftm_app.planning.recipe import make_recipe
from sftm_app.preflight.matching import Source
from sftm_app.preflight.preflight import Preflight, preflight
from sftm_app.session import Session
from sftm_app.weights.checkpoint import open_checkpoint

BACKBONE_BYTES = 2_000_000_000
MODEL_BYTES = 2_000_000_000


@dataclass(frozen=True)
class Candidate:
    """A model to try on every task.

    Attributes:
        key: identifies it among the candidates of one workspace.
        title: its name on screen.
        kind: "base", "individual" (each task's own model) or the name of the method that merged it.
        params: the method's parameters, for a merge in memory; those left out have their defaults.
        weights: one for each task, for a merge in memory; None for those of the workspace.
        folder: the merged model, for a merge on disk.
        place: of its own colour among the merges on disk, see plots.style.merge_colour.
    """

    key: str
    title: str
    kind: str
    params: Mapping[str, Any] = field(default_factory=dict, hash=False)
    weights: tuple[float, ...] | None = None
    folder: Path | None = None
    place: int = 0


BASE = Candidate("base", "Base", "base")
INDIVIDUAL = Candidate("individual", "Individual", "individual")


def method_candidate(
    name: str, params: Mapping[str, Any] | None = None, weights: Sequence[float] | None = None
) -> Candidate:
    """A merge in memory, made when it is first needed.

    Args:
        name: a method's key in METHODS.
        params: its parameters; those left out have their defaults.
        weights: one for each task; the workspace's by default.
    """
    key, title = f"method:{name}", get_method(name).title
    chosen, given = dict(params or {}), tuple(weights) if weights else None
    words = [f"{label} {value}" for label, value in chosen.items()]
    words += [f"weights {', '.join(f'{weight:g}' for weight in given)}"] if given else []
    if words:
        key += f":{sorted(chosen.items())}:{given}"
        title += f" ({', '.join(words)})"
    return Candidate(key, title, name, chosen, given)


def folder_candidate(folder: Path, title: str, method: str, place: int = 0) -> Candidate:
    """A merged model on disk.

    Args:
        folder: the model.
        title: its name on screen.
        method: the name of the method that merged it.
        place: of its colour.
    """
    return Candidate(f"folder:{folder}", title, method, folder=folder, place=place)


class ModelPool:
    """Builds the models of one workspace and caches the latest ones. Safe to use from several threads.

    Args:
        found: the workspace: base and tasks.
        session: its device runs the models.
    """

    def __init__(self, found: Preflight, session: Session) -> None:
        self._found = found.require()
        self._session = session
        self._device = resolve_device(session.device)
        self._lock = Lock()
        self._backbones: LRUCache[str, Mapping[str, Tensor]] = LRUCache(BACKBONE_BYTES, getsizeof=_total_bytes)
        self._models: LRUCache[tuple[str, str], EvaluationModel] = LRUCache(
            MODEL_BYTES, getsizeof=lambda model: model.n_bytes
        )

    @property
    def task_names(self) -> tuple[str, ...]:
        """The tasks of the workspace, in their order."""
        return tuple(task.name for task in self._found.tasks)

    def family(self, task: str) -> Family:
        """The family of a task's model.

        Raises:
            SampleError: no family fits.
            InputError: there is no such task.
        """
        spec = model_spec(self._found, self._index(task))
        return family_of(spec.class_name, spec.config)

    def chats(self, task: str) -> bool:
        """Whether a task's model has a chat template for a message. Raises as `family`."""
        source = self._found.tasks[self._index(task)].checkpoint
        return self.family(task).chats and has_chat_template((source.path, self._found.base.path))

    def model(self, candidate: Candidate, task: str) -> EvaluationModel:
        """A candidate with the head of a task, ready to be tried.

        Raises:
            SampleError: no family fits the task, or its model cannot be built.
            InputError: there is no such task.
        """
        key = (candidate.key, task)
        # One at a time: two requests at once would build the same merge twice.
        with self._lock:
            return self._models.get(key) or keep(self._models, key, self._build(candidate, task))

    def tensor(self, candidate: Candidate, task: str, name: str) -> Tensor:
        """What model(candidate, task) is built from in place of the base's tensor `name`, as it is stored.

        Raises:
            InputError: there is no such task or tensor, or the candidate lacks the tensor.
        """
        index = self._index(task)
        if name not in self._found.base.tensors:
            raise InputError(f"The base has no tensor {name!r}. Choose a layer of the map.")
        if candidate.key == INDIVIDUAL.key:
            return individual_tensor(self._found, index, name)
        with self._lock:
            backbone = self._backbone(candidate)
        if name not in backbone:
            raise InputError(f"{candidate.title}: lacks {name!r}, so it was not merged from this base.")
        return backbone[name]

    def _index(self, task: str) -> int:
        if task not in self.task_names:
            raise InputError(f"There is no task {task!r}. Choose one of {', '.join(self.task_names)}.")
        return self.task_names.index(task)

    def _build(self, candidate: Candidate, task: str) -> EvaluationModel:
        # The family first: a task that cannot be tried should not wait for a merge.
        family, index = self.family(task), self._index(task)
        if candidate.key == INDIVIDUAL.key:
            return family.build(individual_parts(self._found, index, self._device))
        backbone = self._backbone(candidate)
        return family.build(merged_parts(self._found, index, backbone, candidate.title, self._device))

    def _backbone(self, candidate: Candidate) -> Mapping[str, Tensor]:
        known = self._backbones.get(candidate.key)
        return known or keep(self._backbones, candidate.key, self._load(candidate))

    def _load(self, candidate: Candidate) -> Mapping[str, Tensor]:
        if candidate.key == BASE.key:
            return read_all(self._found.base)
        if candidate.folder is None:
            return merge_in_memory(self._found, candidate.kind, candidate.params, self._session, candidate.weights)
        return stored_tensors(self._found, candidate.folder, self._session)


def stored_tensors(found: Preflight, folder: Path, session: Session) -> Mapping[str, Tensor]:
    """The tensors of a merged model on disk, by the base's names; of an adapter, with the base's under it.

    Raises:
        InputError: it cannot be read, or does not fit the base.
    """
    merged = open_checkpoint(folder)
    if merged.adapter is None:
        return read_all(merged)
    whole = preflight(found.base, [Source("merged", merged)], architectures=session.architectures)
    return individual_tensors(whole.require(), 0)


def _total_bytes(tensors: Mapping[str, Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors.values())


def merge_in_memory(
    found: Preflight, method: str, params: Mapping[str, Any], session: Session, weights: Sequence[float] | None = None
) -> dict[str, Tensor]:
    """Merge the tasks of a workspace without saving the result.

    Args, Raises: as `plan_in_memory`.

    Returns:
        The merged tensors, by the base's names.
    """
    plan = plan_in_memory(found, method, params, session, weights)
    return {merged.entry.name: merged.tensor for merged in run(plan, session)}


def plan_in_memory(
    found: Preflight,
    method: str,
    params: Mapping[str, Any],
    session: Session,
    weights: Sequence[float] | None = None,
    split_fused: bool = False,
) -> Plan:
    """Plan a merge whose result is not saved.

    Args:
        found: the workspace.
        method: a method's key in METHODS.
        params: its parameters; those left out have their defaults.
        session: its device and caches are used.
        weights: one for each task; the workspace's by default.
        split_fused: as in a recipe.

    Raises:
        InputError: the number of weights is not the number of tasks, or the method cannot merge these tasks.
    """
    if weights is not None:
        if len(weights) != len(found.tasks):
            raise InputError(f"{len(weights)} weights for {len(found.tasks)} tasks; give one for each.")
        weighed = zip(found.tasks, weights, strict=True)
        found = replace(found, tasks=tuple(replace(task, weight=weight) for task, weight in weighed))
    tasks = [{"path": task.checkpoint.path, "name": task.name, "weight": task.weight} for task in found.tasks]
    # Nobody sees a report of this merge, so what it preserves is not measured.
    recipe = make_recipe(found.base.path, tasks, method, params, split_fused=split_fused, measure="none")
    return prepare(recipe, session, found)
