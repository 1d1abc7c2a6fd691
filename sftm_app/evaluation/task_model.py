"""What one task's model is built from: its class, and weights from the task's own files or from a merge."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from sftm_app.architecture.adapter_names import parse_names
from sftm_app.errors import SampleError
from sftm_app.evaluation.building import parse_config
from sftm_app.evaluation.family import ModelParts
from sftm_app.evaluation.task_tensors import individual_tensors, read_all
from sftm_app.evaluation.transformers_internals import bare_class, class_for_task
from sftm_app.preflight.preflight import Preflight
from sftm_app.weights.checkpoint import Checkpoint
from sftm_app.weights.reader import open_reader

VISION_TOWER = "clip_vision_model"
WHOLE_CLIP = "CLIPModel"


@dataclass(frozen=True)
class ModelSpec:
    """What kind of model a task is.

    Attributes:
        class_name: its class in transformers.
        config: its config.json.
        base_names: whether its weights are known by the base's names instead of its own.
    """

    class_name: str
    config: Mapping[str, Any]
    base_names: bool


def model_spec(found: Preflight, index: int) -> ModelSpec:
    """What kind of model the task at position `index` is.

    Raises:
        SampleError: no config.json says it, or the task is a vision tower and the base is not a whole CLIP model.
    """
    task, base = found.tasks[index].checkpoint, found.base
    if task.adapter is not None:
        class_name = _adapted_class(base, task.adapter.task_type)
        return ModelSpec(class_name, _adapted_config(found, index, class_name), True)
    if task.bare:
        if found.matches[index].heads or base.bare:
            raise _unknown_class(task)
        return ModelSpec(class_name_of(base), base.config, True)
    if task.model_type == VISION_TOWER:
        if base.architecture != WHOLE_CLIP:
            raise SampleError(
                f"{task.path}: is the vision tower of a CLIP model. To try it, take a whole CLIPModel as the base: its "
                "text tower turns class names into a head."
            )
        return ModelSpec(WHOLE_CLIP, base.config, True)
    return ModelSpec(class_name_of(task), task.config, False)


def class_name_of(checkpoint: Checkpoint) -> str:
    """The class that the config of a full checkpoint names; without one, the class of its model type without a head.

    Raises:
        SampleError: config.json names neither.
    """
    if checkpoint.architecture != "unknown":
        return checkpoint.architecture
    if "model_type" not in checkpoint.config:
        raise _unknown_class(checkpoint)
    return bare_class(parse_config(checkpoint.config)) or "unknown"


def _unknown_class(checkpoint: Checkpoint) -> SampleError:
    return SampleError(f"{checkpoint.path}: has no config.json that says what model it is, so it cannot be tried.")


def _adapted_class(base: Checkpoint, task_type: str | None) -> str:
    """The class that an adapter was trained on: that of its task type, otherwise the base's."""
    return (task_type and class_for_task(task_type, parse_config(base.config))) or class_name_of(base)


def _adapted_config(found: Preflight, index: int, class_name: str) -> Mapping[str, Any]:
    """The base's config with the number of classes of the adapter's own head; their names are not known."""
    config = found.base.config
    task, heads = found.tasks[index].checkpoint, found.matches[index].heads
    shapes = [task.tensors[name].shape for name in heads if len(task.tensors[name].shape) == 2]
    if not class_name.endswith("ForSequenceClassification") or not shapes:
        return config
    # A head may have two layers (RoBERTa's): the last one has the fewest rows.
    n_labels = min(shape[0] for shape in shapes)
    rest = {key: value for key, value in config.items() if key not in ("id2label", "label2id")}
    return rest | {"num_labels": n_labels}


def individual_parts(found: Preflight, index: int, device: torch.device) -> ModelParts:
    """What the task's own model is built from. Raises SampleError as `model_spec`."""
    spec, task = model_spec(found, index), found.tasks[index].checkpoint
    tensors = individual_tensors(found, index)
    if task.adapter is not None:
        return _parts(found, index, spec, tensors, device)
    if spec.base_names:
        names = found.matches[index].names
        tensors = read_all(found.base) | {name: tensors[own] for name, own in names.items()}
    else:
        spec = replace(spec, config=task.with_own_rows.config)
    return ModelParts(spec.class_name, spec.config, tensors, (task.path, found.base.path), device)


def merged_parts(
    found: Preflight, index: int, backbone: Mapping[str, Tensor], title: str, device: torch.device
) -> ModelParts:
    """What a merge with the head of one task is built from.

    Args:
        found: the workspace.
        index: the task's position in it.
        backbone: the merged tensors, by the base's names.
        title: what errors call the merge.
        device: where the model will run.

    Raises:
        SampleError: as `model_spec`; or `backbone` was not merged from this base.
    """
    spec, match = model_spec(found, index), found.matches[index]
    lacking = [name for name in match.names if name not in backbone]
    if lacking:
        raise SampleError(f"{title}: lacks {lacking[0]!r}, so it was not merged from this base.")
    with open_reader(found.tasks[index].checkpoint) as read:
        heads = {name: read(name) for name in match.heads}
    tensors = dict(backbone) if spec.base_names else {own: backbone[base] for base, own in match.names.items()}
    return _parts(found, index, spec, tensors | heads, device)


def _parts(
    found: Preflight, index: int, spec: ModelSpec, tensors: Mapping[str, Tensor], device: torch.device
) -> ModelParts:
    task, base = found.tasks[index].checkpoint, found.base
    if task.adapter is not None:
        tensors = _with_adapter_head(found, index, spec, tensors)
    folders = [task.path, base.path]
    if found.moves_rows and found.tokenizers.source is not None:
        folders.insert(0, found.tokenizers.source.path)  # the merged model's rows are in the order of this tokenizer
    return ModelParts(spec.class_name, spec.config, tensors, tuple(folders), device)


def _with_adapter_head(
    found: Preflight, index: int, spec: ModelSpec, tensors: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Replace the base's head by the adapter's own, under the names that it has without PEFT."""
    heads = found.matches[index].heads
    kept = dict(tensors)
    if spec.class_name != class_name_of(found.base):
        owners = found.architecture.owners
        kept = {n: t for n, t in kept.items() if n not in owners or owners[n].in_backbone or n in heads}
    own = {path: kept.pop(name) for path, name in parse_names(heads).whole.items()}
    return kept | own
