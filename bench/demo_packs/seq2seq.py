"""A small T5 that reads and writes letters and phonemes: tokenizer, model, base, fine-tunes, accuracy."""

from __future__ import annotations

import copy
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedTokenizerFast, T5Config, T5ForConditionalGeneration

from bench.demo_packs.training import Schedule, TailMean, rate
from bench.demo_packs.words import IPA, SCHWA, Word

PAD, EOS, UNKNOWN = "<pad>", "</s>", "<unk>"
N_SENTINELS = 6
MAX_NEW = 20
WEIGHTS = (4, 4, 2, 1)  # how often the base sees each of TASKS, relative to the others

Pair = tuple[str, str]


@dataclass(frozen=True)
class Task:
    """How a word becomes an input and a target. prefix: tells the model what is asked."""

    prefix: str
    ask: Callable[[Word], str]
    answer: Callable[[Word], str]

    def pair(self, word: Word) -> Pair:
        """The input and the target."""
        return f"{self.prefix} {self.ask(word)}", self.answer(word)


TASKS: dict[str, Task] = {
    "sound": Task("sound:", lambda word: word.spelling, lambda word: word.sound),
    "spell": Task("spell:", lambda word: word.sound, lambda word: word.spelling),
    "stress": Task("stress:", lambda word: word.spelling, lambda word: word.stress),
    "count": Task("count:", lambda word: word.sound, lambda word: str(len(word.stress))),
}


def tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer with one token per letter, phoneme, digit and prefix. It loads with AutoTokenizer."""
    signs = {*"abcdefghijklmnopqrstuvwxyz", *" 0123456789'", *IPA.values(), SCHWA}
    sentinels = [f"<extra_id_{n}>" for n in range(N_SENTINELS)]
    words = [PAD, EOS, UNKNOWN, *sentinels, *(f"{task.prefix} " for task in TASKS.values()), *sorted(signs)]
    raw = Tokenizer(models.WordLevel({word: n for n, word in enumerate(words)}, unk_token=UNKNOWN))
    raw.normalizer = normalizers.Sequence([normalizers.Lowercase(), normalizers.Replace(Regex(r":\s*"), ": ")])
    pairs = "|".join(sorted(sign for sign in signs if len(sign) == 2))
    raw.pre_tokenizer = pre_tokenizers.Split(Regex(rf"^[a-z]+: |{pairs}|."), "isolated")
    raw.decoder = decoders.Fuse()
    raw.post_processor = processors.TemplateProcessing(single=f"$A {EOS}", special_tokens=[(EOS, 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=raw, pad_token=PAD, eos_token=EOS, unk_token=UNKNOWN, additional_special_tokens=sentinels,
        model_max_length=64, clean_up_tokenization_spaces=False,
    )  # fmt: skip


def fresh(n_vocabulary: int, seed: int) -> T5ForConditionalGeneration:
    """A T5 with 0.67 million parameters: 2 + 2 layers of width 128."""
    torch.manual_seed(seed)
    config = T5Config(
        vocab_size=n_vocabulary, d_model=128, d_kv=32, d_ff=256, num_layers=2, num_heads=4, dropout_rate=0.0,
        relative_attention_num_buckets=16, relative_attention_max_distance=24, feed_forward_proj="relu",
        pad_token_id=0, eos_token_id=1, decoder_start_token_id=0, tie_word_embeddings=True,
    )  # fmt: skip
    return T5ForConditionalGeneration(config)


def corrupt(text: str, chance: random.Random) -> Pair:
    """T5's pre-training task: spans of a text are replaced by sentinels, and the target holds the spans."""
    source, target, at = "", "", 0
    for n in range(chance.randint(1, N_SENTINELS - 3)):
        start = at + chance.randint(0, 6)
        end = start + chance.randint(1, 5)
        if end > len(text):
            break
        source += text[at:start] + f"<extra_id_{n}>"
        target += f"<extra_id_{n}>" + text[start:end]
        at = end
    return source + text[at:], target or PAD


