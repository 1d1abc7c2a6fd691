"""What the families that write text share: greedy generation, and the most likely of several continuations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
import transformers
from torch import Tensor

from sftm_app.errors import SampleError
from sftm_app.evaluation.building import build_model, load_tokenizer
from sftm_app.evaluation.family import Answer, ModelParts, best_option
from sftm_app.evaluation.samples import TextSamples
from sftm_app.evaluation.text_model import TextModel
from sftm_app.evaluation.tokens import batches

BATCH = 16
MAX_NEW_TOKENS = 64
_SPECIAL_TOKENS = ("bos", "eos", "pad", "decoder_start", "forced_bos", "forced_eos")


@dataclass(frozen=True, eq=False)
class WritingModel(TextModel):
    """A model that writes text. Its generation_config is greedy, see `greedy_config`."""

    def write(self, rows: Sequence[list[int]], n_tokens: int) -> list[str]:
        """Generate greedily: what the model adds to (or answers to) each row of token ids, at most `n_tokens` long."""
        found: list[str] = []
        continues = not self.model.config.is_encoder_decoder
        for part in batches(rows, BATCH):
            inputs = self.pad(part, left=continues)
            ids = self.model.generate(**inputs, max_new_tokens=n_tokens)
            new = ids[:, inputs["input_ids"].shape[1] :] if continues else ids
            found += self.tokenizer.batch_decode(new, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return found

    def max_new_tokens(self, samples: TextSamples) -> int:
        """How much to write. If every target is known: twice the longest, because longer answers are wrong."""
        known = [target for target in samples.targets if target is not None]
        if len(known) < len(samples) or not known:
            return MAX_NEW_TOKENS
        longest = max(len(row) for row in self.tokenizer(known)["input_ids"])
        return min(MAX_NEW_TOKENS, 2 * longest + 8)


Writer = TypeVar("Writer", bound=WritingModel)


def build_writer(kind: type[Writer], parts: ModelParts) -> Writer:
    """Build a model that writes.

    Raises:
        SampleError: the weights do not fit the class, or the tokenizer is missing.
    """
    model = build_model(parts)
    tokenizer = load_tokenizer(parts.folders)
    model.generation_config = greedy_config(model, tokenizer, parts.folders)
    return kind(model, tokenizer)


def greedy_config(model: Any, tokenizer: Any, folders: Sequence[Path]) -> Any:
    """Greedy generation with the special tokens of the first folder that has a generation_config.json.

    The other settings of that file are ignored: sampling, beams and penalties would hide what the weights do.

    Raises:
        SampleError: generation_config.json cannot be read.
    """
    own = model.generation_config
    folder = next((folder for folder in folders if (folder / "generation_config.json").is_file()), None)
    if folder is not None:
        try:
            own = transformers.GenerationConfig.from_pretrained(folder, local_files_only=True)
        except (OSError, ValueError) as error:
            what = str(error).partition("\n")[0]
            raise SampleError(f"{folder}: its generation_config.json cannot be used ({what}).") from None
    # Older checkpoints name them in config.json.
    keys = [f"{role}_token_id" for role in _SPECIAL_TOKENS]
    tokens = {key: _first(getattr(own, key, None), getattr(model.config, key, None)) for key in keys}
    eos = tokens["eos_token_id"] = _first(tokens["eos_token_id"], tokenizer.eos_token_id)
    tokens["pad_token_id"] = _first(tokens["pad_token_id"], eos[0] if isinstance(eos, list) else eos)
    return transformers.GenerationConfig(**tokens, do_sample=False, num_beams=1)


def _first(*values: Any) -> Any:
    return next((value for value in values if value is not None), None)


def text_answers(texts: Sequence[str], samples: TextSamples) -> list[Answer]:
    """Answers of texts that were written freely; correct if they equal the target apart from outer white space."""
    return [
        Answer(text, target=target, correct=None if target is None else text.strip() == target.strip())
        for text, target in zip(texts, samples.targets, strict=True)
    ]


def choice_answers(log_likelihoods: Tensor, samples: TextSamples) -> list[Answer]:
    """The most likely choice for each sample. log_likelihoods: (n, choices); their softmax gives the scores."""
    assert samples.choices is not None
    rows = log_likelihoods.double().softmax(-1).tolist()
    return [best_option(samples.choices, row, target) for row, target in zip(rows, samples.targets, strict=True)]


def token_log_likelihoods(logits: Tensor, ids: Tensor) -> Tensor:
    """Log-probabilities, float32 (n, tokens), of ids (n, tokens) under logits (n, tokens, vocabulary)."""
    picked: Tensor = torch.log_softmax(logits.float(), -1).gather(-1, ids[..., None])[..., 0]
    return picked


def refuse_long(rows: Sequence[list[int]], limit: int) -> None:
    """Raise SampleError if a row is longer than `limit` tokens."""
    longest = max(map(len, rows), default=0)
    if longest > limit:
        raise SampleError(f"The text is {longest} tokens long; this model reads at most {limit}. Shorten it.")
