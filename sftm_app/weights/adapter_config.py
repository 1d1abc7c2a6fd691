"""Reads a PEFT adapter_config.json, and describes the pair of factors that a LoRA adapter holds for one weight.

Only settings that are known to leave W = W_0 + scaling * B @ A as it is are accepted. Every other setting is reported
as a problem: PEFT has a dozen variants of LoRA, and a wrong guess would merge something other than what was trained.
"""

from __future__ import annotations

import math
import reprlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from sftm_app.weights.patterns import MAX_PATTERNS, Pattern, PatternTable

# PEFT wraps the model in two modules of its own.
PEFT_PREFIX = "base_model.model."

# Settings that are read here, or that affect training only.
_HARMLESS = {
    *("peft_type", "task_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision"),
    *("inference_mode", "r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora", "fan_in_fan_out", "bias"),
    *("modules_to_save", "target_modules", "target_modules_to_tie", "exclude_modules", "ensure_weight_tying"),
    "target_parameters",
    *("lora_dropout", "init_lora_weights", "layers_to_transform", "layers_pattern", "runtime_config", "megatron_core"),
    *("loftq_config", "eva_config", "corda_config", "lora_ga_config", "velora_config", "qalora_group_size"),
}
# Settings under which B @ A is not the whole delta, and what they are called.
_REFUSED = {
    "use_dora": "DoRA (use_dora), which rescales every column",
    "lora_bias": "a bias in its factors (lora_bias)",
    "layer_replication": "replicated layers (layer_replication)",
    "trainable_token_indices": "individually trained tokens (trainable_token_indices)",
    "megatron_config": "Megatron's parallel layers (megatron_config)",
    "alora_invocation_tokens": "activated LoRA (alora_invocation_tokens), which acts on some tokens only",
    "use_qalora": "QALoRA (use_qalora), which acts on pooled inputs",
    "use_bdlora": "BD-LoRA (use_bdlora), whose factors are block-diagonal",
    "arrow_config": "Arrow routing between adapters (arrow_config)",
    "monteclora_config": "MonteCLoRA (monteclora_config), which samples its weights",
    "kasa_config": "KaSA (kasa_config), which truncates the base's weights first",
}
# Initialisations that leave the base's weights as they are. PiSSA, OLoRA, CorDA, LoftQ and LoRA-GA change them.
_HARMLESS_INITS = ("gaussian", "eva", "orthogonal", "mica")
_REPAIR = "Correct adapter_config.json, or save the adapter again."


@dataclass(frozen=True)
class LoraPair:
    """A task's delta of one weight: scaling * B @ A, as a linear map (m, n), out x in.

    Attributes:
        a: name of A (rank, n) in the adapter's files.
        b: name of B (m, rank) in the adapter's files.
        rank: the number of rows of A.
        scaling: the factor on B @ A.
        n_elements: of A and B together.
        transposed: the weight is stored as n x m, as GPT-2's Conv1D and embedding tables are.
        flipped: the factors are stored transposed, A as (n, rank) and B as (rank, m).
        n_experts: of a stack of linear maps whose factors lie in one A (experts * rank, n) and one B (m, rank *
            experts), as PEFT saves them for a bare parameter; 0 for a single linear map.
        expert: which of them this weight is; None for the whole stack.
        rows: the rows of B that this weight has, where it is one of several that a module holds as one.
        within: the first row of the weight that B changes, the row after the last, and the number of all rows, where it
            does not change all of them.
        rest: further pairs that change other rows of the same weight. `rank` is then that of all together.
    """

    a: str
    b: str
    rank: int
    scaling: float
    n_elements: int
    transposed: bool = False
    flipped: bool = False
    n_experts: int = 0
    expert: int | None = None
    rows: tuple[int, int] | None = None
    within: tuple[int, int, int] | None = None
    rest: tuple[LoraPair, ...] = ()

    @property
    def each(self) -> tuple[LoraPair, ...]:
        """This pair, and the further pairs of the same weight."""
        return self, *self.rest


@dataclass(frozen=True)
class AdapterConfig:
    """The settings of a LoRA adapter that matter to a merge; see PEFT's LoraConfig.

    Attributes:
        rank_pattern: regular expressions for module paths -> the rank there, where it is not `r`.
        alpha_pattern: the same for alpha.
        on_parameters: parameters that have pairs without a module of their own, such as stacks of experts.
        format: the tool that wrote it; the fields below are for those other than PEFT.
        mangled, flipped: see `AdapterFormat`.
        scale: the factor on B @ A, where the config gives it.
        alpha_names: module -> the name of the tensor that holds its alpha. Without one, the factor is 1.
        components: the models that a file is for, which come first in its paths.
        of_components: the settings of each of them, where the file has them.
        problems: sentences, without the adapter's name, on why it cannot be merged.
    """

    r: int
    alpha: float
    base_name: str = ""
    task_type: str = ""
    rank_pattern: Mapping[str, int] = field(default_factory=dict)
    alpha_pattern: Mapping[str, float] = field(default_factory=dict)
    use_rslora: bool = False
    fan_in_fan_out: bool = False
    on_parameters: tuple[str, ...] = ()
    format: str = "PEFT"
    mangled: bool = False
    flipped: bool = False
    scale: float | None = None
    alpha_names: Mapping[str, str] = field(default_factory=dict)
    components: tuple[str, ...] = ()
    of_components: Mapping[str, AdapterConfig] = field(default_factory=dict)
    problems: tuple[str, ...] = ()

    def rank_at(self, module: str) -> int:
        """The rank at a module's path."""
        return int(self._ranks.at(module, self.r))

    def scaling_at(self, module: str) -> float:
        """The factor on B @ A at a module's path: alpha / r, or alpha / sqrt(r) for rank-stabilised LoRA."""
        rank = self.rank_at(module)
        return self._alphas.at(module, self.alpha) / (math.sqrt(rank) if self.use_rslora else rank)

    @cached_property
    def _ranks(self) -> PatternTable:
        return PatternTable(self.rank_pattern)

    @cached_property
    def _alphas(self) -> PatternTable:
        return PatternTable(self.alpha_pattern)


