"""Roles that a person sets by patterns of tensor names, over what the architecture or a guess says."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase

from sftm_app.architecture.architecture import Architecture
from sftm_app.architecture.owners import Owner
from sftm_app.weights.header import TensorInfo

# The kind of owner (see Owner) that each role word stands for.
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


def matching(pattern: str, names: Iterable[str]) -> list[str]:
    """The names that a pattern means: `*` stands for any text, such as a number; capitals count."""
    return [name for name in names if fnmatchcase(name, pattern)]


def apply_rules(
    architecture: Architecture, tensors: Mapping[str, TensorInfo], rules: RoleRules
) -> tuple[Architecture, list[str]]:
    """The architecture with the owners that the rules set, a later rule before an earlier one; and what is wrong."""
    owners = dict(architecture.owners)
    problems = []
    for pattern, role in rules:
        names = matching(pattern, tensors)
        if not names:
            problems.append(_nothing_matches(pattern, tensors))
        unfit = [name for name in names if not _fits(role, tensors[name])]
        if unfit:
            problems.append(_does_not_fit(pattern, role, tensors[unfit[0]], len(unfit)))
        for name in names:
            owner = owners.get(name) or Owner("", "bare", True)
            kind = _kind(role, tensors[name])
            # Where maps are fused depends on which way round the matrix is stored.
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
    least = {"matrix": 2, "matrix_transposed": 2}.get(role, 0)
    return least <= len(info.shape)


def _does_not_fit(pattern: str, role: str, info: TensorInfo, count: int) -> str:
    shape = f"shape {list(info.shape)}" if info.is_float else "integers, which can only be copied"
    others = f", as have {count - 1} more that the pattern means" if count > 1 else ""
    needs = "Set embedding, bias, norm or copy." if info.is_float else "Set copy, or leave it out."
    return f"roles: {pattern!r} is set to {role}, but {info.name!r} has {shape}{others}. {needs}"


def _nothing_matches(pattern: str, tensors: Mapping[str, TensorInfo]) -> str:
    near = difflib.get_close_matches(pattern, tensors, n=1, cutoff=0.4)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return f"roles: no tensor of the base has a name like {pattern!r}.{hint} `*` stands for any text, such as a number."
