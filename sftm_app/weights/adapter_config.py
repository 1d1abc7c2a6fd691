"""What a PEFT adapter_config.json says, and the pair of factors that a LoRA adapter holds for one weight.

Only what is known to leave W = W_0 + scaling * B @ A as it is gets through. Every other setting is a problem in words:
PEFT has a dozen variants of LoRA, and a guess at one would merge something else than what was trained.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

# PEFT puts its own two modules around the model.
PEFT_PREFIX = "base_model.model."

# Settings that are read, or that act on training alone.
_HARMLESS = {
    *("peft_type", "task_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision"),
    *("inference_mode", "r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora", "fan_in_fan_out", "bias"),
    *("modules_to_save", "target_modules", "target_modules_to_tie", "exclude_modules", "ensure_weight_tying"),
    *("lora_dropout", "init_lora_weights", "layers_to_transform", "layers_pattern", "runtime_config", "megatron_core"),
    *("loftq_config", "eva_config", "corda_config", "lora_ga_config", "velora_config", "qalora_group_size"),
}
# Settings under which B @ A is not the whole change, and what they are called.
_REFUSED = {
    "use_dora": "DoRA (use_dora), which scales every column anew",
    "lora_bias": "a bias in its factors (lora_bias)",
    "layer_replication": "layers that stand more than once (layer_replication)",
    "trainable_token_indices": "single trained tokens (trainable_token_indices)",
    "target_parameters": "LoRA on bare parameters such as expert stacks (target_parameters)",
    "megatron_config": "Megatron's parallel layers (megatron_config)",
    "alora_invocation_tokens": "activated LoRA (alora_invocation_tokens), which acts on some tokens only",
    "use_qalora": "QALoRA (use_qalora), which acts on pooled inputs",
    "use_bdlora": "BD-LoRA (use_bdlora), whose factors are block-diagonal",
    "arrow_config": "Arrow routing between adapters (arrow_config)",
    "monteclora_config": "MonteCLoRA (monteclora_config), which samples its weights",
    "kasa_config": "KaSA (kasa_config), which cuts the base's weights down first",
}
# Beginnings that leave the base's weights as they are. PiSSA, OLoRA, CorDA, LoftQ and LoRA-GA change them.
_SOUND_STARTS = ("gaussian", "eva", "orthogonal", "mica")
_MAX_PATTERN = 300
_MAX_REPEATS = 4


@dataclass(frozen=True)
class LoraPair:
    """A task's change of one weight: scaling * B @ A, as a linear map (m, n), out x in.

    a, b: names in the adapter's files of A (rank, n) and B (m, rank). n_elements: of both together. transposed: the
    weight is stored as n x m, as GPT-2's Conv1D and embedding tables are.
    """

    a: str
    b: str
    rank: int
    scaling: float
    n_elements: int
    transposed: bool = False


@dataclass(frozen=True)
class AdapterConfig:
    """The settings of a LoRA adapter that matter to a merge; see PEFT's LoraConfig.

    rank_pattern and alpha_pattern map regular expressions for module paths to what holds there instead of r and alpha.
    problems: sentences on why the adapter cannot be merged, without its name; empty for a sound one.
    """

    r: int
    alpha: float
    base_name: str = ""
    task_type: str = ""
    rank_pattern: Mapping[str, int] = field(default_factory=dict)
    alpha_pattern: Mapping[str, float] = field(default_factory=dict)
    use_rslora: bool = False
    fan_in_fan_out: bool = False
    problems: tuple[str, ...] = ()

    def rank_at(self, module: str) -> int:
        """The rank at a module's path."""
        return int(_looked_up(self.rank_pattern, module, self.r))

    def scaling_at(self, module: str) -> float:
        """The factor on B @ A at a module's path: alpha / r, with rank-stabilised LoRA alpha / sqrt(r)."""
        rank = self.rank_at(module)
        return _looked_up(self.alpha_pattern, module, self.alpha) / (math.sqrt(rank) if self.use_rslora else rank)


def _looked_up(pattern: Mapping[str, float], module: str, default: float) -> float:
    """PEFT's rule: the first key counts that matches the path, or the end of it from a dot on."""
    return next((value for key, value in pattern.items() if re.match(rf"(.*\.)?({key})$", module)), default)


