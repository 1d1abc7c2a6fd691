"""Roles of a checkpoint without config.json, guessed from the names and shapes of its tensors.

The guess is an Architecture like one that a config gives, so everything behind it works unchanged. A person may set
another role by a pattern of names (role_rules.py); each guess says what it rests on.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace

from sftm_app.architecture.architecture import Architecture
from sftm_app.architecture.fused import Fused
from sftm_app.architecture.owners import Owner
from sftm_app.weights.header import TensorInfo

_EMBEDDING = re.compile(r"emb|^(wte|wpe|tok|token|tokens|pos|position|positions|positional|cls|relative|codebook)$")
# A projection of embeddings is a linear map all the same.
_PROJECTION = re.compile(r"^(proj|project|projection|projector|mapping|transform|dense|linear|fc|conv|out)$")
_NORM = re.compile(r"norm|^(ln|bn|gn|rms|gamma|beta|running)$")
_HEAD = re.compile(r"^(classifier|lm_head|head|heads|score|qa_outputs|cls|classification_head|fc_norm|pre_classifier)$")
_QKV = ("query", "key", "value")
_FUSED_NAMES = ("c_attn", "qkv", "qkv_proj", "Wqkv", "in_proj", "query_key_value")
# A task may lack the base's first tensors, so the prefix is looked for behind several.
_TRIED = 16
_POOLER = re.compile(r"^(pooler|head|heads)$")


def guess_architecture(tensors: Mapping[str, TensorInfo]) -> Architecture:
    """An Architecture by the names in the files. Every owner's `why` says what the guess rests on."""
    owners = {name: _guess(info, tensors) for name, info in tensors.items()}
    settled = _settle_squares(owners, tensors)
    return _architecture({name: _with_fused(owner, tensors[name]) for name, owner in settled.items()}, "")


def guess_task(tensors: Mapping[str, TensorInfo], base: Mapping[str, TensorInfo], known: Architecture) -> Architecture:
    """The same for a task of a base whose owners are `known`: they hold wherever the two have the same parameter.

    A prefix that the task puts before the base's names, or the base before the task's, is found by comparing them.
    """
    prefix = known.backbone_prefix or _prefix(base, tensors) or _prefix(tensors, base)
    wrapped = bool(prefix) and any(name.startswith(prefix) for name in tensors)
    owners = {}
    for name, guessed in guess_architecture(tensors).owners.items():
        same = (name, name.removeprefix(prefix), prefix + name)
        owner = next((known.owners[other] for other in same if other in known.owners), guessed)
        owners[name] = replace(owner, in_backbone=name.startswith(prefix)) if wrapped else owner
    return _architecture(owners, prefix)


def _architecture(owners: dict[str, Owner], prefix: str) -> Architecture:
    """Names are what they are in the files, and nothing is known to be tied."""
    return Architecture(owners, prefix, file_names={name: name for name in owners}, keys=frozenset(owners))


def _prefix(inner: Mapping[str, TensorInfo], outer: Mapping[str, TensorInfo]) -> str:
    """What `outer` puts before most of the names of `inner`, such as "bert."; "" when the names are the same."""
    some = list(inner)[:_TRIED]
    candidates = {name.removesuffix(first) for first in some for name in outer if name.endswith(f".{first}")}
    for candidate in sorted(candidates, key=len):
        found = sum(candidate + name in outer for name in inner)
        if found > len(inner) / 2 and found > sum(name in outer for name in inner):
            return candidate
    return ""


def by_file_names(known: Architecture) -> Architecture:
    """A task's architecture without the names in memory, which a bare base does not have."""
    return replace(known, owners={name: replace(owner, key="") for name, owner in known.owners.items()})


def may_be_absent(name: str) -> bool:
    """Whether fine-tunes often come without this tensor of their base: heads and poolers."""
    return any(_HEAD.search(segment) or _POOLER.search(segment) for segment in name.split("."))


def _guess(info: TensorInfo, tensors: Mapping[str, TensorInfo]) -> Owner:
    kind, why = _kind(info, tensors) if info.is_float else ("buffer", "from its type")
    in_backbone = not any(_HEAD.search(segment) for segment in info.name.split("."))
    return Owner("", kind, in_backbone, why=f"guessed {why}")


def _kind(info: TensorInfo, tensors: Mapping[str, TensorInfo]) -> tuple[str, str]:
    """The kind as in Owner, and what it rests on."""
    module, leaf = _split(info.name)
    words = _words(module)
    # T5's table is called just "shared"; a layer that experts share is none.
    named = words == ["shared"] or any(_EMBEDDING.search(word) for word in words)
    embeds = named and not any(_PROJECTION.search(word) for word in words)
    dimensions = len(info.shape)
    if dimensions == 0:
        return "embedding", "from its shape: a single number, treated like an embedding"
    if leaf == "bias" or (dimensions == 1 and leaf == "weight"):
        return _kind_of_vector(module, leaf, info, tensors)
    if dimensions == 1:
        if any(_NORM.search(word) for word in words):
            return "norm", "from its name: norm"
        return "embedding", f"from its {'name' if embeds else 'shape'}: a vector of its own, treated like an embedding"
    if "expert" in info.name.lower() and dimensions == 3:
        return _experts(info, tensors)
    if embeds and (dimensions == 2 or leaf != "weight"):
        return "embedding", "from its name: embedding"
    if dimensions == 2:
        return _orientation(info, tensors)
    if leaf != "weight" and info.shape[0] == 1:
        return "embedding", "from its shape: one table for every input, treated like an embedding"
    return "convolution", "from its shape: the matrix of a convolution"


