"""Which files of a hub repository make a checkpoint. Never code, pickles or weights in other formats."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import psutil

from sftm_app.weights.file_names import (
    ADAPTER_CONFIG_NAME,
    ADAPTER_WEIGHTS_NAME,
    CONFIG_NAME,
    INDEX_NAME,
    SHARD_NAME,
    WEIGHTS_NAME,
)
from sftm_app.weights.hub_names import HubRef

CONFIGS = (CONFIG_NAME, ADAPTER_CONFIG_NAME, INDEX_NAME)
_PICKLE = re.compile(r"[^/]*\.(bin|pt|pth|ckpt|pkl|h5|msgpack)")
# Tokenizers, processors, chat templates, licences, and sentence-transformers' other modules.
_OTHERS = re.compile(
    r"(generation_config|tokenizer|tokenizer_config|special_tokens_map|added_tokens|vocab|preprocessor_config"
    r"|processor_config|image_processor_config|video_preprocessor_config|feature_extractor_config|chat_template"
    r"|modules|sentence_bert_config|config_sentence_transformers)\.json"
    r"|(vocab|merges|bpe)\.(txt|codes)|[A-Za-z0-9._-]+\.model|chat_template\.jinja"
    r"|additional_chat_templates/[A-Za-z0-9_-]+\.jinja|README\.md|LICENSE(\.(txt|md))?|NOTICE(\.txt)?"
    r"|[0-9]+_[A-Z][A-Za-z]+/(config\.json|model\.safetensors)"
)


@dataclass(frozen=True)
class Download:
    """What to download of a repository.

    Attributes:
        ref: the repository, and the revision asked for.
        commit: the commit of that revision.
        files: name -> size in bytes.
        missing_bytes: the size of the files that the cache does not hold yet.
        note: a sentence worth knowing, or "".
    """

    ref: HubRef
    commit: str
    files: dict[str, int]
    missing_bytes: int
    note: str = ""


def weight_files(names: Iterable[str], shards: Iterable[str] = ()) -> list[str]:
    """The weights among a repository's files: an adapter's, or the single file, or the shards that the index names.

    A repository with both a single file and shards holds the same weights twice; the single file is used.
    """
    there = set(names)
    if ADAPTER_CONFIG_NAME in there:
        return [ADAPTER_WEIGHTS_NAME] if ADAPTER_WEIGHTS_NAME in there else []
    if WEIGHTS_NAME in there:
        return [WEIGHTS_NAME]
    return sorted(name for name in set(shards) if name in there and SHARD_NAME.fullmatch(name))


def needed_files(names: Iterable[str], shards: Iterable[str] = ()) -> list[str]:
    """Everything to download, sorted: the weights, their configs, and the model's other files."""
    there = sorted(set(names))
    weights = weight_files(there, shards)
    configs = [name for name in CONFIGS if name in there and not (name == INDEX_NAME and weights == [WEIGHTS_NAME])]
    return sorted({*weights, *configs, *(name for name in there if _OTHERS.fullmatch(name))})


def pickles(names: Iterable[str]) -> list[str]:
    """Weights in formats that can run code when loaded, or that cannot be read here."""
    return sorted(name for name in names if _PICKLE.fullmatch(name))


def unfinished_files(cache: Path, process_id: int | None = None) -> list[Path]:
    """Files that a process (by default this one) is writing to the cache. They are useless without it."""
    with contextlib.suppress(psutil.Error, OSError):
        paths = [Path(file.path) for file in psutil.Process(process_id).open_files()]
        return [path for path in paths if path.suffix == ".incomplete" and cache in path.parents]
    return []
