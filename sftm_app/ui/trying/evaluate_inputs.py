"""What the Evaluate tab offers to give to the models: a pad, a picture or a text, by the family of the task."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import gradio as gr
import numpy as np

from sftm_app.errors import SampleError, SFTMError
from sftm_app.evaluation.family import Family, Samples
from sftm_app.evaluation.packs import Pack
from sftm_app.evaluation.samples import ImageSamples
from sftm_app.evaluation.texts import MAX_CHOICES, TextSamples
from sftm_app.ui.studio import Studio
from sftm_app.ui.trying.labelled import pack_task
from sftm_app.ui.widgets import DrawPad, encode_drawing
from sftm_app.ui.widgets.html import Safe, hint, notice
from sftm_app.ui.workspace import Workspace

MAX_LABELS_SHOWN = 60
MAX_CHARACTERS = 20_000
INFO_TEXT = "What the models should answer."
INFO_CHOICES = "Empty: the models write freely. Else one a line, exactly as it follows the text; the likeliest is said."
FEW_SAMPLES, SOME_SAMPLES = 50, 200
N_INPUTS = 8


@dataclass(frozen=True)
class Inputs:
    """The components of the left column, in the order of their updates."""

    pad: DrawPad
    picture: gr.Image
    text: gr.Textbox
    choices: gr.Textbox
    chat: gr.Checkbox
    ask: gr.Button
    pick: gr.Button
    known: gr.HTML

    @property
    def all(self) -> list[Any]:
        """For a handler's outputs: what for_task() and showing() update; N_INPUTS of them."""
        return [self.pad, self.picture, self.text, self.choices, self.chat, self.ask, self.pick, self.known]


def build_inputs(prefix: str = "") -> Inputs:
    """Lay them out; which of them are visible is for_task()'s to say. prefix: of the elements' ids."""
    sources = ["upload", "clipboard"]
    return Inputs(
        DrawPad(label="Draw a glyph of the chosen task", elem_id=f"{prefix}pad"),
        gr.Image(label="Image", type="numpy", visible=False, sources=sources, elem_id=f"{prefix}picture"),
        gr.Textbox(
            label="Your text", info=INFO_TEXT, lines=4, max_lines=12, visible=False, elem_id=f"{prefix}your-text"
        ),
        gr.Textbox(label="Choices", info=INFO_CHOICES, lines=2, max_lines=8, visible=False, elem_id=f"{prefix}choices"),
        gr.Checkbox(
            label="Chat template",
            info="Put the text as a message into the form that this model was taught to chat in.",
            visible=False,
            elem_id=f"{prefix}chat",
        ),
        gr.Button("Ask the models", variant="primary", visible=False, elem_id=f"{prefix}ask"),
        gr.Button("Pick a sample", elem_id=f"{prefix}sample"),
        gr.HTML(apply_default_css=False, elem_id=f"{prefix}known-classes"),
    )


def family_of(studio: Studio, ws: Workspace, task: str) -> Family | None:
    """What kind of model a task is; None where it cannot be tried."""
    try:
        return studio.model_pool(ws).family(task) if studio.usable(ws) and task in ws.task_names else None
    except SFTMError:
        return None


def for_task(studio: Studio, ws: Workspace, task: str) -> tuple[Any, ...]:
    """Updates of Inputs.all that suit the task, emptied."""
    family = family_of(studio, ws, task)
    pack = studio.pack(ws)
    images, text = (family is not None and family.reads == kind for kind in ("images", "text"))
    drawn = bool(pack and pack.drawn and images)
    chats = bool(family and studio.model_pool(ws).chats(task))
    return (
        gr.update(visible=drawn, value=None),
        gr.update(visible=images and not drawn, value=None),
        gr.update(visible=text, value="", info=f"{family.hint} {_asked(pack, ws, task)}" if family else INFO_TEXT),
        _choices_box(family),
        # A pack's samples are whole prompts; a model that was taught to chat is mostly asked in a chat.
        gr.update(visible=chats, value=chats and pack is None),
        gr.update(visible=text or bool(family and family.choices)),
        gr.update(visible=family is not None),
        _known(studio, ws, task, family),
    )


