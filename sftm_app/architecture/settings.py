"""The settings of a config that change what a model computes, in one flat table."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping
from typing import Any

# About training, saving and labels, or said elsewhere: the size of the vocabulary and the numbers of tokens.
_OTHER = frozenset(
    {
        *("_name_or_path", "name_or_path", "architectures", "auto_map", "tokenizer_class", "transformers_version"),
        *("dtype", "torch_dtype", "torchscript", "use_cache", "return_dict", "output_attentions"),
        *("output_hidden_states", "output_router_logits", "keys_to_ignore_at_inference", "chunk_size_feed_forward"),
        *("id2label", "label2id", "num_labels", "problem_type", "finetuning_task", "task_specific_params", "prefix"),
        *("vocab_size", "pretraining_tp", "gradient_checkpointing"),
    }
)
_OTHER_PATTERN = re.compile(
    r"dropout|drop_rate|drop_path|layerdrop|drop_prob|initializer|init_std|loss|_token_ids?$|^mask_(time|feature)_|^apply_spec"
)
MAX_TEXT = 120
MAX_SETTINGS = 5000


def flat_settings(config: Mapping[str, Any]) -> dict[str, str]:
    """The settings that change what a model computes.

    Args:
        config: a config.json, or a config as transformers reads it, with every default.

    Returns:
        Path, with dots between tables -> the value as Python writes it; of a long value the beginning and a digest.
    """
    found: dict[str, str] = {}
    for path, value in _leaves(config, ""):
        if len(found) >= MAX_SETTINGS:
            break
        text = repr(value)
        if len(text) > MAX_TEXT:
            text = f"{text[: MAX_TEXT - 20]}... ({hashlib.sha256(text.encode()).hexdigest()[:8]})"
        found[path] = text
    return found


def _leaves(table: Mapping[str, Any], path: str) -> Iterator[tuple[str, Any]]:
    for key, value in table.items():
        name = str(key)
        if name in _OTHER or _OTHER_PATTERN.search(name):
            continue
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, f"{path}{name}.")
        else:
            yield f"{path}{name}", value


def settings_of_part(settings: Mapping[str, str], model_type: str) -> dict[str, str] | None:
    """The settings of the part of a model that is of another type, such as one of CLIP's towers; None without one."""
    for path, value in settings.items():
        prefix, _, name = path.rpartition(".")
        if prefix and name == "model_type" and value == repr(model_type):
            return {key.removeprefix(f"{prefix}."): v for key, v in settings.items() if key.startswith(f"{prefix}.")}
    return None
