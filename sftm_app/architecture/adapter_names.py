"""Names of the tensors in a LoRA adapter's file, and what the same parameters are called in the base's files."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from sftm_app.architecture.architecture import Architecture
from sftm_app.architecture.naming import without_wrappers
from sftm_app.weights.adapter_config import PEFT_PREFIX

_FACTOR = re.compile(
    r"(?P<module>.+)\.lora_(?P<table>embedding_)?(?P<half>[AB])(?:\.(?P<adapter>[^.]+?))??(?:\.weight)?"
)
_WRAPPED = re.compile(r"\.(?:base_layer|modules_to_save(?:\.[^.]+)?)(?=\.[^.]+$)")
# Tensors of other adapters, and of variants of LoRA.
_OTHER_KINDS = re.compile(r"\.(lora_[A-Za-z_]+|token_adapter|ranknum|vera_[a-z_]+|hada_[a-z0-9_]+|ia3_l)\b")


@dataclass(frozen=True)
class AdapterNames:
    """The names of an adapter's tensors, by what they are.

    Attributes:
        factors: module path -> {"A": name, "B": name}, the factors for the module's weight.
        tables: the modules in `factors` that are embedding tables.
        whole: parameter path -> name, for tensors that replace the base's.
        duplicates: names of tensors that hold the same as another one.
        unknown: all other names.
    """

    factors: dict[str, dict[str, str]] = field(default_factory=dict)
    tables: set[str] = field(default_factory=set)
    whole: dict[str, str] = field(default_factory=dict)
    duplicates: list[str] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)


def parse_names(names: Iterable[str]) -> AdapterNames:
    """Sort the names of an adapter's tensors by what they are."""
    found = AdapterNames()
    known = set(names)
    for name in sorted(known):
        plain = without_wrappers(name)
        path = without_wrappers(plain.removeprefix(PEFT_PREFIX))
        factor = _FACTOR.fullmatch(path)
        if not plain.startswith(PEFT_PREFIX):
            found.unknown.append(name)
        elif factor and not path.endswith(".bias"):
            pair = found.factors.setdefault(factor["module"], {})
            found.duplicates.extend([name] if factor["half"] in pair else [])
            pair.setdefault(factor["half"], name)
            if factor["table"]:
                found.tables.add(factor["module"])
        elif _OTHER_KINDS.search(path):
            found.unknown.append(name)
        elif ".original_module." not in path:
            # The frozen copy of a trained module (`original_module`) is not used. PEFT saves the trained biases of such
            # a module under two names, and loads the plain one.
            parameter = _WRAPPED.sub("", path)
            if ".modules_to_save." in path and PEFT_PREFIX + parameter in known:
                continue
            found.duplicates.extend([name] if parameter in found.whole else [])
            found.whole.setdefault(parameter, name)
    return found


def names_in_base(path: str, architecture: Architecture) -> Iterator[str]:
    """What a parameter of an adapter may be called in the base's files.

    Its path is tried with and without the backbone's prefix, as a name in memory and as a name in the files.
    """
    for candidate in _with_and_without(path, architecture.backbone_prefix):
        for name in (candidate, architecture.file_names.get(candidate, candidate)):
            for found in _with_and_without(name, architecture.backbone_prefix):
                yield architecture.stored.get(found, found)


def _with_and_without(path: str, prefix: str) -> tuple[str, ...]:
    return (path, prefix + path, path.removeprefix(prefix))


def names_in_memory(architecture: Architecture) -> dict[str, tuple[str, ...]]:
    """Name in the base's files -> its names in memory: its own name first, then those tied to it."""
    found: dict[str, list[str]] = {}
    for memory, file in architecture.file_names.items():
        found.setdefault(file, []).append(memory)
    return {file: tuple(sorted(names, key=lambda name: is_tied(name, architecture))) for file, names in found.items()}


def is_tied(path: str, architecture: Architecture) -> bool:
    """Whether a path is a second name of another parameter."""
    return path.removeprefix(architecture.backbone_prefix) in architecture.ties
