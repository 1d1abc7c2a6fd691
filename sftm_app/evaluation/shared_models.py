"""The models of all tasks, built once: they share one backbone, into which merge after merge is copied.

Building a model takes longer than merging small ones and trying them on a hundred samples. Transformers uses the
tensors that it is given as the model's parameters, so all models of one backbone can hold the same tensors. Where a
model holds other ones (some architectures convert their weights), it is built again for each merge.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from sftm_app.errors import InputError
from sftm_app.evaluation.family import EvaluationModel, Family, ModelParts
from sftm_app.evaluation.labelled import family_at
from sftm_app.evaluation.task_model import merged_parts
from sftm_app.evaluation.task_tensors import read_all
from sftm_app.preflight.preflight import Preflight


class SharedModels:
    """Models of several tasks with one backbone in float32. At first it is the base's.

    Args:
        found: the workspace.
        tasks: the names of the tasks to try.
        device: where the models run.

    Raises:
        SampleError: a task's model cannot be built.
    """

    def __init__(self, found: Preflight, tasks: Sequence[str], device: torch.device) -> None:
        self._found, self._device = found, device
        self._index = {task.name: index for index, task in enumerate(found.tasks)}
        # Models are built from tensors on the CPU, and read those on the device, which are the same there.
        self._stored = {name: _full(tensor) for name, tensor in read_all(found.base).items()}
        self._backbone = {name: tensor.to(device) for name, tensor in self._stored.items()}
        self._shared = {task: self._share(task) for task in tasks}

    def load(self, tensors: Iterable[tuple[str, Tensor]]) -> None:
        """Copy tensors into the backbone. tensors: names of the base's, each with a tensor of its shape."""
        with torch.no_grad():
            for name, tensor in tensors:
                self._backbone[name].copy_(tensor)

    def model(self, task: str) -> EvaluationModel:
        """The backbone with the head of a task. It changes with the next `load`.

        Raises:
            InputError: the task is not one of those that were named.
        """
        if task not in self._shared:
            raise InputError(f"There is no model of the task {task!r}. Choose one of {', '.join(self._shared)}.")
        shared = self._shared[task]
        if shared is None:
            return self._family(task).build(self._parts(task, self._backbone, self._device))
        # A copy begins with empty caches: what CLIP keeps of class names belongs to the weights before.
        return replace(shared)

    def _family(self, task: str) -> Family:
        return family_at(self._found, self._index[task])

    def _parts(self, task: str, backbone: Mapping[str, Tensor], device: torch.device) -> ModelParts:
        return merged_parts(self._found, self._index[task], backbone, "The merge", device)

    def _share(self, task: str) -> EvaluationModel | None:
        """The task's model, whose weights are the backbone's tensors; None where it holds tensors of its own."""
        parts = self._parts(task, self._stored, torch.device("cpu"))
        built = self._family(task).build(parts)
        names = {tensor.data_ptr(): name for name, tensor in self._stored.items() if tensor.is_floating_point()}
        weights = built.model.state_dict()
        held = {own: names[tensor.data_ptr()] for own, tensor in weights.items() if tensor.data_ptr() in names}
        given = {names[tensor.data_ptr()] for tensor in parts.tensors.values() if tensor.data_ptr() in names}
        if not given <= set(held.values()):
            return None
        weights = built.model.to(self._device).state_dict(keep_vars=True)
        for own, name in held.items():
            weights[own].data = self._backbone[name]
        return built


def _full(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.is_floating_point() else tensor
