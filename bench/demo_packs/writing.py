"""Write the `glyphs` pack: Hugging Face folders in float16, held-out samples and pack.json."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import ViTForImageClassification, ViTModel

from bench.demo_packs.augment import Pool
from bench.demo_packs.scripts import SCRIPTS, Script
from bench.demo_packs.training import accuracy, config

PREPROCESSOR = {
    "image_processor_type": "ViTImageProcessor",
    "do_resize": True,
    "size": {"height": 28, "width": 28},
    "resample": 2,
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "image_mean": [0.5],
    "image_std": [0.5],
    "do_convert_rgb": False,
}


def write_json(path: Path, content: object) -> None:
    """Write JSON with characters instead of escapes."""
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def write_base(folder: Path, model: ViTModel) -> None:
    """Write the base checkpoint in float16."""
    half = ViTModel(config(), add_pooling_layer=False)
    half.load_state_dict(model.state_dict())
    half.half().save_pretrained(folder)
    write_json(folder / "preprocessor_config.json", PREPROCESSOR)


def write_task(folder: Path, model: ViTModel, head: nn.Linear, script: Script) -> None:
    """Write a task checkpoint in float16: backbone and head, with the names of the classes."""
    labels = script.labels()
    settings = config()
    settings.num_labels = len(labels)
    settings.id2label = dict(enumerate(labels))
    settings.label2id = {name: number for number, name in enumerate(labels)}
    full = ViTForImageClassification(settings)
    full.vit.load_state_dict(model.state_dict())
    full.classifier.load_state_dict(head.state_dict())
    full.half().save_pretrained(folder)
    write_json(folder / "preprocessor_config.json", PREPROCESSOR)


def write_samples(path: Path, pool: Pool) -> None:
    """Write held-out images, uint8 (n, 28, 28), and labels, int64 (n,)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({"images": pool.images.contiguous(), "labels": pool.labels.contiguous()}, path)


def read_models(pack: Path, name: str) -> tuple[ViTModel, nn.Linear]:
    """Load the backbone and the head of a task from the files, in float32."""
    model = ViTForImageClassification.from_pretrained(pack / "tasks" / name, dtype=torch.float32).eval()
    return model.vit, model.classifier


def measure(pack: Path) -> dict[str, dict[str, float]]:
    """Accuracy on the held-out samples, measured from the files: the base with each head, and each task's own model."""
    base = ViTModel.from_pretrained(pack / "base", add_pooling_layer=False, dtype=torch.float32).eval()
    result: dict[str, dict[str, float]] = {"base": {}, "individual": {}}
    for script in SCRIPTS:
        samples: dict[str, Tensor] = load_file(pack / "samples" / f"{script.name}.safetensors")
        model, head = read_models(pack, script.name)
        result["base"][script.name] = round(accuracy(base, head, samples["images"], samples["labels"]), 4)
        result["individual"][script.name] = round(accuracy(model, head, samples["images"], samples["labels"]), 4)
    return result


def write_pack(
    pack: Path,
    base: ViTModel,
    heads: dict[str, nn.Linear],
    models: dict[str, ViTModel],
    samples: dict[str, Pool],
    licences: list[dict[str, str]],
    about: dict[str, object],
) -> dict[str, dict[str, float]]:
    """Write the pack to `<pack>.partial`, measure it, and replace an older pack. Returns the accuracies."""
    partial = pack.with_name(pack.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    write_base(partial / "base", base)
    for script in SCRIPTS:
        write_task(partial / "tasks" / script.name, models[script.name], heads[script.name], script)
        write_samples(partial / "samples" / f"{script.name}.safetensors", samples[script.name])
    figures = measure(partial)
    tasks = [
        {
            "name": script.name,
            "title": script.title,
            "description": script.description,
            "path": f"tasks/{script.name}",
            "samples": f"samples/{script.name}.safetensors",
            "n_classes": len(script.characters),
            "n_samples": len(samples[script.name]),
        }
        for script in SCRIPTS
    ]
    image = {"size": 28, "channels": 1, "ink": "white on black", "ink_size": 20}
    content = {**about, "image": image, "base": "base", "tasks": tasks, "accuracy": figures, "licences": licences}
    write_json(partial / "pack.json", content)
    for file in partial.rglob("*.safetensors"):
        file.chmod(0o644)  # safetensors makes files that only their owner can read
    shutil.rmtree(pack, ignore_errors=True)
    partial.rename(pack)
    return figures
