"""The controls of every merge method, made from the methods' own declarations."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import gradio as gr

from sftm_app.methods import METHODS, get_method
from sftm_app.methods.params import Control, controls
from sftm_app.ui.handlers import sentences
from sftm_app.ui.rank_slider import rank_shown, rank_slider


@dataclass(frozen=True)
class Field:
    """The components of one parameter. read: their values -> the parameter; write: the parameter -> their updates."""

    components: tuple[Any, ...]
    read: Callable[[Sequence[Any]], Any]
    write: Callable[[Any], list[Any]]


class ParamsForm:
    """A method choice and, for each method, the group of its controls; only the chosen method's group is visible.

    live: ranks are slid instead of typed. prefix: of the elements' ids, so that a page can hold several forms.
    """

    def __init__(self, first: str = "sftm", live: bool = False, prefix: str = "") -> None:
        self.method = gr.Radio(
            [(method.title, method.name) for method in METHODS.values()],
            value=first,
            label="Method",
            info=METHODS[first].summary,
            elem_id=f"{prefix}method",
        )
        self._groups: dict[str, gr.Group] = {}
        self._fields: dict[tuple[str, str], Field] = {}
        for name, method in METHODS.items():
            with gr.Group(visible=name == first and bool(controls(method.params))) as group:
                for field, control in controls(method.params).items():
                    default = getattr(method.params(), field)
                    self._fields[name, field] = make_field(control, default, f"{prefix}{name}-{field}", live)
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
        """The method choice and all fields' components, in the order that `read` expects."""
        return [self.method, *(component for field in self._fields.values() for component in field.components)]

    def components(self, method: str, field: str) -> tuple[Any, ...]:
        """The components of one parameter: two for a rank that is slid, its kind and its amount; else one."""
        return self._fields[method, field].components

    def _show(self, chosen: str) -> list[Any]:
        groups = [gr.update(visible=name == chosen and bool(controls(METHODS[name].params))) for name in METHODS]
        return [gr.update(info=get_method(chosen).summary), *groups]

    def read(self, values: tuple[Any, ...]) -> tuple[str, dict[str, Any]]:
        """The method's name and its parameters, unchecked, from what `inputs` gave."""
        chosen, rest = values[0], list(values[1:])
        params = {}
        for (method, name), field in self._fields.items():
            own = [rest.pop(0) for _ in field.components]
            if method == chosen:
                params[name] = field.read(own)
        return chosen, params

    def write(self, method: str, params: dict[str, Any]) -> list[Any]:
        """Updates for `inputs` that show these settings."""
        updates: list[Any] = [gr.update(value=method)]
        for (owner, name), field in self._fields.items():
            updates += field.write(params.get(name)) if owner == method else [gr.skip()] * len(field.components)
        return updates

    def on_change(self, handler: Callable[..., Any], inputs: list[Any], outputs: list[Any]) -> None:
        """Call `handler` whenever any control changes."""
        for component in self.inputs:
            component.change(handler, inputs, outputs, queue=False, show_progress="hidden")


def make_field(control: Control, default: Any, elem_id: str, live: bool = False) -> Field:
    """The Gradio components of one parameter."""
    common = {"label": control.label, "info": control.help, "elem_id": elem_id}
    if control.kind == "rank" and live:
        components, read, write = rank_slider(control.label, default, elem_id)
        return Field(components, read, write)
    if control.kind == "choice":
        component: Any = gr.Radio(list(control.choices), value=default, **common)
    elif control.kind == "number":
        component = gr.Slider(control.minimum, control.maximum, value=default, step=control.step, **common)
    else:
        component = gr.Textbox(value=rank_shown(default), max_lines=1, **common)
        return Field((component,), lambda values: values[0], lambda value: [gr.update(value=rank_shown(value))])
    return Field((component,), lambda values: values[0], lambda value: [gr.update(value=value)])
