"""The one place that relies on undocumented behaviour of transformers.

The tests of this file check what it relies on, so that they fail first when a new version of transformers changes it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import transformers
from torch import Tensor

CHECKED_WITH = "5.24.0"

# The tables that transformers' Auto classes look up, by the task type of a PEFT adapter.
_TABLES = {
    "SEQ_CLS": transformers.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    "CAUSAL_LM": transformers.MODEL_FOR_CAUSAL_LM_MAPPING,
    "SEQ_2_SEQ_LM": transformers.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING,
    "FEATURE_EXTRACTION": transformers.MODEL_MAPPING,
}


def class_for_task(task_type: str, config: Any) -> str | None:
    """The class of transformers for a PEFT task type and a config; None if there is none."""
    found = _TABLES.get(task_type, {}).get(type(config), None)
    first = found[0] if isinstance(found, tuple) else found
    return None if first is None else str(first.__name__)


def bare_class(config: Any) -> str | None:
    """The class of transformers without a head for a config; None if there is none."""
    return class_for_task("FEATURE_EXTRACTION", config)


def model_from_tensors(
    model_class: Any, config: Any, tensors: Mapping[str, Tensor]
) -> tuple[Any, dict[str, list[str]]]:
    """Build a float32 model from tensors in memory.

    Args:
        model_class: a class of transformers.
        config: its config.
        tensors: weights, by their names in the files of a checkpoint of this class.

    Returns:
        The model, and the names that do not fit: "missing keys" in the tensors, "unexpected keys" that the model lacks,
        and "mismatched keys" of another shape.
    """
    # Without a path, `from_pretrained` takes the weights from `state_dict` and renames them as it does for files.
    # A shape that does not fit would raise an error before the other problems are known.
    model, info = model_class.from_pretrained(
        None,
        config=config,
        state_dict=dict(tensors),
        dtype=torch.float32,
        output_loading_info=True,
        ignore_mismatched_sizes=True,
    )
    # A mismatched key comes with its two shapes.
    problems = {
        kind: sorted(str(key[0]) if isinstance(key, tuple) else str(key) for key in info[f"{kind}_keys"])
        for kind in ("missing", "unexpected", "mismatched")
    }
    return model, problems
