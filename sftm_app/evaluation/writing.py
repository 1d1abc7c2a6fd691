"""What the families that write text share: greedy generation, and the likeliest of several continuations."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor

from sftm_app.errors import SampleError
from sftm_app.evaluation.family import Answer, scored
from sftm_app.evaluation.texts import TextSamples

BATCH = 16
MAX_NEW_TOKENS = 64
_TOKEN_ROLES = ("bos", "eos", "pad", "decoder_start", "forced_bos", "forced_eos")


def greedy_config(model: Any, tokenizer: Any, folders: Sequence[Path]) -> Any:
    """Greedy writing with the special tokens that the first folder with a generation_config.json names.

    Nothing else of it counts: sampling, beams and penalties would hide what the weights say.

    Raises
        SampleError: generation_config.json cannot be read.
    """
    said = model.generation_config
    folder = next((folder for folder in folders if (folder / "generation_config.json").is_file()), None)
    if folder is not None:
        try:
            said = transformers.GenerationConfig.from_pretrained(folder, local_files_only=True)
        except (OSError, ValueError) as error:
            what = str(error).partition("\n")[0]
            raise SampleError(f"{folder}: its generation_config.json cannot be used ({what}).") from None
    # Older checkpoints hold them in config.json.
    named = (f"{role}_token_id" for role in _TOKEN_ROLES)
    tokens = {key: _first(getattr(said, key, None), getattr(model.config, key, None)) for key in named}
    eos = tokens["eos_token_id"] = _first(tokens["eos_token_id"], tokenizer.eos_token_id)
    tokens["pad_token_id"] = _first(tokens["pad_token_id"], eos[0] if isinstance(eos, list) else eos)
    return transformers.GenerationConfig(**tokens, do_sample=False, num_beams=1)


def _first(*values: Any) -> Any:
    return next((value for value in values if value is not None), None)


def new_tokens(tokenizer: Any, samples: TextSamples) -> int:
    """How much to write: where every target is known, about twice the longest, because longer answers are wrong."""
    known = [target for target in samples.targets if target is not None]
    if len(known) < len(samples) or not known:
        return MAX_NEW_TOKENS
    longest = max(len(row) for row in tokenizer(known)["input_ids"])
    return min(MAX_NEW_TOKENS, 2 * longest + 8)


def written(texts: Sequence[str], samples: TextSamples) -> list[Answer]:
    """Answers of what was written freely; right where it equals the target but for white space around it."""
    return [
        Answer(text, truth=target, right=None if target is None else text.strip() == target.strip())
        for text, target in zip(texts, samples.targets, strict=True)
    ]


def chosen(log_likelihoods: Tensor, samples: TextSamples) -> list[Answer]:
    """Answers of the likeliest choice, from log-likelihoods (n, choices). The scores are their softmax."""
    assert samples.choices is not None
    rows = log_likelihoods.double().softmax(-1).tolist()
    return [scored(samples.choices, row, target) for row, target in zip(rows, samples.targets, strict=True)]


def token_log_likelihoods(logits: Tensor, ids: Tensor) -> Tensor:
    """Log-probabilities, float32 (n, tokens), of ids (n, tokens) under logits (n, tokens, vocabulary)."""
    picked: Tensor = torch.log_softmax(logits.float(), -1).gather(-1, ids[..., None])[..., 0]
    return picked


def refuse_long(n_tokens: int, limit: int) -> None:
    """Refuse a text that leaves the model no room to answer.

    Raises
        SampleError: it is longer than `limit` tokens.
    """
    if n_tokens > limit:
        raise SampleError(f"The text is {n_tokens} tokens long; this model reads at most {limit}. Shorten it.")
