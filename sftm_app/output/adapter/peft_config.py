"""The adapter_config.json that PEFT reads next to the factors."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from sftm_app.caching import write_text
from sftm_app.output.card import base_name
from sftm_app.planning.plan import Plan
from sftm_app.planning.recipe import DTYPES
from sftm_app.weights.file_names import ADAPTER_CONFIG_NAME
from sftm_app.weights.hub_names import hub_name

# PEFT's word for a kind of model, by the end of its class name.
_TASK_TYPES = {
    "ForCausalLM": "CAUSAL_LM",
    "LMHeadModel": "CAUSAL_LM",
    "ForSequenceClassification": "SEQ_CLS",
    "ForTokenClassification": "TOKEN_CLS",
    "ForQuestionAnswering": "QUESTION_ANS",
}


def adapter_dtype(plan: Plan) -> torch.dtype:
    """The dtype of the factors: the recipe's, otherwise that of all tasks if they are adapters, otherwise float32."""
    if plan.recipe.output.dtype:
        return DTYPES[plan.recipe.output.dtype]
    tasks = plan.preflight.tasks
    dtypes = {
        task.checkpoint.tensors[pair.a].dtype
        for task, match in zip(tasks, plan.preflight.matches, strict=True)
        for pair in match.pairs.values()
    }
    return dtypes.pop() if len(dtypes) == 1 and all(task.checkpoint.adapter for task in tasks) else torch.float32


def write_adapter_config(
    plan: Plan, folder: Path, ranks: Mapping[str, int], modules: Sequence[str], has_biases: bool
) -> None:
    """Write adapter_config.json. Every scaling, alpha / r, is exactly 1.

    Args:
        plan, folder: of the run.
        ranks: path of a module -> rank of its pair.
        modules: paths of the modules that are saved whole.
        has_biases: whether the adapter holds biases.
    """
    common = Counter(ranks.values()).most_common(1)[0][0]
    pattern = {f"^{re.escape(path)}": rank for path, rank in ranks.items() if rank != common}
    base = plan.preflight.base
    transposed = any(
        owner.module == "Conv1D" for name, owner in plan.preflight.architecture.owners.items() if name in base.tensors
    )
    fetched = hub_name(base.path)
    settings: dict[str, Any] = {
        "peft_type": "LORA",
        "task_type": _task_type(plan),
        "base_model_name_or_path": base_name(plan),
        "revision": fetched.partition("@")[2] if fetched else None,
        "inference_mode": True,
        "r": common,
        "lora_alpha": common,
        "rank_pattern": pattern,
        "alpha_pattern": pattern,
        "use_rslora": False,
        "lora_dropout": 0.0,
        "fan_in_fan_out": transposed,
        "bias": "all" if has_biases else "none",
        "target_modules": sorted(ranks),
        "modules_to_save": list(modules) or None,
        "init_lora_weights": True,
    }
    write_text(folder / ADAPTER_CONFIG_NAME, json.dumps(settings, indent=2, ensure_ascii=False) + "\n", sync=True)


def _task_type(plan: Plan) -> str | None:
    """PEFT's word for the kind of model: the tasks' own if they agree, otherwise by the base's class."""
    words = {task.checkpoint.adapter.task_type for task in plan.preflight.tasks if task.checkpoint.adapter}
    if len(words) == 1:
        return words.pop() or None
    base = plan.preflight.base
    if base.config.get("is_encoder_decoder") and base.architecture.endswith("ForConditionalGeneration"):
        return "SEQ_2_SEQ_LM"
    return next((word for ending, word in _TASK_TYPES.items() if base.architecture.endswith(ending)), None)