class Batches:
    """Turns pairs into padded tensors."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        self.tokenizer = tokenizer

    def __call__(self, pairs: Sequence[Pair]) -> dict[str, Tensor]:
        source = self.tokenizer([pair[0] for pair in pairs], padding=True, return_tensors="pt")
        target = self.tokenizer([pair[1] for pair in pairs], padding=True, return_tensors="pt")
        labels = target["input_ids"].masked_fill(target["attention_mask"] == 0, -100)
        return {"input_ids": source["input_ids"], "attention_mask": source["attention_mask"], "labels": labels}


def step_with(optimiser: torch.optim.Optimizer, lr: float, loss: Tensor, parameters: list[nn.Parameter]) -> None:
    """Take one optimiser step."""
    for group in optimiser.param_groups:
        group["lr"] = lr
    optimiser.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(parameters, 1.0)
    optimiser.step()


def train_base(
    start: T5ForConditionalGeneration, words: Sequence[Word], schedule: Schedule, share: float, seed: int
) -> T5ForConditionalGeneration:
    """Train `start` in place to fill gaps in pairs of spelling and sound, and on a little of every task.

    share: the share of each batch that shows tasks.
    """
    model, batches = start, Batches(tokenizer())
    chance, parameters, tasks = random.Random(seed), list(model.parameters()), list(TASKS.values())
    optimiser = torch.optim.AdamW(parameters, lr=schedule.lr, weight_decay=schedule.weight_decay, fused=True)
    started = time.perf_counter()
    for step in range(schedule.steps):
        shown = int(share * schedule.batch)
        pairs = [chance.choices(tasks, WEIGHTS)[0].pair(chance.choice(words)) for _ in range(shown)]
        for word in (chance.choice(words) for _ in range(schedule.batch - shown)):
            both = (word.spelling, word.sound) if chance.random() < 0.5 else (word.sound, word.spelling)
            pairs.append(corrupt(" ".join(both), chance))
        loss = model(**batches(pairs)).loss
        step_with(optimiser, rate(step, schedule), loss, parameters)
        if step % 200 == 0 or step == schedule.steps - 1:
            print(f"base: step {step}, loss {float(loss):.3f}, {time.perf_counter() - started:.0f} s", flush=True)
    return model


def fine_tune(
    base: T5ForConditionalGeneration, name: str, words: Sequence[Word], schedule: Schedule, keep: float,
    frozen: tuple[str, ...], seed: int,
) -> T5ForConditionalGeneration:  # fmt: skip
    """Fine-tune a copy of the base on one task. The weights are averaged over the second half of the steps.

    keep: the weight of keeping the base's answers to the other tasks, on a fifth of each batch; 0 for no such part.
    """
    batches = Batches(tokenizer())
    model, chance = copy.deepcopy(base), random.Random(seed)
    for key, parameter in model.named_parameters():
        parameter.requires_grad_(not any(word in key for word in frozen))
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(parameters, lr=schedule.lr, weight_decay=schedule.weight_decay, fused=True)
    others = [task for other, task in TASKS.items() if other != name]
    mean = TailMean(parameters, schedule.steps)
    for step in range(schedule.steps):
        picks = [chance.choice(words) for _ in range(schedule.batch)]
        loss = model(**batches([TASKS[name].pair(word) for word in picks])).loss
        if keep:
            there = batches([chance.choice(others).pair(word) for word in picks[: schedule.batch // 4]])
            with torch.no_grad():
                before = base(**there).logits.softmax(-1)
            after = model(**there).logits.log_softmax(-1)
            labelled = there["labels"] != -100
            loss = loss + keep * functional.kl_div(after[labelled], before[labelled], reduction="batchmean")
        step_with(optimiser, rate(step, schedule), loss, parameters)
        mean.take(step)
    mean.put()
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
