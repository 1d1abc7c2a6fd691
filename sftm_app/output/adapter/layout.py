"""Where a LoRA adapter holds the delta of each tensor."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum, auto

from sftm_app.architecture.adapter_names import names_in_memory, parse_names
from sftm_app.linalg.low_rank import Delta, LowRank
from sftm_app.planning.plan import Plan, PlanEntry
from sftm_app.preflight.preflight import Preflight

# The modules that PEFT gives LoRA pairs to.
_TARGETS = ("Linear", "NonDynamicallyQuantizableLinear", "Conv1D", "Conv1d", "Conv2d", "Conv3d")
_CLASSIFIER = re.compile(r"For\w*(Classification|QuestionAnswering|MultipleChoice)$")
_TABLE_NAME = re.compile(r"embed|(^|\.)(wte|wpe|shared)\.weight$")


class Form(Enum):
    """How an adapter holds a delta."""

    PAIR = auto()  # as the LoRA pair of a layer
    TABLE_PAIR = auto()  # as the LoRA pair of an embedding table
    MODULE = auto()  # in a module that is saved whole, with the base's values
    BIAS = auto()  # in a bias, with the base's values
    NONE = auto()  # not at all


@dataclass(frozen=True)
class Slot:
    """The place of one tensor in an adapter.

    Attributes:
        form: how its delta is held; see `form_of`.
        paths: the parameter's path in the model, then the paths of parameters that are tied to it.
        module: the path of the module to save whole. A table may have one for deltas that are not low-rank.
    """

    form: Form
    paths: tuple[str, ...] = ()
    module: str = ""

    @property
    def layers(self) -> tuple[str, ...]:
        """The paths of the modules that own the parameter."""
        return tuple(path.rpartition(".")[0] for path in self.paths)

    def form_of(self, delta: Delta | None) -> Form:
        """How this delta is held. A stack of experts (None) is not; a table has a pair for low-rank deltas only."""
        if delta is None:
            return Form.NONE
        if self.form is Form.TABLE_PAIR and not isinstance(delta, LowRank):
            return Form.MODULE if self.module else Form.NONE
        return self.form


def adapter_slots(plan: Plan) -> dict[str, Slot]:
    """A slot for every tensor of the plan, by its name in the base's files."""
    found = plan.preflight
    in_memory = names_in_memory(found.architecture)
    rename = _renaming(found, in_memory)
    slots = {}
    for entry in plan.entries:
        paths = in_memory.get(entry.name, (entry.name,) if found.architecture.guessed else ())
        slots[entry.name] = _slot(plan, entry, tuple(map(rename, paths)))
    return slots


def is_table(path: str) -> bool:
    """Whether a parameter that shares the weight of an embedding table is one itself, and not an output layer's."""
    return _TABLE_NAME.search(path) is not None


def _slot(plan: Plan, entry: PlanEntry, paths: tuple[str, ...]) -> Slot:
    found = plan.preflight
    owner = found.architecture.owners.get(entry.name)
    if not paths or owner is None:
        return Slot(Form.NONE)
    module, _, name = paths[0].rpartition(".")
    if not owner.in_backbone and _CLASSIFIER.search(found.base.architecture):
        # PEFT saves the heads of classifiers whole, whatever the other layers have.
        return Slot(Form.MODULE, paths, paths[0].partition(".")[0])
    if owner.kind == "norm":
        return Slot(Form.MODULE if module else Form.NONE, paths, module)
    if name == "bias":
        return Slot(Form.BIAS, paths)
    if name != "weight":
        return Slot(Form.NONE, paths)
    if owner.kind == "embedding":
        saved_whole = len(paths) == 1 and any(
            isinstance(source, str) and task.checkpoint.adapter
            for source, task in zip(entry.sources, found.tasks, strict=True)
        )
        return Slot(Form.TABLE_PAIR, paths, module if saved_whole else "")
    is_linear_map = bool(entry.parts) and not entry.in_experts
    if entry.pairs or (is_linear_map and (found.architecture.guessed or owner.module in _TARGETS)):
        return Slot(Form.PAIR, paths)
    return Slot(Form.NONE, paths)


def _renaming(found: Preflight, in_memory: Mapping[str, tuple[str, ...]]) -> Callable[[str], str]:
    """Turns the base's paths into those that the adapters among the tasks use.

    Adapters may be trained on a model with a head where the base is the backbone alone, or the other way round.
    """
    prefix = found.architecture.backbone_prefix
    for task, match in zip(found.tasks, found.matches, strict=True):
        pairs = parse_names(task.checkpoint.tensors).factors
        modules = {pair["A"]: module for module, pair in pairs.items() if "A" in pair}
        for name, pair in match.pairs.items():
            theirs = f"{modules[pair.a]}.weight"
            for ours in in_memory.get(name, ()):
                if theirs == prefix + ours:
                    return lambda path: prefix + path
                if prefix + theirs == ours:
                    return lambda path: path.removeprefix(prefix)
    return lambda path: path
