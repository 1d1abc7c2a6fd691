"""Tied tensors: one parameter under several names, such as an embedding that is also the output's matrix.

A config may claim a tie that its files deny: T5 1.1 and its descendants do. As in transformers, the files win.
"""

from __future__ import annotations

from dataclasses import replace

from sftm_app.architecture.architecture import Architecture
from sftm_app.architecture.known_architectures import ArchitectureCache
from sftm_app.errors import CheckpointError
from sftm_app.weights.checkpoint import Checkpoint

_CHUNK_BYTES = 1 << 20


def architecture_of(checkpoint: Checkpoint, architectures: ArchitectureCache) -> Architecture:
    """The architecture of a checkpoint. Reads the bytes of tensors that are stored although the config ties them.

    Raises:
        CheckpointError: see read_architecture; or a file cannot be read.
    """
    known = architectures.read(checkpoint.config, checkpoint.tensors)
    apart = _apart(checkpoint, known)
    if not apart:
        return known
    return replace(architectures.read(checkpoint.config, checkpoint.tensors, frozenset(apart)), apart=apart)


def _apart(checkpoint: Checkpoint, known: Architecture) -> dict[str, str]:
    """Names of the files that are tied by the config to another of the files, but hold something else."""
    groups: dict[str, list[str]] = {}
    for name in checkpoint.tensors:
        owner = known.owners.get(name)
        if owner is not None and owner.key in known.ties.values():
            groups.setdefault(owner.key, []).append(name)
    found: dict[str, str] = {}
    for key, names in groups.items():
        first = next((name for name in names if name.endswith(key)), names[0])
        found |= {name: first for name in names if name != first and not _same(checkpoint, name, first)}
    return found


def _same(checkpoint: Checkpoint, name: str, other: str) -> bool:
    """Whether two tensors are the same bytes; the first chunk settles it when they are not."""
    one, two = checkpoint.tensors[name], checkpoint.tensors[other]
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
