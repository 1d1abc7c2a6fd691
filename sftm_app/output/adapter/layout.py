"""How a LoRA adapter carries the change of each tensor: as two factors, whole, as a bias, or not at all."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from sftm_app.architecture.adapter_names import names_in_memory, parse_names
from sftm_app.planning.plan import Plan, PlanEntry
from sftm_app.preflight.preflight import Preflight
from sftm_app.weights.adapter_config import PEFT_PREFIX

# What PEFT can put factors beside.
_TARGETS = ("Linear", "NonDynamicallyQuantizableLinear", "Conv1D", "Conv1d", "Conv2d", "Conv3d")
_CLASSIFIER = re.compile(r"For\w*(Classification|QuestionAnswering|MultipleChoice)$")
_TABLE_NAME = re.compile(r"embed|(^|\.)(wte|wpe|shared)\.weight$")


@dataclass(frozen=True)
class Carrier:
    """Where the change of one tensor goes in an adapter.

    way: "pair" (factors beside a layer), "table" (factors beside an embedding table, if its change is low-rank),
    "whole" (the module is saved whole), "bias", or "none". paths: the parameter's name in the model, then those tied to
    it. module: what is or, for a table whose change is not low-rank, may be saved whole. why: for "none".
    """

    way: str
    paths: tuple[str, ...] = ()
    module: str = ""
    why: str = ""

    @property
    def path(self) -> str:
        """The path of the module that holds the parameter."""
        return self.paths[0].rpartition(".")[0]


def lay_out(plan: Plan) -> dict[str, Carrier]:
    """A carrier for every tensor of the plan, by its name in the base's files."""
    found = plan.preflight
    memory = names_in_memory(found.architecture)
    shift = _prefix_shift(found, memory)
    carriers = {}
    for entry in plan.entries:
        known = memory.get(entry.name, (entry.name,) if found.base.bare else ())
        carriers[entry.name] = _carrier(plan, entry, tuple(map(shift, known)))
    return carriers


def is_table(path: str) -> bool:
    """Whether a name that is tied to an embedding table is one itself; else it is an output layer's weight."""
    return _TABLE_NAME.search(path) is not None


def _carrier(plan: Plan, entry: PlanEntry, paths: tuple[str, ...]) -> Carrier:
    found = plan.preflight
    owner = found.architecture.owners.get(entry.name)
    if not paths or owner is None:
        return Carrier("none", why="is no parameter of its own in the model")
    module, _, name = paths[0].rpartition(".")
    if not owner.in_backbone and _CLASSIFIER.search(found.base.architecture):
        # PEFT saves the heads of classifiers whole, whatever the factors are beside.
        return Carrier("whole", paths, paths[0].partition(".")[0])
    if owner.kind == "norm":
        return Carrier("whole", paths, module)
    if name == "bias":
        return Carrier("bias", paths)
    if name != "weight":
        return Carrier("none", paths, why="is a bare parameter, no layer's weight")
    if owner.kind == "embedding":
        kept_whole = len(paths) == 1 and any(
            isinstance(source, str) and task.checkpoint.adapter
            for source, task in zip(entry.sources, found.tasks, strict=True)
        )
        return Carrier("table", paths, module if kept_whole else "")
    if entry.pairs or (entry.parts and entry.parts[0].expert is None and (found.base.bare or owner.module in _TARGETS)):
        return Carrier("pair", paths)
    return Carrier("none", paths, why=f"belongs to a {owner.module}, which PEFT puts no factors beside")


@dataclass(frozen=True)
class _Shift:
    """Adapters may be trained on a model with a head where the base is the backbone alone, or the other way round."""

    add: str = ""
    remove: str = ""

    def __call__(self, name: str) -> str:
        return self.add + name.removeprefix(self.remove)


def _prefix_shift(found: Preflight, memory: Mapping[str, tuple[str, ...]]) -> _Shift:
    """What turns the base's names in memory into those that the adapters among the tasks use."""
    prefix = found.architecture.backbone_prefix
    for task, match in zip(found.tasks, found.matches, strict=True):
        modules = {
            pair["A"]: module for module, pair in parse_names(task.checkpoint.tensors).factors.items() if "A" in pair
        }
        for name, pair in match.pairs.items():
            theirs = f"{modules[pair.a]}.weight"
            for ours in memory.get(name, ()):
                if theirs == prefix + ours:
                    return _Shift(add=prefix)
                if prefix + theirs == ours:
                    return _Shift(remove=prefix)
    return _Shift()


def peft_name(path: str) -> str:
    """The name in an adapter's file."""
    return PEFT_PREFIX + path
