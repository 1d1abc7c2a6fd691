"""Labelled samples as folders of images."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from sftm_app.evaluation.samples import ImageSamples, Samples


def write_images(folder: Path, samples: dict[str, Samples]) -> Path:
    """The samples as folders of images by task and class."""
    for task, one in samples.items():
        assert isinstance(one, ImageSamples)
        for number, (image, label) in enumerate(zip(one.images, one.labels, strict=True)):
            place = folder / task / str(label)
            place.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(place / f"{number:03}.png")
    return folder
