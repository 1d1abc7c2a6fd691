"""Causal language models, which continue a text: GPT-2, Llama, Qwen and others."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from sftm_app.errors import SampleError
from sftm_app.evaluation.family import Answer, Family, ForwardPass, ModelParts
from sftm_app.evaluation.samples import Samples, TextSamples, as_texts
from sftm_app.evaluation.text_model import MAX_TOKENS_PER_PASS
from sftm_app.evaluation.tokens import batches, n_shared
from sftm_app.evaluation.writing import (
    BATCH,
    WritingModel,
    build_writer,
    choice_answers,
    refuse_long,
    text_answers,
    token_log_likelihoods,
)


@dataclass(frozen=True, eq=False)
class CausalLM(WritingModel):
    """A causal language model."""

    @torch.inference_mode()
    def answer(self, samples: Samples) -> list[Answer]:
        """The continuation of each text, or the most likely choice as its continuation.

        Raises:
            SampleError: the samples are images, a text is too long, or the tokenizer has no template for a chat.
        """
        texts = as_texts(samples)
        if texts.choices is not None:
            return self._choose(texts)
        rows = [self._open(self._encode(text, texts.chat)) for text in texts.inputs]
        # Prompt and continuation share the window; at least one token must fit.
        refuse_long(rows, self.max_tokens - 1)
        room = self.max_tokens - max(map(len, rows), default=0)
        return text_answers(self.write(rows, min(self.max_new_tokens(texts), room)), texts)

    def passes(self, samples: Samples) -> tuple[Iterator[ForwardPass], ...]:
        """Passes over each text followed by its target, if that is known. Raises SampleError as `answer`."""
        texts = as_texts(samples)
        limit = min(MAX_TOKENS_PER_PASS, self.max_tokens)
        pairs = zip(texts.inputs, texts.targets, strict=True)
        rows = [(self._encode(text, texts.chat, target or "") or self._open([]))[:limit] for text, target in pairs]
        return (self.text_passes(rows, range(len(rows))),)

    def _encode(self, text: str, chat: bool, continuation: str = "") -> list[int]:
        if chat:
            if not self.tokenizer.chat_template:
                raise SampleError("This model's tokenizer has no chat template. Untick Chat template.")
            message = [{"role": "user", "content": text}]
            text = self.tokenizer.apply_chat_template(message, tokenize=False, add_generation_prompt=True)
        # A chat template writes the special tokens itself.
        row: list[int] = self.tokenizer(text + continuation, add_special_tokens=not chat)["input_ids"]
        return row

    def _open(self, row: list[int]) -> list[int]:
        """A row that can be continued: without end tokens at its end, and not empty."""
        eos = self.model.generation_config.eos_token_id
        ends = eos if isinstance(eos, list) else [] if eos is None else [eos]
        while len(row) > 1 and row[-1] in ends:
            row = row[:-1]
        first = self.tokenizer.bos_token_id
        return row or [first if first is not None else next(iter(ends), 0)]

    def _choose(self, samples: TextSamples) -> list[Answer]:
        assert samples.choices is not None
        first = self._open([])[0]
        rows: list[list[int]] = []
        starts: list[int] = []
        for text in samples.inputs:
            prompt = self._encode(text, samples.chat)
            whole = [self._encode(text, samples.chat, choice) for choice in samples.choices]
            # A tokenizer may join the end of the prompt with the choice, so only what all rows share is left unscored.
            shared = min(n_shared(prompt, row) for row in whole)
            if not shared:
                whole, shared = [[first, *row] for row in whole], 1
            rows += whole
            starts += [shared] * len(whole)
        refuse_long(rows, self.max_tokens)
        found = [torch.zeros(0, device=self.model.device)]
        for part, first_scored in zip(batches(rows, BATCH), batches(starts, BATCH), strict=True):
            inputs = self.pad(part)
            ids, mask = inputs["input_ids"], inputs["attention_mask"]
            scored = mask * (torch.arange(ids.shape[1]) >= torch.tensor(first_scored)[:, None]).to(mask)
            logits = self.model(**inputs).logits
            found.append((token_log_likelihoods(logits[:, :-1], ids[:, 1:]) * scored[:, 1:]).sum(1))
        return choice_answers(torch.cat(found).cpu().view(len(samples), len(samples.choices)), samples)


def build(parts: ModelParts) -> CausalLM:
    """Build a language model.

    Raises:
        SampleError: the weights do not fit the class, or the tokenizer is missing.
    """
    return build_writer(CausalLM, parts)


FAMILY = Family(
    "causal_lm",
    "language models",
    "text",
    "Write the beginning of a text; each model continues it.",
    lambda model_class, config: (
        model_class.__name__.endswith(("ForCausalLM", "LMHeadModel"))
        and not getattr(config, "is_encoder_decoder", False)
    ),
    build,
    choices="Choices",
    writes=True,
    chats=True,
)
