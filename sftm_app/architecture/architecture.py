"""What a model's config says about the tensors in its files."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

from sftm_app.architecture.owners import Owner
from sftm_app.errors import CheckpointError


class UnknownModelType(CheckpointError):
    """The config is not one of the installed transformers, so that it does not say what the tensors are."""


@dataclass(frozen=True)
class Architecture:
    """Which module owns each tensor of the files, and how names in files relate to names in memory.

    Attributes:
        owners: name in the files -> its owner, in the order in which save_pretrained writes them. A name that has no
            place in the model is absent.
        backbone_prefix: what a model with a head puts before the names of its backbone.
        file_names: name in memory (in the model's state_dict) -> name in the files, for every parameter that is stored
            as one tensor. Tied names lead to the one that is stored.
        keys: the keys (see Owner) of all parameters of the class.
        ties: tied name in memory, without the prefix -> the key that stands for all of them.
        vocabulary: the key of the table that holds the vocabulary.
        submodels: model type of a part, such as one of CLIP's two towers -> what the keys of that part begin with.
        false_ties: name in the files that the config ties, although the files differ -> what it is tied to.
        unused: names in the files that the model's class does not load, although they seem to be trained, such as the
            layers that predict several tokens at once ("mtp.").
        plain: name in the files -> the name without what a wrapper put before it, where they differ.
        guessed: why roles were guessed: a sentence where they all were, or "" where the config says what they are.
        unknown: names in the files whose roles were guessed because the model's class does not know them.
        shapes: name in memory -> shape of the parameter or buffer.
        settings: the config's settings that change what the model computes, with every default; see `flat_settings`.
    """

    owners: dict[str, Owner]
    backbone_prefix: str
    file_names: dict[str, str] = field(default_factory=dict)
    keys: frozenset[str] = frozenset()
    ties: dict[str, str] = field(default_factory=dict)
    vocabulary: str | None = None
    submodels: dict[str, str] = field(default_factory=dict)
    false_ties: dict[str, str] = field(default_factory=dict)
    unused: tuple[str, ...] = ()
    plain: dict[str, str] = field(default_factory=dict)
    guessed: str = ""
    unknown: tuple[str, ...] = ()
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    settings: dict[str, str] = field(default_factory=dict)

    @cached_property
    def stored(self) -> dict[str, str]:
        """Name without a wrapper's prefix -> name in the files, where they differ."""
        return {plain: name for name, plain in self.plain.items()}

    def key_of(self, name: str, prefix: str) -> str:
        """The key of a tensor of the files; without one, its name without the prefix."""
        owner = self.owners.get(name)
        return owner.key if owner and owner.key else self.plain.get(name, name).removeprefix(prefix)

    def in_backbone(self, name: str) -> bool:
        """Whether a tensor of the files is not part of a head, as far as is known."""
        owner = self.owners.get(name)
        return owner is None or owner.in_backbone

    def is_buffer(self, name: str) -> bool:
        """Whether a tensor of the files is not trained."""
        owner = self.owners.get(name)
        return owner is not None and owner.kind == "buffer"

    def is_vocabulary(self, name: str) -> bool:
        """Whether a tensor of the files is the table that holds the vocabulary."""
        owner = self.owners.get(name)
        return owner is not None and self.vocabulary is not None and owner.key == self.vocabulary
