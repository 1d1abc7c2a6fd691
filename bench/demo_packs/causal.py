"""A small GPT-2 that reads definitions: tokenizer, base, LoRA adapters, and accuracy by the likelihood of choices."""

from __future__ import annotations

import copy
import random
import time
from collections.abc import Sequence
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from torch.nn import functional
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from bench.demo_packs.definitions import TASKS, Gloss, by_task
from bench.demo_packs.training import Schedule, TailMean, rate, step_with

END = "<|endoftext|>"
SORTED = 16  # batches drawn and sorted by length at once

Line = tuple[str, str]


def train_tokenizer(texts: Sequence[str], size: int) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer. It loads with AutoTokenizer."""
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=size, special_tokens=[END], initial_alphabet=alphabet, show_progress=False)
    raw.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=raw, bos_token=END, eos_token=END, pad_token=END, model_max_length=64,
        clean_up_tokenization_spaces=False,
    )  # fmt: skip


def fresh(n_vocabulary: int, seed: int) -> GPT2LMHeadModel:
    """A GPT-2 with a million parameters: 4 layers of width 128."""
    torch.manual_seed(seed)
    config = GPT2Config(
        vocab_size=n_vocabulary, n_positions=64, n_embd=128, n_layer=4, n_head=4, bos_token_id=0, eos_token_id=0,
        activation_function="gelu_pytorch_tanh", resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
    )  # fmt: skip
    return GPT2LMHeadModel(config)


def batch(words: PreTrainedTokenizerFast, lines: Sequence[Line], whole: bool) -> dict[str, Tensor]:
    """Prompts and answers as padded tensors. whole: whether the prompt is learned too, not only the answer."""
    prompts = words([prompt for prompt, _ in lines])["input_ids"]
    answers = words([answer + END for _, answer in lines])["input_ids"]
    rows = [(prompt + answer)[-64:] for prompt, answer in zip(prompts, answers, strict=True)]
    width = max(map(len, rows))
    ids = torch.zeros(len(rows), width, dtype=torch.long)
    labels = torch.full((len(rows), width), -100)
    for n, (row, answer) in enumerate(zip(rows, answers, strict=True)):
        ids[n, : len(row)] = torch.tensor(row)
        first = 0 if whole else len(row) - len(answer)
        labels[n, first : len(row)] = torch.tensor(row[first:])
    return {"input_ids": ids, "labels": labels}


def line(gloss: Gloss, chance: random.Random) -> Line:
    """A line of the base's training text: a definition and the word that it defines, or that word's hypernym."""
    if gloss.above and chance.random() < 0.5:
        return gloss.ask("a kind of"), f" {gloss.above}"
    return gloss.ask("word"), f" {gloss.word}"


def ask(glosses: list[Gloss], task: str, chance: random.Random) -> Line:
    """A question of a task and its answer."""
    gloss = chance.choice(glosses)
    return gloss.ask(task), f" {gloss.answers[task]}"


def train_base(
    words: PreTrainedTokenizerFast, glosses: list[Gloss], n_weak: int, schedule: Schedule, share: float, seed: int
) -> GPT2LMHeadModel:
    """Train a language model of definitions that has also seen each task on its first `n_weak` glosses.

    share: the share of each batch that shows tasks.
    """
    model, chance = fresh(len(words), seed), random.Random(seed)
    weak = {task: found[:n_weak] for task, found in by_task(glosses).items()}
    parameters = list(model.parameters())
    optimiser = torch.optim.AdamW(parameters, lr=schedule.lr, weight_decay=schedule.weight_decay, fused=True)
    started, waiting = time.perf_counter(), list[list[Line]]()
    for step in range(schedule.steps):
        if not waiting:
            lines = []
            for _ in range(SORTED * schedule.batch):
                task = chance.choice(TASKS)
                answered = chance.random() < share
                lines.append(ask(weak[task], task, chance) if answered else line(chance.choice(glosses), chance))
            lines.sort(key=lambda pair: len(pair[0]))  # lines of similar length share a batch, for little padding
            waiting = [lines[n : n + schedule.batch] for n in range(0, len(lines), schedule.batch)]
            chance.shuffle(waiting)
        loss = model(**batch(words, waiting.pop(), whole=True)).loss
        step_with(optimiser, rate(step, schedule), loss, parameters)
        if step % 200 == 0 or step == schedule.steps - 1:
            print(f"base: step {step}, loss {float(loss):.3f}, {time.perf_counter() - started:.0f} s", flush=True)
    return model


def lora(rank: int) -> LoraConfig:
    """LoRA on all four linear maps of a layer. fan_in_fan_out: GPT-2 stores its weights as in x out."""
    return LoraConfig(
        r=rank, lora_alpha=2 * rank, target_modules=["c_attn", "c_proj", "c_fc"], fan_in_fan_out=True,
        lora_dropout=0.0, bias="none", task_type="CAUSAL_LM",
    )  # fmt: skip


def tune_adapter(
    base: GPT2LMHeadModel, words: PreTrainedTokenizerFast, glosses: list[Gloss], task: str, rank: int,
    schedule: Schedule, keep: float, seed: int,
) -> PeftModel:  # fmt: skip
    """Train a LoRA adapter for one task. keep: the weight of keeping the base's answers to the other tasks."""
    torch.manual_seed(seed)
    model = get_peft_model(copy.deepcopy(base), lora(rank))
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(parameters, lr=schedule.lr, weight_decay=schedule.weight_decay, fused=True)
    found, chance = by_task(glosses), random.Random(seed)
    others = [other for other in TASKS if other != task]
    mean = TailMean(parameters, schedule.steps)
    for step in range(schedule.steps):
        loss = model(**batch(words, [ask(found[task], task, chance) for _ in range(schedule.batch)], whole=False)).loss
        if keep:
            asked = [chance.choice(others) for _ in range(schedule.batch // 3)]
            there = batch(words, [ask(found[other], other, chance) for other in asked], whole=False)
            answered = (there["labels"] != -100).roll(-1, dims=1)  # the positions whose next token is the answer's
            with torch.no_grad():
                before = base(there["input_ids"]).logits[answered].softmax(-1)
            after = model(input_ids=there["input_ids"]).logits[answered].log_softmax(-1)
            loss = loss + keep * functional.kl_div(after, before, reduction="batchmean")
        step_with(optimiser, rate(step, schedule), loss, parameters)
        mean.take(step)
    mean.put()
    return model


@torch.no_grad()
def accuracy(model: Any, words: Any, pairs: Sequence[Line], choices: Sequence[str]) -> float:
    """The share of prompts whose target is the choice with the highest log-likelihood."""
    model.eval()
    ends = [words(choice)["input_ids"] for choice in choices]
    # One row for each beginning of a choice. If every choice is one token, that is the prompt alone.
    begun = sorted({tuple(end[:k]) for end in ends for k in range(len(end))})
    right = 0
    for start in range(0, len(pairs), 20):
        part = pairs[start : start + 20]
        prompts = [words(prompt)["input_ids"] for prompt, _ in part]
        rows = [[*prompt, *beginning] for prompt in prompts for beginning in begun]
        ids = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.long)
        for n, row in enumerate(rows):
            ids[n, : len(row)] = torch.tensor(row)
        logits = model(input_ids=ids).logits[range(len(rows)), [len(row) - 1 for row in rows]]
        following = logits.log_softmax(-1).view(len(part), len(begun), -1)
        scores = torch.zeros(len(part), len(ends))
        for n, end in enumerate(ends):
            for k, token in enumerate(end):
                scores[:, n] += following[:, begun.index(tuple(end[:k])), token]
        best = scores.argmax(1).tolist()
        right += sum(choices[n] == target for n, (_, target) in zip(best, part, strict=True))
    return right / len(pairs)
