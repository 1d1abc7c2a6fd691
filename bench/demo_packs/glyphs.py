"""Train and write the demo pack `glyphs`: python -m bench.demo_packs.glyphs [--quick] [--cache-dir DIR] [--output DIR]

One small ViT is trained on eight scripts at once, on nearly printed glyphs: this gives the base and eight heads. A copy
of the backbone is then fine-tuned gently on hand-drawn glyphs of each script, with its head frozen. The held-out
samples are hand-drawn too, from designs that no model has seen. Each stage is cached under a name made of its settings,
so an interrupted run can be resumed; delete the cache folder to start again.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import ViTModel

from bench.demo_packs.augment import Hand, Pool, draw_pool
from bench.demo_packs.data import Sources, load_sources
from bench.demo_packs.stages import digest, stage
from bench.demo_packs.training import Schedule, backbone, fine_tune, train_base
from bench.demo_packs.writing import write_pack

ASSETS = Path(__file__).resolve().parents[2] / "assets" / "demo"


@dataclass(frozen=True)
class Settings:
    """Everything that decides the pack's content."""

    base_designs: int = 40  # designs per script that the base sees
    base_digits: int = 1600  # the same for digits, where every image is a design
    base_images: int = 1500  # drawings per script
    base_hand: Hand = Hand(line=0.0, turn=0.02, slant=0.02, stretch=0.03, shift=0.02, wobble=0.0)  # nearly printed
    base: Schedule = Schedule(steps=1600, batch=64, lr=1e-3, warmup=100)
    task_designs: int = 80
    task_digits: int = 2000
    task_images: int = 4000
    task_hand: Hand = Hand(line=0.8, turn=0.12, slant=0.15, stretch=0.15, shift=0.05, wobble=0.04)  # drawn by hand
    task: Schedule = Schedule(steps=350, batch=98, lr=8e-4, weight_decay=0.0, warmup=20)
    keep: float = 0.7  # weight of keeping the base's logits on the other scripts
    frozen: tuple[str, ...] = ("embeddings", "bias", "layernorm")
    n_samples: int = 400
    seed: int = 0


def quick(settings: Settings) -> Settings:
    """The settings of a smoke test: every stage, hardly any work."""
    return replace(
        settings, base_images=100, task_images=100, n_samples=20,
        base=replace(settings.base, steps=4, batch=16), task=replace(settings.task, steps=3, batch=16),
    )  # fmt: skip


def drawings(path: Path, sources: Sources, count: int, hand: Hand, seed: int) -> Pool:
    """A pool of drawings, cached in `path`."""

    def make() -> dict[str, Tensor]:
        pool = draw_pool(sources, count, hand, seed)
        return {"images": pool.images, "labels": pool.labels}

    return Pool(**stage(path, make))


def tuned_state(
    base: ViTModel, heads: dict[str, nn.Linear], name: str, pools: dict[str, Pool], settings: Settings, seed: int
) -> dict[str, Tensor]:
    """The state dict of the backbone fine-tuned on task `name`."""
    model = fine_tune(base, heads, name, pools, settings.task, seed, settings.keep, settings.frozen)
    state: dict[str, Tensor] = model.state_dict()
    return state


def split_state(state: dict[str, Tensor], names: list[str]) -> tuple[ViTModel, dict[str, nn.Linear]]:
    """The backbone and the heads in one state dict (`vit.*`, `head.<task>.*`), rounded to float16 like the files."""
    model = backbone()
    model.load_state_dict({k.removeprefix("vit."): v.half().float() for k, v in state.items() if k.startswith("vit.")})
    heads = {}
    for name in names:
        weight, bias = state[f"head.{name}.weight"], state[f"head.{name}.bias"]
        heads[name] = nn.Linear(weight.shape[1], weight.shape[0])
        heads[name].load_state_dict({"weight": weight.half().float(), "bias": bias.half().float()})
    return model, heads


def make(settings: Settings, cache_dir: Path, output: Path) -> dict[str, dict[str, float]]:
    """Run all stages and write the pack. Returns the accuracies measured from its files."""
    sources, licences = load_sources(cache_dir, settings.seed)
    names = list(sources)
    work = cache_dir / f"tasks_{digest(settings)}"
    seed = 1000 * settings.seed

    def base_state() -> dict[str, Tensor]:
        pools = {}
        for name in names:
            chosen = sources[name]["train"].first(settings.base_digits if name == "digits" else settings.base_designs)
            pools[name] = draw_pool(chosen, settings.base_images, settings.base_hand, seed + 1)
        model, heads = train_base(pools, settings.base, seed)
        state = {f"vit.{k}": v for k, v in model.state_dict().items()}
        for name, head in heads.items():
            state |= {f"head.{name}.{k}": v for k, v in head.state_dict().items()}
        return state

    parts = (settings.base_designs, settings.base_digits, settings.base_images, settings.base_hand, settings.base, seed)
    base, heads = split_state(stage(cache_dir / f"base_{digest(parts)}.pt", base_state), names)
    pools, models = {}, {}
    for name in names:
        chosen = sources[name]["train"].first(settings.task_digits if name == "digits" else settings.task_designs)
        pools[name] = drawings(work / f"pool_{name}.pt", chosen, settings.task_images, settings.task_hand, seed + 2)
    for name in names:
        started = time.perf_counter()
        tune = partial(tuned_state, base, heads, name, pools, settings, seed + 3)
        models[name] = backbone()
        models[name].load_state_dict(stage(work / f"task_{name}.pt", tune))
        print(f"{name}: fine-tuned, {time.perf_counter() - started:.0f} s", flush=True)
    samples = {
        name: drawings(work / f"test_{name}.pt", splits["test"], settings.n_samples, settings.task_hand, seed + 4)
        for name, splits in sources.items()
    }
    about: dict[str, object] = {
        "name": "glyphs",
        "title": "Glyphs: eight writing systems",
        "description": "A vision transformer with a million parameters that learned eight scripts as they are printed, "
        "and eight copies of it, each fine-tuned to read one script drawn by hand. Draw one and see who reads it.",
        "made_by": "python -m bench.demo_packs.glyphs",
    }
    return write_pack(output, base, heads, models, samples, licences, about)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="Train and write the demo pack `glyphs`.")
    parser.add_argument("--quick", action="store_true", help="a few steps only, into <cache-dir>/quick: a smoke test")
    default = Path(tempfile.gettempdir()) / "glyphs_cache"
    parser.add_argument("--cache-dir", type=Path, default=default, help="downloads and finished stages")
    parser.add_argument("--output", type=Path, default=None, help="folder of the pack (default: assets/demo/glyphs)")
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # one thread: the same files every time, and no contention on a busy machine
    torch.use_deterministic_algorithms(True)
    settings = quick(Settings()) if arguments.quick else Settings()
    output = arguments.output or (arguments.cache_dir / "quick" if arguments.quick else ASSETS / "glyphs")
    started = time.perf_counter()
    figures = make(settings, arguments.cache_dir, output)
    for who, row in figures.items():
        cells = "  ".join(f"{name} {value:.3f}" for name, value in row.items())
        print(f"{who:10s} mean {sum(row.values()) / len(row):.3f}   {cells}")
    print(f"wrote {output} in {time.perf_counter() - started:.0f} s")


if __name__ == "__main__":
    main()
