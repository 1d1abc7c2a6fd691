"""The names of tensors in a LoRA adapter's file, taken apart; and what they may be called in the base's files."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from sftm_app.architecture.architecture import Architecture
from sftm_app.weights.adapter_config import PEFT_PREFIX

_FACTOR = re.compile(
    r"(?P<module>.+)\.lora_(?P<table>embedding_)?(?P<half>[AB])(?:\.(?P<adapter>[^.]+?))??(?:\.weight)?"
)
_WRAPPED = re.compile(r"\.(?:base_layer|modules_to_save(?:\.[^.]+)?)(?=\.[^.]+$)")
# What variants of LoRA add to their files.
_OTHER_KINDS = re.compile(r"\.(lora_[A-Za-z_]+|token_adapter|ranknum|vera_[a-z_]+|hada_[a-z0-9_]+|ia3_l)\b")


@dataclass(frozen=True)
class Names:
    """Every tensor of an adapter, by what it is.

    factors: module path -> {"A": name, "B": name}, of the module's weight. tables: those of them that change an
    embedding table. whole: path of a parameter -> name, for tensors that replace the base's. twice: names that say
    again what another one says. unknown: names that are none of these.
    """

    factors: dict[str, dict[str, str]] = field(default_factory=dict)
    tables: set[str] = field(default_factory=set)
    whole: dict[str, str] = field(default_factory=dict)
    twice: list[str] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)


def take_apart(names: Iterable[str]) -> Names:
    """Sort the names of an adapter's tensors."""
    found = Names()
    known = set(names)
    for name in sorted(known):
        path = name.removeprefix(PEFT_PREFIX)
        factor = _FACTOR.fullmatch(path)
        if not name.startswith(PEFT_PREFIX):
            found.unknown.append(name)
        elif factor and not path.endswith(".bias"):
            pair = found.factors.setdefault(factor["module"], {})
            found.twice.extend([name] if factor["half"] in pair else [])
            pair.setdefault(factor["half"], name)
            if factor["table"]:
                found.tables.add(factor["module"])
        elif _OTHER_KINDS.search(path):
            found.unknown.append(name)
        elif ".original_module." not in path:
            # The frozen copy beside a trained module (`original_module`) takes no part in the model. PEFT saves trained
            # biases of such a module under two names, and loads the plain one.
            plain = _WRAPPED.sub("", path)
            if ".modules_to_save." in path and PEFT_PREFIX + plain in known:
                continue
            found.twice.extend([name] if plain in found.whole else [])
            found.whole.setdefault(plain, name)
    return found


def names_in_base(path: str, architecture: Architecture) -> Iterator[str]:
    """What a parameter may be called in the base's files: as it stands, with or without the prefix of the backbone, and
    turned from its name in memory into that in the files."""
    for candidate in _with_and_without(path, architecture.backbone_prefix):
        for name in (candidate, architecture.file_names.get(candidate, candidate)):
            yield from _with_and_without(name, architecture.backbone_prefix)


def _with_and_without(path: str, prefix: str) -> tuple[str, ...]:
    return (path, prefix + path, path.removeprefix(prefix))


def names_in_memory(architecture: Architecture) -> dict[str, tuple[str, ...]]:
    """What the tensors of the base's files are called in the model: first its own name, then those tied to it."""
    found: dict[str, list[str]] = {}
    for memory, file in architecture.file_names.items():
        found.setdefault(file, []).append(memory)
    return {file: tuple(sorted(names, key=lambda name: is_tied(name, architecture))) for file, names in found.items()}


def is_tied(path: str, architecture: Architecture) -> bool:
    """Whether a parameter is another one's second name."""
    return path.removeprefix(architecture.backbone_prefix) in architecture.ties
