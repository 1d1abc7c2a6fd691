"""Labelled samples of the tasks: the demo pack's own, or a person's folder of images or file of texts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from sftm_app.errors import InputError, SampleError
from sftm_app.evaluation.family import Family
from sftm_app.evaluation.image_files import load_labelled_folder
from sftm_app.evaluation.packs import Pack, PackTask, load_samples
from sftm_app.evaluation.samples import ImageSamples, Samples, TextSamples
from sftm_app.evaluation.text_files import TEXT_ENDINGS, load_texts
from sftm_app.ui.settings import allowed
from sftm_app.ui.studio import Studio
from sftm_app.ui.workspace import Workspace

INFO_IMAGES = (
    "In the models folder: a folder per task, and in each one folder of images per class. Empty: the demo's samples."
)
INFO_TEXTS = (
    "In the models folder: a .csv, .tsv, .jsonl or .json, or a folder with one per task. Empty: the demo's samples."
)
FEW_SAMPLES, SOME_SAMPLES = 50, 200
HOW_IMAGES = (
    "Enter a folder under Labelled samples that holds one subfolder per task, and in each one subfolder of images per "
    "class."
)
HOW_TEXTS = (
    "Enter a file under Labelled samples: .csv with the columns text and label, .jsonl with input and target, or "
    ".json; or a folder with one such file per task."
)


def first_limit(family: Family | None) -> int:
    """How many samples per task to begin with: fewer for models that write, which takes long."""
    return FEW_SAMPLES if family and family.writes else SOME_SAMPLES


def samples_of(
    studio: Studio, ws: Workspace, task: str, where: str, names: tuple[str, ...] | None = None, chat: bool = False
) -> Samples:
    """The labelled samples of a task: the demo pack's, or a person's own.

    Args:
        where: the path of a person's own samples; empty for the demo pack's.
        names: class names that the person wrote, for models without classes of their own.
        chat: whether the texts of a person's own file are put into the chat template.

    Raises:
        SampleError, InputError: there are none.
    """
    if task not in ws.task_names:
        raise InputError(f"There is no task {task!r}. Choose one of {', '.join(ws.task_names)}.")
    pack = studio.pack(ws)
    if pack and not where.strip():
        found = pack_task(pack, ws, task)
        if found is None:
            raise SampleError(f"{task}: the demo has no samples for this task. Choose another task.")
        return load_samples(found)
    family = studio.model_pool(ws).family(task)
    if not where.strip():
        how = HOW_TEXTS if family.reads == "text" else HOW_IMAGES
        raise SampleError(f"There are no labelled samples for these models. {how}")
    root = allowed(studio.settings, where)
    if family.reads == "text":
        return _with_choices(replace(load_texts(_text_file(root, task)), chat=chat), family)
    return _images(studio, ws, task, root, family, names)


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


def _images(
    studio: Studio, ws: Workspace, task: str, root: Path, family: Family, names: tuple[str, ...] | None
) -> ImageSamples:
    inner = root
    if any((root / name).is_dir() for name in ws.task_names):
        inner = root / task
        if not inner.is_dir():
            raise SampleError(f"{root}: has no folder {task!r}, so this task is left out.")
    checkpoint = studio.preflight(ws).tasks[ws.task_names.index(task)].checkpoint
    if not family.picks:
        channels = 1 if checkpoint.config.get("num_channels") == 1 else 3
        return load_labelled_folder(inner, checkpoint.id2label, channels)
    classes = names or _subfolders(inner)
    samples = load_labelled_folder(inner, dict(enumerate(classes)), 3)
    return replace(samples, choices=classes)


def _subfolders(folder: Path) -> tuple[str, ...]:
    try:
        return tuple(sorted(child.name for child in folder.iterdir() if child.is_dir()))
    except OSError as error:
        why = f"cannot be read ({error.strerror})"
        raise SampleError(f"{folder}: {why}. It should hold one subfolder of images per class.") from None


def all_samples(
    studio: Studio, ws: Workspace, where: str, names: tuple[str, ...] | None = None, chat: bool = False
) -> tuple[dict[str, Samples], list[str]]:
    """The labelled samples of every task that has some, and why the others have none. Arguments as of samples_of.

    Raises:
        SampleError, InputError: no task has any.
    """
    found: dict[str, Samples] = {}
    problems = []
    for task in ws.task_names:
        try:
            found[task] = samples_of(studio, ws, task, where, names, chat)
        except SampleError as error:
            problems.append(str(error))
    if not found:
        raise SampleError(problems[0])
    return found, problems


def pack_task(pack: Pack, ws: Workspace, name: str) -> PackTask | None:
    """The demo's own entry for a task of the workspace; None for a checkpoint from elsewhere."""
    path = next((Path(task.path).resolve() for task in ws.tasks if task.name == name), None)
    return next((task for task in pack.tasks if task.path.resolve() == path), None)
