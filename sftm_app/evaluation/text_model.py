"""What the families that read text share."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from sftm_app.evaluation.family import EvaluationModel, ForwardPass, TokenBatch
from sftm_app.evaluation.tokens import batches

# No model reads more, whatever its config says.
MAX_TOKENS = 4096
# How many tokens of a text a forward pass reads: enough to see what excites a layer, and a bound on the time.
MAX_TOKENS_PER_PASS = 512
TEXTS_PER_PASS = 16


@dataclass(frozen=True, eq=False)
class TextModel(EvaluationModel):
    """A model that reads text in padded batches."""

    @property
    def pad_id(self) -> int:
        """A token to pad with. Its meaning does not matter where the attention mask hides it."""
        tokenizer = self.tokenizer
        return int(tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id or 0)

    @property
    def max_tokens(self) -> int:
        """How many tokens the model reads at most."""
        limits = [MAX_TOKENS, self.tokenizer.model_max_length]
        positions = getattr(self.model.config, "max_position_embeddings", None)
        if isinstance(positions, int) and positions > 0:
            limits.append(positions)
        for name, module in self.model.named_modules():
            # RoBERTa's positions start behind its padding index, so its table is longer than the text that it reads.
            table = name.endswith("position_embeddings") and isinstance(module, nn.Embedding)
            if table and module.padding_idx is not None:
                limits.append(module.num_embeddings - module.padding_idx - 1)
        return int(min(limits))

    def encode(self, texts: Sequence[str], limit: int) -> list[list[int]]:
        """The token ids of each text with special tokens, truncated at `limit` tokens."""
        if not texts:
            return []
        rows: list[list[int]] = self.tokenizer(list(texts), truncation=True, max_length=limit)["input_ids"]
        return rows

    def pad(self, rows: Sequence[Sequence[int]], left: bool = False) -> dict[str, Tensor]:
        """Pad rows of token ids to one length.

        Args:
            rows: token ids; at least one row.
            left: whether to pad at the start, as generation needs it.

        Returns:
            `input_ids` and `attention_mask`, int64 (rows, longest row), on the model's device.
        """

        def stack(values: Sequence[Sequence[int]], value: int) -> Tensor:
            tensors = [torch.tensor(row, dtype=torch.int64) for row in values]
            return pad_sequence(tensors, True, value, "left" if left else "right").to(self.model.device)

        return {"input_ids": stack(rows, self.pad_id), "attention_mask": stack([[1] * len(row) for row in rows], 0)}

    def text_passes(
        self,
        rows: Sequence[Sequence[int]],
        samples: Sequence[int],
        forward: Callable[..., object] | None = None,
        size: int = TEXTS_PER_PASS,
    ) -> Iterator[ForwardPass]:
        """Forward passes over texts.

        Args:
            rows: the token ids of each text.
            samples: the sample number of each text.
            forward: takes `input_ids` and `attention_mask`; the model itself by default.
            size: how many texts to read at once.
        """
        rows = [row or [self.pad_id] for row in rows]
        for part, numbers in zip(batches(rows, size), batches(samples, size), strict=True):
            inputs = self.pad(part)
            run = partial(forward or self.model, **inputs)
            yield ForwardPass(numbers, run, (TokenBatch(part, inputs["input_ids"].shape[1]),))
