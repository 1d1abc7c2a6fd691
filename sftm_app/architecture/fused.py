"""Several linear maps stored as one matrix: query, key and value, or gate and up projection."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

_QKV = ("query", "key", "value")
# One after the other along the rows of the linear map, in every family that uses these names ...
_QKV_NAMES = ("qkv", "Wqkv", "qkv_proj", "in_proj_weight")
# ... but these classes mix the parts, head by head or in groups of heads.
_MIXING_CLASSES = ("CodeGenAttention", "MiniMaxLightningAttention", "GPTBigCodeAttention")
_MIXED_NAMES = ("query_key_value",)


@dataclass(frozen=True)
class Fused:
    """The maps that a matrix holds one after the other: labels and sizes along its rows (out x in).

    sizes is empty where the maps are mixed row by row, head by head, so that no split into blocks of rows exists.
    """

    labels: tuple[str, ...]
    sizes: tuple[int, ...] = ()

    @property
    def rows(self) -> tuple[tuple[int, int], ...]:
        """The first row and the row after the last of each map; empty where they are mixed."""
        ends = [sum(self.sizes[: i + 1]) for i in range(len(self.sizes))]
        return tuple((end - size, end) for end, size in zip(ends, self.sizes, strict=True))

    def outcome(self, split: bool) -> str:
        """What becomes of them, when a split is asked for or not."""
        words = f"{', '.join(self.labels[:-1])} and {self.labels[-1]}"
        if not split:
            return f"{words} in one, merged whole"
        return f"split into {words}" if self.sizes else f"{words} are mixed row by row, so it is merged whole"


def find_fused(name: str, parent: nn.Module, module: nn.Module, n_rows: int) -> Fused | None:
    """What a matrix of `n_rows` outputs holds, by its name and its owners.

    name: its path, as in "h.0.attn.c_attn.weight". module: holds the parameter. parent: holds the module.
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
    sizes = _qkv_sizes(holder, n_rows)
    return Fused(_QKV, sizes)


def _qkv_sizes(attention: nn.Module, n_rows: int) -> tuple[int, ...]:
    """Rows of query, key and value, which are fewer for key and value where several heads share them."""
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
