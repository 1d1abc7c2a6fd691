"""Image classifiers: a merged backbone with a task's own head. The first model family."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from numpy.typing import NDArray
from torch import Tensor

from sftm_app.errors import SampleError

BATCH = 256
# What a gray picture takes of red, green and blue (ITU-R BT.601, as Pillow's mode L).
LUMINANCE = np.array([0.299, 0.587, 0.114])


@dataclass(frozen=True, eq=False)
class ImageClassifier:
    """A model ready to classify, with its preprocessing and its class names by index."""

    model: Any
    processor: Any
    labels: tuple[str, ...]
    channels: int

    def probabilities(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Class probabilities, float32 (n, classes), of uint8 images (n, height, width) or (n, height, width, 3)."""
        found = [self._batch(images[i : i + BATCH]) for i in range(0, len(images), BATCH)]
        return np.concatenate(found) if found else np.zeros((0, len(self.labels)), np.float32)

    def accuracy(self, images: NDArray[np.uint8], labels: NDArray[np.int64]) -> float:
        """The share of images whose most probable class is their label, 0..1."""
        return float((self.probabilities(images).argmax(1) == labels).mean())

    @torch.inference_mode()
    def _batch(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        if images.ndim == 4 and self.channels == 1:
            images = np.round(images @ LUMINANCE).astype(np.uint8)
        if images.ndim == 3:
            images = images[:, None] if self.channels == 1 else np.repeat(images[:, None], 3, axis=1)
        else:
            images = images.transpose(0, 3, 1, 2)
        inputs = self.processor(images=list(images), return_tensors="pt", input_data_format="channels_first")
        pixels = inputs["pixel_values"].to(self.model.device, self.model.dtype)
        result: NDArray[np.float32] = self.model(pixel_values=pixels).logits.float().softmax(-1).cpu().numpy()
        return result


def build_image_classifier(
    config: Mapping[str, Any], tensors: Mapping[str, Tensor], processor_folder: Path, device: torch.device
) -> ImageClassifier:
    """A classifier from a task's config.json and a whole set of weights under the names of the task's files.

    Raises
        SampleError: the task's model is no image classifier, the weights do not cover it, or preprocessor_config.json
            is missing from `processor_folder`.
    """
    named = (config.get("architectures") or ["none"])[0]
    model_class = getattr(transformers, named, None)
    if model_class is None or not named.endswith("ForImageClassification"):
        raise SampleError(f"The model class {named} cannot be tried here yet: only image classifiers can.")
    parsed = transformers.AutoConfig.for_model(**config)
    # float32 throughout: half precision is slow on a CPU, and its rounding would blur the comparison.
    transformers.utils.logging.disable_progress_bar()
    values = {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}
    model, info = model_class.from_pretrained(
        None, config=parsed, state_dict=values, output_loading_info=True, dtype=torch.float32
    )
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if info[kind]:
            raise SampleError(f"The weights do not fit {named}: {kind.replace('_', ' ')} {sorted(info[kind])[:3]}.")
    labels = tuple(str(parsed.id2label[i]) for i in range(parsed.num_labels))
    channels = int(getattr(parsed, "num_channels", 3))
    return ImageClassifier(model.to(device).eval(), load_processor(processor_folder), labels, channels)


def load_processor(folder: Path) -> Any:
    """The preprocessing that a checkpoint folder names.

    Raises
        SampleError: it names none, or one that cannot be read or is not known.
    """
    try:
        if not (folder / "preprocessor_config.json").is_file():
            raise SampleError(f"{folder}: has no preprocessor_config.json, so images cannot be prepared for the model.")
        # The Pillow backend is always there; the default one needs torchvision.
        return transformers.AutoImageProcessor.from_pretrained(folder, backend="pil", local_files_only=True)
    except (OSError, ValueError) as error:
        said = str(error).partition("\n")[0]
        raise SampleError(f"{folder}: its preprocessor_config.json cannot be used ({said}).") from None
