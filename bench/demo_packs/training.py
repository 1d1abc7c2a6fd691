"""Train the base (one backbone with a head per task) and the fine-tunes (backbone only, head frozen)."""

from __future__ import annotations

import copy
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import ViTConfig, ViTModel

from bench.demo_packs.augment import Pool, normalise


@dataclass(frozen=True)
class Schedule:
    """One training run. lr: the highest learning rate, which falls to zero along a cosine after a short warm-up."""

    steps: int
    batch: int
    lr: float
    weight_decay: float = 0.01
    warmup: int = 50
    smoothing: float = 0.0


def config() -> ViTConfig:
    """A ViT with 1.0 million parameters: 16 patches of 7 x 7 and a class token, 5 layers of width 128."""
    return ViTConfig(
        hidden_size=128, num_hidden_layers=5, num_attention_heads=4, intermediate_size=512,
        image_size=28, patch_size=7, num_channels=1, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip


def backbone() -> ViTModel:
    """A new backbone without a pooler."""
    return ViTModel(config(), add_pooling_layer=False)


def features(model: nn.Module, images: Tensor) -> Tensor:
    """The class token after the last norm, (n, hidden)."""
    return model(pixel_values=normalise(images)).last_hidden_state[:, 0]


class TailMean:
    """The mean of parameters over the second half of `steps` steps, which averages out the noise of single batches."""

    def __init__(self, parameters: Sequence[nn.Parameter], steps: int) -> None:
        self._parameters = parameters
        self._steps = steps
        self._total = [torch.zeros_like(p) for p in parameters]
        self._count = 0

    def take(self, step: int) -> None:
        """Call this after every step, with its number from 0."""
        if 2 * (step + 1) > self._steps:
            torch._foreach_add_(self._total, [p.detach() for p in self._parameters])
            self._count += 1

    def state(self) -> dict[str, Any]:
        """What has been taken so far, for `load`."""
        return {"total": self._total, "count": self._count}

    def load(self, state: dict[str, Any]) -> None:
        """Continue from a saved state."""
        self._total, self._count = state["total"], state["count"]

    @torch.no_grad()
    def put(self) -> None:
        """Set the parameters to their mean."""
        for parameter, total in zip(self._parameters, self._total, strict=True):
            parameter.copy_(total / self._count)


def step_with(optimiser: torch.optim.Optimizer, lr: float, loss: Tensor, parameters: list[nn.Parameter]) -> None:
    """Take one optimiser step."""
    for group in optimiser.param_groups:
        group["lr"] = lr
    optimiser.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(parameters, 1.0)
    optimiser.step()


def rate(step: int, schedule: Schedule) -> float:
    """The learning rate at `step`."""
    ramp = min(1.0, (step + 1) / schedule.warmup)
    done = torch.tensor(torch.pi * step / schedule.steps)
    return schedule.lr * ramp * 0.5 * (1 + float(torch.cos(done)))


def train_base(tasks: dict[str, Pool], schedule: Schedule, seed: int) -> tuple[ViTModel, dict[str, nn.Linear]]:
    """Train the backbone and the heads on all tasks at once. Every batch has the same number of images of each task."""
    torch.manual_seed(seed)
    model = backbone()
    heads = {name: nn.Linear(128, int(pool.labels.max()) + 1) for name, pool in tasks.items()}
    generator = torch.Generator().manual_seed(seed)
    parameters = [*model.parameters(), *(p for head in heads.values() for p in head.parameters())]
    decay, betas = schedule.weight_decay, (0.9, 0.98)
    optimiser = torch.optim.AdamW(parameters, lr=schedule.lr, weight_decay=decay, betas=betas, fused=True)
    share, started = schedule.batch // len(tasks), time.perf_counter()
    for step in range(schedule.steps):
        for group in optimiser.param_groups:
            group["lr"] = rate(step, schedule)
        picks = {name: torch.randint(len(s), (share,), generator=generator) for name, s in tasks.items()}
        images = torch.cat([tasks[name].batch(pick) for name, pick in picks.items()])
        tokens = features(model, images).split(share)
        losses = [
            functional.cross_entropy(heads[name](token), tasks[name].labels[pick], label_smoothing=schedule.smoothing)
            for (name, pick), token in zip(picks.items(), tokens, strict=True)
        ]
        loss = torch.stack(losses).mean()
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        if step % 200 == 0 or step == schedule.steps - 1:
            seconds = time.perf_counter() - started
            print(f"base step {step}/{schedule.steps} loss {float(loss.detach()):.3f} {seconds:.0f} s", flush=True)
    return model, heads


def fine_tune(
    base: ViTModel,
    heads: dict[str, nn.Linear],
    name: str,
    pools: dict[str, Pool],
    schedule: Schedule,
    seed: int,
    keep: float,
    frozen: tuple[str, ...] = (),
) -> ViTModel:
    """Fine-tune a copy of the base on one task, with its head frozen.

    Half of every batch are drawings of the other tasks. To keep the base's logits on them, `keep` times the mean
    squared difference is added to the loss (learning without forgetting, with rehearsal). The weights are averaged over
    the second half of the steps: the noise of single batches would only be interference in a merge.

    Args:
        base: the backbone to copy.
        heads: the heads of all tasks.
        name: the task.
        pools: drawings of all tasks.
        schedule: of the training.
        seed: of the training.
        keep: see above.
        frozen: parameters whose name contains one of these words are not trained.
    """
    torch.manual_seed(seed)
    model = copy.deepcopy(base)
    for key, parameter in model.named_parameters():
        parameter.requires_grad_(not any(word in key for word in frozen))
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(parameters, lr=schedule.lr, weight_decay=schedule.weight_decay, fused=True)
    generator = torch.Generator().manual_seed(seed)
    fixed = {key: (head.weight.detach(), head.bias.detach()) for key, head in heads.items()}
    mean = TailMean(parameters, schedule.steps)
    others = [other for other in pools if other != name]
    share = schedule.batch // (2 * len(others))
    own = schedule.batch - share * len(others)
    for step in range(schedule.steps):
        for group in optimiser.param_groups:
            group["lr"] = rate(step, schedule)
        pick = torch.randint(len(pools[name]), (own,), generator=generator)
        images = [pools[name].batch(pick)]
        for other in others:
            images.append(pools[other].batch(torch.randint(len(pools[other]), (share,), generator=generator)))
        with torch.no_grad():
            before = features(base, torch.cat(images[1:])).split(share)
        tokens = features(model, torch.cat(images))
        loss = functional.cross_entropy(functional.linear(tokens[:own], *fixed[name]), pools[name].labels[pick])
        moved = [now - then for now, then in zip(tokens[own:].split(share), before, strict=True)]
        drift = [functional.linear(m, fixed[o][0]).square().mean() for m, o in zip(moved, others, strict=True)]
        loss = loss + keep * torch.stack(drift).mean()
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        mean.take(step)
    mean.put()
    return model


@torch.no_grad()
def accuracy(model: nn.Module, head: nn.Linear, images: Tensor, labels: Tensor) -> float:
    """The share of images, uint8 (n, 28, 28), that the backbone with the head classifies correctly."""
    logits = head(torch.cat([features(model, part.unsqueeze(1).float() / 255) for part in images.split(256)]))
    return float((logits.argmax(1) == labels).float().mean())
