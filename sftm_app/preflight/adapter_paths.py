"""Which tensor of the base a parameter of an adapter is, whatever model class and tool it was trained with."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from sftm_app.architecture.adapter_names import names_in_base
from sftm_app.architecture.architecture import Architecture
from sftm_app.architecture.known_architectures import ArchitectureCache
from sftm_app.errors import CheckpointError
from sftm_app.weights.checkpoint import Checkpoint

# CLIP's text model in transformers 4 and in diffusers has this in its paths.
_TEXT_MODEL = "text_model."


def find_paths(
    paths: Iterable[str], base: Checkpoint, architecture: Architecture, architectures: ArchitectureCache
) -> dict[str, str]:
    """Find the base's tensor for each parameter of an adapter, as far as there is one.

    A path is tried as it is; then as a name in the files of a model like the base, which transformers renames; then as
    one of a part of the base, such as the language model in a vision-language model, if only one part has all of them.

    Args:
        paths: of parameters, such as "model.layers.0.self_attn.q_proj.weight".
        base, architecture: the base.
        architectures: answers what transformers makes of other names.
    """
    found: dict[str, str] = {}
    lost: list[str] = []
    for path in dict.fromkeys(paths):
        name = next((name for name in names_in_base(path, architecture) if name in base.tensors), None)
        if name is None:
            lost.append(path)
        else:
            found[path] = name
    if not lost or architecture.guessed:
        return found
    by_key = {owner.key: name for name, owner in architecture.owners.items() if owner.key and name in base.tensors}
    found |= _by_keys(lost, base.config, "", by_key, architectures)
    lost = [path for path in lost if path not in found]
    parts = [part for kind in architecture.submodels.items() for part in _parts(base.config, *kind)] if lost else []
    fitting = [made for config, prefix in parts if (made := _by_keys(lost, config, prefix, by_key, architectures))]
    whole = [made for made in fitting if len(made) == max(map(len, fitting))]
    return found | whole[0] if len(whole) == 1 else found


def mangled_paths(base: Checkpoint, architecture: Architecture) -> dict[str, str | None]:
    """Module paths with underscores for dots, as kohya writes them -> the module's path; None where two have one."""
    names = (*architecture.file_names, *base.tensors)
    modules = {name.removesuffix(".weight") for name in names if name.endswith(".weight")}
    found: dict[str, str | None] = {}
    for module in modules:
        plain = module.removeprefix(architecture.backbone_prefix)
        for written in {module, plain, _TEXT_MODEL + plain, architecture.backbone_prefix + plain}:
            mangled = written.replace(".", "_")
            same = found.get(mangled, module)
            is_one = same is not None and same.removeprefix(architecture.backbone_prefix) == plain
            found[mangled] = module if is_one else None
    return found


def _parts(config: Mapping[str, Any], kind: str, prefix: str) -> list[tuple[dict[str, Any], str]]:
    """The configs of this model type inside the base's, with what the keys of that part begin with."""
    inner = [value for value in config.values() if isinstance(value, dict) and value.get("model_type") == kind]
    return [(value, prefix) for value in inner[:1]]


def _by_keys(
    paths: list[str], config: dict[str, Any], prefix: str, by_key: Mapping[str, str], architectures: ArchitectureCache
) -> dict[str, str]:
    """The base's tensors for paths that are names in the files of a model with this config."""
    try:
        theirs = architectures.read(config, paths)
    except CheckpointError:
        return {}
    keys = {path: owner.key for path, owner in theirs.owners.items() if owner.key and owner.kind != "buffer"}
    return {path: by_key[prefix + key] for path, key in keys.items() if prefix + key in by_key}
