"""How a person gives the models something to read: a pad, a picture or a text, whichever the task's family reads."""

from __future__ import annotations

from typing import Any

import gradio as gr
import numpy as np

from sftm_app.errors import SampleError, SFTMError
from sftm_app.evaluation.family import Family
from sftm_app.evaluation.image_files import centre_glyph
from sftm_app.evaluation.samples import ImageSamples, Samples, TextSamples
from sftm_app.evaluation.text_files import MAX_CHOICES
from sftm_app.ui.evaluate.labelled import pack_task
from sftm_app.ui.handlers import Updates, Values
from sftm_app.ui.studio import Studio
from sftm_app.ui.widgets import DrawPad, decode_drawing, encode_drawing
from sftm_app.ui.widgets.blocks import block
from sftm_app.ui.widgets.html import Html, hint, notice
from sftm_app.ui.workspace import Workspace

MAX_LABELS_SHOWN = 60
MAX_CHARACTERS = 20_000
INFO_TEXT = "What the models should answer."
INFO_CHOICES = (
    "One choice per line, written as it should follow the text; the most likely one is chosen. Leave empty to let the "
    "models write freely."
)


class SampleInputs:
    """The components; `suit` decides which of them are visible. prefix: of the elements' ids."""

    def __init__(self, studio: Studio, prefix: str = "") -> None:
        self.studio = studio
        self.pad = DrawPad(label="Draw a glyph of the chosen task", elem_id=f"{prefix}pad")
        self.picture = gr.Image(
            label="Image", type="numpy", visible=False, sources=["upload", "clipboard"], elem_id=f"{prefix}picture"
        )
        self.text = gr.Textbox(
            label="Your text", info=INFO_TEXT, lines=4, max_lines=12, visible=False, elem_id=f"{prefix}your-text"
        )
        self.choices = gr.Textbox(
            label="Choices", info=INFO_CHOICES, lines=2, max_lines=8, visible=False, elem_id=f"{prefix}choices"
        )
        self.chat = gr.Checkbox(
            label="Chat template",
            info="Put the text into the chat template of this model, as a message.",
            visible=False,
            elem_id=f"{prefix}chat",
        )
        self.ask = gr.Button("Ask the models", variant="primary", visible=False, elem_id=f"{prefix}ask")
        self.pick = gr.Button("Pick a sample", elem_id=f"{prefix}sample")
        self.known = block(elem_id=f"{prefix}known-classes")
        self.values: set[Any] = {self.pad, self.picture, self.text, self.choices, self.chat}
        self.all: set[Any] = {*self.values, self.ask, self.pick, self.known}

    def suit(self, ws: Workspace, task: str) -> Updates:
        """Show the inputs that suit the task, emptied."""
        family, pack = family_of(self.studio, ws, task), self.studio.pack(ws)
        images, text = (family is not None and family.reads == kind for kind in ("images", "text"))
        drawn = bool(pack and pack.drawn and images)
        chats = bool(family and self.studio.model_pool(ws).chats(task))
        asked = pack_task(pack, ws, task) if pack else None
        info = f"{family.hint} {asked.description if asked else ''}" if family else INFO_TEXT
        return {
            self.pad: gr.update(visible=drawn, value=None),
            self.picture: gr.update(visible=images and not drawn, value=None),
            self.text: gr.update(visible=text, value="", info=info),
            self.choices: _choices_update(family),
            # A demo's samples are whole prompts; a person's message to a chat model needs its template.
            self.chat: gr.update(visible=chats, value=chats and pack is None),
            self.ask: gr.update(visible=text or bool(family and family.choices)),
            self.pick: gr.update(visible=family is not None),
            self.known: _classes_html(self.studio, ws, task, family),
        }

    def show(self, ws: Workspace, sample: Samples) -> Updates:
        """Show a picked sample."""
        if isinstance(sample, TextSamples):
            return {self.text: sample.inputs[0], self.choices: "\n".join(sample.choices or ()), self.chat: sample.chat}
        pack, image = self.studio.pack(ws), sample.images[0]
        shown: Updates = {self.choices: ", ".join(sample.choices)} if sample.choices else {}
        if pack and pack.drawn:
            return {self.pad: encode_drawing(image), self.picture: None, **shown}
        return {self.pad: None, self.picture: image, **shown}

    def drawing(self, values: Values) -> ImageSamples | None:
        """What is drawn; None for an empty pad."""
        pixels = decode_drawing(values[self.pad])
        glyph = None if pixels is None else centre_glyph(pixels)
        return None if glyph is None else image_sample(glyph, "")

    def image(self, values: Values) -> ImageSamples | None:
        """The image, with class names as they are written in the box; None if there is none."""
        image = values[self.picture]
        return None if image is None else image_sample(image, values[self.choices])

    def written(self, values: Values, before: Samples | None) -> TextSamples:
        """The text. `before`: the sample shown so far."""
        return text_sample(values[self.text], values[self.choices], values[self.chat], before)


