"""Where in a model a tensor lies: its block, how deep that is, and the kind of submodule.

Names in transformers are paths of modules, so both follow from them and from the module that owns the tensor:
"encoder.layer.3.attention.output.dense.weight" lies in the block "encoder.layer.3". Blocks that differ only in their
number are a stack; an encoder and a decoder are two.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from sftm_app.architecture.owners import Owner

# The first number in a name counts blocks, unless it counts experts. A second count right after it (the blocks of a
# stage: "layers.0.blocks.1", "stages.2.layers.0", "block.0.1") belongs to it.
_BLOCK = re.compile(r"(?:^|(?<!\bexperts)(?<!\bexpert)\.)\d+(?:\.(?:(?:blocks|layers)\.)?\d+)?(?=\.)")
# Words in the path of a submodule: "self_attn", "encdecattention", "rel_attn"; "mlp", "feed_forward", "densereludense".
_ATTENTION = re.compile(r"att(?:n|ention)")
_MLP = re.compile(r"mlp|ffn|feed_?forward|densereludense|\bmoe|_moe|\bexperts?\b")
_EMBEDDING = re.compile(r"embed")


@dataclass(frozen=True)
class Place:
    """Where a tensor lies in its model.

    Attributes:
        depth: of its block in the stack: 0 for the first, 1 for the last or only one. None outside blocks.
        kind: "attention" or "mlp" for the linear maps of a block with their biases and what else attention holds,
            "embedding", or "other" (norms, poolers, convolutional blocks, heads).
    """

    depth: float | None = None
    kind: str = "other"


def block_of(name: str) -> str | None:
    """The block that a tensor lies in, such as "encoder.layer.3" or "stages.2.layers.0"; None outside blocks."""
    found = _BLOCK.search(name)
    return name[: found.end()] if found else None


def places_of(names: Iterable[str], owners: Mapping[str, Owner]) -> dict[str, Place]:
    """The place of every tensor of a model.

    Args:
        names: of all tensors of the base.
        owners: see `Architecture`.
    """
    blocks = {name: block_of(name) for name in names}
    depths = _depths({block for block in blocks.values() if block is not None})
    transformers = {block for name, block in blocks.items() if block and _ATTENTION.search(_within(name, block))}
    return {
        name: Place(
            depths[block] if block is not None else None, _kind(name, block, owners.get(name), block in transformers)
        )
        for name, block in blocks.items()
    }


def _within(name: str, block: str | None) -> str:
    """The lower-case path of modules inside the block, without the parameter's own name."""
    return name[len(block or "") :].rpartition(".")[0].lower()


def _kind(name: str, block: str | None, owner: Owner | None, in_transformer: bool) -> str:
    """The kind of submodule that holds a tensor. in_transformer: its block has attention."""
    path, held = _within(name, block), owner.kind if owner else ""
    if held in ("norm", "buffer") or "norm" in path.rpartition(".")[2]:
        return "other"
    if block is None:
        return "embedding" if held == "embedding" or _EMBEDDING.search(path) else "other"
    if _ATTENTION.search(path):
        return "attention"
    if held == "embedding":
        return "embedding"
    # BERT, ViT and BART name no MLP: it is what else multiplies in a block that has attention.
    multiplies = held.startswith(("linear", "convolution", "experts")) or held == "bias"
    return "mlp" if _MLP.search(path) or (in_transformer and multiplies) else "other"


def _depths(blocks: Iterable[str]) -> dict[str, float]:
    """The depth of every block in its stack."""
    stacks: dict[str, dict[str, tuple[int, ...]]] = {}
    for block in blocks:
        first = re.search(r"\d+", block)
        assert first is not None, "a block has a number"
        stacks.setdefault(block[: first.start()], {})[block] = tuple(
            map(int, re.findall(r"\d+", block[first.start() :]))
        )
    return {block: depth for stack in stacks.values() for block, depth in _depths_in(stack).items()}


def _depths_in(stack: Mapping[str, tuple[int, ...]]) -> dict[str, float]:
    """A stage's own tensors ("layers.0.downsample") are as deep as the last of its blocks ("layers.0.blocks.1")."""
    places = sorted(set(stack.values()))
    counted = [one for one in places if not any(other[: len(one)] == one and other != one for other in places)]
    last = max(len(counted) - 1, 1)
    return {
        block: (sum(one <= numbers or one[: len(numbers)] == numbers for one in counted) - 1) / last
        if len(counted) > 1
        else 1.0
        for block, numbers in stack.items()
    }
