"""Which tensors have a row (or a column) for every token: found by asking for the same model with one token more."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from sftm_app.architecture.architecture import Architecture
from sftm_app.architecture.known_architectures import ArchitectureCache
from sftm_app.errors import CheckpointError
from sftm_app.weights.checkpoint import Checkpoint

SIZE = "vocab_size"


def vocabulary_axes(checkpoint: Checkpoint, known: Architecture, architectures: ArchitectureCache) -> dict[str, int]:
    """The tensors of a checkpoint with an entry for every token.

    Args:
        checkpoint: a full checkpoint.
        known: its architecture.
        architectures: asked for the same model with one token more.

    Returns:
        Name in the files -> the dimension that counts the tokens. Empty where the config does not say how many there
        are, or no model can be built from it.
    """
    size = vocabulary_size(checkpoint.config)
    if size is None or known.guessed:
        return {}
    try:
        larger = architectures.read(with_vocabulary(checkpoint.config, size + 1)).shapes
    except CheckpointError:
        return {}
    found = {}
    for memory, file in known.file_names.items():
        shape, grown_shape = known.shapes.get(memory, ()), larger.get(memory, ())
        if file not in checkpoint.tensors or len(shape) != len(grown_shape):
            continue
        sizes = zip(shape, grown_shape, strict=True)
        grown = [axis for axis, pair in enumerate(sizes) if pair == (size, size + 1)]
        if grown and tuple(shape) == checkpoint.stored(file).info.shape:
            found[file] = grown[0]
    return found


def vocabulary_size(config: dict[str, Any]) -> int | None:
    """The number of rows of the table of tokens, by the config; None if it does not say."""
    return next((table[SIZE] for table in _tables(config)), None)


def with_vocabulary(config: dict[str, Any], size: int) -> dict[str, Any]:
    """The config of the same model with another number of tokens."""
    before = vocabulary_size(config)
    changed = {
        key: with_vocabulary(value, size)
        for key, value in config.items()
        if isinstance(value, dict) and vocabulary_size(value) == before
    }
    return config | changed | ({SIZE: size} if SIZE in config and before == config[SIZE] else {})


def _tables(config: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The config and the configs inside it that state a size, outer ones first."""
    size = config.get(SIZE)
    if isinstance(size, int) and not isinstance(size, bool) and size > 0:
        yield config
    for value in config.values():
        if isinstance(value, dict):
            yield from _tables(value)
