"""Labelled samples of the tasks: the demo pack's own, or a person's folder of images or file of texts."""

from __future__ import annotations

from pathlib import Path

import gradio as gr

from sftm_app.errors import InputError, SampleError
from sftm_app.evaluation.family import Family
from sftm_app.evaluation.labelled import own_samples, pack_entry, pack_samples
from sftm_app.evaluation.packs import Pack, PackTask
from sftm_app.evaluation.samples import Samples
from sftm_app.ui.settings import allowed
from sftm_app.ui.studio import Studio
from sftm_app.ui.workspace import Workspace

INFO_IMAGES = (
    "In the models folder: a folder per task, and in each one folder of images per class; or .parquet with image and "
    "label. Empty: the demo's samples."
)
INFO_TEXTS = (
    "In the models folder: a .csv, .tsv, .jsonl, .json or .parquet, or a folder with one per task. Empty: the demo's "
    "samples."
)
FEW_SAMPLES, SOME_SAMPLES = 50, 200
HOW_IMAGES = (
    "Enter a folder under Labelled samples that holds one subfolder per task, and in each one subfolder of images per "
    "class; or a .parquet file with the columns image and label."
)
HOW_TEXTS = (
    "Enter a file under Labelled samples: .csv, .tsv or .parquet with the columns text and label, .jsonl with input "
    "and target, or .json; or a folder with one such file per task."
)


def first_limit(family: Family | None) -> int:
    """How many samples per task to begin with: fewer for models that write, which takes long."""
    return FEW_SAMPLES if family and family.writes else SOME_SAMPLES


def samples_slider(elem_id: str | None = None) -> gr.Slider:
    """The control of how many samples of a task are used."""
    return gr.Slider(
        10,
        1000,
        value=SOME_SAMPLES,
        step=10,
        label="Samples per task",
        info="Fewer is faster; more makes the intervals narrower.",
        scale=2,
        min_width=220,
        elem_id=elem_id,
    )


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
    pack, index = studio.pack(ws), ws.task_names.index(task)
    if pack and not where.strip():
        return pack_samples(pack, Path(ws.tasks[index].path), task)
    if not where.strip():
        how = HOW_TEXTS if studio.model_pool(ws).family(task).reads == "text" else HOW_IMAGES
        raise SampleError(f"There are no labelled samples for these models. {how}")
    return own_samples(studio.preflight(ws), index, allowed(studio.settings, where), names, chat)


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
    path = next((task.path for task in ws.tasks if task.name == name), None)
    return pack_entry(pack, Path(path)) if path else None
