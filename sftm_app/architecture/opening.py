"""The architecture of a checkpoint: what its config says of its tensors, and a guess of what the config leaves open."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from sftm_app.architecture.architecture import Architecture, UnknownModelType
from sftm_app.architecture.guess import guess_architecture, guess_task
from sftm_app.architecture.known_architectures import ArchitectureCache
from sftm_app.architecture.naming import fitting_prefix, plain_names
from sftm_app.architecture.ties import false_ties
from sftm_app.weights.checkpoint import Checkpoint
from sftm_app.weights.header import TensorInfo
from sftm_app.weights.modules import module_of

NO_CONFIG = "no config.json says what each tensor is"


def architecture_of(checkpoint: Checkpoint, architectures: ArchitectureCache) -> Architecture:
    """The architecture of a full checkpoint, by the names in its files.

    Wrappers' names and foreign prefixes are taken off first. Without a config, or with one that is not of transformers,
    everything is guessed; with one, only the tensors that its class does not know. Reads the bytes of tensors that are
    stored although the config ties them.

    Raises:
        CheckpointError: see read_architecture; or a file cannot be read.
    """
    others = {name: module for name in checkpoint.tensors if (module := module_of(name, checkpoint.modules))}
    if not others:
        return _model(checkpoint, architectures)
    own = {name: info for name, info in checkpoint.tensors.items() if name not in others}
    found = _model(replace(checkpoint, tensors=own), architectures)
    inside = {
        name: replace(info, name=name.removeprefix(f"{others[name]}/"))
        for name, info in checkpoint.tensors.items()
        if name in others
    }
    owners = dict(found.owners)
    for module in checkpoint.modules:
        held = {info.name: info for name, info in inside.items() if others[name] == module}
        owners |= {
            f"{module}/{name}": replace(owner, module=module, in_backbone=False)
            for name, owner in guess_architecture(held).owners.items()
        }
    return replace(found, owners=owners)


def _model(checkpoint: Checkpoint, architectures: ArchitectureCache) -> Architecture:
    """The architecture of a checkpoint without other modules."""
    plain = plain_names(checkpoint.tensors)
    if checkpoint.bare:
        return _guessed(checkpoint.tensors, plain, NO_CONFIG)
    try:
        found = architectures.read(checkpoint.config, plain.values())
    except UnknownModelType as error:
        return _guessed(checkpoint.tensors, plain, str(error))
    if 2 * len(found.owners) < len(plain):
        prefix = fitting_prefix(plain.values(), lambda names: len(architectures.read(checkpoint.config, names).owners))
        plain = {name: short.removeprefix(prefix) for name, short in plain.items()}
        found = architectures.read(checkpoint.config, plain.values())
    untied = {name: found.key_of(short, "") for name, short in plain.items() if short in found.owners}
    separate = false_ties(checkpoint, {name: key for name, key in untied.items() if key in found.ties.values()})
    if separate:
        names = frozenset(plain[name] for name in separate)
        found = architectures.read(checkpoint.config, plain.values(), names)
    return replace(_with_unknown(_stored(found, plain), checkpoint.tensors), false_ties=separate)


def task_architecture(
    checkpoint: Checkpoint, base: Checkpoint, known: Architecture, architectures: ArchitectureCache
) -> Architecture:
    """The architecture of a full task: as `architecture_of`; what is guessed follows the base's, which is `known`."""
    found = architecture_of(checkpoint, architectures)
    if not found.guessed:
        return found
    inside = {known.plain.get(name, name): info for name, info in base.tensors.items()}
    renamed = _renamed(checkpoint.tensors, plain_names(checkpoint.tensors))
    guessed = guess_task(renamed, inside, _by_plain_names(known))
    return replace(_stored(guessed, plain_names(checkpoint.tensors)), guessed=found.guessed)


def _guessed(tensors: Mapping[str, TensorInfo], plain: Mapping[str, str], why: str) -> Architecture:
    return replace(_stored(guess_architecture(_renamed(tensors, plain)), plain), guessed=why)


def _renamed(tensors: Mapping[str, TensorInfo], plain: Mapping[str, str]) -> dict[str, TensorInfo]:
    return {plain[name]: replace(info, name=plain[name]) for name, info in tensors.items()}


def _by_plain_names(known: Architecture) -> Architecture:
    owners = {known.plain.get(name, name): owner for name, owner in known.owners.items()}
    return replace(known, owners=owners, plain={})


def _stored(found: Architecture, plain: Mapping[str, str]) -> Architecture:
    """An architecture of plain names, by the names in the files."""
    stored = {short: name for name, short in plain.items()}
    return replace(
        found,
        owners={stored[short]: owner for short, owner in found.owners.items()},
        file_names={memory: stored[short] for memory, short in found.file_names.items()},
        unused=tuple(stored[short] for short in found.unused),
        plain={name: short for name, short in plain.items() if name != short},
    )


def _with_unknown(found: Architecture, tensors: Mapping[str, TensorInfo]) -> Architecture:
    """The architecture with guessed owners for the tensors that the model's class does not know."""
    unknown = [name for name in tensors if name not in found.owners]
    if not unknown:
        return found
    plain = {name: found.plain.get(name, name) for name in tensors}
    guessed = guess_architecture(_renamed(tensors, plain)).owners
    owners = {name: guessed[plain[name]] for name in unknown}
    return replace(found, owners=found.owners | owners, unknown=tuple(unknown))
