"""The controls of every merge method, made from the methods' own declarations."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gradio as gr

from sftm_app.merging.methods import METHODS, get_method
from sftm_app.merging.params import Control, controls
from sftm_app.ui.handlers import sentences


class ParamsForm:
    """A method choice and, for each method, the group of its controls; only the chosen method's group is visible."""

    def __init__(self, first: str = "sftm") -> None:
        self.method = gr.Radio(
            [(method.title, method.name) for method in METHODS.values()],
            value=first,
            label="Method",
            info=METHODS[first].summary,
            elem_id="method",
        )
        self._groups: dict[str, gr.Group] = {}
        self._fields: dict[tuple[str, str], Any] = {}
        for name, method in METHODS.items():
            with gr.Group(visible=name == first) as group:
                for field, control in controls(method.params).items():
                    self._fields[name, field] = make_control(
                        control, getattr(method.params(), field), f"{name}-{field}"
                    )
            self._groups[name] = group
        self.method.change(
            sentences(self._show),
            self.method,
            [self.method, *self._groups.values()],
            queue=False,
            show_progress="hidden",
        )

    @property
    def inputs(self) -> list[Any]:
        """The method choice and all fields, in the order that `read` expects."""
        return [self.method, *self._fields.values()]

    def _show(self, chosen: str) -> list[Any]:
        groups = [gr.update(visible=name == chosen and bool(controls(METHODS[name].params))) for name in METHODS]
        return [gr.update(info=get_method(chosen).summary), *groups]

    def read(self, values: tuple[Any, ...]) -> tuple[str, dict[str, Any]]:
        """The method's name and its parameters, unchecked, from what `inputs` gave."""
        chosen, rest = values[0], dict(zip(self._fields, values[1:], strict=True))
        return chosen, {field: value for (method, field), value in rest.items() if method == chosen}

    def write(self, method: str, params: dict[str, Any]) -> list[Any]:
        """Updates for `inputs` that show these settings."""
        updates = []
        for name, field in self._fields:
            shown = params.get(field) if name == method else None
            updates.append(
                gr.update(value=_shown(controls(METHODS[name].params)[field], shown)) if name == method else gr.skip()
            )
        return [gr.update(value=method), *updates]

    def on_change(self, handler: Callable[..., Any], inputs: list[Any], outputs: list[Any]) -> None:
        """Call `handler` whenever any control changes."""
        for component in self.inputs:
            component.change(handler, inputs, outputs, queue=False, show_progress="hidden")


def make_control(control: Control, default: Any, elem_id: str) -> Any:
    """The Gradio component of one parameter."""
    common = {"label": control.label, "info": control.help, "elem_id": elem_id}
    if control.kind == "choice":
        return gr.Radio(list(control.choices), value=default, **common)
    if control.kind == "number":
        return gr.Slider(control.minimum, control.maximum, value=default, step=control.step, **common)
    return gr.Textbox(value=_shown(control, default), max_lines=1, **common)


def _shown(control: Control, value: Any) -> Any:
    if control.kind != "rank":
        return value
    return "full" if value is None else f"{value:.6g}"
