"""Labelled samples of the tasks of a workspace: from a demo pack, a folder of images or a file of texts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from sftm_app.errors import SampleError
from sftm_app.evaluation.building import has_chat_template
from sftm_app.evaluation.families import family_of
from sftm_app.evaluation.family import Family
from sftm_app.evaluation.image_files import load_labelled_folder
from sftm_app.evaluation.image_tables import load_image_table
from sftm_app.evaluation.packs import PACK_NAME, Pack, PackTask, load_samples, open_pack
from sftm_app.evaluation.samples import ImageSamples, Samples, TextSamples
from sftm_app.evaluation.table_files import PARQUET
from sftm_app.evaluation.task_model import model_spec
from sftm_app.evaluation.text_files import TEXT_ENDINGS, load_texts
from sftm_app.preflight.preflight import Preflight


def family_at(found: Preflight, index: int) -> Family:
    """The family of the model of the task at position `index`. Raises SampleError: no family fits."""
    spec = model_spec(found, index)
    return family_of(spec.class_name, spec.config)


def chats_at(found: Preflight, index: int) -> bool:
    """Whether the model of a task has a chat template for a message. Raises SampleError as `family_at`."""
    return family_at(found, index).chats and has_chat_template(
        (found.tasks[index].checkpoint.folder, found.base.folder)
    )


def own_samples(
    found: Preflight, index: int, root: Path, names: tuple[str, ...] | None = None, chat: bool = False
) -> Samples:
    """A person's own labelled samples of one task.

    Args:
        found: the workspace.
        index: the task's position in it.
        root: a file of texts, a folder with one named after each task, or a folder of images: one folder per task, and
            in each one folder per class; or a Parquet file of images, or one for each task.
        names: class names, for models without classes of their own.
        chat: whether texts are put into the chat template.

    Raises:
        SampleError: there are none for this task, or they cannot be read.
    """
    family = family_at(found, index)
    if family.reads == "text":
        return _with_choices(replace(load_texts(_text_file(root, found.tasks[index].name)), chat=chat), family)
    return _images(found, index, root, family, names)


def find_samples(found: Preflight, root: Path) -> tuple[dict[str, Samples], list[str]]:
    """The labelled samples of every task that has some, and sentences on why the others have none.

    Args:
        found: the workspace.
        root: as of `own_samples`, or the folder of a demo pack.

    Raises:
        SampleError: the path does not exist, or no task has any.
        CheckpointError: the pack cannot be read.
    """
    if not root.exists():
        raise SampleError(f"{root}: does not exist. Give a file of labelled texts, or a folder with samples per task.")
    pack = open_pack(root) if (root / PACK_NAME).is_file() else None
    samples: dict[str, Samples] = {}
    problems = []
    for index, task in enumerate(found.tasks):
        try:
            if pack is None:
                samples[task.name] = own_samples(found, index, root, chat=chats_at(found, index))
            else:
                samples[task.name] = pack_samples(pack, task.checkpoint.path, task.name)
        except SampleError as error:
            problems.append(str(error))
    if not samples:
        raise SampleError(problems[0])
    return samples, problems


def pack_entry(pack: Pack, path: Path) -> PackTask | None:
    """The demo's own entry for a task's checkpoint; None for a checkpoint from elsewhere."""
    return next((task for task in pack.tasks if task.path.resolve() == path.resolve()), None)


def pack_samples(pack: Pack, path: Path, name: str) -> Samples:
    """The samples that a demo has for a task's checkpoint. Raises SampleError: it has none."""
    entry = pack_entry(pack, path)
    if entry is None:
        raise SampleError(f"{name}: the demo has no samples for this task. Choose another task.")
    return load_samples(entry)


def _text_file(root: Path, task: str) -> Path:
    if not root.is_dir():
        return root
    found = [root / f"{task}{ending}" for ending in TEXT_ENDINGS if (root / f"{task}{ending}").is_file()]
    if len(found) != 1:
        count = f"{len(found)} files" if found else "no file"
        raise SampleError(f"{root}: has {count} of texts named {task} ({', '.join(TEXT_ENDINGS)}); it should have one.")
    return found[0]


def _with_choices(texts: TextSamples, family: Family) -> TextSamples:
    """A model that always chooses is offered every target of the file, unless each text lists its candidates."""
    if not family.picks or texts.choices or any("\n" in text.strip() for text in texts.inputs):
        return texts
    return replace(texts, choices=tuple(dict.fromkeys(target for target in texts.targets if target is not None)))


def _images(found: Preflight, index: int, root: Path, family: Family, names: tuple[str, ...] | None) -> ImageSamples:
    inner, task = root, found.tasks[index]
    channels = 1 if task.checkpoint.config.get("num_channels") == 1 and not family.picks else 3
    table = root if root.suffix.lower() == PARQUET else root / f"{task.name}{PARQUET}"
    if table.is_file():
        own = None if family.picks and names is None else dict(enumerate(names or ())) or task.checkpoint.id2label
        samples, classes = load_image_table(table, own, channels)
        return replace(samples, choices=classes) if family.picks else samples
    if any((root / one.name).is_dir() for one in found.tasks):
        inner = root / task.name
        if not inner.is_dir():
            raise SampleError(f"{root}: has no folder {task.name!r}, so this task is left out.")
    if not family.picks:
        return load_labelled_folder(inner, task.checkpoint.id2label, channels)
    classes = names or _subfolders(inner)
    samples = load_labelled_folder(inner, dict(enumerate(classes)), channels)
    return replace(samples, choices=classes)


def _subfolders(folder: Path) -> tuple[str, ...]:
    try:
        return tuple(sorted(child.name for child in folder.iterdir() if child.is_dir()))
    except OSError as error:
        why = f"cannot be read ({error.strerror})"
        raise SampleError(f"{folder}: {why}. It should hold one subfolder of images per class.") from None
