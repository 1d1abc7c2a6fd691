"""Demo packs: a base, its task checkpoints and held-out labelled samples, in one folder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ValidationError, ValidationInfo, model_validator

from sftm_app.errors import SampleError
from sftm_app.evaluation.samples import ImageSamples, Samples
from sftm_app.evaluation.text_files import load_texts
from sftm_app.weights.json_files import read_json
from sftm_app.weights.reader import read_tensors

PACK_NAME = "pack.json"


def _in_pack(path: Path, info: ValidationInfo) -> Path:
    return Path(info.context or "") / path


InPack = Annotated[Path, AfterValidator(_in_pack)]


class PackTask(BaseModel, frozen=True):
    """One task of a pack.

    Attributes:
        name: its short name.
        title: its name on screen.
        path: the checkpoint's folder: a whole model or a PEFT adapter.
        samples: the file of its held-out samples.
        description: what the task is.
    """

    name: str
    title: str
    path: InPack
    samples: InPack
    description: str = ""


class PackImages(BaseModel, frozen=True):
    """The images that a pack's models read."""

    channels: Literal[1, 3]


class Pack(BaseModel, frozen=True):
    """A demo pack, as pack.json describes it.

    Attributes:
        name: its short name.
        title: its name on screen.
        description: what the models do and where they come from.
        base: the base's folder.
        tasks: the tasks.
        kind: what the models read.
        image: what their images look like; only for packs of images.
    """

    name: str
    title: str
    description: str
    base: InPack
    tasks: tuple[PackTask, ...]
    kind: Literal["images", "text"] = "images"
    image: PackImages | None = None

    @model_validator(mode="after")
    def _images_are_described(self) -> Pack:
        if self.kind == "images" and self.image is None:
            raise ValueError("image is missing")
        return self

    @property
    def drawn(self) -> bool:
        """Whether the inputs are white strokes on black, so that a drawing can be tried."""
        return self.image is not None and self.image.channels == 1


def open_pack(folder: Path) -> Pack:
    """Read the pack.json of a folder.

    Raises:
        CheckpointError: the file is missing or damaged.
        SampleError: its content is incomplete.
    """
    file = folder / PACK_NAME
    try:
        return Pack.model_validate(read_json(file), context=folder)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        what = " ".join([*(f"{step}:" for step in first["loc"]), first["msg"]])
        raise SampleError(f"{file}: is not a valid demo pack ({what}). Install SFTM Studio again.") from None


def find_packs(root: Path) -> list[Pack]:
    """Every pack below `root`: packs of images first, because anybody can draw a sample, then by name."""
    packs = [open_pack(file.parent) for file in root.glob(f"*/{PACK_NAME}")]
    return sorted(packs, key=lambda pack: (pack.kind != "images", pack.name))


def pack_of(base: Path, packs: list[Pack]) -> Pack | None:
    """The pack that a base belongs to, if any."""
    return next((pack for pack in packs if pack.base.resolve() == base.resolve()), None)


def load_samples(task: PackTask) -> Samples:
    """The held-out samples of a task: texts from a .json file, images and labels from a .safetensors file.

    Raises:
        CheckpointError, SampleError: the file is missing or damaged, or holds something else.
    """
    if task.samples.suffix == ".json":
        return load_texts(task.samples)
    content = read_tensors(task.samples)
    try:
        return ImageSamples(content["images"].numpy(), content["labels"].numpy())
    except KeyError as error:
        raise SampleError(f"{task.samples}: lacks {error}. Install SFTM Studio again.") from None
