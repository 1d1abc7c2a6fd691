"""Models, tokenizers and preprocessing from a checkpoint's parts: offline, and never with code from the checkpoint."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import transformers

from sftm_app.architecture.naming import plain_names
from sftm_app.architecture.transformers_internals import parse_config as read_config
from sftm_app.errors import CheckpointError, SampleError
from sftm_app.evaluation.family import ModelParts
from sftm_app.evaluation.transformers_internals import model_from_tensors
from sftm_app.weights.json_files import read_json
from sftm_app.weights.shards import refuse_foreign_links

# tokenizer_config.json alone is not a tokenizer: an adapter's folder may hold one without a vocabulary.
VOCABULARY_NAMES = (
    "tokenizer.json",
    "vocab.txt",
    "vocab.json",
    "spiece.model",
    "tokenizer.model",
    "sentencepiece.bpe.model",
)
PROCESSOR_NAME = "preprocessor_config.json"


def model_class_of(name: str) -> type:
    """The class of transformers with this name.

    Raises:
        SampleError: there is no such class, or it is not a model.
    """
    found = getattr(transformers, name, None)
    if not isinstance(found, type) or not issubclass(found, transformers.PreTrainedModel):
        raise SampleError(f"The model class {name} is not known to transformers {transformers.__version__}.")
    return found


def parse_config(config: Mapping[str, Any]) -> Any:
    """The config of transformers for a config.json.

    Raises:
        SampleError: its model type is not known.
    """
    try:
        return read_config(config)
    except Exception as error:  # each config class has its own checks
        raise SampleError(f"config.json cannot be used: {_first_line(error)}") from None


def build_model(parts: ModelParts, optional: tuple[str, ...] = ()) -> Any:
    """Build a model in float32 on its device, in evaluation mode.

    Args:
        parts: what to build it from.
        optional: prefixes of weights that may be missing or left over.

    Raises:
        SampleError: the weights do not cover the model, or some of them do not belong to it.
    """
    # float32 throughout: half precision is slow on a CPU, and its rounding would blur the comparison.
    plain = plain_names(parts.tensors)
    tensors = {plain[name]: t.float() if t.is_floating_point() else t for name, t in parts.tensors.items()}
    transformers.utils.logging.disable_progress_bar()
    model, problems = model_from_tensors(model_class_of(parts.class_name), parse_config(parts.config), tensors)
    # Older versions saved buffers such as position ids; the model makes its own.
    buffers = {name for name, tensor in tensors.items() if not tensor.is_floating_point()}
    for kind, names in problems.items():
        ignored = buffers if kind == "unexpected" else set()
        wrong = [name for name in names if name not in ignored and not name.startswith(optional or ("\0",))]
        if wrong:
            raise SampleError(f"The weights do not fit {parts.class_name}: {kind} {', '.join(wrong[:3])}.")
    return model.to(parts.device).eval()


def load_tokenizer(folders: Sequence[Path]) -> Any:
    """The tokenizer of the first folder that has one.

    Raises:
        SampleError: no folder has one, or it cannot be read.
        CheckpointError: a link leads out of its folder.
    """
    folder = _first_with(folders, VOCABULARY_NAMES)
    if folder is None:
        raise SampleError(
            f"{folders[0]}: has no tokenizer, and neither has the base. Copy the model's tokenizer.json and "
            "tokenizer_config.json into one of the two folders."
        )
    refuse_foreign_links(folder)
    try:
        return transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    # The readers of the many formats raise all kinds of errors, a plain Exception among them.
    except Exception as error:
        raise SampleError(
            f"{folder}: its tokenizer cannot be used ({_first_line(error)}). Download it again."
        ) from None


def has_chat_template(folders: Sequence[Path]) -> bool:
    """Whether the tokenizer that `load_tokenizer` would load has a chat template. Does not load the tokenizer."""
    folder = _first_with(folders, VOCABULARY_NAMES)
    if folder is None:
        return False
    if (folder / "chat_template.jinja").is_file():
        return True
    try:
        return bool(read_json(folder / "tokenizer_config.json").get("chat_template"))
    except CheckpointError:
        return False


def load_processor(folders: Sequence[Path]) -> Any:
    """The image processor of the first folder that has one.

    Raises:
        SampleError: no folder has one, or it cannot be read or is not known.
        CheckpointError: a link leads out of its folder.
    """
    folder = _first_with(folders, (PROCESSOR_NAME,))
    if folder is None:
        raise SampleError(
            f"{folders[-1]}: has no {PROCESSOR_NAME}, so images cannot be prepared for the model. Copy the model's own "
            "into this folder."
        )
    refuse_foreign_links(folder)
    try:
        # The Pillow backend is always there; the default one needs torchvision.
        return transformers.AutoImageProcessor.from_pretrained(folder, backend="pil", local_files_only=True)
    except (OSError, ValueError) as error:
        raise SampleError(f"{folder}: its {PROCESSOR_NAME} cannot be used ({_first_line(error)}).") from None


def _first_with(folders: Sequence[Path], names: Sequence[str]) -> Path | None:
    """The first folder that holds a file of one of these names."""
    return next((folder for folder in folders if any((folder / name).is_file() for name in names)), None)


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]
