"""Inputs without labels: texts, one a line, or images in a folder; or labelled samples, whose labels are left out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from sftm_app.errors import SampleError
from sftm_app.evaluation.image_files import IMAGE_ENDINGS, load_image
from sftm_app.evaluation.labelled import chats_at, family_at, find_samples
from sftm_app.evaluation.samples import ImageSamples, Samples, TextSamples
from sftm_app.preflight.preflight import Preflight
from sftm_app.tuning.unlabelled import FEWEST, MOST

MAX_BYTES = 16 * 1024 * 1024


def find_inputs(found: Preflight, root: Path) -> dict[str, Samples]:
    """The inputs of every task that has some.

    Args:
        found: base and tasks.
        root: a folder with `TASK.txt` for each task (one text a line) or a folder `TASK` of images; or what
            `evaluation.labelled.find_samples` takes.

    Raises:
        SampleError: the path does not exist, no task has any, or one has fewer than 16.
    """
    if not root.exists():
        raise SampleError(f"{root}: does not exist. Give a folder with inputs per task.")
    inputs: dict[str, Samples] = {}
    for index, task in enumerate(found.tasks):
        family = family_at(found, index)
        if family.reads == "text" and (root / f"{task.name}.txt").is_file():
            inputs[task.name] = _texts(root / f"{task.name}.txt", chats_at(found, index))
        elif family.reads == "images" and _images_in(root / task.name):
            grey = task.checkpoint.config.get("num_channels") == 1
            inputs[task.name] = _images(_images_in(root / task.name), 1 if grey else 3)
    if not inputs:
        inputs = without_labels(find_samples(found, root)[0])
    for name, samples in inputs.items():
        if len(samples) < FEWEST:
            raise SampleError(f"{root}: {name} has {len(samples)} inputs. Give {FEWEST} to {MOST}.")
    return inputs


def without_labels(samples: Mapping[str, Samples]) -> dict[str, Samples]:
    """At most MOST samples of each task, spread over its set, without their labels."""

    def strip(one: Samples) -> Samples:
        # Spread by position: the labels are not used, and sets are often stored class by class.
        chosen = np.linspace(0, len(one) - 1, min(MOST, len(one))).round().astype(int).tolist()
        taken = one.take(chosen)
        if isinstance(taken, TextSamples):
            return replace(taken, targets=(None,) * len(taken))
        return replace(taken, labels=np.full(len(taken), -1, np.int64))

    return {task: strip(one) for task, one in samples.items()}


def _texts(file: Path, chat: bool) -> TextSamples:
    try:
        with open(file, encoding="utf-8") as lines:
            content = lines.read(MAX_BYTES)
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or "not UTF-8 text"
        raise SampleError(f"{file}: cannot be read ({why}). Write one text a line.") from None
    texts = tuple(line for line in content.split("\n") if line.strip())[:MOST]
    return TextSamples(texts, (None,) * len(texts), chat=chat)


def _images_in(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(file for file in folder.iterdir() if file.suffix.lower() in IMAGE_ENDINGS)[:MOST]


def _images(files: list[Path], channels: int) -> ImageSamples:
    images = [load_image(file, channels) for file in files]
    shapes = {image.shape for image in images}
    if len(shapes) > 1:
        raise SampleError(f"{files[0].parent}: the images have {len(shapes)} sizes. Give images of one size.")
    return ImageSamples(np.stack(images), np.full(len(images), -1, np.int64))
