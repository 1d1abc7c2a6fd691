"""Encoder-decoders, which answer a text with another: T5, BART and others."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from transformers.modeling_outputs import BaseModelOutput

from sftm_app.errors import SampleError
from sftm_app.evaluation.family import Answer, Family, ForwardPass, ModelParts, TokenBatch
from sftm_app.evaluation.samples import Samples, TextSamples, as_texts
from sftm_app.evaluation.text_model import MAX_TOKENS_PER_PASS, TEXTS_PER_PASS
from sftm_app.evaluation.tokens import batches
from sftm_app.evaluation.writing import (
    BATCH,
    WritingModel,
    build_writer,
    choice_answers,
    refuse_long,
    text_answers,
    token_log_likelihoods,
)

# How much a model writes when it has to answer before a pass, because the target is not known.
TOKENS_ANSWERED = 32


@dataclass(frozen=True, eq=False)
class Seq2Seq(WritingModel):
    """An encoder-decoder."""

    @torch.inference_mode()
    def answer(self, samples: Samples) -> list[Answer]:
        """What the model writes for each text, or the most likely choice.

        Raises:
            SampleError: the samples are images, or a text is too long.
        """
        texts = as_texts(samples)
        rows: list[list[int]] = self.tokenizer(list(texts.inputs))["input_ids"] if texts.inputs else []
        refuse_long(rows, self.max_tokens)
        if texts.choices is None:
            return text_answers(self.write(rows, self.max_new_tokens(texts)), texts)
        return self._choose(rows, texts)

    def passes(self, samples: Samples) -> tuple[Iterator[ForwardPass], ...]:
        """Passes over the texts; the decoder reads the target, or the model's own answer if that is not known.

        Raises:
            SampleError: the samples are images.
        """
        return (self._passes(as_texts(samples)),)

    def _passes(self, texts: TextSamples) -> Iterator[ForwardPass]:
        limit = min(MAX_TOKENS_PER_PASS, self.max_tokens)
        for numbers in batches(range(len(texts)), TEXTS_PER_PASS):
            part = texts.take(list(numbers))
            rows = [row[:limit] or [self.pad_id] for row in self.tokenizer(list(part.inputs))["input_ids"]]
            own = self.write(rows, TOKENS_ANSWERED) if None in part.targets else part.inputs
            answers = [mine if target is None else target for mine, target in zip(own, part.targets, strict=True)]
            # The last token of an answer is never read, and one position stays free for the padding below.
            decoded = [[self._start, *self._target(text)[:-1][: limit - 2]] for text in answers]
            inputs, outputs = self.pad(rows), self.pad(decoded)["input_ids"]
            n_read = inputs["input_ids"].shape[1]
            if outputs.shape[1] == n_read:
                # Different lengths, so that the shape of a layer's input tells which of the two sequences it is.
                outputs = torch.nn.functional.pad(outputs, (0, 1), value=self.pad_id)
            sequences = (
                TokenBatch(rows, n_read, "what the encoder reads"),
                TokenBatch(decoded, outputs.shape[1], "what the decoder reads"),
            )
            yield ForwardPass(numbers, partial(self.model, **inputs, decoder_input_ids=outputs), sequences)

    def _choose(self, rows: Sequence[list[int]], samples: TextSamples) -> list[Answer]:
        assert samples.choices is not None
        targets = self.pad([self._target(choice) for choice in samples.choices])
        ids, mask = targets["input_ids"], targets["attention_mask"]
        # Teacher forcing: the decoder reads the start token and then each choice without its last token.
        decoded = torch.cat([torch.full_like(ids[:, :1], self._start), ids[:, :-1]], 1)
        encoder, n = self.model.get_encoder(), len(ids)
        found = [torch.zeros(0, n, device=self.model.device)]
        # Every text is paired with every choice in one pass.
        for part in batches(rows, max(1, BATCH // n)):
            inputs = self.pad(part)
            states = encoder(**inputs).last_hidden_state.repeat_interleave(n, 0)
            logits = self.model(
                encoder_outputs=BaseModelOutput(last_hidden_state=states),
                attention_mask=inputs["attention_mask"].repeat_interleave(n, 0),
                decoder_input_ids=decoded.repeat(len(part), 1),
            ).logits
            per_token = token_log_likelihoods(logits, ids.repeat(len(part), 1)) * mask.repeat(len(part), 1)
            found.append(per_token.sum(1).view(len(part), n))
        return choice_answers(torch.cat(found).cpu(), samples)

    @property
    def _start(self) -> int:
        start: int = self.model.generation_config.decoder_start_token_id
        return start

    def _target(self, text: str) -> list[int]:
        row: list[int] = self.tokenizer(text_target=text)["input_ids"]
        eos = self.tokenizer.eos_token_id
        return row if eos is None or row[-1:] == [eos] else [*row, eos]


def build(parts: ModelParts) -> Seq2Seq:
    """Build an encoder-decoder.

    Raises:
        SampleError: the weights do not fit the class, or the tokenizer or the decoder's start token is missing.
    """
    built = build_writer(Seq2Seq, parts)
    if built.model.generation_config.decoder_start_token_id is None:
        raise SampleError(f"{parts.folders[0]}: its config.json lacks decoder_start_token_id. Add the model's own.")
    return built


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
