"""Well-known sets on the hub: a base and the checkpoints that were fine-tuned from it.

Source: the configurations of FusionBench (Tang et al., arXiv 2406.03280), which name exactly these repositories. The
hub itself was out of reach when this table was written.
"""

from __future__ import annotations

from dataclasses import dataclass

from sftm_app.errors import HubError
from sftm_app.weights.hub_names import HubRef

_IMAGE_TASKS = ("sun397", "stanford-cars", "resisc45", "eurosat", "svhn", "gtsrb", "mnist", "dtd")
_GLUE = ("cola", "mnli", "mrpc", "qnli", "qqp", "rte", "sst2")


@dataclass(frozen=True)
class Preset:
    """A set. `tasks` are pairs of task name and repository; `about` is one sentence on what it is."""

    name: str
    title: str
    about: str
    base: HubRef
    tasks: tuple[tuple[str, HubRef], ...]


def _tasks(names: tuple[str, ...], pattern: str) -> tuple[tuple[str, HubRef], ...]:
    return tuple((name, HubRef(pattern.format(name))) for name in names)


PRESETS: dict[str, Preset] = {
    preset.name: preset
    for preset in (
        Preset(
            "clip-vit-b32-8",
            "CLIP ViT-B/32, 8 image tasks",
            "The paper's setting: vision towers fine-tuned on eight image classification sets.",
            HubRef("openai/clip-vit-base-patch32"),
            _tasks(_IMAGE_TASKS, "tanganke/clip-vit-base-patch32_{}"),
        ),
        Preset(
            "flan-t5-base-glue",
            "Flan-T5 base, 8 GLUE tasks",
            "Text-to-text models, each fine-tuned on one task of the GLUE benchmark.",
            HubRef("google/flan-t5-base"),
            _tasks((*_GLUE, "stsb"), "tanganke/flan-t5-base_glue-{}"),
        ),
        Preset(
            "flan-t5-base-glue-lora",
            "Flan-T5 base, 8 GLUE tasks as LoRA adapters",
            "The same tasks as adapters of rank 16: a few megabytes each, and the base.",
            HubRef("google/flan-t5-base"),
            _tasks((*_GLUE, "stsb"), "tanganke/flan-t5-base_glue-{}_lora-16"),
        ),
        Preset(
            "gpt2-glue",
            "GPT-2, 7 GLUE tasks",
            "GPT-2 classifiers, each fine-tuned on one task of the GLUE benchmark.",
            HubRef("openai-community/gpt2"),
            _tasks(_GLUE, "tanganke/gpt2_{}"),
        ),
    )
}


def get_preset(name: str) -> Preset:
    """Look up a preset. Raises HubError, which lists all presets, if there is none of that name."""
    if name not in PRESETS:
        raise HubError(f"{name!r} is not a preset. Choose one of {', '.join(PRESETS)}.")
    return PRESETS[name]
