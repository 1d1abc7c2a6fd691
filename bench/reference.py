"""The reference work: a base and fine-tunes of known shapes with synthetic weights.

`python -m bench.reference [--folder FOLDER] [--small] [--tasks 8] [--layers 12]` makes a CLIP vision tower with the
shapes of ViT-B/32 (87 million parameters, float32, 350 MB per model) and 8 fine-tunes. Their changes have decaying
gains and a part that all tasks share. `--adapters [--rank 16]` makes a Llama with SmolLM2-135M's shapes and 8 LoRA
adapters.

Every number is seeded by the names of its task and tensor, so every run makes the same files.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

ROOT = Path(__file__).resolve().parents[1]
STAMP = "reference.json"
# The norm of a change relative to the base; how many decades the gains fall; the energy and the rank that tasks share.
CHANGE, DECAY, SHARED, SHARED_RANK = 0.03, 1.5, 0.2, 64
# How much free space is required, relative to what is needed.
ROOM = 1.1


@dataclass(frozen=True)
class Tower:
    """A CLIP vision tower; the defaults are ViT-B/32's."""

    hidden: int = 768
    intermediate: int = 3072
    layers: int = 12
    heads: int = 12
    image: int = 224
    patch: int = 32


SMALL_TOWER = Tower(hidden=48, intermediate=96, layers=2, heads=4, image=16, patch=8)


@dataclass(frozen=True)
class Language:
    """A Llama with tied embeddings; the defaults are SmolLM2-135M's."""

    hidden: int = 576
    intermediate: int = 1536
    layers: int = 30
    heads: int = 9
    key_heads: int = 3
    vocabulary: int = 49152

    @property
    def head(self) -> int:
        """The width of an attention head."""
        return self.hidden // self.heads


SMALL_LANGUAGE = Language(hidden=24, intermediate=40, layers=2, heads=3, key_heads=1, vocabulary=50)


@dataclass(frozen=True)
class Work:
    """A base and its tasks, as folders that `from_pretrained` reads."""

    base: Path
    tasks: tuple[Path, ...]


def tower_config(tower: Tower) -> dict[str, Any]:
    """config.json of a tower, as transformers writes it."""
    return {
        "model_type": "clip_vision_model",
        "architectures": ["CLIPVisionModel"],
        "hidden_size": tower.hidden,
        "intermediate_size": tower.intermediate,
        "num_hidden_layers": tower.layers,
        "num_attention_heads": tower.heads,
        "image_size": tower.image,
        "patch_size": tower.patch,
        "projection_dim": 512,
        "hidden_act": "quick_gelu",
    }


