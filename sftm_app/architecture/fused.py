"""Several linear maps stored as one matrix: query, key and value, or gate and up projection."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

_QKV = ("query", "key", "value")
# Stored as consecutive blocks of rows in every family that uses these names ...
_QKV_NAMES = ("qkv", "Wqkv", "qkv_proj", "in_proj_weight")
# ... except in these classes, which interleave them head by head or in groups of heads.
_MIXING_CLASSES = ("CodeGenAttention", "MiniMaxLightningAttention", "GPTBigCodeAttention")
_MIXED_NAMES = ("query_key_value",)


@dataclass(frozen=True)
class Fused:
    """The linear maps in one matrix (out x in): their labels, and the number of rows of each.

    `sizes` is empty where the maps are interleaved, head by head, so that the matrix cannot be split into blocks.
    """

    labels: tuple[str, ...]
    sizes: tuple[int, ...] = ()

    @property
    def rows(self) -> tuple[tuple[int, int], ...]:
        """The first row of each map and the row after its last; empty where they are interleaved."""
        ends = [sum(self.sizes[: i + 1]) for i in range(len(self.sizes))]
        return tuple((end - size, end) for end, size in zip(ends, self.sizes, strict=True))

    def outcome(self, split: bool) -> str:
        """How the maps are merged, if a split is requested or not."""
        words = f"{', '.join(self.labels[:-1])} and {self.labels[-1]}"
        if not split:
            return f"{words} in one matrix, merged whole"
        return f"split into {words}" if self.sizes else f"{words} are interleaved, so the matrix is merged whole"


def find_fused(name: str, parent: nn.Module, module: nn.Module, n_rows: int) -> Fused | None:
    """The linear maps in a matrix, by its name and its modules; None if it is a single map.

    Args:
        name: its path, as in "h.0.attn.c_attn.weight".
        parent: the module that holds `module`.
        module: the module that holds the parameter.
        n_rows: the number of outputs.
    """
    last = name.removesuffix(".weight").rpartition(".")[2]
    holder = module if last == "in_proj_weight" else parent
    if last == "gate_up_proj":
        labels = ("gate", "up")
        mixed = not getattr(module, "is_concatenated", True)
        return Fused(labels) if mixed or n_rows % 2 else Fused(labels, (n_rows // 2,) * 2)
    is_gpt2 = last == "c_attn" and type(module).__name__ == "Conv1D"
    if last == "c_attn" and not is_gpt2:
        return Fused(_QKV)
    if is_gpt2 and getattr(parent, "is_cross_attention", False):
        return Fused(_QKV[1:], (n_rows // 2,) * 2)
    if last in _MIXED_NAMES or (last in _QKV_NAMES and type(holder).__name__ in _MIXING_CLASSES):
        return Fused(_QKV)
    if not is_gpt2 and last not in _QKV_NAMES:
        return None
    return Fused(_QKV, _qkv_sizes(holder, n_rows))


def _qkv_sizes(attention: nn.Module, n_rows: int) -> tuple[int, ...]:
    """Rows of query, key and value; key and value have fewer where several heads share them."""
    n_heads, n_shared = (_setting(attention, key) for key in ("num_attention_heads", "num_key_value_heads"))
    n_heads = n_heads or _setting(attention, "num_heads")
    if n_heads and n_shared and n_shared != n_heads:
        size, rest = divmod(n_rows, n_heads + 2 * n_shared)
        return () if rest else (n_heads * size, n_shared * size, n_shared * size)
    return () if n_rows % 3 else (n_rows // 3,) * 3


def _setting(module: nn.Module, key: str) -> int | None:
    found: Any = getattr(module, key, None)
    found = getattr(getattr(module, "config", None), key, None) if found is None else found
    return found if isinstance(found, int) else None
