"""Causal language models, which continue a text: GPT-2, Llama, Qwen and others."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

import torch

from sftm_app.errors import SampleError
from sftm_app.evaluation.building import build_model, load_tokenizer, parameter_bytes
from sftm_app.evaluation.family import Answer, Family, Parts, Samples, as_texts
from sftm_app.evaluation.reading import TOKENS_READ, Reading, text_readings
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


@dataclass(frozen=True, eq=False)
class CausalLM:
    """A language model with its tokenizer. Its generation_config is a greedy one."""

    model: Any
    tokenizer: Any

    @property
    def n_bytes(self) -> int:
        return parameter_bytes(self.model)

    @torch.inference_mode()
    def answer(self, samples: Samples) -> list[Answer]:
        """How it continues each text, or the likeliest of the choices as continuation.

        Raises
            SampleError: images, a text too long, or a chat with a tokenizer that has no template.
        """
        texts = as_texts(samples)
        if texts.choices is not None:
            return self._choose(texts)
        rows = [self._start(self._row(text, texts.chat)) for text in texts.inputs]
        # What is written takes up the same window as the text; one token must fit at least.
        longest, room = max(map(len, rows), default=0), window(self.model, self.tokenizer)
        refuse_long(longest, room - 1)
        n_tokens = min(new_tokens(self.tokenizer, texts), room - longest)
        return written(self._write(rows, n_tokens), texts)

    def passes(self, samples: Samples) -> tuple[Iterator[Reading], ...]:
        """Passes over each text and the right continuation, where it is known. Raises SampleError: as answer()."""
        texts = as_texts(samples)
        limit = min(TOKENS_READ, window(self.model, self.tokenizer))
        asked = zip(texts.inputs, texts.targets, strict=True)
        rows = [(self._row(text, texts.chat, target or "") or self._start([]))[:limit] for text, target in asked]
        return (text_readings(rows, range(len(rows)), self.model, self.model.device, filler(self.tokenizer)),)

    def _row(self, text: str, chat: bool, continuation: str = "") -> list[int]:
        if chat:
            if not self.tokenizer.chat_template:
                raise SampleError("This model's tokenizer has no chat template. Take the tick off Chat template.")
            message = [{"role": "user", "content": text}]
            text = self.tokenizer.apply_chat_template(message, tokenize=False, add_generation_prompt=True)
        # A chat template writes the special tokens itself.
        row: list[int] = self.tokenizer(text + continuation, add_special_tokens=not chat)["input_ids"]
        return row

    def _start(self, row: list[int]) -> list[int]:
        """A row to be continued: not ended already, and not empty."""
        ends = self._ends
        while len(row) > 1 and row[-1] in ends:
            row = row[:-1]
        first = self.tokenizer.bos_token_id
        return row or [first if first is not None else next(iter(ends), 0)]

    @property
    def _ends(self) -> tuple[int, ...]:
        eos = self.model.generation_config.eos_token_id
        return tuple(eos) if isinstance(eos, list) else () if eos is None else (eos,)

    def _write(self, rows: list[list[int]], n_tokens: int) -> list[str]:
        found: list[str] = []
        for part in batches(rows, BATCH):
            inputs = padded(part, self.model.device, filler(self.tokenizer), left=True)
            ids = self.model.generate(**inputs, max_new_tokens=n_tokens)
            new = ids[:, inputs["input_ids"].shape[1] :]
            found += self.tokenizer.batch_decode(new, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return found

    def _choose(self, samples: TextSamples) -> list[Answer]:
        assert samples.choices is not None
        limit, first = window(self.model, self.tokenizer), self._start([])[0]
        rows: list[list[int]] = []
        starts: list[int] = []
        for text in samples.inputs:
            prompt = self._row(text, samples.chat)
            whole = [self._row(text, samples.chat, choice) for choice in samples.choices]
            # A tokenizer may join the end of the prompt with the choice: what all of them share is not scored.
            shared = min(_n_shared(prompt, row) for row in whole)
            if not shared:
                whole, shared = [[first, *row] for row in whole], 1
            rows += whole
            starts += [shared] * len(whole)
        refuse_long(max(map(len, rows), default=0), limit)
        found = [torch.zeros(0, device=self.model.device)]
        for number, part in enumerate(batches(rows, BATCH)):
            inputs = padded(part, self.model.device, filler(self.tokenizer))
            ids, mask = inputs["input_ids"], inputs["attention_mask"].clone()
            for line, start in enumerate(starts[number * BATCH : number * BATCH + len(part)]):
                mask[line, :start] = 0
            logits = self.model(**inputs).logits
            found.append((token_log_likelihoods(logits[:, :-1], ids[:, 1:]) * mask[:, 1:]).sum(1))
        return chosen(torch.cat(found).cpu().view(len(samples), len(samples.choices)), samples)


def _n_shared(left: Sequence[int], right: Sequence[int]) -> int:
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(left, right, strict=False)))


def build(parts: Parts) -> CausalLM:
    """A language model with its tokenizer.

    Raises
        SampleError: the weights do not cover it, or it has no tokenizer.
    """
    model = build_model(parts)
    tokenizer = load_tokenizer(parts.folders)
    model.generation_config = greedy_config(model, tokenizer, parts.folders)
    return CausalLM(model, tokenizer)


FAMILY = Family(
    "causal_lm",
    "language models",
    "text",
    "Write the beginning of a text; each model goes on from there.",
    lambda model_class, config: (
        model_class.__name__.endswith(("ForCausalLM", "LMHeadModel"))
        and not getattr(config, "is_encoder_decoder", False)
    ),
    build,
    choices="Choices",
    writes=True,
    chats=True,
)