def _experts(info: TensorInfo, tensors: Mapping[str, TensorInfo]) -> tuple[str, str]:
    """A stack is stored as experts x out x in unless the bias beside it is as long as the last dimension only."""
    biases = (tensors.get(info.name + ending) for ending in ("_bias", ".bias"))
    bias = next((found for found in biases if found is not None), None)
    rows, columns = info.shape[1:]
    if bias is not None and rows != columns and bias.shape[-1:] == (columns,):
        return "experts_transposed", "from its name and its bias: experts, stored transposed"
    return "experts", "from its name and shape: experts"


def _kind_of_vector(module: str, leaf: str, info: TensorInfo, tensors: Mapping[str, TensorInfo]) -> tuple[str, str]:
    """A bias of any shape, or a weight of one dimension."""
    if any(_NORM.search(word) for word in _words(module)):
        return "norm", "from its name: norm"
    if leaf == "weight":
        return "norm", "from its shape: a weight of one dimension, so norm"
    weight = tensors.get(_beside(info.name, "bias", "weight"))
    if weight is not None and len(weight.shape) == 1:
        return "norm", "from the weight beside it, which has one dimension: norm"
    return "bias", "from its name: bias"


def _orientation(info: TensorInfo, tensors: Mapping[str, TensorInfo]) -> tuple[str, str]:
    """A matrix is stored as out x in unless its bias has the length of the second dimension only."""
    bias = tensors.get(_beside(info.name, "weight", "bias"))
    rows, columns = info.shape
    if bias is None or bias.shape not in ((rows,), (columns,)):
        return "linear", "from its shape: matrix, out x in"
    if rows == columns:
        return "square", ""
    if bias.shape == (columns,):
        return "linear_transposed", "from the length of its bias: matrix, stored transposed (in x out)"
    return "linear", "from the length of its bias: matrix, out x in"


def _settle_squares(owners: dict[str, Owner], tensors: Mapping[str, TensorInfo]) -> dict[str, Owner]:
    """A square matrix is stored as most matrices of its module's name are, or else as most in the file."""
    votes: dict[str, Counter[str]] = {"": Counter()}
    for name, owner in owners.items():
        if owner.kind in ("linear", "linear_transposed") and _beside(name, "weight", "bias") in tensors:
            for group in ("", _last(name)):
                votes.setdefault(group, Counter())[owner.kind] += 1

    def settle(name: str, owner: Owner) -> Owner:
        if owner.kind != "square":
            return owner
        counted = votes.get(_last(name)) or votes[""]
        if counted["linear_transposed"] > counted["linear"]:
            why = "guessed from the others: matrix, stored transposed (in x out)"
            return replace(owner, kind="linear_transposed", why=why)
        return replace(owner, kind="linear", why="guessed from its shape: matrix, out x in")

    return {name: settle(name, owner) for name, owner in owners.items()}


def _with_fused(owner: Owner, info: TensorInfo) -> Owner:
    """The owner with the maps that a matrix seems to hold together, by its name and shape."""
    last = _last(info.name)
    if not owner.kind.startswith("linear") or len(info.shape) != 2 or last not in _FUSED_NAMES:
        return owner
    out, into = info.shape[::-1] if owner.kind == "linear_transposed" else info.shape
    # In a c_attn that is stored out x in, as in query_key_value, the three are mixed head by head in some families.
    mixed = last == "query_key_value" or (last == "c_attn" and owner.kind == "linear")
    if mixed or out == 3 * into:
        return replace(owner, fused=Fused(_QKV, () if mixed else (into,) * 3))
    if last == "c_attn" and out == 2 * into:
        return replace(owner, fused=Fused(_QKV[1:], (into,) * 2))
    return owner


def _split(name: str) -> tuple[str, str]:
    """The module's name and "weight", "bias" or "": "attn.in_proj_weight" -> ("attn.in_proj", "weight")."""
    found = re.fullmatch(r"(.*?)[._](weight|bias)", name)
    if found:
        return found[1], found[2]
    return ("", name) if name in ("weight", "bias") else (name, "")


def _words(module: str) -> list[str]:
    """The words of the last part of a module's name that is no number: "h.0.ln_1" -> ["ln"]."""
    parts = [part for part in module.split(".") if not part.isdigit()]
    return [word for word in re.split(r"[_\d]+", parts[-1].lower() if parts else "") if word] or [""]


def _beside(name: str, ours: str, theirs: str) -> str:
    return name.removesuffix(ours) + theirs if name.endswith(ours) else ""


def _last(name: str) -> str:
    return _split(name)[0].rpartition(".")[2]