def _asked(pack: Pack | None, ws: Workspace, task: str) -> str:
    """What a demo's task asks of its input."""
    found = pack_task(pack, ws, task) if pack else None
    return found.description if found else ""


def _choices_box(family: Family | None) -> Any:
    if family is None or not family.choices:
        return gr.update(visible=False, value="")
    if family.reads == "images":
        return gr.update(visible=True, value="", label=family.choices, info="Separated by commas: cat, dog, red car")
    return gr.update(visible=True, value="", label=family.choices, info=INFO_CHOICES)


def _known(studio: Studio, ws: Workspace, task: str, family: Family | None) -> Safe:
    """The classes of a task, or why it cannot be tried."""
    if not studio.usable(ws) or task not in ws.task_names:
        return Safe("")
    if family is None:
        try:
            studio.model_pool(ws).family(task)
        except SFTMError as error:
            return notice("info", "This task cannot be tried", str(error))
    labels = list(studio.preflight(ws).tasks[ws.task_names.index(task)].checkpoint.id2label.values())
    if family is None or family.choices or family.picks or not labels:
        return Safe("")
    more = f" and {len(labels) - MAX_LABELS_SHOWN} more" if len(labels) > MAX_LABELS_SHOWN else ""
    return hint("Classes: " + " · ".join(labels[:MAX_LABELS_SHOWN]) + more)


def showing(studio: Studio, ws: Workspace, sample: Samples) -> tuple[Any, ...]:
    """Updates of Inputs.all that show a picked sample."""
    pack = studio.pack(ws)
    skip = gr.skip()
    if isinstance(sample, TextSamples):
        chosen = "\n".join(sample.choices or ())
        return skip, skip, sample.inputs[0], chosen, sample.chat, skip, skip, skip
    choices = ", ".join(sample.choices) if sample.choices else skip
    image = sample.images[0]
    on_pad = encode_drawing(image) if pack and pack.drawn else None
    return on_pad, None if on_pad else image, skip, choices, skip, skip, skip, skip


def image_sample(image: Any, names: str) -> ImageSamples:
    """One image, uint8 (height, width) or (height, width, 3), with class names as they are written in the box."""
    return ImageSamples(np.asarray(image)[None], np.full(1, -1), read_names(names))


def read_names(text: str) -> tuple[str, ...] | None:
    """Class names separated by commas or lines; None when there are none.

    Raises
        SampleError: there are more than 1000.
    """
    names = tuple(dict.fromkeys(name.strip() for name in text.replace("\n", ",").split(",") if name.strip()))
    return _not_too_many(names) or None


def text_sample(text: str, choices: str, chat: bool, before: Samples | None) -> TextSamples:
    """What the person wrote. The right answer of a picked sample (`before`) is known until it is changed.

    Raises
        SampleError: it is empty or very long, or there is only one choice.
    """
    if not text.strip():
        raise SampleError("There is no text yet. Write one, or pick a sample.")
    if len(text) > MAX_CHARACTERS:
        raise SampleError(f"The text has {len(text)} characters; at most {MAX_CHARACTERS} are tried. Shorten it.")
    # Lines as they are: how a choice begins, with a space or without, is part of it.
    lines = tuple(dict.fromkeys(line.rstrip("\r") for line in choices.split("\n") if line.strip()))
    if len(lines) == 1:
        raise SampleError("There is only one choice. Write at least two, one a line, or none.")
    offered = _not_too_many(lines) or None
    same = isinstance(before, TextSamples) and before.inputs == (text,) and before.choices == offered
    return TextSamples((text,), before.targets if same and isinstance(before, TextSamples) else (None,), offered, chat)


def _not_too_many(choices: tuple[str, ...]) -> tuple[str, ...]:
    if len(choices) > MAX_CHOICES:
        raise SampleError(f"There are {len(choices)} choices; at most {MAX_CHOICES} can be told apart here.")
    return choices
