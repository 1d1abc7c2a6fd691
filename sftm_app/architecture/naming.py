"""What wrappers put before the names of tensors, and what the names are without it.

torch.compile, DistributedDataParallel and FSDP wrap a model in a module of their own, whose name then stands in every
name of a saved file. A class of one's own around a model does the same.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable

# Names of wrapping modules that may stand anywhere in a path; no model has modules of these names.
_WRAPPERS = frozenset(("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_fpw_module"))
# DistributedDataParallel's name is a common word, so it counts at the beginning only.
_FIRST = "module"
# A foreign prefix is at most this many modules long.
_LONGEST = 4


def without_wrappers(name: str) -> str:
    """A name without the wrappers that compiling and distributed training leave in it."""
    kept = [part for part in name.split(".") if part not in _WRAPPERS]
    while len(kept) > 2 and kept[0] == _FIRST:
        kept = kept[1:]
    return ".".join(kept)


def plain_names(names: Iterable[str]) -> dict[str, str]:
    """Name in the files -> name without wrappers. Two names that would become one stay as they are."""
    plain = {name: without_wrappers(name) for name in names}
    counts = Counter(plain.values())
    return {name: short if counts[short] == 1 else name for name, short in plain.items()}


def fitting_prefix(names: Collection[str], n_known: Callable[[Collection[str]], int]) -> str:
    """What has to be taken off the beginning of most names so that a model knows more of them; "" if nothing.

    Args:
        names: all names.
        n_known: how many of some names the model knows.
    """
    best, found = "", n_known(names)
    counts = Counter(
        ".".join(parts[:length]) + "."
        for parts in (name.split(".") for name in names)
        for length in range(1, min(len(parts), _LONGEST + 1))
    )
    for prefix in sorted((prefix for prefix, count in counts.items() if 2 * count > len(names)), key=len):
        shorter = [name.removeprefix(prefix) for name in names]
        if len(set(shorter)) == len(names) and (known := n_known(shorter)) > found:
            best, found = prefix, known
    return best
