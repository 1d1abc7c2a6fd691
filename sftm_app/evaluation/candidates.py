"""The models that are compared: base, individual task models, merges in memory and merges on the disk."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Lock
from typing import Any

import torch
from cachetools import LRUCache
from torch import Tensor

from sftm_app.caching import keep
from sftm_app.engine.run import run
from sftm_app.errors import InputError
from sftm_app.evaluation.building import has_chat_template
from sftm_app.evaluation.families import family_of
from sftm_app.evaluation.family import EvaluationModel, Family
from sftm_app.evaluation.task_model import individual_parts, layout_of, merged_parts, read_all
from sftm_app.evaluation.task_tensors import individual_tensor, individual_tensors
from sftm_app.methods import get_method
from sftm_app.planning.planner import plan_for
from sftm_app.planning.recipe import make_recipe
from sftm_app.preflight.matching import Source
from sftm_app.preflight.preflight import Preflight, preflight
from sftm_app.weights.checkpoint import open_checkpoint

BACKBONE_BYTES = 2_000_000_000
MODEL_BYTES = 2_000_000_000


@dataclass(frozen=True)
class Candidate:
    """A model to be tried on every task.

    key: "base", "individual", "method:<name>" (merged in memory; parameters and weights may follow) or "folder:<path>".
    kind: "base", "individual" or the name of the method that merged it.
    """

    key: str
    title: str
    kind: str


BASE = Candidate("base", "Base", "base")
INDIVIDUAL = Candidate("individual", "Individual", "individual")


def method_candidate(
    name: str, params: Mapping[str, Any] | None = None, weights: Sequence[float] | None = None
) -> Candidate:
    """A merge by this method, done in memory when first needed.

    Parameters that are not given have their defaults. weights: one for each task, the workspace's where not given.
    """
    key, title = f"method:{name}", get_method(name).title
    said = [f"{field} {value}" for field, value in (params or {}).items()]
    said += [f"weights {', '.join(f'{weight:g}' for weight in weights)}"] if weights else []
    if said:
        settings = {"params": dict(params or {}), "weights": list(weights) if weights else None}
        key += f":{json.dumps(settings, sort_keys=True)}"
        title += f" ({', '.join(said)})"
    return Candidate(key, title, name)


def folder_candidate(folder: Path, title: str, method: str) -> Candidate:
    """A merged model on the disk."""
    return Candidate(f"folder:{folder}", title, method)


class ModelPool:
    """Builds the models of one workspace and keeps the latest ones, so that the second try is immediate."""

    def __init__(self, found: Preflight, device: torch.device) -> None:
        self._found = found.require()
        self._device = device
        self._lock = Lock()
        self._backbones: LRUCache[str, Mapping[str, Tensor]] = LRUCache(BACKBONE_BYTES, getsizeof=_backbone_bytes)
        self._models: LRUCache[tuple[str, str], EvaluationModel] = LRUCache(
            MODEL_BYTES, getsizeof=lambda model: model.n_bytes
        )

    @property
    def task_names(self) -> tuple[str, ...]:
        return tuple(task.name for task in self._found.tasks)

    def family(self, task: str) -> Family:
        """What kind of model a task is.

        Raises
            SampleError: none that can be tried.
            InputError: no such task.
        """
        layout = layout_of(self._found, self._index(task))
        return family_of(layout.class_name, layout.config)

    def chats(self, task: str) -> bool:
        """Whether a task's model has a chat template that a message can be put into. Raises as family()."""
        source = self._found.tasks[self._index(task)].checkpoint
        return self.family(task).chats and has_chat_template((source.path, self._found.base.path))

    def model(self, candidate: Candidate, task: str) -> EvaluationModel:
        """The candidate with the head of `task`, ready to be tried.

        Raises
            SampleError: the task cannot be tried (see family and its build).
            InputError: no such task.
        """
        key = (candidate.key, task)
        # One at a time: a drawing and the table may ask at once, and would build the same merge twice.
        with self._lock:
            return self._models.get(key) or keep(self._models, key, self._build(candidate, task))

    def tensor(self, candidate: Candidate, task: str, name: str) -> Tensor:
        """What model(candidate, task) holds for the base's tensor `name`, as it is stored.

        Raises
            InputError: no such task or tensor, or the candidate lacks it.
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
        # Asked first: a task that cannot be tried at all should not wait for a merge.
        family, index = self.family(task), self._index(task)
        if candidate.key == INDIVIDUAL.key:
            return family.build(individual_parts(self._found, index, self._device))
        backbone = self._backbone(candidate)
        return family.build(merged_parts(self._found, index, backbone, candidate.title, self._device))

    def _backbone(self, candidate: Candidate) -> Mapping[str, Tensor]:
        known = self._backbones.get(candidate.key)
        return known or keep(self._backbones, candidate.key, self._load(candidate))

    def _load(self, candidate: Candidate) -> Mapping[str, Tensor]:
        kind, _, value = candidate.key.partition(":")
        if kind == "method":
            method, _, said = value.partition(":")
            settings = json.loads(said or "{}")
            params, weights = settings.get("params") or {}, settings.get("weights")
            return merge_in_memory(self._found, method, params, str(self._device), weights)
        if kind == "base":
            return read_all(self._found.base)
        merged = open_checkpoint(value)
        if merged.adapter is None:
            return read_all(merged)
        return individual_tensors(preflight(self._found.base, [Source("merged", merged)]).require(), 0)


def _backbone_bytes(tensors: Mapping[str, Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors.values())


def merge_in_memory(
    found: Preflight, method: str, params: Mapping[str, Any], device: str, weights: Sequence[float] | None = None
) -> dict[str, Tensor]:
    """A merge that is tried but not saved: the merged tensors under the base's names.

    weights: of the tasks, in place of those that `found` has.
    """
    if weights is not None:
        if len(weights) != len(found.tasks):
            raise InputError(f"{len(weights)} weights for {len(found.tasks)} tasks; give one for each.")
        weighed = zip(found.tasks, weights, strict=True)
        found = replace(found, tasks=tuple(replace(task, weight=weight) for task, weight in weighed))
    tasks = [{"path": task.checkpoint.path, "name": task.name, "weight": task.weight} for task in found.tasks]
    recipe = make_recipe(found.base.path, tasks, method, params, device=device)
    return {merged.entry.name: merged.tensor for merged in run(plan_for(recipe, found))}
