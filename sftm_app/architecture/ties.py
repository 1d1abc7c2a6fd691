"""Tied tensors: one parameter under several names, such as an embedding that is also the output matrix.

The config may claim a tie that the files contradict, as that of T5 1.1 and its descendants does. As in transformers,
the files win.
"""

from __future__ import annotations

from collections.abc import Mapping

from sftm_app.errors import CheckpointError
from sftm_app.weights.checkpoint import Checkpoint

_CHUNK_BYTES = 1 << 20


def false_ties(checkpoint: Checkpoint, keys: Mapping[str, str]) -> dict[str, str]:
    """Tensors of the files that the config ties to another one, but that hold something else.

    Args:
        checkpoint: its bytes are read.
        keys: name in the files of each tied tensor -> the key (see Owner) that all of its tie share.

    Returns:
        Name in the files -> what it is tied to.

    Raises:
        CheckpointError: a file cannot be read.
    """
    groups: dict[str, list[str]] = {}
    for name, key in keys.items():
        groups.setdefault(key, []).append(name)
    found: dict[str, str] = {}
    for key, names in groups.items():
        first = next((name for name in names if name.endswith(key)), names[0])
        found |= {name: first for name in names if name != first and not are_equal(checkpoint, name, first)}
    return found


def are_equal(checkpoint: Checkpoint, name: str, other: str) -> bool:
    """Whether two tensors hold the same bytes. Stops reading at the first chunk that differs."""
    one, two = checkpoint.stored(name).info, checkpoint.stored(other).info
    if (one.dtype, one.shape) != (two.dtype, two.shape):
        return False
    try:
        with open(checkpoint.files[name], "rb") as left, open(checkpoint.files[other], "rb") as right:
            left.seek(one.offset)
            right.seek(two.offset)
            for start in range(0, one.n_bytes, _CHUNK_BYTES):
                size = min(_CHUNK_BYTES, one.n_bytes - start)
                if left.read(size) != right.read(size):
                    return False
    except OSError as error:
        raise CheckpointError(f"{checkpoint.files[name]}: cannot be read ({error.strerror}). Start again.") from None
    return True
