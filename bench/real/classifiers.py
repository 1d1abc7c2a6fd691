"""Classifiers from a backbone: a linear probe gives the head, then the backbone is fine-tuned gently."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

Encode = Callable[[Sequence[Any]], dict[str, Tensor]]


@dataclass(frozen=True, eq=False)
class Split:
    """Inputs (sentences or images) and their class numbers."""

    inputs: Sequence[Any]
    labels: list[int]


@dataclass(frozen=True, eq=False)
class Task:
    """A labelled set. labels: the names of the classes by number. validation: for choosing settings, may be empty."""

    name: str
    title: str
    labels: tuple[str, ...]
    train: Split
    test: Split
    validation: Split = Split((), [])


@dataclass(frozen=True)
class Schedule:
    """One fine-tune. lr: the highest learning rate, which falls linearly to zero after the warm-up."""

    epochs: int
    batch: int
    lr: float
    warmup: int = 20
    weight_decay: float = 0.0


@torch.no_grad()
def outputs(model: nn.Module, inputs: Sequence[Any], encode: Encode, batch: int = 64) -> tuple[Tensor, Tensor]:
    """The input of the head, float32 (n, features), and the logits (n, classes) of a model with a `classifier`."""
    model.eval()
    entering: list[Tensor] = []
    head = model.get_submodule("classifier")
    hook = head.register_forward_pre_hook(lambda module, arguments: entering.append(arguments[0]))
    try:
        starts = range(0, len(inputs), batch)
        logits = [model(**encode(inputs[start : start + batch])).logits for start in starts]
    finally:
        hook.remove()
    return torch.cat(entering), torch.cat(logits)


def accuracy(model: nn.Module, split: Split, encode: Encode) -> float:
    """The share of inputs that the model classifies correctly."""
    _, logits = outputs(model, split.inputs, encode)
    return float((logits.argmax(1) == torch.tensor(split.labels)).float().mean())


def probe(model: nn.Module, task: Task, encode: Encode, penalty: float = 1e-2) -> None:
    """Set the head of `model` to a logistic regression on the features of its backbone."""
    features, _ = outputs(model, task.train.inputs, encode)
    labels = torch.tensor(task.train.labels)
    mean, spread = features.mean(0), features.std(0) + 1e-6
    scaled = (features - mean) / spread
    weight = torch.zeros(len(task.labels), features.shape[1], requires_grad=True)
    bias = torch.zeros(len(task.labels), requires_grad=True)
    optimiser = torch.optim.LBFGS([weight, bias], max_iter=300, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimiser.zero_grad()
        loss = functional.cross_entropy(functional.linear(scaled, weight, bias), labels)
        loss = loss + penalty * weight.square().sum()
        loss.backward()
        return loss

    optimiser.step(closure)
    head = model.get_submodule("classifier")
    assert isinstance(head, nn.Linear)
    with torch.no_grad():
        head.weight.copy_(weight / spread)
        head.bias.copy_(bias - weight @ (mean / spread))


def batches(lengths: Sequence[int], batch: int) -> list[Tensor]:
    """Batches of random samples whose lengths are similar, in random order, so that little is padded.

    Args:
        lengths: of the samples.
        batch: samples per batch.

    Returns:
        Positions, int64; each sample is in one batch.
    """
    found: list[Tensor] = []
    for group in torch.randperm(len(lengths)).split(10 * batch):
        by_length = torch.tensor(sorted(group.tolist(), key=lengths.__getitem__))
        found += by_length.split(batch)
    return [found[place] for place in torch.randperm(len(found)).tolist()]


def fine_tune(model: nn.Module, task: Task, encode: Encode, schedule: Schedule, seed: int = 0) -> float:
    """Train everything except the head, in place. Returns the seconds."""
    torch.manual_seed(seed)
    for parameter in model.get_submodule("classifier").parameters():
        parameter.requires_grad_(False)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimiser = torch.optim.AdamW(parameters, lr=schedule.lr, weight_decay=schedule.weight_decay, fused=True)
    labels = torch.tensor(task.train.labels)
    # Images all have the length of their channels: for them the batches are random.
    lengths = [len(sample) for sample in task.train.inputs]
    per_epoch = -(-len(labels) // schedule.batch)
    total, step, started = schedule.epochs * per_epoch, 0, time.perf_counter()
    model.train()
    for _ in range(schedule.epochs):
        for picked in batches(lengths, schedule.batch):
            rate = min(1.0, (step + 1) / schedule.warmup) * (1 - step / total)
            for group in optimiser.param_groups:
                group["lr"] = schedule.lr * rate
            logits = model(**encode([task.train.inputs[index] for index in picked.tolist()])).logits
            loss = functional.cross_entropy(logits, labels[picked])
            optimiser.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(parameters, 1.0)
            optimiser.step()
            step += 1
            if step % 50 == 0:
                seconds = time.perf_counter() - started
                print(f"{task.name} step {step}/{total} loss {float(loss.detach()):.3f} {seconds:.0f} s", flush=True)
    model.eval()
    return time.perf_counter() - started
