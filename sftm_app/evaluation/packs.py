"""Demo packs: a base, its task checkpoints and labelled samples that nobody trained on, in one folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from sftm_app.errors import SampleError
from sftm_app.evaluation.samples import ImageSamples
from sftm_app.evaluation.texts import TextSamples, load_texts
from sftm_app.weights.checkpoint import read_json, read_tensors

PACK_NAME = "pack.json"
KINDS = ("images", "text")


@dataclass(frozen=True)
class PackTask:
    """One task of a pack: its checkpoint folder and its file of samples. description: what it asks of its input."""

    name: str
    title: str
    path: Path
    samples_path: Path
    description: str = ""


@dataclass(frozen=True)
class Pack:
    """A demo pack. `drawn` says that its inputs are white strokes on black, so that a drawing can be tried.

    kind: what its models read. A task's checkpoint is a whole model or a PEFT adapter.
    """

    name: str
    title: str
    description: str
    base: Path
    tasks: tuple[PackTask, ...]
    drawn: bool
    kind: Literal["images", "text"] = "images"


def open_pack(folder: Path) -> Pack:
    """Read a pack's table of contents.

    Raises
        CheckpointError, SampleError: it is missing or incomplete.
    """
    content = read_json(folder / PACK_NAME)
    try:
        tasks = tuple(
            PackTask(
                task["name"],
                task["title"],
                folder / task["path"],
                folder / task["samples"],
                task.get("description", ""),
            )
            for task in content["tasks"]
        )
        kind = content.get("kind", "images")
        if kind not in KINDS:
            raise SampleError(f"{folder / PACK_NAME}: is of the kind {kind!r}; known are {' and '.join(KINDS)}.")
        drawn = kind == "images" and content["image"]["channels"] == 1
        title, description = content["title"], content["description"]
        return Pack(content["name"], title, description, folder / content["base"], tasks, drawn, kind)
    except (KeyError, TypeError) as error:
        raise SampleError(f"{folder / PACK_NAME}: is incomplete ({error}). Install SFTM Studio again.") from None


def find_packs(root: Path) -> list[Pack]:
    """Every pack below `root`: pictures first, which anybody can draw, then by name."""
    packs = [open_pack(file.parent) for file in root.glob(f"*/{PACK_NAME}")]
    return sorted(packs, key=lambda pack: (pack.kind != "images", pack.name))


def pack_of(base: Path, packs: list[Pack]) -> Pack | None:
    """The pack that a base belongs to, so that a workspace with a demo's base knows the demo's samples."""
    return next((pack for pack in packs if pack.base.resolve() == base.resolve()), None)


def load_samples(task: PackTask) -> ImageSamples | TextSamples:
    """The held-out samples of one task: a .json file holds texts, a .safetensors file images and labels.

    Raises
        CheckpointError, SampleError: the file is missing, damaged or holds something else.
    """
    if task.samples_path.suffix == ".json":
        return load_texts(task.samples_path)
    content = read_tensors(task.samples_path)
    try:
        return ImageSamples(content["images"].numpy(), content["labels"].numpy())
    except KeyError as error:
        raise SampleError(f"{task.samples_path}: lacks {error}. Install SFTM Studio again.") from None