def tower_shapes(tower: Tower) -> dict[str, tuple[int, ...]]:
    """The shapes of its tensors, by their names in the files on the hub."""
    n, wide = tower.hidden, tower.intermediate
    layer: dict[str, tuple[int, ...]] = {}
    for name in ("k_proj", "v_proj", "q_proj", "out_proj"):
        layer |= {f"self_attn.{name}.weight": (n, n), f"self_attn.{name}.bias": (n,)}
    layer |= {"layer_norm1.weight": (n,), "layer_norm1.bias": (n,)}
    layer |= {"mlp.fc1.weight": (wide, n), "mlp.fc1.bias": (wide,), "mlp.fc2.weight": (n, wide), "mlp.fc2.bias": (n,)}
    layer |= {"layer_norm2.weight": (n,), "layer_norm2.bias": (n,)}
    shapes: dict[str, tuple[int, ...]] = {
        "embeddings.class_embedding": (n,),
        "embeddings.patch_embedding.weight": (n, 3, tower.patch, tower.patch),
        "embeddings.position_embedding.weight": ((tower.image // tower.patch) ** 2 + 1, n),
        "pre_layrnorm.weight": (n,),
        "pre_layrnorm.bias": (n,),
    }
    for index in range(tower.layers):
        shapes |= {f"encoder.layers.{index}.{name}": shape for name, shape in layer.items()}
    shapes |= {"post_layernorm.weight": (n,), "post_layernorm.bias": (n,)}
    return {f"vision_model.{name}": shape for name, shape in shapes.items()}


def language_config(language: Language) -> dict[str, Any]:
    """config.json of a language model, as transformers writes it."""
    return {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "hidden_size": language.hidden,
        "intermediate_size": language.intermediate,
        "num_hidden_layers": language.layers,
        "num_attention_heads": language.heads,
        "num_key_value_heads": language.key_heads,
        "head_dim": language.head,
        "vocab_size": language.vocabulary,
        "tie_word_embeddings": True,
    }


def language_maps(language: Language) -> dict[str, tuple[int, int]]:
    """The linear maps of all layers, which the adapters change, by module name: (m, n)."""
    n, wide, few = language.hidden, language.intermediate, language.key_heads * language.head
    maps = {f"self_attn.{name}_proj": shape for name, shape in zip("qkvo", ((n, n), (few, n), (few, n), (n, n)))}  # noqa: B905
    maps |= {"mlp.gate_proj": (wide, n), "mlp.up_proj": (wide, n), "mlp.down_proj": (n, wide)}
    return {f"model.layers.{index}.{name}": maps[name] for index in range(language.layers) for name in maps}


def language_shapes(language: Language) -> dict[str, tuple[int, ...]]:
    """The shapes of its tensors; the output embedding is tied to the input embedding."""
    n = language.hidden
    shapes: dict[str, tuple[int, ...]] = {f"{name}.weight": shape for name, shape in language_maps(language).items()}
    for index in range(language.layers):
        shapes |= {f"model.layers.{index}.{name}.weight": (n,) for name in NORMS}
    return shapes | {"model.embed_tokens.weight": (language.vocabulary, n), "model.norm.weight": (n,)}


NORMS = ("input_layernorm", "post_attention_layernorm")


def seeded(*names: object) -> torch.Generator:
    """A random generator seeded by names, such as those of a task and a tensor."""
    digest = hashlib.sha256("\0".join(map(str, names)).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "little"))


@dataclass
class Directions:
    """Random orthonormal columns, cheaply: one QR per shape, then its rows in a new order with new signs."""

    made: dict[tuple[int, int], Tensor] = field(default_factory=dict)

    def draw(self, size: int, n_columns: int, generator: torch.Generator) -> Tensor:
        """Orthonormal columns, float32 (size, n_columns)."""
        key = (size, n_columns)
        if key not in self.made:
            self.made[key] = torch.linalg.qr(torch.randn(key, generator=seeded("directions", *key))).Q
        order = torch.randperm(size, generator=generator)
        signs = torch.randint(0, 2, (size, 1), generator=generator).float().mul_(2).sub_(1)
        return self.made[key][order].mul_(signs)

    def matrix(self, shape: tuple[int, int], gains: Tensor, generator: torch.Generator) -> Tensor:
        """A matrix of norm 1 with singular values proportional to `gains`, along random directions."""
        left, right = (self.draw(size, len(gains), generator) for size in shape)
        return (left * (gains / gains.norm())) @ right.T

    def change(self, task: str, name: str, shape: tuple[int, int]) -> Tensor:
        """The change of a matrix by fine-tuning, of norm 1: the task's own part and the part that all tasks share."""
        short = min(shape)
        own = self.matrix(shape, torch.logspace(0, -DECAY, short), seeded(task, name))
        shared_gains = torch.logspace(0, -0.5, min(SHARED_RANK, max(1, short // 12)))
        shared = self.matrix(shape, shared_gains, seeded("shared", name))
        return own.mul_(math.sqrt(1 - SHARED)).add_(shared, alpha=math.sqrt(SHARED))


def base_tensor(name: str, shape: tuple[int, ...]) -> Tensor:
    """A tensor of the base: norm weights near 1, everything else small and random."""
    values = torch.randn(shape, generator=seeded("base", name)).mul_(0.02)
    return values.add_(1) if "norm" in name and name.endswith("weight") else values


def task_tensor(task: str, name: str, base: Tensor, directions: Directions) -> Tensor:
    """The same tensor after fine-tuning."""
    if base.ndim < 2:
        return base + 0.001 * torch.randn(base.shape, generator=seeded(task, name))
    flat = base.reshape(len(base), -1)
    change = directions.change(task, name, (flat.shape[0], flat.shape[1]))
    return (flat + change * (CHANGE * float(flat.norm()))).reshape(base.shape)


def make_towers(folder: Path, tower: Tower = Tower(), n_tasks: int = 8) -> Work:
    """Make the base and the fine-tunes of a vision tower below `folder`, unless they are there already.

    Raises:
        SystemExit: the folder is in the repository or holds something else, or the disk has too little space.
    """
    shapes = tower_shapes(tower)
    work = Work(folder / "base", tuple(folder / f"task{index + 1}" for index in range(n_tasks)))
    what = {"tower": asdict(tower), "tasks": n_tasks}
    if _stands(folder, what, (n_tasks + 1) * _n_bytes(shapes)):
        return work
    base = {name: base_tensor(name, shape) for name, shape in shapes.items()}
    write_model(work.base, tower_config(tower), base)
    directions = Directions()
    for task in work.tasks:
        tensors = {name: task_tensor(task.name, name, tensor, directions) for name, tensor in base.items()}
        write_model(task, tower_config(tower), tensors)
    (folder / STAMP).write_text(json.dumps(what))
    return work


def make_adapters(folder: Path, language: Language = Language(), n_tasks: int = 8, rank: int = 16) -> Work:
    """Make a language model and LoRA adapters on it below `folder`, unless they are there. Raises as `make_towers`."""
    shapes = language_shapes(language)
    work = Work(folder / "base", tuple(folder / f"task{index + 1}" for index in range(n_tasks)))
    what = {"language": asdict(language), "tasks": n_tasks, "rank": rank}
    n_adapter = 4 * rank * sum(map(sum, language_maps(language).values()))
    if _stands(folder, what, _n_bytes(shapes) + n_tasks * n_adapter):
        return work
    write_model(
        work.base, language_config(language), {name: base_tensor(name, shape) for name, shape in shapes.items()}
    )
    for task in work.tasks:
        write_adapter(task, work.base, dict(adapter_pairs(task.name, language, rank)), rank)
    (folder / STAMP).write_text(json.dumps(what))
    return work


def adapter_pairs(task: str, language: Language, rank: int) -> Iterator[tuple[str, tuple[Tensor, Tensor]]]:
    """The factors of an adapter: module, (A (rank, n), B (m, rank)). Both have a part that all tasks share."""
    for name, (m, n) in language_maps(language).items():

        def mixed(which: str, shape: tuple[int, int], name: str = name) -> Tensor:
            own, shared = (torch.randn(shape, generator=seeded(of, name, which)) for of in (task, "shared"))
            return own.mul_(math.sqrt(1 - SHARED)).add_(shared, alpha=math.sqrt(SHARED))

        # The norm of B A is about sqrt(rank m n) times both scales: a few percent of the base's, 0.02 sqrt(m n).
        scale = 0.02 * CHANGE / math.sqrt(rank)
        gains = torch.logspace(0, -1, rank)
        yield name, (mixed("A", (rank, n)), mixed("B", (m, rank)) * gains * scale)


def densify(adapter: Path, base: Path, folder: Path) -> Path:
    """Fold an adapter into its base and write the full model to `folder`."""
    from safetensors.torch import load_file

    tensors, pairs = load_file(base / "model.safetensors"), load_file(adapter / "adapter_model.safetensors")
    for key, A in pairs.items():
        if "lora_A" in key:
            name = key.removeprefix("base_model.model.").replace("lora_A.weight", "weight")
            tensors[name].addmm_(pairs[key.replace("lora_A", "lora_B")], A)
    write_model(folder, json.loads((base / "config.json").read_text()), tensors)
    return folder


def write_model(folder: Path, config: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    """Write a model in one file, as save_pretrained does."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config | {"dtype": "float32"}, indent=1))
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def write_adapter(folder: Path, base: Path, pairs: dict[str, tuple[Tensor, Tensor]], rank: int) -> None:
    """Write an adapter with scaling 1, as PEFT does."""
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": str(base),
        "r": rank,
        "lora_alpha": rank,
        "target_modules": sorted({name.rpartition(".")[2] for name in pairs}),
        "bias": "none",
        "inference_mode": True,
    }
    folder.mkdir(parents=True)
    (folder / "adapter_config.json").write_text(json.dumps(config, indent=1))
    tensors: dict[str, Tensor] = {}
    for name, (A, B) in pairs.items():
        tensors |= {f"base_model.model.{name}.lora_A.weight": A, f"base_model.model.{name}.lora_B.weight": B}
    save_file(tensors, folder / "adapter_model.safetensors", {"format": "pt"})


def _n_bytes(shapes: dict[str, tuple[int, ...]]) -> int:
    return 4 * sum(math.prod(shape) for shape in shapes.values())


def _stands(folder: Path, what: dict[str, Any], n_bytes: int) -> bool:
    """Whether the work is there already. If not, the folder is made and is empty. Raises SystemExit."""
    if folder.resolve().is_relative_to(ROOT):
        raise SystemExit(f"{folder}: is in the repository. Choose a folder elsewhere.")
    stamp = folder / STAMP
    if stamp.exists() and json.loads(stamp.read_text()) == what:
        return True
    if folder.exists() and any(folder.iterdir()):
        raise SystemExit(f"{folder}: holds something else. Choose another folder, or remove it first.")
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free
    if free < ROOM * n_bytes:
        raise SystemExit(f"{folder}: needs {ROOM * n_bytes / 1e9:.1f} GB, the disk has {free / 1e9:.1f} GB free.")
    return False


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, help="where to make it (default: a new temporary folder)")
    parser.add_argument("--tasks", type=int, default=8)
    parser.add_argument("--layers", type=int, help="number of layers (default: as the model has)")
    parser.add_argument("--small", action="store_true", help="tiny layers, for tests")
    parser.add_argument("--adapters", action="store_true", help="a language model and LoRA adapters")
    parser.add_argument("--rank", type=int, default=16, help="rank of the adapters")
    options = parser.parse_args()
    folder = options.folder or Path(tempfile.mkdtemp(prefix="sftm-reference-"))
    layers = {"layers": options.layers} if options.layers else {}
    if options.adapters:
        language = asdict(SMALL_LANGUAGE if options.small else Language()) | layers
        work = make_adapters(folder, Language(**language), options.tasks, options.rank)
    else:
        work = make_towers(folder, Tower(**(asdict(SMALL_TOWER if options.small else Tower()) | layers)), options.tasks)
    print("\n".join(map(str, (work.base, *work.tasks))))


if __name__ == "__main__":
    main()
