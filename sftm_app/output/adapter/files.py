"""What stands beside the factors of an adapter: the config that PEFT reads."""

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
from sftm_app.weights.checkpoint import Checkpoint
from sftm_app.weights.file_names import ADAPTER_CONFIG_NAME
from sftm_app.weights.hub_names import hub_name

_TASK_TYPES = {
    "ForCausalLM": "CAUSAL_LM",
    "LMHeadModel": "CAUSAL_LM",
    "ForSequenceClassification": "SEQ_CLS",
    "ForTokenClassification": "TOKEN_CLS",
    "ForQuestionAnswering": "QUESTION_ANS",
}


def adapter_dtype(plan: Plan) -> torch.dtype:
    """The type of the factors: as asked for, else the adapters' own where they agree, else float32."""
    if plan.recipe.output.dtype:
        return DTYPES[plan.recipe.output.dtype]
    own = {
        task.checkpoint.tensors[pair.a].dtype
        for task, match in zip(plan.preflight.tasks, plan.preflight.matches, strict=True)
        for pair in match.pairs.values()
    }
    alone = all(task.checkpoint.adapter for task in plan.preflight.tasks)
    return own.pop() if alone and len(own) == 1 else torch.float32


def write_adapter_config(
    plan: Plan, folder: Path, ranks: Mapping[str, int], modules: Sequence[str], biases: bool
) -> None:
    """Write adapter_config.json. ranks: path of a module -> rank; every scaling, alpha / r, is exactly 1."""
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
        "bias": "all" if biases else "none",
        "target_modules": sorted(ranks),
        "modules_to_save": list(modules) or None,
        "init_lora_weights": True,
    }
    write_text(folder / ADAPTER_CONFIG_NAME, json.dumps(settings, indent=2, ensure_ascii=False) + "\n", sync=True)


def _task_type(plan: Plan) -> str | None:
    """What PEFT calls the kind of model: the adapters' own word where they agree, else from the base's class."""
    named = {task.checkpoint.adapter.task_type for task in plan.preflight.tasks if task.checkpoint.adapter}
    if len(named) == 1:
        return named.pop() or None
    return _type_of(plan.preflight.base)


def _type_of(base: Checkpoint) -> str | None:
    if base.config.get("is_encoder_decoder") and base.architecture.endswith("ForConditionalGeneration"):
        return "SEQ_2_SEQ_LM"
    return next((kind for ending, kind in _TASK_TYPES.items() if base.architecture.endswith(ending)), None)