def parse_adapter_config(values: Mapping[str, Any]) -> AdapterConfig:
    """Read the table of a LoRA adapter_config.json. Never raises: `problems` lists what cannot be merged."""
    problems: list[str] = []
    names = (values.get(key) for key in ("base_model_name_or_path", "task_type"))
    base_name, task_type = (name if isinstance(name, str) else "" for name in names)
    r = _number("r", values.get("r"), _RANK, problems)
    alpha = _number("lora_alpha", values.get("lora_alpha"), _ALPHA, problems)
    ranks = _pattern("rank_pattern", values, _RANK, problems)
    alphas = _pattern("alpha_pattern", values, _ALPHA, problems)
    use_rslora, fan_in_fan_out = (_flag(key, values.get(key), problems) for key in ("use_rslora", "fan_in_fan_out"))
    return AdapterConfig(
        r=int(r),
        alpha=alpha,
        base_name=base_name,
        task_type=task_type,
        rank_pattern={key: int(value) for key, value in ranks.items()},
        alpha_pattern=alphas,
        use_rslora=use_rslora,
        fan_in_fan_out=fan_in_fan_out,
        on_parameters=_target_parameters(values, problems),
        problems=(*problems, *_unsupported(values)),
    )


_RANK, _ALPHA = "a whole number from 1 up", "a finite number"


def _number(where: str, value: Any, expected: str, problems: list[str]) -> float:
    types = int if expected == _RANK else (int, float)
    # The upper limit also excludes integers that no float can hold.
    if isinstance(value, types) and not isinstance(value, bool) and (1 if expected == _RANK else -1e30) <= value < 1e30:
        return float(value)
    problems.append(f"{where} is {reprlib.repr(value)}; it should be {expected}. {_REPAIR}")
    return 1.0


def _flag(where: str, value: Any, problems: list[str]) -> bool:
    # Only null is "not set": PEFT would take 1 or "false" for true.
    if value is not None and not isinstance(value, bool):
        problems.append(f"{where} should be true or false, not {reprlib.repr(value)}. {_REPAIR}")
    return value is True


def _pattern(where: str, values: Mapping[str, Any], expected: str, problems: list[str]) -> dict[str, float]:
    table = values.get(where)
    if table is not None and not isinstance(table, dict):
        problems.append(
            f"{where} is {reprlib.repr(table)}; it should be a table of module paths and numbers. {_REPAIR}"
        )
    if not table or not isinstance(table, dict):
        return {}
    if len(table) > MAX_PATTERNS:
        problems.append(f"{where} holds {len(table)} patterns, more than {MAX_PATTERNS}. {_REPAIR}")
        return {}
    valid = {}
    for key, value in table.items():
        if fault := Pattern(key).fault:
            problems.append(f"{where}: the pattern {key[:80]!r} {fault}. {_REPAIR}")
        else:
            valid[key] = _number(f"{where}, entry {key[:80]!r},", value, expected, problems)
    return valid


def _target_parameters(values: Mapping[str, Any], problems: list[str]) -> tuple[str, ...]:
    found = values.get("target_parameters") or ()
    if isinstance(found, str) or not isinstance(found, list | tuple) or not all(isinstance(n, str) for n in found):
        problems.append(f"target_parameters is {reprlib.repr(found)}; it should be a list of names. {_REPAIR}")
        return ()
    return tuple(found)


def _unsupported(values: Mapping[str, Any]) -> list[str]:
    """Sentences on settings that a merge would get wrong."""
    init = values.get("init_lora_weights")
    problems = []
    if init is not None and reprlib.repr(init).strip("'").lower() not in ("true", "false", *_HARMLESS_INITS):
        problems.append(
            f"init_lora_weights is {reprlib.repr(init)}, so the adapter belongs to weights that were changed before "
            "training. Save it again with PEFT: "
            "`model.save_pretrained(folder, path_initial_model_for_weight_conversion=first)`, where "
            "`first` is the adapter as it was saved before training."
        )
    problems += [f"uses {what}. Only plain LoRA can be merged." for key, what in _REFUSED.items() if values.get(key)]
    for key in sorted(key for key, value in values.items() if value and key not in _HARMLESS and key not in _REFUSED):
        problems.append(
            f"has the unknown setting {key[:80]!r} ({reprlib.repr(values[key])}), whose effect on the weights is "
            "not known. Merge the adapter into its base with PEFT (`merge_and_unload`) and pick that model."
        )
    return problems