def family_of(studio: Studio, ws: Workspace, task: str) -> Family | None:
    """What kind of model a task is; None if it cannot be tried."""
    try:
        return studio.model_pool(ws).family(task) if studio.usable(ws) and task in ws.task_names else None
    except SFTMError:
        return None


def _choices_update(family: Family | None) -> Any:
    if family is None or not family.choices:
        return gr.update(visible=False, value="")
    info = "Separated by commas: cat, dog, red car" if family.reads == "images" else INFO_CHOICES
    return gr.update(visible=True, value="", label=family.choices, info=info)


def _classes_html(studio: Studio, ws: Workspace, task: str, family: Family | None) -> Html:
    """The classes of a task, or why it cannot be tried."""
    if not studio.usable(ws) or task not in ws.task_names:
        return Html("")
    if family is None:
        try:
            studio.model_pool(ws).family(task)
        except SFTMError as error:
            return notice("info", "This task cannot be tried", str(error))
    labels = list(studio.preflight(ws).tasks[ws.task_names.index(task)].checkpoint.id2label.values())
    if family is None or family.choices or family.picks or not labels:
        return Html("")
    more = f" and {len(labels) - MAX_LABELS_SHOWN} more" if len(labels) > MAX_LABELS_SHOWN else ""
    return hint("Classes: " + " · ".join(labels[:MAX_LABELS_SHOWN]) + more)


def image_sample(image: Any, names: str) -> ImageSamples:
    """One image, uint8 (height, width) or (height, width, 3), with class names as they are written in the box."""
    return ImageSamples(np.asarray(image)[None], np.full(1, -1), read_names(names))


def read_names(text: str) -> tuple[str, ...] | None:
    """Class names separated by commas or lines; None if there are none.

    Raises:
        SampleError: there are more than 1000.
    """
    names = tuple(dict.fromkeys(name.strip() for name in text.replace("\n", ",").split(",") if name.strip()))
    return _not_too_many(names) or None


def text_sample(text: str, choices: str, chat: bool, before: Samples | None) -> TextSamples:
    """What the person wrote. The right answer of a picked sample (`before`) stays known until it is changed.

    Raises:
        SampleError: the text is empty or very long, or there is only one choice.
    """
    if not text.strip():
        raise SampleError("There is no text yet. Write one, or pick a sample.")
    if len(text) > MAX_CHARACTERS:
        raise SampleError(f"The text has {len(text)} characters; the limit is {MAX_CHARACTERS}. Shorten it.")
    # Lines are not stripped: whether a choice begins with a space is part of it.
    lines = tuple(dict.fromkeys(line.rstrip("\r") for line in choices.split("\n") if line.strip()))
    if len(lines) == 1:
        raise SampleError("There is only one choice. Write at least two, one per line, or none.")
    offered = _not_too_many(lines) or None
    same = isinstance(before, TextSamples) and before.inputs == (text,) and before.choices == offered
    return TextSamples((text,), before.targets if same and isinstance(before, TextSamples) else (None,), offered, chat)


def _not_too_many(choices: tuple[str, ...]) -> tuple[str, ...]:
    if len(choices) > MAX_CHOICES:
        raise SampleError(f"There are {len(choices)} choices; the limit is {MAX_CHOICES}.")
    return choices