def parse_adapter_config(values: Mapping[str, Any]) -> AdapterConfig:
    """Read the table of an adapter_config.json of LoRA. What cannot be merged is listed in `problems`, never raised."""
    problems: list[str] = []
    r = _checked(values.get("r"), "r", _is_rank, problems)
    alpha = _checked(values.get("lora_alpha"), "lora_alpha", _is_number, problems)
    ranks = _checked_pattern(values, "rank_pattern", _is_rank, problems)
    alphas = _checked_pattern(values, "alpha_pattern", _is_number, problems)
    flags = {key: values.get(key) or False for key in ("use_rslora", "fan_in_fan_out")}
    problems += [
        f"{key} should be true or false, not {flag!r}. {_MEND}"
        for key, flag in flags.items()
        if flag not in (True, False)
    ]
    problems += _not_understood(values)
    return AdapterConfig(
        r=int(r),
        alpha=float(alpha),
        base_name=_text(values.get("base_model_name_or_path")),
        task_type=_text(values.get("task_type")),
        rank_pattern={key: int(value) for key, value in ranks.items()},
        alpha_pattern={key: float(value) for key, value in alphas.items()},
        use_rslora=flags["use_rslora"] is True,
        fan_in_fan_out=flags["fan_in_fan_out"] is True,
        problems=tuple(problems),
    )


_MEND = "Mend adapter_config.json, or save the adapter again."


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""


def _is_rank(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _is_number(value: Any) -> bool:
    # A whole number beyond the range of floats is no number here either.
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e30


def _expected(sound: Callable[[Any], bool]) -> str:
    return "a whole number from 1 up" if sound is _is_rank else "a finite number"


def _checked(value: Any, where: str, sound: Callable[[Any], bool], problems: list[str]) -> float:
    if sound(value):
        return float(value)
    problems.append(f"{where} is {value!r}; it should be {_expected(sound)}. {_MEND}")
    return 1.0


def _checked_pattern(
    values: Mapping[str, Any], where: str, sound: Callable[[Any], bool], problems: list[str]
) -> dict[str, float]:
    pattern = values.get(where) or {}
    if not isinstance(pattern, dict):
        problems.append(f"{where} is {pattern!r}; it should be a table of module paths and numbers. {_MEND}")
        return {}
    checked = {}
    for key, value in pattern.items():
        trouble = _bad_pattern(key)
        if trouble:
            problems.append(f"{where} holds {key[:80]!r}, {trouble}. {_MEND}")
        else:
            checked[key] = _checked(value, f"{where}, entry {key!r},", sound, problems)
    return checked


def _bad_pattern(key: str) -> str:
    """Why a regular expression is not used. Repeats of repeats take time without end on a name that does not match."""
    if len(key) > _MAX_PATTERN or re.search(r"\)[*+?{]", key) or len(re.findall(r"(?<!\\)[*+{]", key)) > _MAX_REPEATS:
        return "which is too involved for the name of a module"
    try:
        re.compile(key)
    except (re.error, RecursionError, OverflowError):
        return "which is no regular expression"
    return ""


def _not_understood(values: Mapping[str, Any]) -> list[str]:
    start = values.get("init_lora_weights", True)
    problems = []
    if (
        not isinstance(start, bool)
        and start is not None
        and str(start).lower() not in ("true", "false", *_SOUND_STARTS)
    ):
        problems.append(
            f"init_lora_weights is {start!r}, so the adapter belongs to weights that were changed before training. "
            "Save it anew with PEFT: `model.save_pretrained(folder, path_initial_model_for_weight_conversion=first)`, "
            "where `first` is the adapter as it was saved before training."
        )
    problems += [f"uses {said}. Only plain LoRA can be merged." for key, said in _REFUSED.items() if values.get(key)]
    for key in sorted(key for key, value in values.items() if value and key not in _HARMLESS and key not in _REFUSED):
        problems.append(
            f"its setting {key[:80]!r} ({str(values[key])[:80]}) is not known, and nobody can say what it does to the "
            "weights. Merge the adapter into its base with PEFT (`merge_and_unload`) and pick that model."
        )
    return problems
