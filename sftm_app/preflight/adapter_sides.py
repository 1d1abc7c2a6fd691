"""The base and an adapter, side by side."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from sftm_app.architecture.adapter_names import AdapterNames, is_tied
from sftm_app.architecture.architecture import Architecture
from sftm_app.weights.adapter_config import AdapterConfig
from sftm_app.weights.checkpoint import Checkpoint

TIED = (
    "which the base ties to another parameter, so they cannot differ in a merged model. Untie the base first "
    "(tie_word_embeddings), or train the adapter without it"
)


@dataclass(frozen=True)
class AdapterSides:
    """The base and an adapter.

    Attributes:
        base, architecture: the base, and its architecture.
        task, names: the adapter, and what its tensors are.
        found: path of a parameter in the adapter -> the base's tensor.
    """

    base: Checkpoint
    task: Checkpoint
    architecture: Architecture
    names: AdapterNames
    found: Mapping[str, str]

    @property
    def adapter(self) -> AdapterConfig:
        """The adapter's settings."""
        assert self.task.adapter is not None
        return self.task.adapter

    def find(self, path: str) -> str | None:
        """The base's tensor for a parameter of the adapter."""
        return self.found.get(path)

    def is_tied(self, path: str) -> bool:
        """Whether the path is a second name of another parameter."""
        return is_tied(path, self.architecture)

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor of the adapter."""
        return self.task.tensors[name].shape


def component_of(module: str, adapter: AdapterConfig) -> str:
    """The model that a module's pair is for, where a file is for several; "" otherwise."""
    return module.partition(".")[0] if adapter.components else ""


def own_path(module: str, adapter: AdapterConfig) -> str:
    """A module's path without the name of the model that it is for."""
    return module.partition(".")[2] if adapter.components else module
