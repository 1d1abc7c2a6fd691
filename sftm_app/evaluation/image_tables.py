"""Labelled images from a Parquet file, as image sets on the Hugging Face hub are stored."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np

from sftm_app.errors import SampleError
from sftm_app.evaluation.image_files import class_index, decode_image, no_class, of_one_size
from sftm_app.evaluation.samples import ImageSamples, balanced
from sftm_app.evaluation.table_files import label_texts, read_labelled

COLUMNS = (("image", "label"), ("img", "label"))


def load_image_table(
    file: Path, id2label: dict[int, str] | None, channels: int, limit: int = 2000
) -> tuple[ImageSamples, tuple[str, ...]]:
    """Read labelled images from a Parquet file with the columns image (the bytes of PNG or JPEG) and label.

    Args:
        file: the file. Its labels are the names of classes or their numbers.
        id2label: the classes by number; None for those of the file.
        channels: 1 for grey, 3 for colour.
        limit: how many images to read at most, evenly over the classes.

    Returns:
        The images, scaled to the size of the first one, and the names of the classes.

    Raises:
        SampleError: the file or an image in it cannot be read, or a label names no class.
    """
    table = read_labelled(file, COLUMNS)
    labels = label_texts(file, table)
    if not labels:
        raise SampleError(f"{file}: holds no images. It needs rows with the columns image and label.")
    if id2label is None:
        id2label = dict(enumerate(table.classes or sorted(set(labels))))
    index = class_index(id2label)
    other = next((label for label in labels if label not in index), None)
    if other is not None:
        raise SampleError(f"{file}: {no_class(other, id2label)}")
    chosen = balanced(labels, limit)
    odd = next((row for row in chosen if not isinstance(table.inputs[row], bytes)), None)
    if odd is not None:
        raise SampleError(f"{file}: row {odd + 1} holds no image. The column should hold the bytes of image files.")
    images = (decode_image(io.BytesIO(table.inputs[row]), f"{file.name}, row {row + 1}", channels) for row in chosen)
    samples = ImageSamples(of_one_size(images), np.array([index[labels[row]] for row in chosen], np.int64))
    return samples, tuple(id2label.values())
