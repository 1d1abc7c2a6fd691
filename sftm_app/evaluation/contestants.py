"""The models that are compared: base, individual task models, merges in memory and merges on the disk."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any

import torch
from cachetools import LRUCache
from torch import Tensor

from sftm_app.caching import keep
from sftm_app.checkpoints.checkpoint import Checkpoint, open_checkpoint, open_reader
from sftm_app.checkpoints.compatibility import Preflight
from sftm_app.errors import InputError, SampleError
from sftm_app.evaluation.image_classifier import ImageClassifier, build_image_classifier
from sftm_app.merging.methods import get_method
from sftm_app.merging.plan import plan_for
from sftm_app.merging.recipe import make_recipe
from sftm_app.merging.run import run

BACKBONE_BYTES = 2_000_000_000
MODEL_BYTES = 2_000_000_000


@dataclass(frozen=True)
class Contestant:
    """A model to be tried on every task.

    key: "base", "individual", "method:<name>" (merged in memory; its parameters may follow) or "folder:<path>".
    kind: "base", "individual" or the name of the method that merged it.
    """

    key: str
    title: str
    kind: str


BASE = Contestant("base", "Base", "base")
INDIVIDUAL = Contestant("individual", "Individual", "individual")


def method_contestant(name: str, params: Mapping[str, Any] | None = None) -> Contestant:
    """A merge by this method, done in memory when first needed. Parameters that are not given have their defaults."""
    key, title = f"method:{name}", get_method(name).title
    if params:
        key += f":{json.dumps(dict(params), sort_keys=True)}"
        title += f" ({', '.join(f'{field} {value}' for field, value in params.items())})"
    return Contestant(key, title, name)


def folder_contestant(folder: Path, title: str, method: str) -> Contestant:
    """A merged model on the disk."""
    return Contestant(f"folder:{folder}", title, method)


class Arena:
    """Builds the models of one workspace and keeps the latest ones, so that the second try is immediate."""

    def __init__(self, found: Preflight, device: torch.device) -> None:
        self._found = found.require()
        self._device = device
        self._lock = Lock()
        self._backbones: LRUCache[str, Mapping[str, Tensor]] = LRUCache(BACKBONE_BYTES, getsizeof=_backbone_bytes)
        self._models: LRUCache[tuple[str, str], ImageClassifier] = LRUCache(MODEL_BYTES, getsizeof=_model_bytes)

    @property
    def task_names(self) -> tuple[str, ...]:
        return tuple(task.name for task in self._found.tasks)

    def classifier(self, contestant: Contestant, task: str) -> ImageClassifier:
        """The contestant with the head of `task`, ready to classify.

        Raises
            SampleError: the task cannot be tried (see build_image_classifier).
            InputError: no such task.
        """
        key = (contestant.key, task)
        # One at a time: a drawing and the table may ask at once, and would build the same merge twice.
        with self._lock:
            return self._models.get(key) or keep(self._models, key, self._build(contestant, task))

    def _build(self, contestant: Contestant, task_name: str) -> ImageClassifier:
        if task_name not in self.task_names:
            raise InputError(f"There is no task {task_name!r}. Choose one of {', '.join(self.task_names)}.")
        index = self.task_names.index(task_name)
        task, match = self._found.tasks[index], self._found.matches[index]
        with open_reader(task.checkpoint) as read:
            if contestant.key == INDIVIDUAL.key:
                tensors = {name: read(name) for name in task.checkpoint.tensors}
            else:
                backbone = self._backbone(contestant)
                lacking = [name for name in match.names if name not in backbone]
                if lacking:
                    raise SampleError(f"{contestant.title}: lacks {lacking[0]!r}, so it was not merged from this base.")
                tensors = {theirs: backbone[ours] for ours, theirs in match.names.items()}
                tensors |= {name: read(name) for name in match.heads}
        return build_image_classifier(task.checkpoint.config, tensors, self._processor(task.checkpoint), self._device)

    def _processor(self, task: Checkpoint) -> Path:
        own = (task.path / "preprocessor_config.json").is_file()
        return task.path if own else self._found.base.path

    def _backbone(self, contestant: Contestant) -> Mapping[str, Tensor]:
        known = self._backbones.get(contestant.key)
        return known or keep(self._backbones, contestant.key, self._load(contestant))

    def _load(self, contestant: Contestant) -> Mapping[str, Tensor]:
        kind, _, value = contestant.key.partition(":")
        if kind == "method":
            method, _, params = value.partition(":")
            return merge_in_memory(self._found, method, json.loads(params or "{}"), str(self._device))
        checkpoint = self._found.base if kind == "base" else open_checkpoint(value)
        with open_reader(checkpoint) as read:
            return {name: read(name) for name in checkpoint.tensors}


def _backbone_bytes(tensors: Mapping[str, Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors.values())


def _model_bytes(classifier: ImageClassifier) -> int:
    return sum(parameter.nbytes for parameter in classifier.model.parameters())


def merge_in_memory(found: Preflight, method: str, params: Mapping[str, Any], device: str) -> dict[str, Tensor]:
    """A merge that is tried but not saved: the merged tensors under the base's names."""
    tasks = [{"path": task.checkpoint.path, "name": task.name, "weight": task.weight} for task in found.tasks]
    recipe = make_recipe(found.base.path, tasks, method, params, device=device)
    return {merged.entry.name: merged.tensor for merged in run(plan_for(recipe, found))}
