"""One task's model as a whole: which class it is, and its weights, from the task's own files or from a merge."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from torch import Tensor

from sftm_app.architecture.adapter_names import take_apart
from sftm_app.errors import SampleError
from sftm_app.evaluation.building import parse_config
from sftm_app.evaluation.family import Parts
from sftm_app.evaluation.task_tensors import individual_tensors
from sftm_app.preflight.preflight import Preflight
from sftm_app.weights.checkpoint import Checkpoint, open_reader

VISION_TOWER = "clip_vision_model"
WHOLE_CLIP = "CLIPModel"


@dataclass(frozen=True)
class Layout:
    """The class and config.json of a task's model. like_base: its weights are under the base's names, not its own."""

    class_name: str
    config: Mapping[str, Any]
    like_base: bool


def layout_of(found: Preflight, index: int) -> Layout:
    """What kind of model one task is.

    Raises
        SampleError: nothing says so, or a vision tower has no whole CLIP model as its base.
    """
    task, base = found.tasks[index].checkpoint, found.base
    if task.adapter is not None:
        class_name = _adapted_class(base, task.adapter.task_type)
        return Layout(class_name, _adapted_config(found, index, class_name), True)
    if task.bare:
        if found.matches[index].heads or base.bare:
            raise SampleError(f"{task.path}: has no config.json that says what model it is, so it cannot be tried.")
        return Layout(class_name_of(base), base.config, True)
    if task.model_type == VISION_TOWER:
        if base.architecture != WHOLE_CLIP:
            raise SampleError(
                f"{task.path}: is the vision tower of a CLIP model. To try it, take a whole CLIPModel as the base: its "
                "text tower turns class names into a head."
            )
        return Layout(WHOLE_CLIP, base.config, True)
    return Layout(class_name_of(task), task.config, False)


def class_name_of(checkpoint: Checkpoint) -> str:
    """The class that a full checkpoint's config names, or its model type's bare model.

    Raises
        SampleError: config.json names neither.
    """
    if checkpoint.architecture != "unknown":
        return checkpoint.architecture
    if "model_type" not in checkpoint.config:
        raise SampleError(f"{checkpoint.path}: has no config.json that says what model it is, so it cannot be tried.")
    return _mapped(transformers.MODEL_MAPPING, checkpoint) or "unknown"


def _mapped(mapping: Any, checkpoint: Checkpoint) -> str | None:
    """The class's name that one of transformers' tables holds for a checkpoint's config."""
    config = type(parse_config(checkpoint.config))
    found = mapping.get(config, None)
    first = found[0] if isinstance(found, tuple) else found
    return None if first is None else str(first.__name__)


def _adapted_class(base: Checkpoint, task_type: str | None) -> str:
    """The class that an adapter was trained on: of its task type, or the base's where it names none."""
    mappings = {
        "SEQ_CLS": transformers.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
        "CAUSAL_LM": transformers.MODEL_FOR_CAUSAL_LM_MAPPING,
        "SEQ_2_SEQ_LM": transformers.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING,
        "FEATURE_EXTRACTION": transformers.MODEL_MAPPING,
    }
    mapping = mappings.get(task_type or "")
    return (_mapped(mapping, base) if mapping is not None else None) or class_name_of(base)


def _adapted_config(found: Preflight, index: int, class_name: str) -> Mapping[str, Any]:
    """The base's config with the classes of the adapter's own head, of which only the number is known."""
    config = found.base.config
    task, heads = found.tasks[index].checkpoint, found.matches[index].heads
    shapes = [task.tensors[name].shape for name in heads if len(task.tensors[name].shape) == 2]
    if not class_name.endswith("ForSequenceClassification") or not shapes:
        return config
    # A head may be two layers (RoBERTa's): the last one is the one with the fewest rows.
    n_labels = min(shape[0] for shape in shapes)
    rest = {key: value for key, value in config.items() if key not in ("id2label", "label2id")}
    return rest | {"num_labels": n_labels}


def individual_parts(found: Preflight, index: int, device: torch.device) -> Parts:
    """The task's own model.

    Raises
        SampleError: see layout_of.
    """
    layout = layout_of(found, index)
    tensors = individual_tensors(found, index)
    if layout.like_base and found.tasks[index].checkpoint.adapter is None:
        own = tensors
        tensors = read_all(found.base) | {ours: own[theirs] for ours, theirs in found.matches[index].names.items()}
    return _parts(found, index, layout, tensors, device)


def merged_parts(
    found: Preflight, index: int, backbone: Mapping[str, Tensor], title: str, device: torch.device
) -> Parts:
    """A merge (`backbone`, under the base's names) with the head of one task. title: of the merge, for errors.

    Raises
        SampleError: see layout_of; or `backbone` was not merged from this base.
    """
    layout, match = layout_of(found, index), found.matches[index]
    task = found.tasks[index].checkpoint
    lacking = [name for name in match.names if name not in backbone]
    if lacking:
        raise SampleError(f"{title}: lacks {lacking[0]!r}, so it was not merged from this base.")
    with open_reader(task) as read:
        heads = {name: read(name) for name in match.heads}
    tensors = dict(backbone) if layout.like_base else {ours: backbone[base] for base, ours in match.names.items()}
    return _parts(found, index, layout, tensors | heads, device)


def _parts(found: Preflight, index: int, layout: Layout, tensors: Mapping[str, Tensor], device: torch.device) -> Parts:
    task, base = found.tasks[index].checkpoint, found.base
    if task.adapter is not None:
        tensors = _with_adapters_head(found, index, layout, tensors)
    return Parts(layout.class_name, layout.config, tensors, (task.path, base.path), device)


def _with_adapters_head(
    found: Preflight, index: int, layout: Layout, tensors: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """The base's head makes room for the adapter's own, whose names lose what PEFT put around them."""
    heads = found.matches[index].heads
    keep = dict(tensors)
    if layout.class_name != class_name_of(found.base):
        owners = found.architecture.owners
        keep = {n: t for n, t in keep.items() if n not in owners or owners[n].in_backbone or n in heads}
    own = {name: keep.pop(name) for name in heads}
    paths = {name: path for path, name in take_apart(heads).whole.items()}
    return keep | {paths[name]: own[name] for name in heads}


def read_all(checkpoint: Checkpoint) -> dict[str, Tensor]:
    """Every tensor of a checkpoint."""
    with open_reader(checkpoint) as read:
        return {name: read(name) for name in checkpoint.tensors}
