"""A small T5 that reads and writes letters and digits: tokenizer, model, base, fine-tunes, accuracy."""

from __future__ import annotations

import copy
import random
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedTokenizerFast, T5Config, T5ForConditionalGeneration

from bench.demo_packs.training import Schedule, TailMean, rate, step_with

PAD, EOS, UNKNOWN = "<pad>", "</s>", "<unk>"
N_SENTINELS = 4
MAX_NEW = 24
SAVE_EVERY = 200  # steps
FROZEN = ("shared", "norm", "relative")  # embeddings, norms and position biases stay the base's

Pair = tuple[str, str]


def tokenizer(prompts: Sequence[str]) -> PreTrainedTokenizerFast:
    """A tokenizer with one token per letter, digit and prompt (`plural: `). It loads with AutoTokenizer."""
    signs = "abcdefghijklmnopqrstuvwxyz0123456789"
    sentinels = [f"<extra_id_{n}>" for n in range(N_SENTINELS)]
    words = [PAD, EOS, UNKNOWN, *sentinels, *(f"{prompt}: " for prompt in prompts), *signs]
    raw = Tokenizer(models.WordLevel({word: n for n, word in enumerate(words)}, unk_token=UNKNOWN))
    raw.normalizer = normalizers.Sequence([normalizers.Lowercase(), normalizers.Replace(Regex(r":\s*"), ": ")])
    raw.pre_tokenizer = pre_tokenizers.Split(Regex(r"^[a-z]+: |."), "isolated")
    raw.decoder = decoders.Fuse()
    raw.post_processor = processors.TemplateProcessing(single=f"$A {EOS}", special_tokens=[(EOS, 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=raw, pad_token=PAD, eos_token=EOS, unk_token=UNKNOWN, additional_special_tokens=sentinels,
        model_max_length=64, clean_up_tokenization_spaces=False,
    )  # fmt: skip


def fresh(n_vocabulary: int, seed: int) -> T5ForConditionalGeneration:
    """A T5 with 0.42 million parameters: 2 + 2 layers of width 96."""
    torch.manual_seed(seed)
    config = T5Config(
        vocab_size=n_vocabulary, d_model=96, d_kv=24, d_ff=256, num_layers=2, num_heads=4, dropout_rate=0.0,
        relative_attention_num_buckets=16, relative_attention_max_distance=24, feed_forward_proj="relu",
        pad_token_id=0, eos_token_id=1, decoder_start_token_id=0, tie_word_embeddings=True,
    )  # fmt: skip
    return T5ForConditionalGeneration(config)


def corrupt(text: str, chance: random.Random) -> Pair:
    """T5's pre-training task: spans of a text are replaced by sentinels, and the target holds the spans."""
    source, target, at = "", "", 0
    for n in range(chance.randint(1, 2)):
        start = at + chance.randint(0, 4)
        end = start + chance.randint(1, 4)
        if end > len(text):
            break
        source += text[at:start] + f"<extra_id_{n}>"
        target += f"<extra_id_{n}>" + text[start:end]
        at = end
    return source + text[at:], target or PAD


def batch(words: PreTrainedTokenizerFast, pairs: Sequence[Pair]) -> dict[str, Tensor]:
    """Inputs and labels as padded tensors, (pairs, tokens) int64; padding in the labels is -100."""
    source = words([pair[0] for pair in pairs], padding=True, return_tensors="pt")
    target = words([pair[1] for pair in pairs], padding=True, return_tensors="pt")
    labels = target["input_ids"].masked_fill(target["attention_mask"] == 0, -100)
    return {"input_ids": source["input_ids"], "attention_mask": source["attention_mask"], "labels": labels}


def optimise(
    model: T5ForConditionalGeneration, loss_of: Callable[[int], Tensor], schedule: Schedule, average: bool, saved: Path
) -> None:
    """Train the parameters of `model` that require a gradient, in place.

    Args:
        model: to train.
        loss_of: the loss of a step, by its number from 0.
        schedule: of the training.
        average: whether the weights become their mean over the second half of the steps.
        saved: where the state is saved now and then; an interrupted training resumes from it with the same result.
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(
        parameters, lr=schedule.lr, weight_decay=schedule.weight_decay, betas=(0.9, 0.98), fused=True
    )
    mean, first, started = TailMean(parameters, schedule.steps), 0, time.perf_counter()
    if saved.exists():
        state = torch.load(saved, weights_only=True)
        model.load_state_dict(state["model"])
        optimiser.load_state_dict(state["optimiser"])
        mean.load(state["mean"])
        first = state["step"]
    for step in range(first, schedule.steps):
        loss = loss_of(step)
        step_with(optimiser, rate(step, schedule), loss, parameters)
        mean.take(step)
        if (step + 1) % SAVE_EVERY == 0 or step + 1 == schedule.steps:
            print(f"step {step + 1}, loss {loss.item():.3f}, {time.perf_counter() - started:.0f} s", flush=True)
            saved.parent.mkdir(parents=True, exist_ok=True)
            state = {"model": model.state_dict(), "optimiser": optimiser.state_dict(), "mean": mean.state()}
            torch.save({**state, "step": step + 1}, saved.with_suffix(".partial"))
            saved.with_suffix(".partial").rename(saved)
    if average:
        mean.put()


def train_base(
    words: PreTrainedTokenizerFast, texts: Sequence[str], tasks: Mapping[str, Sequence[Pair]], schedule: Schedule,
    share: float, seed: int, saved: Path,
) -> T5ForConditionalGeneration:  # fmt: skip
    """Train a new model to fill gaps in texts and to copy them, and on a little of every task.

    Args:
        words: the tokenizer.
        texts: to fill gaps in, or to copy.
        tasks: the pairs of every task that the base sees.
        schedule: of the training.
        share: the share of each batch that shows tasks.
        seed: of the training.
        saved: as in `optimise`.
    """
    model, names = fresh(len(words), seed), sorted(tasks)

    def loss_of(step: int) -> Tensor:
        chance = random.Random(f"{seed} {step}")
        shown = int(share * schedule.batch)
        pairs = [chance.choice(tasks[chance.choice(names)]) for _ in range(shown)]
        for text in (chance.choice(texts) for _ in range(schedule.batch - shown)):
            pairs.append((text, text) if chance.random() < 0.3 else corrupt(text, chance))
        loss: Tensor = model(**batch(words, pairs)).loss
        return loss

    optimise(model, loss_of, schedule, False, saved)
    return model


def fine_tune(
    base: T5ForConditionalGeneration, words: PreTrainedTokenizerFast, name: str, tasks: Mapping[str, Sequence[Pair]],
    schedule: Schedule, keep: float, seed: int, saved: Path,
) -> T5ForConditionalGeneration:  # fmt: skip
    """Fine-tune a copy of the base on one task; the weights are averaged over the second half of the steps.

    Args:
        base: to copy.
        words: the tokenizer.
        name: the task.
        tasks: the pairs of every task.
        schedule: of the training.
        keep: the weight of keeping the base's answers to the other tasks, on a quarter of each batch; 0 for none.
        seed: of the training.
        saved: as in `optimise`.
    """
    model = copy.deepcopy(base)
    for key, parameter in model.named_parameters():
        parameter.requires_grad_(not any(word in key for word in FROZEN))
    others = sorted(set(tasks) - {name})

    def loss_of(step: int) -> Tensor:
        chance = random.Random(f"{name} {seed} {step}")
        loss: Tensor = model(**batch(words, chance.choices(tasks[name], k=schedule.batch))).loss
        if not keep:
            return loss
        there = batch(words, [chance.choice(tasks[chance.choice(others)]) for _ in range(schedule.batch // 4)])
        with torch.no_grad():
            before = base(**there).logits.softmax(-1)
        after = model(**there).logits.log_softmax(-1)
        labelled = there["labels"] != -100
        return loss + keep * functional.kl_div(after[labelled], before[labelled], reduction="batchmean")

    optimise(model, loss_of, schedule, True, saved)
    return model


@torch.no_grad()
def accuracy(model: Any, words: Any, pairs: Sequence[Pair]) -> float:
    """The share of inputs that `model` with tokenizer `words` answers exactly, with greedy generation."""
    right = 0
    for start in range(0, len(pairs), 100):
        part = pairs[start : start + 100]
        inputs = words([pair[0] for pair in part], padding=True, return_tensors="pt")
        out = model.generate(
            input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], max_new_tokens=MAX_NEW,
            do_sample=False, num_beams=1,
        )  # fmt: skip
        texts = words.batch_decode(out, skip_special_tokens=True)
        right += sum(text.strip() == pair[1] for text, pair in zip(texts, part, strict=True))
    return right / len(pairs)
