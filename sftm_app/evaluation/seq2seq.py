"""Encoder-decoders that rewrite a text: T5, BART and others."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers.modeling_outputs import BaseModelOutput

from sftm_app.errors import SampleError
from sftm_app.evaluation.building import build_model, load_tokenizer, parameter_bytes
from sftm_app.evaluation.family import Answer, Family, Parts, Samples, as_texts
from sftm_app.evaluation.reading import TEXTS_AT_ONCE, TOKENS_READ, Reading, TokenRows
from sftm_app.evaluation.texts import TextSamples
from sftm_app.evaluation.tokens import batches, filler, padded, window
from sftm_app.evaluation.writing import (
    BATCH,
    chosen,
    greedy_config,
    new_tokens,
    refuse_long,
    token_log_likelihoods,
    written,
)

TOKENS_ANSWERED = 32


@dataclass(frozen=True, eq=False)
class Seq2Seq:
    """An encoder-decoder with its tokenizer. Its generation_config is a greedy one."""

    model: Any
    tokenizer: Any

    @property
    def n_bytes(self) -> int:
        return parameter_bytes(self.model)

    @torch.inference_mode()
    def answer(self, samples: Samples) -> list[Answer]:
        """What it writes for each text, or the likeliest of the choices. Raises SampleError: images, or too long."""
        texts = as_texts(samples)
        rows = self._rows(texts.inputs)
        if texts.choices is None:
            return written(self._write(rows, new_tokens(self.tokenizer, texts)), texts)
        return self._choose(rows, texts)

    def passes(self, samples: Samples) -> tuple[Iterator[Reading], ...]:
        """Passes over the texts, the decoder reading the right answer, or the model's own where it is not known.

        Raises
            SampleError: images.
        """
        return (self._readings(as_texts(samples)),)

    def _readings(self, texts: TextSamples) -> Iterator[Reading]:
        limit = min(TOKENS_READ, window(self.model, self.tokenizer))
        for numbers in batches(range(len(texts)), TEXTS_AT_ONCE):
            part = texts.take(list(numbers))
            rows = [row[:limit] or [filler(self.tokenizer)] for row in self.tokenizer(list(part.inputs))["input_ids"]]
            own = self._write(rows, TOKENS_ANSWERED) if None in part.targets else list(part.inputs)
            said = [mine if right is None else right for mine, right in zip(own, part.targets, strict=True)]
            start = self.model.generation_config.decoder_start_token_id
            # The last token of an answer is never read, and one place is left for the filling below.
            answers = [[start, *self._target(text)[:-1][: limit - 2]] for text in said]
            inputs, outputs = self._padded(rows), self._padded(answers)["input_ids"]
            if outputs.shape[1] == inputs["input_ids"].shape[1]:
                # Of two lengths, so that a layer's input tells which of the two sequences it belongs to.
                outputs = torch.nn.functional.pad(outputs, (0, 1), value=filler(self.tokenizer))
            read = TokenRows(rows, inputs["input_ids"].shape[1], "what the encoder reads")
            answered = TokenRows(answers, outputs.shape[1], "what the decoder reads")
            forward = partial(self.model, **inputs, decoder_input_ids=outputs)
            yield Reading(numbers, forward, (read, answered))

    def _rows(self, texts: Sequence[str]) -> list[list[int]]:
        rows: list[list[int]] = self.tokenizer(list(texts))["input_ids"] if texts else []
        refuse_long(max(map(len, rows), default=0), window(self.model, self.tokenizer))
        return rows

    def _padded(self, rows: Sequence[list[int]]) -> dict[str, Tensor]:
        return padded(rows, self.model.device, filler(self.tokenizer))

    def _write(self, rows: list[list[int]], n_tokens: int) -> list[str]:
        found: list[str] = []
        for part in batches(rows, BATCH):
            ids = self.model.generate(**self._padded(part), max_new_tokens=n_tokens)
            found += self.tokenizer.batch_decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return found

    def _choose(self, rows: list[list[int]], samples: TextSamples) -> list[Answer]:
        assert samples.choices is not None
        targets = self._padded([self._target(choice) for choice in samples.choices])
        ids, mask = targets["input_ids"], targets["attention_mask"]
        # Teacher forcing: the decoder reads each choice shifted by one, behind its start token.
        start = torch.full_like(ids[:, :1], self.model.generation_config.decoder_start_token_id)
        shifted = torch.cat([start, ids[:, :-1]], 1)
        encoder, n = self.model.get_encoder(), len(ids)
        found = [torch.zeros(0, n, device=self.model.device)]
        # Every text meets every choice in one pass, so fewer texts at a time than when writing.
        for part in batches(rows, max(1, BATCH // n)):
            inputs = self._padded(part)
            states = encoder(**inputs).last_hidden_state.repeat_interleave(n, 0)
            logits = self.model(
                encoder_outputs=BaseModelOutput(last_hidden_state=states),
                attention_mask=inputs["attention_mask"].repeat_interleave(n, 0),
                decoder_input_ids=shifted.repeat(len(part), 1),
            ).logits
            per_token = token_log_likelihoods(logits, ids.repeat(len(part), 1)) * mask.repeat(len(part), 1)
            found.append(per_token.sum(1).view(len(part), n))
        return chosen(torch.cat(found).cpu(), samples)

    def _target(self, choice: str) -> list[int]:
        row: list[int] = self.tokenizer(text_target=choice)["input_ids"]
        eos = self.tokenizer.eos_token_id
        return row if eos is None or row[-1:] == [eos] else [*row, eos]


def build(parts: Parts) -> Seq2Seq:
    """An encoder-decoder with its tokenizer.

    Raises
        SampleError: the weights do not cover it, it has no tokenizer, or no token that starts the decoder.
    """
    model = build_model(parts)
    tokenizer = load_tokenizer(parts.folders)
    model.generation_config = greedy_config(model, tokenizer, parts.folders)
    if model.generation_config.decoder_start_token_id is None:
        raise SampleError(f"{parts.folders[0]}: names no decoder_start_token_id in config.json; add the model's own.")
    return Seq2Seq(model, tokenizer)


FAMILY = Family(
    "seq2seq",
    "encoder-decoders",
    "text",
    "Write the text that the models should answer, in the form they were trained on.",
    lambda model_class, config: (
        model_class.__name__.endswith(("ForConditionalGeneration", "WithLMHeadModel"))
        and bool(getattr(config, "is_encoder_decoder", False))
        and getattr(model_class, "main_input_name", "") == "input_ids"
    ),
    build,
    choices="Choices",
    writes=True,
)
