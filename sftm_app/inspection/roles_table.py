"""The role of each tensor of the base, in groups: names that differ only in numbers are one row."""

from __future__ import annotations

import glob
import re
from collections.abc import Iterable
from dataclasses import dataclass

from sftm_app.architecture.role_rules import match_names
from sftm_app.architecture.roles import Assignment, Role, assign
from sftm_app.preflight.preflight import Preflight

_NUMBER = re.compile(r"(?<![^._\-])\d+(?![^._\-])")


@dataclass(frozen=True)
class TensorGroup:
    """Tensors of one role whose names differ only in numbers.

    Attributes:
        pattern: the name with `*` for the numbers.
        names: of the tensors.
        shapes: as stored, each once.
        role: a word of ROLE_KINDS.
        why: the reason for the role.
    """

    pattern: str
    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    role: str
    why: str


def tensor_groups(found: Preflight) -> tuple[TensorGroup, ...]:
    """Group the tensors of the base, in the order of the file."""
    members: dict[tuple[str, str, str], list[str]] = {}
    for name, info in found.base.tensors.items():
        assignment = assign(info, found.architecture.owners.get(name))
        # Whether fused maps are split is the recipe's choice, not a role.
        key = _NUMBER.sub("*", name), role_word(assignment), assignment.why.removesuffix(", merged whole")
        members.setdefault(key, []).append(name)
    tensors = found.base.tensors
    return tuple(
        TensorGroup(pattern, tuple(names), tuple(dict.fromkeys(tensors[name].shape for name in names)), role, why)
        for (pattern, role, why), names in members.items()
    )


def role_word(assignment: Assignment) -> str:
    """The word of ROLE_KINDS for a role."""
    if assignment.role is Role.MATRIX:
        return "matrix_transposed" if assignment.parts and assignment.parts[0].transposed else "matrix"
    return "copy" if assignment.role in (Role.BUFFER, Role.FIXED) else assignment.role.value


def patterns_for(pattern: str, groups: Iterable[TensorGroup]) -> list[str]:
    """Patterns that match the tensors of the rows called `pattern` and no others.

    Returns:
        The row's own pattern. Where that matches other rows too, because `*` stands for more than a number, every name
        by itself. Nothing if there is no such row.
    """
    rows = {group: group.pattern == pattern for group in groups}
    mine = [name for group, chosen in rows.items() if chosen for name in group.names]
    others = [name for group, chosen in rows.items() if not chosen for name in group.names]
    return [pattern] if mine and not match_names(pattern, others) else [glob.escape(name) for name in mine]
