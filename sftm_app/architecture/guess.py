"""Guesses what the tensors of a checkpoint without config.json are, from their names and shapes.

The result is an Architecture like one from a config, so everything after it works unchanged. Each guess states its
reason, and a person may override it by a pattern of names (role_rules.py).
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
# Parameters that are added, scaled by or looked up, and not multiplied by, whatever their shape.
_NOT_A_MATRIX = re.compile(
    r"^(log|scale|gamma|decay|mix|level|latents?|query|queries|prompts?|prototypes?|registers?)$"
)
# A projection of embeddings is a linear map, although its name says "embedding".
_PROJECTION = re.compile(r"^(proj|project|projection|projector|mapping|transform|dense|linear|fc|conv|out)$")
_NORM = re.compile(r"norm|^(ln|bn|gn|rms|gamma|beta|running)$")
_HEAD = re.compile(r"^(classifier|lm_head|head|heads|score|qa_outputs|cls|classification_head|fc_norm|pre_classifier)$")
_QKV = ("query", "key", "value")
_FUSED_NAMES = ("c_attn", "qkv", "qkv_proj", "Wqkv", "in_proj", "query_key_value")
# A task may lack the base's first tensors, so several are tried to find the prefix.
_TRIED = 16
_POOLER = re.compile(r"^(pooler|head|heads)$")


def guess_architecture(tensors: Mapping[str, TensorInfo]) -> Architecture:
    """Guess an Architecture from the headers. Every owner's `why` states the reason."""
    owners = {name: _guess(info, tensors) for name, info in tensors.items()}
    settled = _settle_squares(owners, tensors)
    return _architecture({name: _with_fused(owner, tensors[name]) for name, owner in settled.items()}, "")


