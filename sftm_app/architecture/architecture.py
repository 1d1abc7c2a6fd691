"""What a model's config says about the tensors in its files."""

from __future__ import annotations

from dataclasses import dataclass, field

from sftm_app.architecture.owners import Owner


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
    """

    owners: dict[str, Owner]
    backbone_prefix: str
    file_names: dict[str, str] = field(default_factory=dict)
    keys: frozenset[str] = frozenset()
    ties: dict[str, str] = field(default_factory=dict)
    vocabulary: str | None = None
    submodels: dict[str, str] = field(default_factory=dict)
    false_ties: dict[str, str] = field(default_factory=dict)

    def key_of(self, name: str, prefix: str) -> str:
        """The key of a tensor of the files; without one, its name without the prefix."""
        owner = self.owners.get(name)
        return owner.key if owner and owner.key else name.removeprefix(prefix)

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
