"""Roles that the recipe sets by patterns of tensor names. They override the architecture or a guess."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase

from sftm_app.architecture.architecture import Architecture
from sftm_app.architecture.owners import Owner
from sftm_app.weights.header import TensorInfo

# The kind (see Owner) that each role word stands for.
ROLE_KINDS = {
    "matrix": "linear",
    "matrix_transposed": "linear_transposed",
    "embedding": "embedding",
    "bias": "bias",
    "norm": "norm",
    "copy": "copy",
}
SET_BY_RECIPE = "set by the recipe"
RoleRules = Sequence[tuple[str, str]]


def match_names(pattern: str, names: Iterable[str]) -> list[str]:
    """The names that match a pattern: `*` stands for any text, such as a number; case matters."""
    return [name for name in names if fnmatchcase(name, pattern)]


def apply_rules(
    architecture: Architecture, tensors: Mapping[str, TensorInfo], rules: RoleRules
) -> tuple[Architecture, list[str]]:
    """Apply the rules, later ones over earlier ones. Returns the changed architecture, and problems in sentences."""
    owners = dict(architecture.owners)
    problems = []
    for pattern, role in rules:
        names = match_names(pattern, tensors)
        if not names:
            problems.append(_nothing_matches(pattern, tensors))
        misfits = [name for name in names if not _fits(role, tensors[name])]
        if misfits:
            problems.append(_does_not_fit(pattern, role, tensors[misfits[0]], len(misfits)))
        for name in names:
            owner = owners.get(name) or Owner("", "bare", True)
            kind = _kind(role, tensors[name])
            # Which rows the fused maps have depends on whether the matrix is stored transposed.
            fused = owner.fused if kind == owner.kind else None
            owners[name] = replace(owner, kind=kind, fused=fused, why=SET_BY_RECIPE)
    return replace(architecture, owners=owners), problems


def _kind(role: str, info: TensorInfo) -> str:
    stacked = len(info.shape) == 3 and "expert" in info.name.lower()
    if role == "matrix" and len(info.shape) > 2:
        return "experts" if stacked else "convolution"
    return "experts_transposed" if role == "matrix_transposed" and stacked else ROLE_KINDS[role]


def _fits(role: str, info: TensorInfo) -> bool:
    if not info.is_float:
        return role == "copy"
    return len(info.shape) >= 2 or not role.startswith("matrix")


def _does_not_fit(pattern: str, role: str, info: TensorInfo, count: int) -> str:
    shape = f"shape {list(info.shape)}" if info.is_float else "integers, which can only be copied"
    others = f", like {count - 1} more that match" if count > 1 else ""
    needs = "Set embedding, bias, norm or copy." if info.is_float else "Set copy, or leave it out."
    return f"roles: {pattern!r} is set to {role}, but {info.name!r} has {shape}{others}. {needs}"


def _nothing_matches(pattern: str, tensors: Mapping[str, TensorInfo]) -> str:
    near = difflib.get_close_matches(pattern, tensors, n=1, cutoff=0.4)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return f"roles: no tensor of the base has a name like {pattern!r}.{hint} `*` stands for any text, such as a number."
