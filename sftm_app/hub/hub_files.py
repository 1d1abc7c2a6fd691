"""Which files of a hub repository make a checkpoint. Never code, never pickles, never other formats' weights."""

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
# Beside config and weights: tokenizers, processors, chat templates, licences, and sentence-transformers' pooling.
_ALONGSIDE = re.compile(
    r"(generation_config|tokenizer|tokenizer_config|special_tokens_map|added_tokens|vocab|preprocessor_config"
    r"|processor_config|image_processor_config|video_preprocessor_config|feature_extractor_config|chat_template"
    r"|modules|sentence_bert_config|config_sentence_transformers)\.json"
    r"|(vocab|merges|bpe)\.(txt|codes)|[A-Za-z0-9._-]+\.model|chat_template\.jinja"
    r"|additional_chat_templates/[A-Za-z0-9_-]+\.jinja|README\.md|LICENSE(\.(txt|md))?|NOTICE(\.txt)?"
    r"|[0-9]+_[A-Z][A-Za-z]+/config\.json"
)


@dataclass(frozen=True)
class Found:
    """What a download would bring. files: bytes by name; missing_bytes: those that the cache does not hold yet."""

    ref: HubRef
    commit: str
    files: dict[str, int]
    missing_bytes: int
    note: str = ""


def weight_files(names: Iterable[str], shards: Iterable[str] = ()) -> list[str]:
    """The safetensors files among a repository's `names`: an adapter's, else the single file, else the index's shards.

    A repository that holds both a single file and shards holds the same weights twice; the single file is taken.
    """
    there = set(names)
    if ADAPTER_CONFIG_NAME in there:
        return [ADAPTER_WEIGHTS_NAME] if ADAPTER_WEIGHTS_NAME in there else []
    if WEIGHTS_NAME in there:
        return [WEIGHTS_NAME]
    return sorted(name for name in set(shards) if name in there and SHARD_NAME.fullmatch(name))


def needed_files(names: Iterable[str], shards: Iterable[str] = ()) -> list[str]:
    """Everything to download, in the order of the names: the weights, their configs, and what stands beside them."""
    there = sorted(set(names))
    weights = weight_files(there, shards)
    configs = [name for name in CONFIGS if name in there and not (name == INDEX_NAME and weights == [WEIGHTS_NAME])]
    return sorted({*weights, *configs, *(name for name in there if _ALONGSIDE.fullmatch(name))})


def pickles(names: Iterable[str]) -> list[str]:
    """Weights in formats that can run code when loaded, or that are not read here."""
    return sorted(name for name in names if _PICKLE.fullmatch(name))


def unfinished_files(cache: Path, process_id: int | None = None) -> list[Path]:
    """What a process (by default this one) is still writing into the cache; nobody could go on with these files."""
    with contextlib.suppress(psutil.Error, OSError):
        paths = [Path(file.path) for file in psutil.Process(process_id).open_files()]
        return [path for path in paths if path.suffix == ".incomplete" and cache in path.parents]
    return []
