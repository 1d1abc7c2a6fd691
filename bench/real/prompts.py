"""A causal language model as a classifier, whose label is the token after the prompt: train with LoRA and measure."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from torch.nn import functional

from bench.real.classifiers import Split, Task

RANK, ALPHA = 8, 16
BATCH, RATE, WARMUP = 8, 1e-3, 8
MAX_TOKENS = 64


def label_tokens(tokenizer: Any, labels: tuple[str, ...]) -> Tensor:
    """The token of each label, int64 (labels,).

    Raises:
        ValueError: a label is more than one token, so the token after the prompt would not identify it.
    """
    tokens = [tokenizer.encode(label, add_special_tokens=False) for label in labels]
    long = [label for label, found in zip(labels, tokens, strict=True) if len(found) != 1]
    if long or len({found[0] for found in tokens}) != len(labels):
        raise ValueError(f"Labels that are not single, different tokens: {long or labels}")
    return torch.tensor([found[0] for found in tokens])


def encode(tokenizer: Any, prompts: list[str]) -> dict[str, Tensor]:
    """Prompts padded on the left, so that the last position is the last token of every prompt.

    Long prompts lose their beginning, never the question at their end.
    """
    tokenizer.truncation_side = "left"
    return dict(tokenizer(prompts, padding=True, truncation=True, max_length=MAX_TOKENS, return_tensors="pt"))


@torch.no_grad()
def next_logits(model: nn.Module, tokenizer: Any, prompts: list[str], batch: int = 20) -> Tensor:
    """The logits of the token after each prompt, float32 (n, vocabulary)."""
    parts = []
    for start in range(0, len(prompts), batch):
        parts.append(model(**encode(tokenizer, prompts[start : start + batch]), logits_to_keep=1).logits[:, -1])
    return torch.cat(parts).float()


def correct(model: nn.Module, tokenizer: Any, labels: tuple[str, ...], split: Split) -> list[bool]:
    """For each prompt of the split, whether the correct label is the most probable of the task's labels after it."""
    model.eval()
    lengths = [len(tokens) for tokens in tokenizer(list(split.inputs))["input_ids"]]
    # Prompts of one batch have nearly one length, so that little of it is padding.
    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    logits = next_logits(model, tokenizer, [split.inputs[place] for place in order])
    said = dict(zip(order, logits[:, label_tokens(tokenizer, labels)].argmax(1).tolist(), strict=True))
    return [said[place] == label for place, label in enumerate(split.labels)]


def train_adapter(model: nn.Module, tokenizer: Any, task: Task, base: Path, n_steps: int) -> tuple[Any, float]:
    """Train a LoRA adapter on all linear layers to write the label and stop. Returns the model with it, and seconds."""
    torch.manual_seed(sum(map(ord, task.name)))
    settings = LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules="all-linear", task_type="CAUSAL_LM")
    settings.base_model_name_or_path = str(base)
    adapted = get_peft_model(model, settings)
    parameters = [parameter for parameter in adapted.parameters() if parameter.requires_grad]
    optimiser = torch.optim.AdamW(parameters, lr=RATE, weight_decay=0.0)
    tokens, started = label_tokens(tokenizer, task.labels), time.perf_counter()
    adapted.train()
    order = torch.cat(
        [torch.randperm(len(task.train.labels)) for _ in range(1 + n_steps * BATCH // len(task.train.labels))]
    )
    for step, picked in enumerate(order.split(BATCH)[:n_steps]):
        for group in optimiser.param_groups:
            group["lr"] = RATE * min(1.0, (step + 1) / WARMUP) * (1 - step / n_steps)
        encoded = encode(tokenizer, [task.train.inputs[place] for place in picked.tolist()])
        right = tokens[torch.tensor([task.train.labels[place] for place in picked.tolist()])]
        inputs = torch.cat([encoded["input_ids"], right[:, None]], dim=1)
        mask = torch.cat([encoded["attention_mask"], torch.ones_like(right)[:, None]], dim=1)
        wanted = torch.stack([right, torch.full_like(right, tokenizer.eos_token_id)], dim=1)
        logits = adapted(input_ids=inputs, attention_mask=mask, logits_to_keep=2).logits
        loss = functional.cross_entropy(logits.flatten(0, 1), wanted.flatten())
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        if (step + 1) % 10 == 0:
            seconds = time.perf_counter() - started
            print(f"{task.name} step {step + 1}/{n_steps} loss {float(loss.detach()):.3f} {seconds:.0f} s", flush=True)
    adapted.eval()
    return adapted, time.perf_counter() - started
