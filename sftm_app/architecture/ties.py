"""Tied tensors: one parameter under several names, such as an embedding that is also the output matrix.

The config may claim a tie that the files contradict, as that of T5 1.1 and its descendants does. As in transformers,
the files win.
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
    found = architectures.read(checkpoint.config, checkpoint.tensors)
    false_ties = _false_ties(checkpoint, found)
    if not false_ties:
        return found
    untied = architectures.read(checkpoint.config, checkpoint.tensors, frozenset(false_ties))
    return replace(untied, false_ties=false_ties)


def _false_ties(checkpoint: Checkpoint, architecture: Architecture) -> dict[str, str]:
    """Tensors of the files that the config ties to another one, but that hold something else."""
    groups: dict[str, list[str]] = {}
    for name in checkpoint.tensors:
        owner = architecture.owners.get(name)
        if owner is not None and owner.key in architecture.ties.values():
            groups.setdefault(owner.key, []).append(name)
    found: dict[str, str] = {}
    for key, names in groups.items():
        first = next((name for name in names if name.endswith(key)), names[0])
        found |= {name: first for name in names if name != first and not _are_equal(checkpoint, name, first)}
    return found


def _are_equal(checkpoint: Checkpoint, name: str, other: str) -> bool:
    """Whether two tensors hold the same bytes. Stops reading at the first chunk that differs."""
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