def guess_task(tensors: Mapping[str, TensorInfo], base: Mapping[str, TensorInfo], known: Architecture) -> Architecture:
    """Guess the Architecture of a task.

    Args:
        tensors: the task's tensors.
        base: the base's tensors.
        known: the base's architecture. Its owners are used wherever the task has the same parameter, also where one of
            the two puts a prefix before the other's names.
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
    """An Architecture where names in memory equal those in the files, and nothing is tied."""
    return Architecture(owners, prefix, file_names={name: name for name in owners}, keys=frozenset(owners))


def _prefix(inner: Mapping[str, TensorInfo], outer: Mapping[str, TensorInfo]) -> str:
    """What `outer` puts before most names of `inner`, such as "bert."; "" if the names are the same."""
    some = list(inner)[:_TRIED]
    candidates = {name.removesuffix(first) for first in some for name in outer if name.endswith(f".{first}")}
    for candidate in sorted(candidates, key=len):
        found = sum(candidate + name in outer for name in inner)
        if found > len(inner) / 2 and found > sum(name in outer for name in inner):
            return candidate
    return ""


def by_file_names(known: Architecture) -> Architecture:
    """A task's architecture without keys, so that its names in the files are compared with a bare base's."""
    return replace(known, owners={name: replace(owner, key="") for name, owner in known.owners.items()})


def may_be_absent(name: str) -> bool:
    """Whether fine-tuned models often lack this tensor of their base, as they lack heads and poolers."""
    return any(_HEAD.search(segment) or _POOLER.search(segment) for segment in name.split("."))


def _guess(info: TensorInfo, tensors: Mapping[str, TensorInfo]) -> Owner:
    kind, why = _kind(info, tensors) if info.is_float else ("buffer", "from its type")
    in_backbone = not any(_HEAD.search(segment) for segment in info.name.split("."))
    return Owner("", kind, in_backbone, why=f"guessed {why}")


def _kind(info: TensorInfo, tensors: Mapping[str, TensorInfo]) -> tuple[str, str]:
    """The kind (see Owner) and the reason for it."""
    module, leaf = _split(info.name)
    words = _words(module)
    # T5's table is called just "shared". A layer shared by experts is not a table.
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
        return "embedding", f"from its {'name' if embeds else 'shape'}: a separate vector, treated like an embedding"
    if "expert" in info.name.lower() and dimensions == 3:
        return _experts(info, tensors)
    if embeds and (dimensions == 2 or leaf != "weight"):
        return "embedding", "from its name: embedding"
    if leaf == "" and any(word in ("bias", "biases") for word in words):
        return "bias", "from its name: bias"
    if leaf == "" and any(_NOT_A_MATRIX.search(word) for word in words):
        return "embedding", "from its name: no matrix, treated like an embedding"
    if dimensions == 2:
        return _orientation(info, tensors)
    if leaf != "weight" and info.shape[0] == 1:
        return "embedding", "from its shape: one table for every input, treated like an embedding"
    return "convolution", "from its shape: the matrix of a convolution"


def _experts(info: TensorInfo, tensors: Mapping[str, TensorInfo]) -> tuple[str, str]:
    """A stack is stored as experts x out x in, unless its bias has the length of the last dimension only."""
    biases = (tensors.get(info.name + ending) for ending in ("_bias", ".bias"))
    bias = next((found for found in biases if found is not None), None)
    rows, columns = info.shape[1:]
    if bias is not None and rows != columns and bias.shape[-1:] == (columns,):
        return "experts_transposed", "from its name and its bias: experts, stored transposed"
    return "experts", "from its name and shape: experts"


def _kind_of_vector(module: str, leaf: str, info: TensorInfo, tensors: Mapping[str, TensorInfo]) -> tuple[str, str]:
    """For a bias of any shape, or a weight of one dimension."""
    if any(_NORM.search(word) for word in _words(module)):
        return "norm", "from its name: norm"
    if leaf == "weight":
        return "norm", "from its shape: a weight of one dimension, so norm"
    weight = tensors.get(_sibling(info.name, "bias", "weight"))
    if weight is not None and len(weight.shape) == 1:
        return "norm", "from its weight, which has one dimension: norm"
    return "bias", "from its name: bias"


def _orientation(info: TensorInfo, tensors: Mapping[str, TensorInfo]) -> tuple[str, str]:
    """A matrix is stored as out x in, unless its bias has the length of the second dimension only."""
    bias = tensors.get(_sibling(info.name, "weight", "bias"))
    rows, columns = info.shape
    if bias is None or bias.shape not in ((rows,), (columns,)):
        return "linear", "from its shape: matrix, out x in"
    if rows == columns:
        return "square", ""
    if bias.shape == (columns,):
        return "linear_transposed", "from the length of its bias: matrix, stored transposed (in x out)"
    return "linear", "from the length of its bias: matrix, out x in"


def _settle_squares(owners: dict[str, Owner], tensors: Mapping[str, TensorInfo]) -> dict[str, Owner]:
    """A square matrix is stored like most matrices of the same name; without any, like most matrices of the file."""
    votes: dict[str, Counter[str]] = {"": Counter()}
    for name, owner in owners.items():
        if owner.kind in ("linear", "linear_transposed") and _sibling(name, "weight", "bias") in tensors:
            for group in ("", _last(name)):
                votes.setdefault(group, Counter())[owner.kind] += 1

    def settle(name: str, owner: Owner) -> Owner:
        if owner.kind != "square":
            return owner
        counted = votes.get(_last(name)) or votes[""]
        if counted["linear_transposed"] > counted["linear"]:
            why = "guessed from the other matrices: matrix, stored transposed (in x out)"
            return replace(owner, kind="linear_transposed", why=why)
        return replace(owner, kind="linear", why="guessed from its shape: matrix, out x in")

    return {name: settle(name, owner) for name, owner in owners.items()}


def _with_fused(owner: Owner, info: TensorInfo) -> Owner:
    """The owner, with the linear maps that the matrix seems to hold by its name and shape."""
    last = _last(info.name)
    if not owner.kind.startswith("linear") or len(info.shape) != 2 or last not in _FUSED_NAMES:
        return owner
    out, into = info.shape[::-1] if owner.kind == "linear_transposed" else info.shape
    # Some families interleave the three head by head in query_key_value, and in a c_attn stored as out x in.
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
    """The words in the last part of a module's name that is not a number: "h.0.ln_1" -> ["ln"]."""
    parts = [part for part in module.split(".") if not part.isdigit()]
    return [word for word in re.split(r"[_\d]+", parts[-1].lower() if parts else "") if word] or [""]


def _sibling(name: str, ours: str, theirs: str) -> str:
    """The name of a weight's bias, or of a bias's weight; "" if the name does not end in `ours`."""
    return name.removesuffix(ours) + theirs if name.endswith(ours) else ""


def _last(name: str) -> str:
    return _split(name)[0].rpartition(".")[2]
