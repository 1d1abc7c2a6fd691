"""Models, tokenizers and preprocessing from a checkpoint's parts: offline, and never with code of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers

from sftm_app.errors import CheckpointError, SampleError
from sftm_app.evaluation.family import Parts
from sftm_app.weights.checkpoint import read_json

# tokenizer_config.json alone is no tokenizer: it may stand in an adapter's folder without a vocabulary.
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
    """A class of transformers by its name.

    Raises
        SampleError: there is none of that name, or it is no model.
    """
    found = getattr(transformers, name, None)
    if not isinstance(found, type) or not issubclass(found, transformers.PreTrainedModel):
        raise SampleError(f"The model class {name} is not known to transformers {transformers.__version__}.")
    return found


def parse_config(config: Mapping[str, Any]) -> Any:
    """A config.json as transformers reads it.

    Raises
        SampleError: its model type is not known.
    """
    try:
        return transformers.AutoConfig.for_model(**config)
    except ValueError as error:
        raise SampleError(f"config.json cannot be used: {str(error).partition(chr(10))[0]}") from None


def build_model(parts: Parts, unused: tuple[str, ...] = ()) -> Any:
    """The model in float32 on its device, ready to be asked. unused: beginnings of names that may be missing or left.

    Raises
        SampleError: the weights do not cover the model, or hold more than it.
    """
    model_class: Any = model_class_of(parts.class_name)
    config = parse_config(parts.config)
    # float32 throughout: half precision is slow on a CPU, and its rounding would blur the comparison.
    transformers.utils.logging.disable_progress_bar()
    values = {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in parts.tensors.items()}
    model, info = model_class.from_pretrained(
        None, config=config, state_dict=values, output_loading_info=True, dtype=torch.float32
    )
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        names = sorted(name for name in map(_name, info[kind]) if not name.startswith(unused or ("\0",)))
        # Buffers such as position ids were once saved along; they say nothing that the config does not.
        if kind == "unexpected_keys":
            names = [name for name in names if name not in values or values[name].is_floating_point()]
        if names:
            raise SampleError(f"The weights do not fit {parts.class_name}: {kind.replace('_', ' ')} {names[:3]}.")
    return model.to(parts.device).eval()


def _name(key: Any) -> str:
    """Mismatched keys come with their two shapes."""
    return str(key[0]) if isinstance(key, tuple) else str(key)


def parameter_bytes(model: Any) -> int:
    """What a model's parameters take of memory."""
    return sum(parameter.nbytes for parameter in model.parameters())


def load_tokenizer(folders: Sequence[Path]) -> Any:
    """The tokenizer of the first folder that has one.

    Raises
        SampleError: none has, or it cannot be read.
    """
    folder = next((folder for folder in folders if _holds_tokenizer(folder)), None)
    if folder is None:
        raise SampleError(
            f"{folders[0]}: has no tokenizer, and neither has the base. Copy tokenizer.json and tokenizer_config.json "
            "of the model into one of the two folders."
        )
    try:
        return transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    # The readers of many formats raise whatever they like (a plain Exception among others).
    except Exception as error:
        said = str(error).partition("\n")[0]
        raise SampleError(f"{folder}: its tokenizer cannot be used ({said}). Download it again.") from None


def _holds_tokenizer(folder: Path) -> bool:
    return any((folder / name).is_file() for name in VOCABULARY_NAMES)


def has_chat_template(folders: Sequence[Path]) -> bool:
    """Whether the tokenizer that load_tokenizer would load has a chat template. Nothing but JSON is read."""
    folder = next((folder for folder in folders if _holds_tokenizer(folder)), None)
    if folder is None:
        return False
    if (folder / "chat_template.jinja").is_file():
        return True
    try:
        return bool(read_json(folder / "tokenizer_config.json").get("chat_template"))
    except CheckpointError:
        return False


def load_processor(folders: Sequence[Path]) -> Any:
    """The image preprocessing of the first folder that names one.

    Raises
        SampleError: none does, or it cannot be read or is not known.
    """
    folder = next((folder for folder in folders if (folder / PROCESSOR_NAME).is_file()), None)
    if folder is None:
        raise SampleError(
            f"{folders[-1]}: has no preprocessor_config.json, so images cannot be prepared for the model. Copy the one "
            "of the model into this folder."
        )
    try:
        # The Pillow backend is always there; the default one needs torchvision.
        return transformers.AutoImageProcessor.from_pretrained(folder, backend="pil", local_files_only=True)
    except (OSError, ValueError) as error:
        said = str(error).partition("\n")[0]
        raise SampleError(f"{folder}: its preprocessor_config.json cannot be used ({said}).") from None
